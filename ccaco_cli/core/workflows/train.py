"""``ccaco train``: trains on a prepared data set and writes a run folder with checkpoints, a log and results."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ccaco_cli.core import distributed, fault, lock, manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.domain_names import SOURCE_TEST
from ccaco_cli.core.data.domains import across
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.experiments import stages
from ccaco_cli.core.experiments.datasets import prepared
from ccaco_cli.core.experiments.methods import CUT, METHODS, FittedModel
from ccaco_cli.core.experiments.pretrained import ZERO_SHOT
from ccaco_cli.core.experiments.request import TrainRequest, check
from ccaco_cli.core.experiments.run_folder import START_RUN, RunFolder, TrainOptions
from ccaco_cli.core.experiments.stages import Stage
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.modalities import blank_separated
from ccaco_cli.core.recipes import RecipeChoice
from ccaco_cli.core.scoring.answers import store_answers
from ccaco_cli.core.scoring.captions import store_captions
from ccaco_cli.core.scoring.score import score
from ccaco_cli.core.training.device_batches import worker_count
from ccaco_cli.core.training.loop import BEFORE_TRAINING
from ccaco_cli.core.types import OnNote, OnProgress, no_note, no_progress


def train(
    request: TrainRequest,
    folder: Path,
    options: TrainOptions = TrainOptions(),
    *,
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
    on_note: OnNote = no_note,
) -> Manifest:
    """Trains one model and scores its best checkpoint.

    Under a launcher all processes train; then the main process scores and the others end.

    Args:
        folder: the run. A finished one is continued as a further stage in a folder beside it (``stages``), if
            ``options.resume`` is true and the request has more epochs or steps.
        options: whether to resume, how often to save.
        on_note: called before the training with a sentence on what was chosen for the user.
    Returns:
        The manifest of the run: facts {"metrics", "headline", "weight", "fitted", "warnings", "modalities", ...}.
    Raises:
        DataError: the run is finished, or another process is writing it.
        LostProcess: a process of the launcher does not answer.
        Interrupted: the process was asked to end; a checkpoint is saved.
    """
    with distributed.session(request.device, on_progress, request.timeout) as report_progress:
        data = distributed.main_process_first(
            lambda: shards.open(prepared(request.dataset, data_root, report_progress), options.verify)
        )
        target = stages.folder_to_train(folder, options.resume)
        data, config, stage = distributed.main_process_first(lambda: _resolve(request, data, folder, target))
        folder = target
        with distributed.on_main_process(lambda: lock.hold(folder, "run")):
            if distributed.main():
                manifest.sweep(folder)
            runtime.limit_threads(worker_count(config.workers, runtime.device(config.device)))
            runtime.seed(config.seed)
            run_folder = RunFolder(folder, config, data, options, stage)
            recipe = request.recipe(data)
            if recipe is not None and distributed.main():
                on_note(recipe.reason)
            with run_folder.removed_when_refused():
                fitted_model = METHODS[config.method](data, config, run_folder, report_progress)
            with distributed.main_process_continues():
                return _score_and_write(data, config, fitted_model, run_folder, recipe)


def train_notes(run: Manifest) -> list[str]:
    """Sentences on a finished run, to read beside its results."""
    notes = [f"resumed although {change}" for change in run.facts.get("resumed_with", ())]
    notes += [f"warning: {warning['what']}" for warning in run.facts["warnings"] if warning["kind"] == CUT]
    pretrained = run.config["model"].get("spec") and run.config["method"] == "gradient"
    if pretrained and run.facts["fitted"]["best_epoch"] == BEFORE_TRAINING:
        notes.append("no epoch was better on validation than the model before training, so its weights were kept")
    if len(run.facts.get("stages", ())) > 1:
        *_, before, last = run.facts["stages"]
        notes.append(
            f"{before['name']} is unchanged; {last['name']} adds {last['steps']:,} steps in {last['epochs']:,} epochs: "
            f"{last['schedule']}"
        )
    further_sides = " and ".join(blank_separated(run.config["model"].get("further_sides", "")))
    for modality, cosine in run.facts.get("moved", {}).items():
        notes.append(
            f"warning: the {modality} side has learned, and the {further_sides} side has not: the mean cosine of "
            f"{modality} vectors before and after is {cosine:.3f}; --lock-{modality} keeps them as they are"
        )
    if not {name.partition(".")[0] for name in run.facts["metrics"]} & {"test", SOURCE_TEST}:
        notes.append("the data set has no test samples: these results are on val, which chose the best epoch too")
    return notes


def _score_and_write(
    data: PairData,
    config: RunConfig,
    fitted_model: FittedModel,
    run_folder: RunFolder,
    recipe: RecipeChoice | None,
) -> Manifest:
    fitted, folder, stage = fitted_model.fitted, run_folder.path, run_folder.stage
    if fitted_model.captions is not None:
        last = "test" if "test" in data.splits else "val"
        store_captions(folder / "results", data, config, last, fitted_model.captions(last))
    if fitted_model.answers is not None:
        last = "test" if "test" in data.splits else "val"
        if questions := fitted_model.answers(last):
            store_answers(folder / "results", data, config, last, questions)
    facts = score(
        data,
        fitted_model.encode,
        fitted_model.aligner,
        config,
        folder,
        fitted_model.oracle,
        cross_trained=fitted_model.cross_trained,
    )
    facts |= fitted_model.facts
    facts |= {"name": folder.name, "arm": config.arm, "seed": config.seed, "modalities": list(data.modalities)}
    facts |= {
        "fitted": asdict(fitted),
        "warnings": list(fitted.warnings),
        "protocol": data.manifest.facts["protocol"],
    }
    facts |= {"recipe": asdict(recipe)} if recipe is not None and config.method != ZERO_SHOT else {}
    facts |= {"resumed_with": list(run_folder.changes)} if run_folder.changes else {}
    inputs = {"dataset": data.manifest}
    if fitted_model.start is not None:
        inputs[START_RUN] = fitted_model.start
    if stage is not None:
        facts["stages"] = stage.entries(config, fitted)
        inputs["previous_stage"] = stage.previous
    files = [manifest.file_entry(folder, file) for file in fitted_model.files]
    device = str(runtime.device(config.device))
    fault.point("train.scored")
    return manifest.write(folder, "run", facts=facts, inputs=inputs, config=asdict(config), files=files, device=device)


def _resolve(
    request: TrainRequest, data: PairData, folder: Path, target: Path
) -> tuple[PairData, RunConfig, Stage | None]:
    """The data of the run, its config, and its stage: None where ``target``, the folder to train, is the first."""
    config = request.resolve(data)
    data = across(data, config.domain)
    check(config, data)
    if target != folder:
        return data, config, stages.next_stage(folder, config)
    if distributed.main() and manifest.exists(folder):
        raise stages.finished_error(folder, manifest.open(folder, kind="run"))
    return data, config, None
