"""Stored tokens of a trained run: bytes per item, and R@1 after reranking, for each storage kind and grid."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import record
import torch

from ccaco_cli.core.data import shards
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.encoding.encode import EncodeOptions, encode
from ccaco_cli.core.experiments.datasets import prepared
from ccaco_cli.core.experiments.run_folder import load_run
from ccaco_cli.core.retrieval import token_store
from ccaco_cli.core.scoring.two_stage import two_stage
from ccaco_cli.core.types import EncodedSamples, LocalTokens

options = record.arguments(__doc__, run="runs/first", dataset="scenes", split="test", grids="0,16,4")
aligner, towers, config, run_manifest = load_run(Path(options.run), options.device)
data = shards.open(prepared(options.dataset))
part = data.split(options.split)
sides = columns(data, options.split, aligner, towers, config.model)
first, second = data.modalities
weight = (
    float(run_manifest.facts["weight"]) or 0.5
)  # where validation gave the cross branch no say, what one would cost it
rows_of = [part.group[sides[m].row] for m in data.modalities]
lines = []
for grid in map(int, options.grids.split(",")):
    encoded_sides = [
        encode(aligner, m, sides[m], local_tokens=True, options=EncodeOptions(max_tokens=grid if m == first else 0))
        for m in data.modalities
    ]
    for store in token_store.STORES:
        stored_sides, size = [], []
        for encoded in encoded_sides:
            with tempfile.TemporaryDirectory() as place:
                with token_store.Writer(Path(place), store) as writer:
                    writer.add(encoded.local_tokens.tokens.numpy(), encoded.local_tokens.mask.numpy())
                size.append(sum(f.stat().st_size for f in Path(place).iterdir()) / len(encoded.z))
                read, mask = map(torch.from_numpy, token_store.Tokens.open(Path(place)).read(np.arange(len(encoded.z))))
            stored_sides.append(EncodedSamples(encoded.embedding, LocalTokens(read, mask)))
        metrics = two_stage(aligner, *stored_sides, tuple(rows_of), config.eval, weight).metrics
        figures = ", ".join(f"{k} {100 * v:.1f} %" for k, v in metrics.items() if k.endswith("R@1"))
        lines.append(
            f"{store}, grid {grid or 'whole'}: {size[0]:,.0f} bytes a {first}, {size[1]:,.0f} a {second}; {figures}"
        )
cosine = ", ".join(
    f"{k} {100 * v:.1f} %"
    for k, v in run_manifest.facts["metrics"][f"{options.split}.cosine"].items()
    if k.endswith("R@1")
)
record.finish(
    "Stored tokens", [], options, facts=[f"none: 0 bytes; {cosine}", *lines, f"weight of the cross score {weight:g}"]
)
