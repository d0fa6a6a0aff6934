"""A text query from a cold start: ``ccaco retrieve`` against ``python -c "import open_clip"``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import record
import torch

from ccaco_cli.core import config_io
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.retrieval import index as indexes
from ccaco_cli.core.retrieval.export import export
from ccaco_cli.core.retrieval.generations import begin
from ccaco_cli.core.retrieval.search import SearchOptions, encode_query, search
from ccaco_cli.core.retrieval.token_store import Writer

options = record.arguments(__doc__, rows=123287, tower="open_clip:ViT-B-32@none", tokens=16)
rows = 2000 if options.quick else options.rows
spec = "tiny" if options.quick else options.tower
config = config_io.override(RunConfig(), {"model.width": 512, "model.text.spec": spec, "eval.shortlist": 64})
torch.manual_seed(0)
aligner, towers = aligners.build(config.model, config.loss, ("image", "text"))
aligner.eval()
z = np.random.default_rng(0).normal(size=(rows, 512)).astype(np.float32)
stored = min(rows, 5000)  # tokens of the first few stand for all: only those of a shortlist are read
tokens = (np.random.default_rng(1).normal(size=(stored, options.tokens, 512)) / 512**0.5).astype(np.float16)
with tempfile.TemporaryDirectory() as place:
    folder = Path(place) / "b.idx"
    items = {
        "id": [str(i) for i in range(rows)],
        "group": list(range(rows)),
        "text": [[f"caption {i}"] for i in range(rows)],
    }
    temp, name = begin(folder)
    caption_items = {k: v[:1] for k, v in items.items()} | {"text": ["caption"]}
    storage = {}
    for side, vectors, side_items in (("image", z, items), ("text", z[:1], caption_items)):
        with Writer(temp / side, "float16") as writer:
            for first in range(0, len(vectors), stored):
                part = tokens[: len(vectors) - first]
                writer.add(part, np.ones(part.shape[:2], bool))
        storage[side] = indexes.write_side(temp / side, vectors, [side_items], store="float16")
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
    scale = float(aligner.logit_scale().detach())
    more = {"scale": scale, "dim": aligner.embedding_size, "storage": storage, "query": query}
    index_manifest = indexes.complete(folder, name, run, data, "test", {"image": rows, "text": 1}, config, **more)
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
    label = f"{spec}, {rows:,} vectors"
    weights = sum(file.stat().st_size for file in (folder / name / indexes.QUERY).iterdir())
    floor = record.bytes_(z.nbytes + weights)  # each read once; all the rest is starting up
    table = record.in_processes(
        f"{label}, no rerank", [*ours, "--rerank", "0"], peer, options.repeats, wanted=4, limit=floor
    )
    table += record.in_processes(
        f"{label}, rerank 64", [*ours, "--rerank", "64"], peer, options.repeats, wanted=4, limit=floor
    )
    opened = indexes.Index(folder)
    query_vectors = opened.exported.encode(["a red cat sleeps"]) if opened.exported else None
    plain = encode_query(opened, "text", ["a red cat sleeps"])
    facts_ = [f"exported: {query}", f"manifest of {index_manifest.kind}: {index_manifest.facts['storage']['image']}"]
    if query_vectors is not None:
        difference = float(np.abs(query_vectors.z - plain.z.numpy()).max())
        same = [h.row for h in search(opened, "text", query_vectors, SearchOptions(10))[0]] == [
            h.row for h in search(opened, "text", plain, SearchOptions(10))[0]
        ]
        facts_.append(f"largest difference of the query vector: {difference:.1e}; same ten answers: {same}")
        light = record.alternate(
            "64 candidates x 1 query, in a warm process, against 0.1 s",
            lambda: search(opened, "text", query_vectors, SearchOptions(10, 64)),
            lambda: __import__("time").sleep(0.1),
            options.repeats,
            wanted=1,
        )
        table.append(light)
    queries = "\n".join(["a red cat sleeps on a mat"] * 256)
    begun = record.seconds(
        lambda: subprocess.run([*ours[:4], "-", *ours[5:]], input=queries, text=True, check=True, capture_output=True)
    )
    facts_.append(f"256 queries from stdin, reranked: {record.time_text(begun)}, the model loaded once")
record.finish("Cold retrieve", table, options, facts=facts_)
