"""Contrastive models added up: the honest control of every gain that a second stage brings at more cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.experiments.cross_dataset import seen_by
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.score import SplitScorer, store
from ccaco_cli.core.types import Embedding, EncodedSamples, OnProgress, no_progress


def can_ensemble(config: RunConfig) -> bool:
    """Whether an arm's models can be added up: they are contrastive only, and of one domain."""
    return config.method == "gradient" and config.loss.alpha > 0 and not config.loss.beta and not config.domain.target


def ensemble_label(label: str, size: int) -> str:
    """The row of a table that an ensemble of an arm's models belongs to."""
    return f"{label},ensemble={size}"


def score_all(
    arms: Mapping[str, Mapping[int, Path]],
    size: int,
    data: PairData,
    split: str,
    folder: Path,
    *,
    device: str = "auto",
    on_progress: OnProgress = no_progress,
) -> list[Path]:
    """``score`` of every ensemble of ``size`` seeds (0 = of none); label -> seed -> finished run.

    folder   receives ``LABEL,ensemble=SIZE-sSEED/``
    Returns  the result files
    """
    wanted = [
        (ensemble_label(label, size), seed, [runs[one] for one in ring])
        for label, runs in arms.items()
        for seed, ring in (members(list(runs), size) if 0 < size <= len(runs) else {}).items()
    ]
    found = []
    for number, (label, seed, models) in enumerate(wanted):
        on_progress(number, len(wanted), {"what": "ensembles"})
        found.append(score(label, seed, models, data, split, folder / f"{label}-s{seed}", device=device))
    return found


def members(seeds: Sequence[int], size: int) -> dict[int, tuple[int, ...]]:
    """Seed of an ensemble -> the seeds of its models: each seed with those that follow it, in a ring, every set once.

    >>> members([0, 1, 2], 2)
    {0: (0, 1), 1: (1, 2), 2: (2, 0)}
    """
    rings = {
        seed: tuple(seeds[(place + step) % len(seeds)] for step in range(size)) for place, seed in enumerate(seeds)
    }
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
    on_progress: OnProgress = no_progress,
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
    if file.is_file() and (results.read(file) or {}).get("members") == of:
        return file
    each = []
    for path in models:
        seen, _, config, _ = seen_by(path, data, split, device, on_progress)
        each.append(seen)
    first = each[0]
    # unit vectors side by side, and as long as one: their dot product is the mean of the cosines
    sides = [torch.cat([getattr(one, side).z for one in each], dim=-1) / len(each) ** 0.5 for side in ("a", "b")]
    a, b = (EncodedSamples(Embedding(z, z)) for z in sides)
    found = replace(first, a=a, b=b, negatives=None, classes=None)
    judge = SplitScorer(data.modalities, data.split(split), found, None, config, 0.0, tuned=False)
    result = judge.stages()["cosine"][1]
    measured, items = judge.pairs("cosine")
    result = replace(result, metrics=result.metrics | measured)
    fitted = [run.facts["fitted"] for run in runs]
    cost = {
        "steps": fitted[0]["steps"],
        "seconds": sum(one["seconds"] for one in fitted),
        "samples_per_second": None,
        "memory": None,
    }
    about = {
        "run": f"{label}-s{seed}",
        "members": of,
        "fitted": cost,
        "parameters": sum(run.facts["parameters"] for run in runs),
    }
    named = replace(config, arm=label, seed=seed)
    store(folder, data, named, split, "cosine", 0.0, "cosine", result, judge.strata(result), items, **about)
    return file
