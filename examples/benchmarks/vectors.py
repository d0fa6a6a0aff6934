"""Search by size: exact search against faiss Flat, and the approximate types with their measured recall."""

from __future__ import annotations

import tempfile
from pathlib import Path

import faiss
import numpy as np
import record

from ccaco_cli.core.retrieval import vectors
from ccaco_cli.core.retrieval.filters import Selection

options = record.arguments(__doc__, rows=123287, width=512, queries=256, types="ivf,hnsw,ivfpq", approximate=100000)
n = 20000 if options.quick else options.rows
rng = np.random.default_rng(0)
centres = rng.normal(size=(2000, options.width)).astype(
    np.float32
)  # clustered, as embeddings are: random vectors say nothing of recall


def draw(count: int) -> np.ndarray:
    z = centres[rng.integers(len(centres), size=count)] + rng.normal(size=(count, options.width)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


z, queries = draw(n), draw(options.queries)
rows, facts = [], []
with tempfile.TemporaryDirectory() as folder:
    vectors.write(Path(folder), z, "flat", None)
    ours, flat = vectors.open(Path(folder)), faiss.IndexFlatIP(options.width)
    flat.add(z)
    for count, wanted in ((1, None), (options.queries, 1.5)):
        label = f"exact, {n:,} x {options.width}, {count} at once"
        limit = max(record.bytes_(4 * n * options.width), record.operations(2 * n * options.width * count))
        calls = (lambda c=count: ours.search(queries[:c], 10)), (lambda c=count: flat.search(queries[:c], 10))
        rows.append(record.alternate(label, *calls, options.repeats, wanted=wanted, limit=limit))
    same = float(np.mean(ours.search(queries, 10)[1] == flat.search(queries, 10)[1]))
    facts.append(f"share of equal answers: {same:.4f}")


def filtered_recalls(folder: Path, exact: vectors.Vectors, z: np.ndarray) -> str:
    """Recall@10 of an approximate index among the rows of a condition: drawn at random, and near each other."""
    choices = {
        "a random tenth": np.flatnonzero(rng.random(len(z)) < 0.1),
        "a random half": np.flatnonzero(rng.random(len(z)) < 0.5),
        "a fifth of neighbours": np.flatnonzero(z[:, 0] > np.quantile(z[:, 0], 0.8)),
    }
    recalls = []
    for name, selected in choices.items():
        selection = Selection("", lambda selected=selected: selected)
        answers, wanted = (side.search(queries, 10, selection)[1] for side in (vectors.open(folder), exact))
        recalls.append(f"{vectors.recall_of(answers, wanted):.3f} ({name})")
    return ", ".join(recalls)


vectors.EXACT_SELECTION = 0  # fewer rows than this are searched exactly
subset = z[: 5000 if options.quick else options.approximate]
for kind in options.types.split(","):
    with tempfile.TemporaryDirectory() as folder:
        built = vectors.write(Path(folder), subset, kind, queries)
        size = sum((Path(folder) / name).stat().st_size for name in vectors.FILES if (Path(folder) / name).exists())
        facts.append(
            f"{kind}, {len(subset):,} rows: recall@10 {built.recall:.3f} at setting {built.setting}, "
            f"{size / len(subset):,.0f} bytes an item; with a condition "
            f"{filtered_recalls(Path(folder), vectors.Flat(Path(folder) / vectors.VECTORS), subset)}"
        )
record.finish("Search by size", rows, options, facts=facts)
