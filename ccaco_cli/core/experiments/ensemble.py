"""Ensembles of contrastive models: their mean cosine is the fair control for a second stage, because both cost more
than one model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.experiments.cross_dataset import encode_split
from ccaco_cli.core.experiments.pretrained import open_model
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.score import store
from ccaco_cli.core.scoring.split_scorer import SplitEncodings, SplitScorer
from ccaco_cli.core.types import Embedding, EncodedSamples, OnProgress, no_progress


@dataclass(frozen=True)
class Ensemble:
    """Finished runs of one arm whose cosines are averaged.

    Attributes:
        label, seed: identity of the ensemble in tables.
        runs: folders of the runs.
    """

    label: str
    seed: int
    runs: Sequence[Path]

    @property
    def name(self) -> str:
        return f"{self.label}-s{self.seed}"


def can_ensemble(config: RunConfig) -> bool:
    """True for arms whose models can be averaged: contrastive only, and without a target domain."""
    return config.method == "gradient" and config.loss.alpha > 0 and not config.loss.beta and not config.domain.target


def ensemble_label(label: str, size: int) -> str:
    """The row of a table that an ensemble of models of an arm belongs to."""
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
    """Scores every ensemble of ``size`` seeds of each arm.

    Args:
        arms: label -> seed -> finished run.
        size: 0 = no ensembles.
        folder: receives ``LABEL,ensemble=SIZE-sSEED/``.
    Returns:
        The result files.
    """
    ensembles = [
        Ensemble(ensemble_label(label, size), seed, [runs[member] for member in seeds])
        for label, runs in arms.items()
        for seed, seeds in (members(list(runs), size) if 0 < size <= len(runs) else {}).items()
    ]
    files = []
    for number, ensemble in enumerate(ensembles):
        on_progress(number, len(ensembles), {"what": "ensembles"})
        files.append(score_ensemble(ensemble, data, split, folder / ensemble.name, device=device))
    return files


def members(seeds: Sequence[int], size: int) -> dict[int, tuple[int, ...]]:
    """Seed of an ensemble -> seeds of its models: each seed with the seeds that follow it, cyclically; every set once.

    >>> members([0, 1, 2], 2)
    {0: (0, 1), 1: (1, 2), 2: (2, 0)}
    """
    rings = {
        seed: tuple(seeds[(place + step) % len(seeds)] for step in range(size)) for place, seed in enumerate(seeds)
    }
    return {seed: ring for seed, ring in rings.items() if next(s for s in rings if set(rings[s]) == set(ring)) == seed}


def score_ensemble(
    ensemble: Ensemble,
    data: PairData,
    split: str,
    folder: Path,
    *,
    device: str = "auto",
    on_progress: OnProgress = no_progress,
) -> Path:
    """Scores the mean cosine of the runs of an ensemble on a split, with the code that scored each run.

    Args:
        folder: receives ``SPLIT.cosine.json``; a file there that comes from the same runs is kept.
    Returns:
        The result file.
    """
    runs = [manifest.open(path, kind="run") for path in ensemble.runs]
    sha256_of_runs = {run.path.name: run.sha256 for run in runs}
    file = folder / f"{split}.cosine.json"
    if file.is_file() and (results.read(file) or {}).get("members") == sha256_of_runs:
        return file
    encoded: list[SplitEncodings] = []
    for path in ensemble.runs:
        model = open_model(path, device)
        encoded.append(encode_split(model, data, split, on_progress))
        config = model.config
    encodings = _concatenate(encoded)
    scorer = SplitScorer(data.modalities, data.split(split), encodings, None, config, 0.0, tuned=False)
    (result,) = (result for result in scorer.stages() if result.stage == "cosine")
    fitted = [run.facts["fitted"] for run in runs]
    origin = {
        "run": ensemble.name,
        "members": sha256_of_runs,
        "fitted": {
            "steps": fitted[0]["steps"],
            "seconds": sum(summary["seconds"] for summary in fitted),
            "samples_per_second": None,
            "memory": None,
        },
        "parameters": sum(run.facts["parameters"] for run in runs),
    }
    config = replace(config, arm=ensemble.label, seed=ensemble.seed)
    return store(folder, data, config, split, result.extended(*scorer.pairs("cosine")), **origin)


def _concatenate(encodings: Sequence[SplitEncodings]) -> SplitEncodings:
    """Unit vectors of several models as one unit vector: the dot product of two is the mean of their cosines."""
    scale = len(encodings) ** 0.5
    z_a, z_b = (torch.cat([getattr(e, side).z for e in encodings], dim=-1) / scale for side in ("a", "b"))
    a, b = (EncodedSamples(Embedding(z, z)) for z in (z_a, z_b))
    return replace(encodings[0], a=a, b=b, choices=None, classes=None)
