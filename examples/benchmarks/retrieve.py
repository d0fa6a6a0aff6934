"""A text query from a cold start: ``ccaco retrieve`` against ``python -c "import open_clip"``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import record
import search_index

from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import SearchOptions, encode_query, search

options = record.arguments(__doc__, rows=123287, tower="open_clip:ViT-B-32@none", tokens=16)
rows = 2000 if options.quick else options.rows
spec = "tiny" if options.quick else options.tower
with tempfile.TemporaryDirectory() as place:
    folder = Path(place) / "b.idx"
    generated = search_index.build(folder, spec, rows, options.tokens)
    query = generated.query
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
    weights = sum(file.stat().st_size for file in generated.query_folder.iterdir())
    floor = record.bytes_(generated.vector_bytes + weights)  # each read once; all the rest is starting up
    table = record.in_processes(
        f"{label}, no rerank", [*ours, "--rerank", "0"], peer, options.repeats, wanted=4, limit=floor
    )
    table += record.in_processes(
        f"{label}, rerank 64", [*ours, "--rerank", "64"], peer, options.repeats, wanted=4, limit=floor
    )
    opened = Index(folder)
    query_vectors = opened.exported.encode(["a red cat sleeps"]) if opened.exported else None
    plain = encode_query(opened, "text", ["a red cat sleeps"])
    facts_ = [f"exported: {query}", f"storage: {generated.manifest.facts['storage']['image']}"]
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
