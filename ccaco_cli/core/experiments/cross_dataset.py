"""A finished run, scored on another data set than it was trained on: nothing is tuned there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.experiments.datasets import prepared
from ccaco_cli.core.experiments.methods import encodings
from ccaco_cli.core.experiments.run_folder import load_run, refuse_other_modalities
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.score import SplitEncodings, SplitScorer, store
from ccaco_cli.core.types import OnProgress, no_progress


def on(
    paths: Iterable[Path],
    dataset: str,
    *,
    split: str = "test",
    every_stage: bool = False,
    device: str = "auto",
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
) -> list[Path]:
    """Scores runs on a split of a prepared data set, each once: the results stay in ``RUN/results/on/DATASET-HASH/SPLIT.STAGE.json``.

    every_stage  all stages, not only the run's own score
    Returns      the result files, for ``report``; the weight of the cross score and the thresholds are those that the run chose on its own
                 validation split
    Raises       DataError: other modalities, no such split; what ``load_run`` and ``prepared`` raise
    """
    folder = prepared(dataset, data_root, on_progress)
    data = shards.open(folder)
    found = []
    for run in results.find(paths):
        place = run.path / "results" / "on" / f"{data.name}-{data.manifest.sha256[:12]}"
        model = manifest.open(run.path, kind="run").sha256
        if model not in {(results.read(file) or {}).get("model") for file in place.glob(f"{split}.*.json")}:
            _score(run.path, data, split, place, device, on_progress)
        files = sorted(place.glob(f"{split}.*.json"))
        own = [file for file in files if file.stem == f"{split}.{run.facts['headline']}"]
        found += files if every_stage or not own else own
    return found


def seen_by(
    run: Path, data: shards.PairData, split: str, device: str = "auto", on_progress: OnProgress = no_progress
) -> tuple[SplitEncodings, Aligner, RunConfig, Manifest]:
    """A split of any data set as the model of a finished run sees it. Raises as ``on``."""
    aligner, towers, config, found = load_run(run, device)
    refuse_other_modalities(found, data)
    sides = columns(data, split, aligner, towers, config.model, on_progress)
    return encodings(data, split, sides, aligner, towers, config), aligner, config, found


def _score(run: Path, data: shards.PairData, split: str, place: Path, device: str, on_progress: OnProgress) -> None:
    seen, aligner, config, found = seen_by(run, data, split, device, on_progress)
    config = replace(config, eval=replace(config.eval, protocol="full"))
    facts = found.facts
    judge = SplitScorer(
        data.modalities,
        data.split(split),
        seen,
        aligner,
        config,
        float(facts["weight"]),
        tuned=bool(facts["weights_tried"]),
        thresholds=facts["thresholds"],
    )
    about = {
        "run": found.facts["name"],
        "model": found.sha256,
        "evaluation": data.manifest.facts.get("source", {}).get("evaluation"),
    }
    for stage, (how, result) in judge.stages().items():
        measured, items = judge.pairs(how)
        result = replace(result, metrics=result.metrics | measured)
        store(place, data, config, split, stage, judge.weight, how, result, judge.strata(result), items, **about)
