"""Scores a finished run on another data set than its own. Nothing is tuned there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.split_shares import evaluation_split
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.experiments.datasets import prepared
from ccaco_cli.core.experiments.run_folder import load_run, refuse_other_modalities
from ccaco_cli.core.experiments.split_encoding import SplitEncoder
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.score import store
from ccaco_cli.core.scoring.split_scorer import SplitEncodings, SplitScorer
from ccaco_cli.core.types import OnProgress, no_progress


def score_on(
    paths: Iterable[Path],
    dataset: str,
    *,
    split: str | None = None,
    every_stage: bool = False,
    device: str = "auto",
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
) -> list[Path]:
    """Scores runs on a split of a prepared data set, each once: results stay in
    ``RUN/results/on/DATASET-HASH/SPLIT.STAGE.json``.

    The weight of the cross score and the thresholds are those that the run chose on its own validation split.

    Args:
        split: None = test, or val or train where the data set has no test.
        every_stage: return the files of all stages, not only of the headline stage.
    Returns:
        The result files.
    Raises:
        DataError: other modalities, or no such split; also what ``load_run`` and ``prepared`` raise.
    """
    data = shards.open(prepared(dataset, data_root, on_progress))
    split = split or evaluation_split(data.splits)
    all_files: list[Path] = []
    for run in results.find_runs(paths):
        folder = run.path / "results" / "on" / f"{data.name}-{data.manifest.sha256[:12]}"
        model = manifest.open(run.path, kind="run").sha256
        if model not in {(results.read(file) or {}).get("model") for file in folder.glob(f"{split}.*.json")}:
            _score(run.path, data, split, folder, device, on_progress)
        files = sorted(folder.glob(f"{split}.*.json"))
        headline = [file for file in files if file.stem == f"{split}.{run.facts['headline']}"]
        all_files += files if every_stage or not headline else headline
    return all_files


def encode_split(
    run: Path, data: shards.PairData, split: str, device: str = "auto", on_progress: OnProgress = no_progress
) -> tuple[SplitEncodings, Aligner, RunConfig, Manifest]:
    """Encodes a split of any data set by the model of a finished run. Raises as ``score_on``."""
    aligner, towers, config, run_manifest = load_run(run, device)
    refuse_other_modalities(run_manifest, data)
    split_columns = columns(data, split, aligner, towers, config.model, on_progress)
    encodings = SplitEncoder(data, config, aligner, towers).encode(split, split_columns)
    return encodings, aligner, config, run_manifest


def _score(run: Path, data: shards.PairData, split: str, folder: Path, device: str, on_progress: OnProgress) -> None:
    encodings, aligner, config, run_manifest = encode_split(run, data, split, device, on_progress)
    config = replace(config, eval=replace(config.eval, protocol="full"))
    facts = run_manifest.facts
    scorer = SplitScorer(
        data.modalities,
        data.split(split),
        encodings,
        aligner,
        config,
        float(facts["weight"]),
        tuned=bool(facts["weights_tried"]),
        thresholds=facts["thresholds"],
    )
    origin = {
        "run": facts["name"],
        "model": run_manifest.sha256,
        "evaluation": data.manifest.facts.get("source", {}).get("evaluation"),
    }
    for result in scorer.stages():
        store(folder, data, config, split, result.extended(*scorer.pairs(result.scoring)), **origin)
