"""The ways in which a model comes about: trained by gradient descent, by labels alone, or solved from hand-made features."""

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
from ccaco_cli.core.data.domains import TARGET_VAL
from ccaco_cli.core.data.loader import Column, PairDataset, PairPlan
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation.protocols import by_similarity, evaluate
from ccaco_cli.core.experiments import domain_adaptation
from ccaco_cli.core.experiments.run_folder import RunFolder
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model import handmade, weights
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval import rerank
from ccaco_cli.core.scoring import caption_choice
from ccaco_cli.core.scoring.score import CLASS_ACCURACY, SplitEncodings, accuracies
from ccaco_cli.core.training import loop, statistics
from ccaco_cli.core.types import Embedding, EncodedSamples, OnProgress, move

CUT = "captions-cut"
"""The warning of captions that lost their end."""


@dataclass(frozen=True)
class FittedModel:
    """A model, however it came about.

    encode   split name -> its items
    aligner  None for a model that has vectors only
    fitted   what training says of itself
    facts    {"towers", "parameters"} for the run's manifest
    files    weights, inside the run's folder
    oracle   the items of ``test`` by the checkpoint that the target chose, which is in the aligner from then on; None where there is none
    """

    encode: Callable[[str], SplitEncodings]
    aligner: Aligner | None
    fitted: loop.TrainingSummary
    facts: dict[str, Any]
    files: tuple[Path, ...] = ()
    oracle: Callable[[], SplitEncodings] | None = None


class Method(Protocol):
    """Makes a model; calls ``claim`` when nothing the user got wrong is left to find, before it writes."""

    def __call__(
        self,
        data: PairData,
        config: RunConfig,
        run_folder: RunFolder,
        on_progress: OnProgress,
    ) -> FittedModel: ...


def gradient(
    data: PairData,
    config: RunConfig,
    run_folder: RunFolder,
    on_progress: OnProgress,
) -> FittedModel:
    """An aligner, trained by gradient descent; the best checkpoint is scored."""
    folder, device = run_folder.path, runtime.device(config.device)
    aligner, towers = distributed.main_process_first(lambda: aligners.build(config.model, config.loss, data.modalities))
    aligner.to(device)
    if config.optim.grad_checkpointing:
        aligner.set_grad_checkpointing()
    if config.optim.torchcompile:
        aligner.compile_towers()
    heads = domain_adaptation.heads(data, config)
    if heads is not None:
        heads.to(device)
    adapts = config.domain.stats == "target"
    for modality in domain_adaptation.media(data) if adapts else ():
        statistics.refuse_without(aligner, modality)
    distributed.main_process_only(run_folder.create_or_resume)
    wanted = ("train", "val", TARGET_VAL) if config.domain.oracle and TARGET_VAL in data.splits else ("train", "val")
    parts = distributed.main_process_first(
        lambda: {split: columns(data, split, aligner, towers, config.model, on_progress) for split in wanted}
    )
    split = data.split("train")
    a, b = (parts["train"][m] for m in data.modalities)
    before = domain_adaptation.look(aligner, parts["train"], data) if distributed.main() else {}
    runtime.seed(config.seed)  # so that a run does not depend on whether the cache had to be made
    fitted = loop.fit(
        aligner,
        PairDataset(a, b, split.group, split.domain),
        PairPlan(
            a,
            b,
            split.family[: split.paired],
            config.optim.batch_size,
            config.seed,
            domain_adaptation.unpaired(data, split, parts["train"], heads),
            config.optim.captions,
        ),
        config,
        folder,
        lambda model: validate(model, data, parts["val"], config, heads=heads),
        resume=run_folder.options.resume,
        saving=run_folder.options.saving,
        adaptation=heads,
        oracle=(lambda model: validate(model, data, parts[TARGET_VAL], config, TARGET_VAL, heads))
        if TARGET_VAL in parts
        else None,
        on_progress=on_progress,
    )
    if distributed.world() > 1:  # an engine may have cut the model into parts: the first process scores a whole one
        if not distributed.main():
            raise distributed.ProcessEnded(0)
        runtime.seed(config.seed)
        aligner = aligners.build(config.model, config.loss, data.modalities)[0].to(device)

    def chosen(name: str) -> Path:
        """Puts a checkpoint into the model."""
        file = folder / "checkpoints" / name / weights.WEIGHTS
        weights.load_weights(file, aligner)
        if heads is not None:
            weights.load_weights(file.with_name(weights.HEADS), heads)
        if adapts:
            domain_adaptation.to_target(aligner, parts["train"], data)
        return file

    with distributed.single_process():  # the others have left
        best = chosen("best")
        if adapts:
            weights.save_weights(best, aligner)
        after = domain_adaptation.look(aligner, parts["train"], data)

    def encoded(name: str) -> SplitEncodings:
        sides = parts[name] if name in parts else columns(data, name, aligner, towers, config.model)
        return encodings(data, name, sides, aligner, towers, config, heads)

    def oracle() -> SplitEncodings:
        chosen(domain_adaptation.ORACLE)
        return encoded("test")

    trained = sum(p.numel() for p in aligner.parameters() if p.requires_grad)
    fitted = replace(fitted, warnings=(*_cut(parts, towers), *fitted.warnings))
    facts = {"towers": {m: t.fingerprint for m, t in towers.items()}, "parameters": trained} | domain_adaptation.note(
        data, before, after, folder
    )
    return FittedModel(
        encoded, aligner, fitted, facts, (best,), oracle if fitted.oracle_epoch >= 0 and "test" in data.splits else None
    )


