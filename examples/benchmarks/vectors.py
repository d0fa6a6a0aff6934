"""Search by size: exact search against faiss Flat, and the approximate types with their measured recall."""

from __future__ import annotations

import tempfile
from pathlib import Path

import faiss
import numpy as np
import record

from ccaco_cli.core.retrieval import vectors

given = record.arguments(__doc__, rows=123287, width=512, queries=256, types="ivf,hnsw,ivfpq", approximate=100000)
n = 20000 if given.quick else given.rows
rng = np.random.default_rng(0)
centres = rng.normal(size=(2000, given.width)).astype(
    np.float32
)  # clustered, as embeddings are: random vectors say nothing of recall


def draw(count: int) -> np.ndarray:
    z = centres[rng.integers(len(centres), size=count)] + rng.normal(size=(count, given.width)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


z, asked = draw(n), draw(given.queries)
rows, facts = [], []
with tempfile.TemporaryDirectory() as folder:
    vectors.write(Path(folder), z, "flat", None)
    ours, flat = vectors.open(Path(folder)), faiss.IndexFlatIP(given.width)
    flat.add(z)
    for count, wanted in ((1, None), (given.queries, 1.5)):
        what = f"exact, {n:,} x {given.width}, {count} at once"
        limit = max(record.bytes_(4 * n * given.width), record.operations(2 * n * given.width * count))
        calls = (lambda c=count: ours.search(asked[:c], 10)), (lambda c=count: flat.search(asked[:c], 10))
        rows.append(record.in_turn(what, *calls, given.repeats, wanted=wanted, limit=limit))
    same = float(np.mean(ours.search(asked, 10)[1] == flat.search(asked, 10)[1]))
    facts.append(f"share of equal answers: {same:.4f}")
few = z[: 5000 if given.quick else given.approximate]
for kind in given.types.split(","):
    with tempfile.TemporaryDirectory() as folder:
        built = vectors.write(Path(folder), few, kind, asked)
        size = sum((Path(folder) / name).stat().st_size for name in vectors.FILES if (Path(folder) / name).exists())
        facts.append(
            f"{kind}, {len(few):,} rows: recall@10 {built.recall:.3f} at setting {built.setting}, {size / len(few):,.0f} bytes an item"
        )
record.finish("Search by size", rows, given, facts=facts)
