"""Scores finished runs and pretrained models on a data set that they were not trained on. Nothing is tuned there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.split_shares import evaluation_split
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.evaluation.calibration import Calibration
from ccaco_cli.core.experiments.datasets import prepared_for_evaluation
from ccaco_cli.core.experiments.pretrained import LoadedModel, is_run, name_of, open_model
from ccaco_cli.core.experiments.run_folder import refuse_other_modalities
from ccaco_cli.core.experiments.split_encoding import SplitEncoder
from ccaco_cli.core.experiments.templates import Template, load_templates
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.score import store
from ccaco_cli.core.scoring.split_scorer import CLASS_METRICS, SplitEncodings, SplitScorer
from ccaco_cli.core.types import OnNote, OnProgress, no_note, no_progress


@dataclass(frozen=True)
class ScoreOptions:
    """How models are scored on a data set.

    Attributes:
        split: None = test, or val or train where the data set has no test.
        every_stage: return the files of all stages, not only of the headline stage.
        templates: sentences for the names of classes (``templates.load_templates``); empty = the data set's template.
        device: where the model computes.
    """

    split: str | None = None
    every_stage: bool = False
    templates: str = ""
    device: str = "auto"


def score_on(
    models: Sequence[str | Path],
    dataset: str,
    options: ScoreOptions = ScoreOptions(),
    *,
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
    on_note: OnNote = no_note,
) -> list[Path]:
    """Scores models on a split of a prepared data set, each once: results stay in
    ``RUN/results/on/DATASET-HASH/SPLIT.STAGE.json``, those of a pretrained model in ``runs/NAME/results/on/...``.

    The weight of the cross score and the thresholds are those that the run chose on its own validation split.

    Args:
        models: run folders, ablation folders, folders that hold runs, or SPECs of pretrained models.
        dataset: name or folder of a prepared data set, or a folder of class folders with images, which is prepared on
            the way.
    Returns:
        The result files.
    Raises:
        DataError: other modalities, or no such split; also what ``open_model`` and ``prepared`` raise.
    """
    job = open_scorer(dataset, options, data_root, on_progress, on_note)
    specs = [str(model) for model in models if not is_run(model)]
    runs = results.find_runs([Path(model) for model in models if is_run(model)])
    ensembles = [run.name for run in runs if run.path.is_file()]
    if ensembles and len(ensembles) < len(runs):
        on_note(f"ensembles have no model of their own and are left out: {', '.join(ensembles)}")
        runs = [run for run in runs if not run.path.is_file()]
    files: list[Path] = []
    for run in runs:
        described = manifest.open(run.path, kind="run")
        stage = "" if options.every_stage else described.facts["headline"]
        files += job.result_files(run.path, described, partial(open_model, run.path, options.device), stage)
    for spec in specs:
        model = open_model(spec, options.device)
        stage = "" if options.every_stage else model.manifest.facts["headline"]
        files += job.result_files(Path("runs") / name_of(spec), model.manifest, partial(_loaded, model), stage)
    return files


@dataclass(frozen=True, eq=False)
class DatasetScorer:
    """Scores models on one split with the same templates (``open_scorer``)."""

    data: shards.PairData
    split: str
    templates: tuple[Template, ...]
    on_progress: OnProgress

    @property
    def templates_key(self) -> str:
        """Names the templates; "" = the template of the data set."""
        sentences = [template("{}") for template in self.templates]
        return hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:12] if sentences else ""

    def folder(self, run: Path) -> Path:
        """Where the results of a run are stored."""
        parts = (self.data.name, self.data.manifest.sha256[:12], self.templates_key)
        return run / "results" / "on" / "-".join(filter(None, parts))

    def result_files(
        self, run: Path, described: Manifest, load: Callable[[], LoadedModel], stage: str = ""
    ) -> list[Path]:
        """The result files of a model; it is loaded and scored where they are not there.

        Args:
            run: folder of the model.
            described: its manifest.
            stage: only the file of this stage; "" = of all stages.
        """
        folder = self.folder(run)
        if not self.is_scored(folder, described):
            self.score(load(), folder)
        return self.files(folder, stage)

    def is_scored(self, folder: Path, model: Manifest) -> bool:
        files = folder.glob(f"{self.split}.*.json")
        return model.sha256 in {(results.read(file) or {}).get("model") for file in files}

    def files(self, folder: Path, stage: str) -> list[Path]:
        """The result file of a stage, or of all stages where there is none of it."""
        files = sorted(folder.glob(f"{self.split}.*.json"))
        return [file for file in files if file.stem == f"{self.split}.{stage}"] or files

    def score(self, model: LoadedModel, folder: Path) -> None:
        """Scores a model and writes its result files."""
        data, split, facts = self.data, self.split, model.manifest.facts
        config = replace(model.config, eval=replace(model.config.eval, protocol="full"))
        scorer = SplitScorer(
            data.modalities,
            data.split(split),
            encode_split(model, data, split, self.on_progress, self.templates),
            model.aligner,
            config,
            float(facts["weight"]),
            tuned=bool(facts["weights_tried"]),
            thresholds=facts["thresholds"],
        )
        origin = {
            "run": facts["name"],
            "model": model.manifest.sha256,
            "dataset_folder": str(data.manifest.path),
            "evaluation": data.manifest.facts.get("source", {}).get("evaluation"),
            "templates": len(self.templates),
        }
        calibrations = {name: Calibration.from_dict(fit) for name, fit in facts.get("calibration", {}).items()}
        classes = scorer.classes()
        class_metrics = {name: classes.evaluation.metrics[name] for name in CLASS_METRICS} if classes else {}
        for result in scorer.stages():
            result = scorer.with_reliability(result.extended(*scorer.pairs(result.scoring)), calibrations)
            if classes:
                result = result.extended(class_metrics, classes.items)
            store(folder, data, config, split, result, **origin)
        if classes:
            store(folder, data, config, split, classes, **origin)


def _loaded(model: LoadedModel) -> LoadedModel:
    return model


def open_scorer(
    dataset: str, options: ScoreOptions, data_root: Path, on_progress: OnProgress, on_note: OnNote = no_note
) -> DatasetScorer:
    """Opens a data set for scoring, and prepares it where that needs no download.

    Raises:
        DataError: no such data set, split or templates.
    """
    templates = load_templates(options.templates) if options.templates else ()
    data = shards.open(prepared_for_evaluation(dataset, data_root, on_progress, on_note))
    return DatasetScorer(data, options.split or evaluation_split(data.splits), templates, on_progress)


def encode_split(
    model: LoadedModel,
    data: shards.PairData,
    split: str,
    on_progress: OnProgress = no_progress,
    templates: tuple[Template, ...] = (),
) -> SplitEncodings:
    """Encodes a split of any data set. Raises DataError: the model aligns other modalities."""
    aligner, towers, config, described = model
    refuse_other_modalities(described, data)
    split_columns = columns(data, split, aligner, towers, config.model, on_progress)
    return SplitEncoder(data, config, aligner, towers, templates=templates).encode(split, split_columns)
