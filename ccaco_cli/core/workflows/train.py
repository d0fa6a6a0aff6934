"""``ccaco train``: from a prepared data set to a run folder with checkpoints, a log and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core import config as configs
from ccaco_cli.core import manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.loader import Column, PairDataset, PairPlan
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.errors import ConfigError, DataError, ManifestError
from ccaco_cli.core.evaluation.protocols import Evaluation, by_similarity, evaluate, pools
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.retrieval import rerank
from ccaco_cli.core.retrieval.columns import columns
from ccaco_cli.core.retrieval.embed import encode
from ccaco_cli.core.training import checkpoint, loop
from ccaco_cli.core.types import Encoded, OnProgress, silent
from ccaco_cli.core.workflows import arms
from ccaco_cli.core.workflows.prepare import prepared


@dataclass(frozen=True)
class Asked:
    """What the user asked for, before it is resolved: file settings (``base``), then flags (``explicit``), then the arm."""

    dataset: str
    arm: str = "ccaco"
    base: Mapping[str, Any] | None = None
    explicit: Mapping[str, Any] | None = None

    def resolve(self, data: PairData) -> RunConfig:
        config = configs.build(base=self.base or {}, explicit=self.explicit or {}, modalities=data.modalities)
        return arms.apply(replace(config, dataset=self.dataset), self.arm)


def train(asked: Asked, folder: Path, *, resume: bool = False, data_root: Path = Path("data"), on_progress: OnProgress = silent) -> Manifest:
    """Trains one model and scores its best checkpoint.

    folder   the run; must not hold a finished one
    resume   continue an interrupted run from its last checkpoint
    Returns  the run's manifest: facts {"metrics", "headline", "weight", "fitted", "modalities", ...}
    """
    data = shards.open(prepared(asked.dataset, data_root, on_progress))
    config = asked.resolve(data)
    _check(config, data)
    _refuse_finished(folder)
    runtime.threads()
    runtime.seed(config.seed)
    device = runtime.device(config.device)
    aligner, towers = aligners.build(config.model, config.loss, data.modalities)
    aligner.to(device)
    _claim(folder, config, resume)  # only now: whatever the user got wrong so far leaves nothing behind
    parts = {split: columns(data, split, aligner, towers, config.model, on_progress) for split in ("train", "val")}
    split = data.split("train")
    a, b = (parts["train"][m] for m in data.modalities)
    runtime.seed(config.seed)  # so that a run does not depend on whether the cache had to be made
    fitted = loop.fit(
        aligner,
        PairDataset(a, b, split.group, split.domain),
        PairPlan(a, b, split.family, config.optim.batch_size, config.seed),
        config,
        folder,
        lambda model: validate(model, data, parts["val"], config),
        resume=resume and (folder / "checkpoints/last" / checkpoint.STATE).exists(),
        on_progress=on_progress,
    )
    checkpoint.load_weights(folder / "checkpoints/best" / checkpoint.WEIGHTS, aligner)
    facts = score(aligner, data, towers, config, folder, parts["val"])
    files = [manifest.file_entry(folder, folder / "checkpoints/best" / checkpoint.WEIGHTS)]
    facts |= {"name": folder.name, "arm": config.arm, "seed": config.seed, "fitted": asdict(fitted), "modalities": list(data.modalities)}
    facts |= {"towers": {m: t.fingerprint for m, t in towers.items()}, "protocol": data.manifest.facts["protocol"]}
    facts |= {"parameters": sum(p.numel() for p in aligner.parameters() if p.requires_grad)}
    return manifest.write(folder, "run", facts=facts, inputs={"dataset": data.manifest}, config=asdict(config), files=files, device=str(device))


def validate(aligner: Aligner, data: PairData, parts: Mapping[str, Column], config: RunConfig) -> dict[str, float]:
    """Figures of the validation split that choose the best epoch: by cosine, or exhaustively on a part when there is no contrastive half."""
    (first, a), (second, b) = parts.items()
    group = data.split("val").group
    if config.loss.alpha > 0:
        one, other = encode(aligner, first, a), encode(aligner, second, b)
        return evaluate("full", group[a.row], group[b.row], by_similarity(one.z, other.z, group[a.row], group[b.row]), data.modalities).metrics
    rows = min(config.eval.exhaustive, len(group))
    items = tuple(np.flatnonzero(column.row < rows) for column in (a, b))
    one, other = (encode(aligner, m, c, items=i, local=True) for (m, c), i in zip(parts.items(), items, strict=True))
    return rerank.exhaustive(aligner, one, other, group[a.row[items[0]]], group[b.row[items[1]]], "full").metrics


def score(aligner: Aligner, data: PairData, towers: Mapping[str, Any], config: RunConfig, folder: Path, val: Mapping[str, Column]) -> dict[str, Any]:
    """Scores the best checkpoint: the weight of the cross score is chosen on validation, the test split is touched once.

    Leaves ``results/SPLIT.STAGE.json`` with per-query ranks; returns the facts of the run's manifest.
    """
    weight, sums = 0.0, {}
    stage = "cosine" if config.loss.alpha > 0 else "cross"
    metrics: dict[str, dict[str, float]] = {}
    for name in ("val", "test"):
        if name not in data.splits:
            continue
        parts = val if name == "val" else columns(data, name, aligner, towers, config.model)
        group = data.split(name).group
        a, b = (encode(aligner, m, c, local=config.loss.beta > 0) for m, c in parts.items())
        groups = tuple(group[c.row] for c in parts.values())
        if name == "val" and config.loss.alpha > 0 and config.loss.beta > 0:
            weight, sums = rerank.choose_weight(aligner, a, b, *groups, config.eval)
        for label, found in _scored(aligner, a, b, groups, config, weight if sums else None, "full" if name == "val" else config.eval.protocol):
            body = {"split": name, "stage": label, "arm": config.arm, "seed": config.seed, "dataset": data.name, "data": data.manifest.sha256}
            body |= {"data_protocol": data.manifest.facts["protocol"], "weight": weight, **found.as_dict()}
            manifest.write_json(folder / "results" / f"{name}.{label}.json", body)
            metrics[f"{name}.{label}"] = found.metrics
    headline = "two-stage" if weight > 0 else stage
    return {"metrics": metrics, "headline": headline, "weight": weight, "weights_tried": {str(k): v for k, v in sums.items()}}


def _scored(aligner: Aligner, a: Encoded, b: Encoded, groups: Any, config: RunConfig, weight: float | None, protocol: str) -> list[tuple[str, Evaluation]]:
    if config.loss.alpha == 0:
        return [("cross", rerank.exhaustive(aligner, a, b, *groups, protocol))]
    found = [("cosine", evaluate(protocol, *groups, by_similarity(a.z, b.z, *groups), aligner.modalities))]
    if weight is not None:
        found.append(("two-stage", rerank.two_stage(aligner, a, b, *groups, replace(config.eval, protocol=protocol), weight)))
    return found


def load_run(path: Path, device: str = "auto") -> tuple[Aligner, dict[str, Any], RunConfig, Manifest]:
    """The best model of a finished run, with its towers (for preprocessing)."""
    found = manifest.open(path, kind="run", verify=True)
    config = configs.from_dict(found.config)
    first, second = found.facts["modalities"]
    runtime.seed(config.seed)  # a locked tower without published weights is rebuilt as training built it
    aligner, towers = aligners.build(config.model, config.loss, (first, second))
    for modality, fingerprint in found.facts["towers"].items():
        if config.model.tower(modality).lock and towers[modality].fingerprint != fingerprint:
            raise ManifestError("the weights of a locked tower are not those of this run", where=config.model.tower(modality).spec, expected=fingerprint[:12])
    checkpoint.load_weights(path / "checkpoints/best" / checkpoint.WEIGHTS, aligner)
    return aligner.to(runtime.device(device)).eval(), towers, config, found


def _check(config: RunConfig, data: PairData) -> None:
    """Raises ConfigError or DataError for settings that would only fail when the run is over."""
    loop.check(config)
    known = evaluate("full", [0], [0], by_similarity(np.ones((1, 1)), np.ones((1, 1)), [0], [0]), data.modalities).metrics
    if config.eval.select not in known:
        raise ConfigError("no such validation figure", where=f"eval.select = {config.eval.select!r}", expected=" | ".join(known))
    part = data.split("test" if "test" in data.splits else "val")
    pools(config.eval.protocol if part.name == "test" else "full", *(part.group[part.caption_row] if m == "text" else part.group for m in data.modalities))


def _refuse_finished(folder: Path) -> None:
    if manifest.exists(folder):
        raise DataError("this run is finished", where=folder, expected="a new name", next=f"ccaco report {folder}, or choose another --name")


def _claim(folder: Path, config: RunConfig, resume: bool) -> None:
    text = configs.to_toml(config)
    file = folder / "config.toml"
    if not file.exists():
        manifest.write_bytes(file, text.encode())
    elif not resume:
        raise DataError("an interrupted run lies here", where=folder, expected="--resume latest, or a new --name", next=f"add --resume latest, or rm -r {folder}")
    elif file.read_text("utf-8") != text:
        raise ConfigError("cannot resume with another config", where=file, expected="the flags of the first start", next="choose another --name")