def classifier(
    data: PairData,
    config: RunConfig,
    run_folder: RunFolder,
    on_progress: OnProgress,
) -> FittedModel:
    """One tower and a label predictor, without words; chosen by accuracy on validation."""
    by_accuracy = replace(config, eval=replace(config.eval, select=CLASS_ACCURACY))
    return gradient(data, by_accuracy, run_folder, on_progress)


def _classes(
    one: EncodedSamples,
    data: PairData,
    name: str,
    aligner: Aligner,
    towers: Mapping[str, Tower],
    heads: Adaptation | None,
) -> Any:
    """What ``SplitEncodings.classes`` holds: samples and classes as vectors, by the label predictor where there is one, else by prompts."""
    names = data.split(name).labels
    if heads is not None and heads.predictor is not None:
        with torch.inference_mode():
            logits = heads.eval().predict(one.z.to(next(heads.parameters()).device)).float().cpu()
        return logits, torch.eye(len(names))
    if len(names) < 2 or data.modalities[1] != "text":
        return None
    template = data.manifest.facts.get("source", {}).get("template", "{}")
    device = next(aligner.parameters()).device
    with torch.inference_mode():
        prompts, _ = aligner.eval().encode(
            "text", move(towers["text"].preprocess([template.format(name) for name in names]), device)
        )
    return one.z, prompts.z.float().cpu()


def encodings(
    data: PairData,
    name: str,
    sides: Mapping[str, Column],
    aligner: Aligner,
    towers: Mapping[str, Tower],
    config: RunConfig,
    heads: Adaptation | None = None,
) -> SplitEncodings:
    """A split as an aligner sees it, with all that its scores need."""
    local = config.loss.beta > 0
    one, other = (encode(aligner, m, c, local_tokens=local) for m, c in sides.items())
    row_a, row_b = (c.row for c in sides.values())
    asked = None
    if "text" in sides:
        asked = caption_choice.find(
            data.split(name), towers["text"].preprocess, lambda c: encode(aligner, "text", c, local_tokens=local)
        )
    return SplitEncodings(one, other, row_a, row_b, asked, _classes(one, data, name, aligner, towers, heads))


def _cut(parts: Mapping[str, Mapping[str, Column]], towers: Mapping[str, Tower]) -> list[dict[str, Any]]:
    """A warning when captions are longer than the text tower takes, with how many."""
    counts = {split: (getattr(c["text"], "cut", 0), len(c["text"].row)) for split, c in parts.items() if "text" in c}
    told = [f"{cut:,} of {count:,} captions of {split}" for split, (cut, count) in counts.items() if cut]
    if not told:
        return []
    what = f"{' and '.join(told)} are longer than {towers['text'].tokens} tokens, and were cut; --context-length takes more"
    return [{"step": 0, "kind": CUT, "what": what}]


