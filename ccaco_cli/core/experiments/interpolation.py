"""Mixes of the weights of a run with those of the pretrained model that it started from (WiSE-FT, arXiv:2109.01903).

A mix is a run of its own in ``RUN/results/wise/SHARE``. Its results stay there, so that it is scored only once. The
weights are stored for the chosen mix alone, because the others can be computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccaco_cli.core import config_io, manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.domains import across
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.errors import ConfigError, ManifestError
from ccaco_cli.core.experiments.cross_dataset import ScoreOptions, encode_split, open_scorer
from ccaco_cli.core.experiments.pretrained import LoadedModel
from ccaco_cli.core.experiments.run_folder import START_RUN, dataset_of_run, load_run
from ccaco_cli.core.experiments.start import build_start
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model import weights
from ccaco_cli.core.model.aligner import CROSS_BRANCH
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.score import score
from ccaco_cli.core.scoring.split_scorer import CLASS_ACCURACY
from ccaco_cli.core.shell import command_line
from ccaco_cli.core.types import OnProgress, no_progress

FOLDER = Path("results/wise")
"""Folder of the mixes in the folder of a run."""
BEST = Path("checkpoints/best") / weights.WEIGHTS
START, TRAINED = 0.0, 1.0
"""The shares that are the two endpoints."""
SELECT = "R-sum"
"""The validation metric by which a mix is chosen."""


@dataclass(frozen=True)
class RetainedScore:
    """How well a mix does on another data set, beside the start of the run.

    Attributes:
        dataset: name of the data set.
        metric: R-sum (0..600), or the accuracy of classes or choices (0..1).
        value, start: the metric of the mix and of the start, both by cosine.
        two_stage: the metric of the mix by the two-stage score; None where it has none.
    """

    dataset: str
    metric: str
    value: float
    start: float
    two_stage: float | None = None

    @property
    def retention(self) -> float:
        """Value / start; NaN where the start has 0."""
        return self.value / self.start if self.start else float("nan")


@dataclass(frozen=True)
class Mix:
    """One mix of a run with its start.

    Attributes:
        share: fraction of the trained weights: 0 = the start, 1 = the run.
        run: manifest of the mix.
        chosen: whether it has the highest R-sum on validation.
        retained: its score on the other data set; None without one.
    """

    share: float
    run: Manifest
    chosen: bool
    retained: RetainedScore | None = None


def parse_shares(text: str) -> tuple[float, ...]:
    """Parses shares such as ``0,0.25,0.5,0.75,1``; returns them in order, each once.

    Raises:
        ConfigError: no numbers from 0 to 1.
    """
    try:
        shares = sorted({float(word) for word in text.split(",")})
    except ValueError:
        shares = []
    if not shares or not all(0 <= share <= 1 for share in shares):  # NaN is refused, too
        raise ConfigError("cannot read --wise", where=text, expected="numbers from 0 to 1, such as 0,0.25,0.5,0.75,1")
    return tuple(share + 0.0 for share in shares)  # -0.0 is 0


def interpolate(
    path: Path,
    shares: Sequence[float],
    on: str | None = None,
    options: ScoreOptions = ScoreOptions(),
    *,
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
) -> list[Mix]:
    """Scores mixes of a run with its start, and chooses one on validation.

    The weights of a mix are ``(1 - share) * start + share * trained``: towers, projections, adapters and logit scale.
    The cross branch is that of the run, and the weight of its score is chosen on validation for every mix.

    Args:
        path: folder of a run that started from a pretrained model or from another run.
        on: a data set that stands for the abilities of the start; None = none.
        options: split and templates for ``on``, and the device.
    Returns:
        The mixes in order of their share. The chosen one is a run with weights, for every command that takes a run.
    Raises:
        ConfigError: the run did not start from a pretrained model, or has no contrastive loss.
        ManifestError: the start or the data set of the run has changed.
    """
    mixer = _Mixer(path, options.device, on_progress)
    scorer = open_scorer(on, options, data_root, on_progress) if on is not None else None
    runs = {share: mixer.scored(share) for share in shares}
    chosen = _best_share(runs)
    runs[chosen] = mixer.stored(chosen)
    if scorer is None:
        return [Mix(share, run, share == chosen) for share, run in runs.items()]

    def metrics_on(share: float) -> Mapping[str, Mapping[str, float]]:
        run = runs[share] if share in runs else mixer.scored(share)
        files = scorer.result_files(run.path, run, lambda: mixer.model(share, run))
        bodies = [results.read(file) or {} for file in files]
        return {body["stage"]: body["metrics"] for body in bodies}

    metric = _metric_of(scorer.data)
    start = metrics_on(START)["cosine"][metric]
    mixes = []
    for share, run in runs.items():
        stages = metrics_on(share)
        two_stage = stages.get("two-stage", {}).get(metric)
        retained = RetainedScore(scorer.data.name, metric, stages["cosine"][metric], start, two_stage)
        mixes.append(Mix(share, run, share == chosen, retained))
    return mixes


def _metric_of(data: PairData) -> str:
    """The metric of what a data set evaluates: accuracy of choices or of classes, or else R-sum."""
    source = data.manifest.facts.get("source", {})
    if source.get("evaluation") == "choices":
        return "choice_accuracy"
    return CLASS_ACCURACY if "template" in source else SELECT  # captions are names of classes in a template


def validation_score(run: Manifest) -> float:
    """R-sum on validation of the score that the run ranks by: two-stage where a weight was chosen, else cosine."""
    metrics = run.facts["metrics"]
    best = metrics.get("val.two-stage") or metrics["val.cosine"]
    return float(np.nan_to_num(best[SELECT] if best[SELECT] is not None else -1.0, nan=-1.0))


def mixed_weights(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """``(1 - share) * start + share * trained`` of all weights but those of the cross branch, which are trained only.

    Integer buffers are those of the trained model, too.
    """
    return {
        name: tensor
        if name.startswith(CROSS_BRANCH) or not tensor.is_floating_point()
        else torch.lerp(start[name], tensor, share)
        for name, tensor in trained.items()
    }


def _best_share(runs: Mapping[float, Manifest]) -> float:
    """The share with the highest score on validation; ties go to the one nearer to the start."""
    return max(runs, key=lambda share: (validation_score(runs[share]), -share))


@dataclass(eq=False)
class _Mixer:
    """Makes, scores and stores the mixes of one run. Models are loaded when they are first needed."""

    path: Path
    device: str
    on_progress: OnProgress
    run: Manifest = field(init=False)
    config: RunConfig = field(init=False)

    def __post_init__(self) -> None:
        self.run = manifest.open(self.path, kind="run")
        self.config = config_io.from_dict(self.run.config)
        self._refuse_unfit()

    def _refuse_unfit(self) -> None:
        config = self.config
        if not config.model.spec or "share" in self.run.facts:
            is_mix = "share" in self.run.facts
            raise ConfigError(
                "a mix is not mixed again" if is_mix else "this run did not start from a pretrained model",
                where=self.path,
                expected="a run that was fine-tuned",
                next="ccaco train --model SPEC --dataset NAME",
            )
        if config.method != "gradient":
            raise ConfigError(
                "this run trained no model, so there is nothing to mix",
                where=self.path,
                expected="a run of an arm such as clip or ccaco",
            )
        if config.loss.alpha == 0:
            raise ConfigError(
                "this run has no contrastive loss, so its start has no score to compare with",
                where=self.path,
                expected="a run with loss.alpha above 0",
            )

    @cached_property
    def data(self) -> PairData:
        """The data set of the run."""
        return across(dataset_of_run(self.run), self.config.domain)

    @cached_property
    def trained(self) -> LoadedModel:
        """The run. Its aligner gets the weights of each mix."""
        runtime.limit_threads()
        return LoadedModel(*load_run(self.path, self.device))

    @cached_property
    def endpoints(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights of the start and of the run, on the CPU.

        Raises:
            ManifestError: the start is not the model that the run started from.
        """
        trained = {name: tensor.cpu().clone() for name, tensor in self.trained.aligner.state_dict().items()}
        runtime.seed(self.config.seed)  # what the run drew: an adapter, or weights that were never published
        start = build_start(self.config, self.data.modalities)
        fingerprints = {modality: tower.fingerprint for modality, tower in start.towers.items()}
        if start.new_sides:
            raise ConfigError(
                f"the start of this run has no {start.new_sides[0]} side, so there is nothing to mix it with",
                where=self.path,
                expected=f"a run that continued a model of {' and '.join(self.data.modalities)}",
            )
        same_run = start.run is None or start.run.sha256 == self.run.inputs[START_RUN]["sha256"]
        if fingerprints != self.run.facts["towers"] or not same_run:
            raise ManifestError(
                "the start of this run has other weights now",
                where=self.config.model.spec,
                expected="the model that the run started from",
                next="put the weights back, or train again",
            )
        return start.aligner.state_dict(), trained

    def folder(self, share: float) -> Path:
        return self.path / FOLDER / str(share)

    def model(self, share: float, run: Manifest) -> LoadedModel:
        """The mix, ready to encode. Only the last one is usable, since all share one aligner."""
        self.trained.aligner.load_state_dict(mixed_weights(*self.endpoints, share))
        return self.trained._replace(manifest=run)

    def scored(self, share: float) -> Manifest:
        """The run of a mix, scored on the data set of the run; computed once."""
        folder = self.folder(share)
        if manifest.exists(folder):
            stored = manifest.open(folder, kind="run")
            if stored.inputs["trained"]["sha256"] == self.run.sha256:
                return stored
        model = self.model(share, self.run)
        tuned = bool(self.run.facts["weights_tried"])  # else the cross branch of the run has random weights

        def encode(name: str) -> Any:
            return encode_split(model, self.data, name, self.on_progress)

        facts = score(self.data, encode, model.aligner, self.config, folder, cross_trained=tuned)
        facts |= {
            "name": f"{self.run.facts['name']}-wise-{share}",
            "share": share,
            "stored_by": command_line("report", self.path, "--wise", str(share)),
        }
        return self._write(share, self.run.facts | facts, [])

    def stored(self, share: float) -> Manifest:
        """The run of a mix with its weights."""
        mix, folder = self.scored(share), self.folder(share)
        if mix.files:
            return mix
        weights.save_weights(folder / BEST, self.model(share, mix).aligner)
        return self._write(share, mix.facts, [manifest.file_entry(folder, folder / BEST)])

    def _write(self, share: float, facts: Mapping[str, Any], files: list[dict[str, Any]]) -> Manifest:
        inputs = {"trained": self.run, "dataset": self.data.manifest}
        if START_RUN in self.run.inputs:
            inputs[START_RUN] = manifest.open(Path(self.run.inputs[START_RUN]["path"]), kind="run")
        return manifest.write(
            self.folder(share), "run", facts=facts, inputs=inputs, config=self.run.config, files=files
        )
