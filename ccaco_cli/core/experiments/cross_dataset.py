"""Scores finished runs and pretrained models on a data set that they were not trained on. Nothing is tuned there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.split_shares import evaluation_split
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.experiments.datasets import prepared
from ccaco_cli.core.experiments.pretrained import LoadedModel, is_run, name_of, open_model
from ccaco_cli.core.experiments.run_folder import refuse_other_modalities
from ccaco_cli.core.experiments.split_encoding import SplitEncoder
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.score import store
from ccaco_cli.core.scoring.split_scorer import SplitEncodings, SplitScorer
from ccaco_cli.core.types import OnProgress, no_progress


def score_on(
    models: Sequence[str | Path],
    dataset: str,
    *,
    split: str | None = None,
    every_stage: bool = False,
    device: str = "auto",
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
) -> list[Path]:
    """Scores models on a split of a prepared data set, each once: results stay in
    ``RUN/results/on/DATASET-HASH/SPLIT.STAGE.json``, those of a pretrained model in ``runs/NAME/results/on/...``.

    The weight of the cross score and the thresholds are those that the run chose on its own validation split.

    Args:
        models: run folders, ablation folders, folders that hold runs, or SPECs of pretrained models.
        split: None = test, or val or train where the data set has no test.
        every_stage: return the files of all stages, not only of the headline stage.
    Returns:
        The result files.
    Raises:
        DataError: other modalities, or no such split; also what ``open_model`` and ``prepared`` raise.
    """
    data = shards.open(prepared(dataset, data_root, on_progress))
    split = split or evaluation_split(data.splits)
    specs = [str(model) for model in models if not is_run(model)]
    runs = results.find_runs([Path(model) for model in models if is_run(model)])
    files: list[Path] = []
    for run in runs:
        described = manifest.open(run.path, kind="run")
        folder = _results_folder(run.path, data)
        if not _is_scored(folder, split, described):
            _score(open_model(run.path, device), data, split, folder, on_progress)
        files += _stage_files(folder, split, "" if every_stage else described.facts["headline"])
    for spec in specs:
        model, folder = open_model(spec, device), _results_folder(Path("runs") / name_of(spec), data)
        if not _is_scored(folder, split, model.manifest):
            _score(model, data, split, folder, on_progress)
        files += _stage_files(folder, split, "" if every_stage else model.manifest.facts["headline"])
    return files


def encode_split(
    model: LoadedModel, data: shards.PairData, split: str, on_progress: OnProgress = no_progress
) -> SplitEncodings:
    """Encodes a split of any data set. Raises DataError: the model aligns other modalities."""
    aligner, towers, config, described = model
    refuse_other_modalities(described, data)
    split_columns = columns(data, split, aligner, towers, config.model, on_progress)
    return SplitEncoder(data, config, aligner, towers).encode(split, split_columns)


def _results_folder(run: Path, data: shards.PairData) -> Path:
    return run / "results" / "on" / f"{data.name}-{data.manifest.sha256[:12]}"


def _is_scored(folder: Path, split: str, model: Manifest) -> bool:
    return model.sha256 in {(results.read(file) or {}).get("model") for file in folder.glob(f"{split}.*.json")}


def _stage_files(folder: Path, split: str, stage: str) -> list[Path]:
    """The result file of a stage, or of all stages where there is none of it."""
    files = sorted(folder.glob(f"{split}.*.json"))
    return [file for file in files if file.stem == f"{split}.{stage}"] or files


def _score(model: LoadedModel, data: shards.PairData, split: str, folder: Path, on_progress: OnProgress) -> None:
    encodings = encode_split(model, data, split, on_progress)
    config = replace(model.config, eval=replace(model.config.eval, protocol="full"))
    facts = model.manifest.facts
    scorer = SplitScorer(
        data.modalities,
        data.split(split),
        encodings,
        model.aligner,
        config,
        float(facts["weight"]),
        tuned=bool(facts["weights_tried"]),
        thresholds=facts["thresholds"],
    )
    origin = {
        "run": facts["name"],
        "model": model.manifest.sha256,
        "evaluation": data.manifest.facts.get("source", {}).get("evaluation"),
    }
    for result in scorer.stages():
        store(folder, data, config, split, result.extended(*scorer.pairs(result.scoring)), **origin)
