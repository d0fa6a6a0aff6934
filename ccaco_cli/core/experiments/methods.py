"""The methods that make a model: gradient descent, gradient descent on labels, canonical correlation of hand-made
features, and no training at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ccaco_cli.core import distributed, manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data import cache
from ccaco_cli.core.data.checks import decode_image
from ccaco_cli.core.data.domain_names import ORACLE, TARGET_VAL
from ccaco_cli.core.data.gpu_decoding import jpeg_columns
from ccaco_cli.core.data.loader import Column, PairDataset, PairPlan
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.encoding.columns import columns, decoder_words
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation.protocols import by_similarity, evaluate
from ccaco_cli.core.experiments import domain_adaptation
from ccaco_cli.core.experiments.pretrained import ZERO_SHOT
from ccaco_cli.core.experiments.run_folder import RunFolder
from ccaco_cli.core.experiments.split_encoding import SplitEncoder
from ccaco_cli.core.experiments.start import StartModel, add_updates, build_start, side_vectors
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.memory import PeakMemory
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model import handmade, weights
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.scoring.answers import AnsweredQuestion, answer_split
from ccaco_cli.core.scoring.captions import CaptionedSample, caption_split
from ccaco_cli.core.scoring.split_scorer import CLASS_ACCURACY, SplitEncodings
from ccaco_cli.core.training import loop, statistics
from ccaco_cli.core.training.checkpoint_saver import CheckpointOptions
from ccaco_cli.core.training.health_checks import HealthWarning
from ccaco_cli.core.training.state import StageStart
from ccaco_cli.core.types import Embedding, EncodedSamples, OnProgress

CUT = "captions-cut"
"""Kind of the warning that captions are longer than the text tower takes."""


@dataclass(frozen=True)
class FittedModel:
    """A model that a method made.

    Attributes:
        encode: name of a split -> its encodings.
        aligner: None for a model that has vectors only.
        fitted: summary of the training.
        facts: {"towers", "parameters", ...} for the manifest of the run.
        files: weights, inside the folder of the run.
        oracle: encodes ``test`` by the checkpoint that was chosen on the target domain, and leaves it in the aligner;
            None where there is none.
        start: manifest of the run that the model started from, if any.
        cross_trained: False when the best model is the start, whose cross branch has random weights.
        answers: name of a split -> its questions, answered by the decoder of the run; None without one. Called before
            ``oracle``.
        captions: name of a split -> its captions by the decoder, if there is one; called before ``oracle``.
    """

    encode: Callable[[str], SplitEncodings]
    aligner: Aligner | None
    fitted: loop.TrainingSummary
    facts: dict[str, Any]
    files: tuple[Path, ...] = ()
    oracle: Callable[[], SplitEncodings] | None = None
    start: Manifest | None = None
    cross_trained: bool = True
    captions: Callable[[str], list[CaptionedSample]] | None = None
    answers: Callable[[str], list[AnsweredQuestion]] | None = None


class Method(Protocol):
    """Makes a model. Calls ``run_folder.create_or_resume`` after all checks of the input, before it writes anything."""

    def __call__(
        self, data: PairData, config: RunConfig, run_folder: RunFolder, on_progress: OnProgress
    ) -> FittedModel: ...


def gradient(data: PairData, config: RunConfig, run_folder: RunFolder, on_progress: OnProgress) -> FittedModel:
    """Trains an aligner by gradient descent; its best checkpoint is scored."""
    start, heads = _build(data, config)
    aligner, towers = start.aligner, start.towers
    parameters = sum(p.numel() for p in aligner.parameters() if p.requires_grad)
    target_statistics = config.domain.stats == "target"
    for modality in domain_adaptation.target_modalities(data) if target_statistics else ():
        statistics.require_statistics(aligner, modality)
    distributed.main_process_only(run_folder.create_or_resume)
    with_oracle = config.domain.oracle and TARGET_VAL in data.splits
    splits = ("train", "val", TARGET_VAL) if with_oracle else ("train", "val")
    split_columns = distributed.main_process_first(
        lambda: {split: columns(data, split, aligner, towers, config.model, on_progress) for split in splits}
    )
    train_columns = split_columns["train"]
    vectors = side_vectors(aligner, start.moving, split_columns["val"]) if distributed.main() else {}
    before = domain_adaptation.compare_domains(aligner, train_columns, data) if distributed.main() else {}
    runtime.seed(config.seed)  # makes a run independent of whether the token cache was there
    fitted = _fit(SplitEncoder(data, config, aligner, towers, heads), split_columns, run_folder, on_progress)
    if not distributed.main():
        raise distributed.ProcessEnded(0)
    if distributed.world() > 1 or aligner.low_rank:
        # a new model is scored: the engine may have split this one, and the best weights have no low-rank updates
        runtime.seed(config.seed)
        aligner, _ = aligners.build(config.model, config.loss, data.modalities)
        aligner.stores_locked_towers = start.aligner.stores_locked_towers
        aligner.to(runtime.device(config.device))

    def load(checkpoint: str) -> Path:
        """Loads a checkpoint into the model; returns its file of weights."""
        file = run_folder.path / "checkpoints" / checkpoint / weights.WEIGHTS
        weights.load_weights(file, aligner)
        if heads is not None:
            weights.load_weights(file.with_name(weights.HEADS), heads)
        if target_statistics:
            domain_adaptation.reestimate_on_target(aligner, train_columns, data)
        return file

    with distributed.single_process():  # the other processes have ended
        best = load("best")
        if target_statistics:
            weights.save_weights(best, aligner)
        after = domain_adaptation.compare_domains(aligner, train_columns, data)
        moved = {
            m: float((z * vectors[m]).sum(1).mean())
            for m, z in side_vectors(aligner, start.moving, split_columns["val"]).items()
        }

    def encode_split(name: str) -> SplitEncodings:
        encoder = SplitEncoder(data, config, aligner, towers, heads)
        known = split_columns.get(name)
        return encoder.encode(name, columns(data, name, aligner, towers, config.model) if known is None else known)

    def captions(name: str) -> list[CaptionedSample]:
        known = split_columns.get(name) or columns(data, name, aligner, towers, config.model)
        train, described = data.split("train"), known[aligner.described]
        texts, beam = train_columns["text"], config.eval.beam
        return caption_split(aligner, towers, data.split(name), described, train, texts, beam)

    def answers(name: str) -> list[AnsweredQuestion]:
        known = split_columns.get(name) or columns(data, name, aligner, towers, config.model)
        return answer_split(aligner, towers, data.split(name), known[aligner.described], data.split("train"))

    def encode_oracle() -> SplitEncodings:
        load(ORACLE)
        return encode_split("test")

    fitted = replace(fitted, warnings=(*_cut_captions(split_columns, towers), *fitted.warnings))
    facts = {
        "towers": {modality: tower.fingerprint for modality, tower in towers.items()},
        "parameters": parameters,
        **({"moved": moved} if moved else {}),
        **domain_adaptation.store_comparison(data, before, after, run_folder.path),
    }
    oracle = encode_oracle if with_oracle and "test" in data.splits else None
    cross_trained = start.cross_trained or not (config.model.spec and fitted.best_epoch == loop.BEFORE_TRAINING)
    writers = (captions, answers) if aligner.decoder is not None else ()
    return FittedModel(encode_split, aligner, fitted, facts, (best,), oracle, start.run, cross_trained, *writers)


def _build(data: PairData, config: RunConfig) -> tuple[StartModel, Adaptation | None]:
    """The model before its first step, on its device, and the heads of a run across domains."""
    device = runtime.device(config.device)
    start = distributed.main_process_first(lambda: build_start(config, data.modalities))
    aligner = start.aligner
    add_updates(aligner, config)
    aligner.to(device)
    if config.optim.grad_checkpointing:
        aligner.set_grad_checkpointing()
    if config.optim.torchcompile:
        aligner.compile_towers(config.optim.compile_mode)
    heads = domain_adaptation.build_heads(data, config, aligner.embedding_size)
    return start, None if heads is None else heads.to(device)


def _fit(
    encoder: SplitEncoder,
    split_columns: Mapping[str, Mapping[str, Column]],
    run_folder: RunFolder,
    on_progress: OnProgress,
) -> loop.TrainingSummary:
    data, config, heads = encoder.data, encoder.config, encoder.heads
    split, train_columns = data.split("train"), split_columns["train"]
    if config.gpu_decode:
        train_columns = jpeg_columns(train_columns, runtime.device(config.device))
    a, b = (train_columns[modality] for modality in data.modalities)
    plan = PairPlan(
        a,
        b,
        split.family[: split.paired],
        config.optim.batch_size,
        config.seed,
        domain_adaptation.unpaired(data, split, train_columns, heads),
        config.optim.captions,
    )

    def evaluation_on(name: str) -> Callable[[Aligner], Mapping[str, float]]:
        return lambda model: replace(encoder, aligner=model).validate(name, split_columns[name])

    words, questions, decoder = None, None, encoder.aligner.decoder
    if decoder is not None:
        words, questions = decoder_words(data, split, encoder.towers["text"], decoder, config.loss.questions)
        plan = replace(plan, questions=questions.draw if questions else None)
    options, stage = run_folder.options, run_folder.stage
    start = StageStart() if stage is None else stage.start
    return loop.fit(
        encoder.aligner,
        loop.TrainingData(PairDataset(a, b, split.group, split.domain, words, questions), plan),
        config,
        run_folder.path,
        loop.TrainingCallbacks(
            evaluate=evaluation_on("val"),
            evaluate_oracle=evaluation_on(TARGET_VAL) if TARGET_VAL in split_columns else None,
            report_progress=on_progress,
        ),
        heads,
        replace(options.saving or CheckpointOptions(), resume=options.resume, stage=start),
    )


def _cut_captions(
    split_columns: Mapping[str, Mapping[str, Column]], towers: Mapping[str, Tower]
) -> list[HealthWarning]:
    """A warning with the number of captions that are longer than the text tower takes, if there are any."""
    counts = {
        split: (getattr(c["text"], "cut", 0), len(c["text"].row)) for split, c in split_columns.items() if "text" in c
    }
    parts = [f"{cut:,} of {count:,} captions of {split}" for split, (cut, count) in counts.items() if cut]
    if not parts:
        return []
    limit = f"longer than {towers['text'].tokens} tokens, and were cut"
    message = f"{' and '.join(parts)} are {limit}; --context-length takes more"
    return [{"step": 0, "kind": CUT, "what": message}]


def zero_shot(data: PairData, config: RunConfig, run_folder: RunFolder, on_progress: OnProgress) -> FittedModel:
    """A pretrained model without training: it is scored, and not stored, because its SPEC rebuilds it."""
    start = build_start(config, data.modalities)
    if start.new_sides:
        raise ConfigError(
            f"the model has no {start.new_sides[0]} side, so without training it aligns nothing with it",
            where=f"{ZERO_SHOT}, --model {config.model.spec}",
            expected=f"a run of {' and '.join(data.modalities)}",
            next="an arm that trains, such as clip",
        )
    aligner, towers = start.aligner.to(runtime.device(config.device)).eval(), start.towers
    run_folder.create_or_resume()
    encoder = SplitEncoder(data, config, aligner, towers)

    def columns_of(name: str) -> Mapping[str, Column]:
        return columns(data, name, aligner, towers, config.model, on_progress)

    with PeakMemory(next(aligner.parameters()).device) as peak:
        val_columns = columns_of("val")
        figures = encoder.validate("val", val_columns)
    _write_only_validation(run_folder.path, figures, loop.BEFORE_TRAINING)
    fitted = loop.TrainingSummary(0, loop.BEFORE_TRAINING, figures[config.eval.select], 0.0, 0.0, peak.mib)
    facts = {"towers": {m: tower.fingerprint for m, tower in towers.items()}, "parameters": 0}

    def encode_split(name: str) -> SplitEncodings:
        return encoder.encode(name, val_columns if name == "val" else columns_of(name))

    return FittedModel(encode_split, aligner, fitted, facts, start=start.run)


def _write_only_validation(folder: Path, figures: Mapping[str, float], epoch: int) -> None:
    """The log of a model that no steps have made: one line."""
    line = json.dumps({"step": 0, "epoch": epoch, "validation": dict(figures)}) + "\n"
    manifest.write_bytes(folder / "metrics.jsonl", line.encode())


def classifier(data: PairData, config: RunConfig, run_folder: RunFolder, on_progress: OnProgress) -> FittedModel:
    """Trains one tower and a label predictor, without text; the best epoch is chosen by accuracy on validation."""
    by_accuracy = replace(config, eval=replace(config.eval, select=CLASS_ACCURACY))
    return gradient(data, by_accuracy, run_folder, on_progress)


def cca(data: PairData, config: RunConfig, run_folder: RunFolder, on_progress: OnProgress) -> FittedModel:
    """Canonical correlation of hand-made features: solved in one step. Its vectors are scored, and no model is
    stored.
    """
    if data.modalities != ("image", "text"):
        raise DataError(
            "hand-made features exist for images and text only",
            where=data.name,
            expected="a data set of image and text",
        )
    run_folder.create_or_resume()
    start = time.perf_counter()
    split = data.split("train")
    train_features = _image_features(data, "train", on_progress)
    with PeakMemory(torch.device("cpu")) as peak:
        solved = handmade.align(train_features, split.captions, split.caption_row, seed=config.seed)
    seconds = time.perf_counter() - start

    def encode_split(name: str) -> SplitEncodings:
        part = data.split(name)
        images, texts = solved.images(_image_features(data, name, on_progress)), solved.texts(part.captions)
        return SplitEncodings(_samples(images), _samples(texts), np.arange(len(part)), part.caption_row)

    val = encode_split("val")
    group = data.split("val").group
    groups = group[val.row_a], group[val.row_b]
    metrics = evaluate("full", *groups, by_similarity(val.a.z, val.b.z, *groups), data.modalities).metrics
    _write_only_validation(run_folder.path, metrics, 0)
    fitted = loop.TrainingSummary(0, 0, metrics[config.eval.select], seconds, len(split) / seconds, peak.mib)
    return FittedModel(encode_split, None, fitted, {"towers": {}, "parameters": solved.parameters})


METHODS: dict[str, Method] = {"gradient": gradient, "cca": cca, "classifier": classifier, ZERO_SHOT: zero_shot}


def _image_features(data: PairData, name: str, on_progress: OnProgress) -> Any:
    """Hand-made features of the images of a split, cached with the data set because they depend on nothing else."""
    split = data.split(name)

    def compute() -> dict[str, Any]:
        rows = []
        for row in range(len(split)):
            rows.append(handmade.image_features(decode_image(split.media("image", [row])[0])))
            on_progress(row + 1, len(split), {"what": f"hand-made features of {name}"})
        return {"features": np.stack(rows)}

    key = cache.key(data=data.manifest.sha256, split=split.key, made="hog and colours, 1")
    return cache.arrays(data.manifest.path / "cache" / key, compute)["features"]


def _samples(z: Any) -> EncodedSamples:
    vectors = torch.from_numpy(z)
    return EncodedSamples(Embedding(vectors, vectors))
