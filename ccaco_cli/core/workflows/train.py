"""``ccaco train``: from a prepared data set to a run folder with checkpoints, a log and results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ccaco_cli.core import config as configs
from ccaco_cli.core import distributed, fault, lock, manifest, runtime
from ccaco_cli.core.config import ParallelConfig, RunConfig
from ccaco_cli.core.data import cache, shards
from ccaco_cli.core.data.checks import decode_image
from ccaco_cli.core.data.domains import TARGET_VAL, across
from ccaco_cli.core.data.loader import Column, PairDataset, PairPlan
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.errors import ConfigError, DataError, ManifestError
from ccaco_cli.core.evaluation.protocols import by_similarity, evaluate, pools
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model import handmade
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval import rerank
from ccaco_cli.core.retrieval.columns import columns
from ccaco_cli.core.retrieval.embed import encode
from ccaco_cli.core.training import checkpoint, loop, statistics
from ccaco_cli.core.training.state import Saving
from ccaco_cli.core.types import Encoded, OnProgress, move, silent
from ccaco_cli.core.workflows import arms, domains, negatives
from ccaco_cli.core.workflows.claim import Claim
from ccaco_cli.core.workflows.prepare import prepared
from ccaco_cli.core.workflows.score import CLASS_ACCURACY, Encodings, accuracies, score

CUT = "captions-cut"
"""The warning of captions that lost their end."""


@dataclass(frozen=True)
class Asked:
    """What the user asked for, before it is resolved: file settings (``base``), then flags (``explicit``), then the arm."""

    dataset: str
    arm: str = "ccaco"
    base: Mapping[str, Any] | None = None
    explicit: Mapping[str, Any] | None = None

    @property
    def seed(self) -> int:
        return int((self.explicit or {}).get("seed", (self.base or {}).get("seed", 0)))

    @property
    def device(self) -> str:
        return str(self._setting("device", "auto"))

    @property
    def timeout(self) -> float:
        """Minutes after which another process counts as lost."""
        value = self._setting("parallel.timeout", ParallelConfig.timeout)
        return float(value) if isinstance(value, int | float) and value > 0 else ParallelConfig.timeout

    def _setting(self, key: str, default: Any) -> Any:
        return (self.explicit or {}).get(key, (self.base or {}).get(key, default))

    def resolve(self, data: PairData) -> RunConfig:
        config = configs.build(base=self.base or {}, explicit=self.explicit or {}, modalities=data.modalities)
        return arms.apply(replace(config, dataset=self.dataset), self.arm)


@dataclass(frozen=True)
class Fit:
    """A model, however it came about.

    encode   split name -> its items
    aligner  None for a model that has vectors only
    fitted   what training says of itself
    facts    {"towers", "parameters"} for the run's manifest
    files    weights, inside the run's folder
    oracle   the items of ``test`` by the checkpoint that the target chose, which is in the aligner from then on; None where there is none
    """

    encode: Callable[[str], Encodings]
    aligner: Aligner | None
    fitted: loop.Fitted
    facts: dict[str, Any]
    files: tuple[Path, ...] = ()
    oracle: Callable[[], Encodings] | None = None


class Fitter(Protocol):
    """Makes a model; calls ``claim`` when nothing the user got wrong is left to find, before it writes."""

    def __call__(
        self, data: PairData, config: RunConfig, folder: Path, claim: Claim, resume: bool, saving: Saving | None, on_progress: OnProgress
    ) -> Fit: ...


def train(
    asked: Asked,
    folder: Path,
    *,
    resume: bool = False,
    accept: bool = False,
    saving: Saving | None = None,
    verify: str = manifest.QUICK,
    data_root: Path = Path("data"),
    on_progress: OnProgress = silent,
) -> Manifest:
    """Trains one model and scores its best checkpoint. Under a launcher, all processes train; then the first one scores and the others end.

    folder   the run; must not hold a finished one
    resume   continue an interrupted run from its last checkpoint
    accept   although config, data set or number of processes changed since; what differs is kept in the facts
    verify   quick | full: whether every file of the data set is hashed first
    Returns  the run's manifest: facts {"metrics", "headline", "weight", "fitted", "warnings", "modalities", ...}
    Raises   DataError: another process is writing this run, ...; LostProcess; Interrupted: asked to end, and saved
    """
    with distributed.together(asked.device, asked.timeout):
        tell = on_progress if distributed.main() else silent
        data = distributed.in_turn(lambda: shards.open(prepared(asked.dataset, data_root, tell), verify))
        data, config = distributed.in_turn(lambda: _resolve(asked, data, folder))
        with lock.held(folder, "run") if distributed.main() else nullcontext():
            if distributed.main():
                manifest.sweep(folder)
            runtime.threads(config.workers)
            runtime.seed(config.seed)
            claim = Claim(folder, config, data, resume, accept)
            fit = FITTERS[config.method](data, config, folder, claim, resume, saving, tell)
            if not distributed.main():
                raise distributed.Leaves(0)
            with distributed.apart():
                return _finish(data, config, folder, fit, claim.differing)


def _finish(data: PairData, config: RunConfig, folder: Path, fit: Fit, differing: Sequence[str]) -> Manifest:
    facts = score(data, fit.encode, fit.aligner, config, folder, fit.oracle) | fit.facts
    facts |= {"name": folder.name, "arm": config.arm, "seed": config.seed, "modalities": list(data.modalities)}
    facts |= {"fitted": asdict(fit.fitted), "warnings": list(fit.fitted.warnings), "protocol": data.manifest.facts["protocol"]}
    facts |= {"resumed_with": list(differing)} if differing else {}
    files = [manifest.file_entry(folder, file) for file in fit.files]
    device = str(runtime.device(config.device))
    fault.point("train.scored")
    return manifest.write(folder, "run", facts=facts, inputs={"dataset": data.manifest}, config=asdict(config), files=files, device=device)


def gradient(
    data: PairData, config: RunConfig, folder: Path, claim: Claim, resume: bool, saving: Saving | None, on_progress: OnProgress
) -> Fit:
    """An aligner, trained by gradient descent; the best checkpoint is scored."""
    device = runtime.device(config.device)
    aligner, towers = distributed.in_turn(lambda: aligners.build(config.model, config.loss, data.modalities))
    aligner.to(device)
    if config.optim.grad_checkpointing:
        aligner.set_grad_checkpointing()
    heads = domains.heads(data, config)
    if heads is not None:
        heads.to(device)
    adapts = config.domain.stats == "target"
    for modality in domains.media(data) if adapts else ():
        statistics.refuse_without(aligner, modality)
    distributed.first(claim)
    wanted = ("train", "val", TARGET_VAL) if config.domain.oracle and TARGET_VAL in data.splits else ("train", "val")
    parts = distributed.in_turn(lambda: {split: columns(data, split, aligner, towers, config.model, on_progress) for split in wanted})
    split = data.split("train")
    a, b = (parts["train"][m] for m in data.modalities)
    before = domains.look(aligner, parts["train"], data) if distributed.main() else {}
    runtime.seed(config.seed)  # so that a run does not depend on whether the cache had to be made
    fitted = loop.fit(
        aligner,
        PairDataset(a, b, split.group, split.domain),
        PairPlan(
            a, b, split.family[: split.paired], config.optim.batch_size, config.seed, domains.unpaired(data, split, parts["train"], heads)
        ),
        config,
        folder,
        lambda model: validate(model, data, parts["val"], config, heads=heads),
        resume=resume,
        saving=saving,
        adaptation=heads,
        oracle=(lambda model: validate(model, data, parts[TARGET_VAL], config, TARGET_VAL, heads)) if TARGET_VAL in parts else None,
        on_progress=on_progress,
    )
    if distributed.world() > 1:  # an engine may have cut the model into parts: the first process scores a whole one
        if not distributed.main():
            raise distributed.Leaves(0)
        runtime.seed(config.seed)
        aligner = aligners.build(config.model, config.loss, data.modalities)[0].to(device)

    def chosen(name: str) -> Path:
        """Puts a checkpoint into the model."""
        file = folder / "checkpoints" / name / checkpoint.WEIGHTS
        checkpoint.load_weights(file, aligner)
        if heads is not None:
            checkpoint.load_weights(file.with_name(checkpoint.HEADS), heads)
        if adapts:
            domains.to_target(aligner, parts["train"], data)
        return file

    with distributed.apart():  # the others have left
        best = chosen("best")
        if adapts:
            checkpoint.save_weights(best, aligner)
        after = domains.look(aligner, parts["train"], data)

    def encoded(name: str) -> Encodings:
        sides = parts[name] if name in parts else columns(data, name, aligner, towers, config.model)
        return encodings(data, name, sides, aligner, towers, config, heads)

    def oracle() -> Encodings:
        chosen(domains.ORACLE)
        return encoded("test")

    trained = sum(p.numel() for p in aligner.parameters() if p.requires_grad)
    fitted = replace(fitted, warnings=(*_cut(parts, towers), *fitted.warnings))
    facts = {"towers": {m: t.fingerprint for m, t in towers.items()}, "parameters": trained} | domains.note(data, before, after, folder)
    return Fit(encoded, aligner, fitted, facts, (best,), oracle if fitted.oracle_epoch >= 0 and "test" in data.splits else None)


def classifier(
    data: PairData, config: RunConfig, folder: Path, claim: Claim, resume: bool, saving: Saving | None, on_progress: OnProgress
) -> Fit:
    """One tower and a label predictor, without words; chosen by accuracy on validation."""
    by_accuracy = replace(config, eval=replace(config.eval, select=CLASS_ACCURACY))
    return gradient(data, by_accuracy, folder, claim, resume, saving, on_progress)


def _classes(one: Encoded, data: PairData, name: str, aligner: Aligner, towers: Mapping[str, Tower], heads: Adaptation | None) -> Any:
    """What ``Encodings.classes`` holds: samples and classes as vectors, by the label predictor where there is one, else by prompts."""
    names = data.split(name).labels
    if heads is not None and heads.predictor is not None:
        with torch.inference_mode():
            logits = heads.eval().predict(one.to(next(heads.parameters()).device)).float().cpu()
        return logits, torch.eye(len(names))
    if len(names) < 2 or data.modalities[1] != "text":
        return None
    template = data.manifest.facts.get("source", {}).get("template", "{}")
    device = next(aligner.parameters()).device
    with torch.inference_mode():
        prompts = aligner.eval().encode("text", move(towers["text"].preprocess([template.format(name) for name in names]), device))
    return one.z, prompts.z.float().cpu()


def encodings(
    data: PairData,
    name: str,
    sides: Mapping[str, Column],
    aligner: Aligner,
    towers: Mapping[str, Tower],
    config: RunConfig,
    heads: Adaptation | None = None,
) -> Encodings:
    """A split as an aligner sees it, with all that its scores need."""
    local = config.loss.beta > 0
    one, other = (encode(aligner, m, c, local=local) for m, c in sides.items())
    row_a, row_b = (c.row for c in sides.values())
    asked = None
    if "text" in sides:
        asked = negatives.find(data.split(name), towers["text"].preprocess, lambda c: encode(aligner, "text", c, local=local))
    return Encodings(one, other, row_a, row_b, asked, _classes(one, data, name, aligner, towers, heads))


def _cut(parts: Mapping[str, Mapping[str, Column]], towers: Mapping[str, Tower]) -> list[dict[str, Any]]:
    """A warning when captions are longer than the text tower takes, with how many."""
    counts = {split: (getattr(c["text"], "cut", 0), len(c["text"].row)) for split, c in parts.items() if "text" in c}
    told = [f"{cut:,} of {count:,} captions of {split}" for split, (cut, count) in counts.items() if cut]
    if not told:
        return []
    what = f"{' and '.join(told)} are longer than {towers['text'].tokens} tokens, and were cut; --context-length takes more"
    return [{"step": 0, "kind": CUT, "what": what}]


def cca(data: PairData, config: RunConfig, folder: Path, claim: Claim, resume: bool, saving: Saving | None, on_progress: OnProgress) -> Fit:
    """Hand-made features and canonical correlation: solved, not trained; its vectors are scored and not kept."""
    if data.modalities != ("image", "text"):
        raise DataError("hand-made features are of pictures and words", where=data.name, expected="a data set of image and text")
    claim()
    clock = time.perf_counter()
    split = data.split("train")
    found = handmade.align(_features(data, "train", on_progress), split.captions, split.caption_row, seed=config.seed)
    seconds = time.perf_counter() - clock

    def encoded(name: str) -> Encodings:
        part = data.split(name)
        one, other = found.pictures(_features(data, name, on_progress)), found.texts(part.captions)
        return Encodings(_vectors(one), _vectors(other), np.arange(len(part)), part.caption_row)

    val = encoded("val")
    group = data.split("val").group
    ids = group[val.row_a], group[val.row_b]
    figures = evaluate("full", *ids, by_similarity(val.a.z, val.b.z, *ids), data.modalities).metrics
    manifest.write_bytes(folder / "metrics.jsonl", (json.dumps({"step": 0, "epoch": 0, "validation": figures}) + "\n").encode())
    fitted = loop.Fitted(0, 0, figures[config.eval.select], seconds, len(split) / seconds, loop.peak_memory(torch.device("cpu")))
    return Fit(encoded, None, fitted, {"towers": {}, "parameters": found.parameters})


FITTERS: dict[str, Fitter] = {"gradient": gradient, "cca": cca, "classifier": classifier}


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


def _vectors(z: Any) -> Encoded:
    found = torch.from_numpy(z)
    return Encoded(found.new_zeros(len(found), 0, 1), torch.zeros(len(found), 0, dtype=torch.bool), found, found)


def validate(
    aligner: Aligner, data: PairData, parts: Mapping[str, Column], config: RunConfig, name: str = "val", heads: Adaptation | None = None
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
            "full", group[a.row], group[b.row], by_similarity(one.z, other.z, group[a.row], group[b.row]), data.modalities
        ).metrics
    rows = min(config.eval.exhaustive, len(group))
    items = tuple(np.flatnonzero(column.row < rows) for column in (a, b))
    one, other = (encode(aligner, m, c, items=i, local=True, share=True) for (m, c), i in zip(parts.items(), items, strict=True))
    return rerank.exhaustive(aligner, one, other, group[a.row[items[0]]], group[b.row[items[1]]], "full").metrics


def load_run(path: Path, device: str = "auto", verify: str = manifest.FULL) -> tuple[Aligner, dict[str, Any], RunConfig, Manifest]:
    """The best model of a finished run, with its towers (for preprocessing)."""
    found = manifest.open(path, kind="run", verify=verify)
    config = configs.from_dict(found.config)
    if config.method != "gradient":
        raise ManifestError(
            "this run keeps its figures only, no model", where=path, expected="a trained run", next="ccaco train --arm ccaco, or --arm clip"
        )
    first, second = found.facts["modalities"]
    runtime.seed(config.seed)  # a locked tower without published weights is rebuilt as training built it
    aligner, towers = aligners.build(config.model, config.loss, (first, second))
    for modality, fingerprint in found.facts["towers"].items():
        if config.model.tower(modality).lock and towers[modality].fingerprint != fingerprint:
            raise ManifestError(
                "the weights of a locked tower are not those of this run",
                where=config.model.tower(modality).spec,
                expected=fingerprint[:12],
            )
    checkpoint.load_weights(path / "checkpoints/best" / checkpoint.WEIGHTS, aligner)
    return aligner.to(runtime.device(device)).eval(), towers, config, found


def refuse_other_modalities(run: Manifest, data: PairData) -> None:
    """Raises DataError: the data set is not of the modalities that the run aligns."""
    if tuple(run.facts["modalities"]) != data.modalities:
        raise DataError("this run aligns other modalities", where=data.manifest.path, expected=" and ".join(run.facts["modalities"]))


def check(config: RunConfig, data: PairData) -> None:
    """Raises ConfigError or DataError for settings that would only fail when the run is over."""
    loop.check(config)
    if config.method not in FITTERS:
        raise ConfigError("no such method", where=f"method = {config.method!r}", expected=" | ".join(FITTERS))
    known = evaluate("full", [0], [0], by_similarity(np.ones((1, 1)), np.ones((1, 1)), [0], [0]), data.modalities).metrics
    if config.eval.select not in known:
        raise ConfigError("no such validation figure", where=f"eval.select = {config.eval.select!r}", expected=" | ".join(known))
    part = data.split("test" if "test" in data.splits else "val")
    pools(
        config.eval.protocol if part.name == "test" else "full",
        *(part.group[part.caption_row] if m == "text" else part.group for m in data.modalities),
    )


def _resolve(asked: Asked, data: PairData, folder: Path) -> tuple[PairData, RunConfig]:
    config = asked.resolve(data)
    data = across(data, config.domain)
    check(config, data)
    if distributed.main() and manifest.exists(folder):
        raise DataError(
            "this run is finished", where=folder, expected="a new name", next=f"ccaco report {folder}, or choose another --name"
        )
    return data, config
