"""Contrastive models added up: the honest control of every gain that a second stage brings at more cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.retrieval.columns import columns
from ccaco_cli.core.types import OnProgress, silent
from ccaco_cli.core.workflows.score import Encodings, Judge, store
from ccaco_cli.core.workflows.train import encodings, load_run


def members(seeds: Sequence[int], size: int) -> dict[int, tuple[int, ...]]:
    """Seed of an ensemble -> the seeds of its models: each seed with those that follow it, in a ring, every set once.

    >>> members([0, 1, 2], 2)
    {0: (0, 1), 1: (1, 2), 2: (2, 0)}
    """
    rings = {seed: tuple(seeds[(place + step) % len(seeds)] for step in range(size)) for place, seed in enumerate(seeds)}
    return {seed: ring for seed, ring in rings.items() if next(s for s in rings if set(rings[s]) == set(ring)) == seed}


def score(
    label: str,
    seed: int,
    models: Sequence[Path],
    data: PairData,
    split: str,
    folder: Path,
    *,
    device: str = "auto",
    on_progress: OnProgress = silent,
) -> Path:
    """Scores the sum of the cosines of some runs on a split, by the code that scored each of them.

    label, seed  under which the result stands in tables
    models       finished runs of one arm
    folder       receives ``SPLIT.cosine.json``, which is left alone where it is of these very models already
    Returns      the result file
    """
    runs = [manifest.open(path, kind="run") for path in models]
    of = {run.path.name: run.sha256 for run in runs}
    file = folder / f"{split}.cosine.json"
    if file.is_file() and json.loads(file.read_text("utf-8")).get("members") == of:
        return file
    each = [_encoded(path, data, split, device, on_progress) for path in models]
    first, config = each[0][0], each[0][1]
    # unit vectors side by side, and as long as one: their dot product is the mean of the cosines
    sides = [torch.cat([getattr(one, side).z for one, _ in each], dim=-1) / len(each) ** 0.5 for side in ("a", "b")]
    found = replace(first, a=replace(first.a, z=sides[0]), b=replace(first.b, z=sides[1]), negatives=None, classes=None)
    judge = Judge(data.modalities, data.split(split), found, None, config, 0.0, tuned=False)
    result = judge.stages()["cosine"][1]
    measured, items = judge.pairs("cosine")
    result = replace(result, metrics=result.metrics | measured)
    fitted = [run.facts["fitted"] for run in runs]
    cost = {"steps": fitted[0]["steps"], "seconds": sum(one["seconds"] for one in fitted), "samples_per_second": None, "memory": None}
    about = {"run": f"{label}-s{seed}", "members": of, "fitted": cost, "parameters": sum(run.facts["parameters"] for run in runs)}
    named = replace(config, arm=label, seed=seed)
    store(folder, data, named, split, "cosine", 0.0, "cosine", result, judge.strata(result), items, **about)
    return file


def _encoded(path: Path, data: PairData, split: str, device: str, on_progress: OnProgress) -> tuple[Encodings, RunConfig]:
    aligner, towers, config, _ = load_run(path, device)
    sides = columns(data, split, aligner, towers, config.model, on_progress)
    return encodings(data, split, sides, aligner, towers, config), config