def cca(
    data: PairData,
    config: RunConfig,
    run_folder: RunFolder,
    on_progress: OnProgress,
) -> FittedModel:
    """Hand-made features and canonical correlation: solved, not trained; its vectors are scored and not kept."""
    if data.modalities != ("image", "text"):
        raise DataError(
            "hand-made features are of pictures and words", where=data.name, expected="a data set of image and text"
        )
    run_folder.create_or_resume()
    clock = time.perf_counter()
    split = data.split("train")
    found = handmade.align(_features(data, "train", on_progress), split.captions, split.caption_row, seed=config.seed)
    seconds = time.perf_counter() - clock

    def encoded(name: str) -> SplitEncodings:
        part = data.split(name)
        one, other = found.pictures(_features(data, name, on_progress)), found.texts(part.captions)
        return SplitEncodings(_vectors(one), _vectors(other), np.arange(len(part)), part.caption_row)

    val = encoded("val")
    group = data.split("val").group
    ids = group[val.row_a], group[val.row_b]
    figures = evaluate("full", *ids, by_similarity(val.a.z, val.b.z, *ids), data.modalities).metrics
    manifest.write_bytes(
        run_folder.path / "metrics.jsonl", (json.dumps({"step": 0, "epoch": 0, "validation": figures}) + "\n").encode()
    )
    fitted = loop.TrainingSummary(
        0, 0, figures[config.eval.select], seconds, len(split) / seconds, loop.peak_memory(torch.device("cpu"))
    )
    return FittedModel(encoded, None, fitted, {"towers": {}, "parameters": found.parameters})


METHODS: dict[str, Method] = {"gradient": gradient, "cca": cca, "classifier": classifier}


def _features(data: PairData, name: str, on_progress: OnProgress) -> Any:
    """Hand-made features of a split's pictures, computed once into the data set's cache: they depend on nothing else."""
    split = data.split(name)

    def make() -> dict[str, Any]:
        rows = []
        for row in range(len(split)):
            rows.append(handmade.picture(decode_image(split.media("image", [row])[0])))
            on_progress(row + 1, len(split), {"what": f"hand-made features of {name}"})
        return {"features": np.stack(rows)}

    key = cache.key(data=data.manifest.sha256, split=split.key, made="hog and colours, 1")
    return cache.arrays(data.manifest.path / "cache" / key, make)["features"]


def _vectors(z: Any) -> EncodedSamples:
    vectors = torch.from_numpy(z)
    return EncodedSamples(Embedding(vectors, vectors))


def validate(
    aligner: Aligner,
    data: PairData,
    parts: Mapping[str, Column],
    config: RunConfig,
    name: str = "val",
    heads: Adaptation | None = None,
) -> dict[str, float]:
    """Figures of a validation split that choose the best epoch: by cosine, or every pair of a part when there is no contrastive half; by
    class when there is neither half."""
    (first, a), (second, b) = parts.items()
    split = data.split(name)
    group = split.group
    if config.loss.alpha == config.loss.beta == 0:
        one = encode(aligner, first, a, share=True)
        return accuracies(split, a.row, _classes(one, data, name, aligner, {}, heads), data.modalities)[0].metrics
    if config.loss.alpha > 0:
        one, other = (encode(aligner, m, c, share=True) for m, c in ((first, a), (second, b)))
        return evaluate(
            "full",
            group[a.row],
            group[b.row],
            by_similarity(one.z, other.z, group[a.row], group[b.row]),
            data.modalities,
        ).metrics
    rows = min(config.eval.exhaustive, len(group))
    items = tuple(np.flatnonzero(column.row < rows) for column in (a, b))
    one, other = (
        encode(aligner, m, c, items=i, local_tokens=True, share=True)
        for (m, c), i in zip(parts.items(), items, strict=True)
    )
    return rerank.exhaustive(aligner, one, other, group[a.row[items[0]]], group[b.row[items[1]]], "full").metrics
