"""A text query from a cold shell: ``ccaco retrieve`` against ``python -c "import open_clip"``, and answers held against the model's own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import record
import torch

from ccaco_cli.core import config as configs
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.retrieval import index as indexes
from ccaco_cli.core.retrieval.export import export
from ccaco_cli.core.retrieval.search import encode_query, search
from ccaco_cli.core.retrieval.token_store import Writer

given = record.arguments(__doc__, rows=123287, tower="open_clip:ViT-B-32@none", tokens=16)
rows = 2000 if given.quick else given.rows
spec = "tiny" if given.quick else given.tower
config = configs.override(configs.RunConfig(), {"model.width": 512, "model.text.spec": spec, "eval.shortlist": 64})
torch.manual_seed(0)
aligner, towers = aligners.build(config.model, config.loss, ("image", "text"))
aligner.eval()
z = np.random.default_rng(0).normal(size=(rows, 512)).astype(np.float32)
stored = min(rows, 5000)  # tokens of the first few stand for all: only those of a shortlist are read
tokens = (np.random.default_rng(1).normal(size=(stored, given.tokens, 512)) / 512**0.5).astype(np.float16)
with tempfile.TemporaryDirectory() as place:
    folder = Path(place) / "b.idx"
    items = {
        "id": [str(i) for i in range(rows)],
        "group": list(range(rows)),
        "text": [[f"caption {i}"] for i in range(rows)],
    }
    temp, name = indexes.begin(folder)
    one = {k: v[:1] for k, v in items.items()} | {"text": ["caption"]}
    storage = {}
    for side, vectors, told in (("image", z, items), ("text", z[:1], one)):
        with Writer(temp / side, "float16") as writer:
            for first in range(0, len(vectors), stored):
                part = tokens[: len(vectors) - first]
                writer.add(part, np.ones(part.shape[:2], bool))
        storage[side] = indexes.write_side(temp / side, vectors, [told], store="float16")
    indexes.save_model(temp / "model", aligner, towers, config)
    query = export(temp / indexes.QUERY, aligner, towers, ["a red cat sleeps on a mat"], matcher=True)
    temp.rename(folder / name)
    facts = {
        "modalities": ["image", "text"],
        "weight": 1.0,
        "headline": "two-stage",
        "name": "benchmark",
        "protocol": "",
    }
    run, data = (Manifest(folder, kind, facts) for kind in ("run", "dataset"))
    more = {"scale": float(aligner.logit_scale().detach()), "storage": storage, "query": query}
    found = indexes.complete(folder, name, run, data, "test", {"image": rows, "text": 1}, config, **more)
    ours = [
        sys.executable,
        "-m",
        "ccaco_cli",
        "retrieve",
        "a red cat sleeps",
        "--index",
        str(folder),
        "-k",
        "5",
        "--format",
        "csv",
    ]
    peer = [sys.executable, "-c", "import open_clip"]
    what = f"{spec}, {rows:,} vectors"
    weights = sum(file.stat().st_size for file in (folder / name / indexes.QUERY).iterdir())
    floor = record.bytes_(z.nbytes + weights)  # each read once; all the rest is starting up
    table = record.in_processes(
        f"{what}, no rerank", [*ours, "--rerank", "0"], peer, given.repeats, wanted=4, limit=floor
    )
    table += record.in_processes(
        f"{what}, rerank 64", [*ours, "--rerank", "64"], peer, given.repeats, wanted=4, limit=floor
    )
    opened = indexes.Index(folder)
    asked = opened.exported.encode(["a red cat sleeps"]) if opened.exported else None
    plain = encode_query(opened, "text", ["a red cat sleeps"])
    facts_ = [f"exported: {query}", f"manifest of {found.kind}: {found.facts['storage']['image']}"]
    if asked is not None:
        apart = float(np.abs(asked.z - plain.z.numpy()).max())
        same = [h.row for h in search(opened, "text", asked, 10)[0]] == [
            h.row for h in search(opened, "text", plain, 10)[0]
        ]
        facts_.append(f"largest difference of the query vector: {apart:.1e}; same ten answers: {same}")
        light = record.in_turn(
            "64 candidates x 1 query, in a warm process, against 0.1 s",
            lambda: search(opened, "text", asked, 10, rerank=64),
            lambda: __import__("time").sleep(0.1),
            given.repeats,
            wanted=1,
        )
        table.append(light)
    many = "\n".join(["a red cat sleeps on a mat"] * 256)
    begun = record.seconds(
        lambda: subprocess.run([*ours[:4], "-", *ours[5:]], input=many, text=True, check=True, capture_output=True)
    )
    facts_.append(f"256 queries from stdin, reranked: {record.time_text(begun)}, the model loaded once")
record.finish("Cold retrieve", table, given, facts=facts_)
