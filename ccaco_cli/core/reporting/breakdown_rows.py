"""Rows of a result that is broken down by kind of choice, by language or by class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ccaco_cli.core.reporting.rows import Cells, ReportRow


@dataclass(frozen=True)
class ChoiceRow(ReportRow):
    """One run and kind of choice (swapped twins, SugarCrepe, ARO, Winoground): accuracy, beside chance and controls.

    Attributes:
        items: number of choices.
        accuracy: with the image of the choice.
        low, high: 95 % interval of the accuracy over images; None where the choices are not stored one by one.
        chance: accuracy of a blind draw.
        text_only_accuracy: without an image.
        shuffled_accuracy: with the image of another choice.
        bigram_accuracy: of a bigram model of training captions; None where the data set has none.
    """

    run: str
    dataset: str
    arm: str
    seed: int
    stage: str
    kind: str
    items: int
    accuracy: float | None
    low: float | None
    high: float | None
    chance: float
    text_only_accuracy: float | None
    shuffled_accuracy: float | None
    bigram_accuracy: float | None = None

    def sections(self) -> tuple[Cells, ...]:
        cells: Cells = {"run": self.run, "dataset": self.dataset, "arm": self.arm, "seed": self.seed}
        cells |= {"stage": self.stage, "kind": self.kind, "items": self.items, "choice_accuracy": self.accuracy}
        cells |= {"low": self.low, "high": self.high, "chance": self.chance}
        cells |= {"text_only_accuracy": self.text_only_accuracy, "shuffled_accuracy": self.shuffled_accuracy}
        return (cells | {"bigram_accuracy": self.bigram_accuracy},)


@dataclass(frozen=True)
class LanguageRow(ReportRow):
    """One run on the captions of one language, or the mean over languages.

    Attributes:
        language: its code; ``mean`` = the mean over languages.
        images, captions: size of the pool; None for the mean.
        metrics: name -> fraction (R-sum: 0..600).
    """

    run: str
    dataset: str
    arm: str
    seed: int
    stage: str
    language: str
    images: int | None
    captions: int | None
    metrics: Mapping[str, float | None]

    def sections(self) -> tuple[Cells, ...]:
        cells: Cells = {"run": self.run, "dataset": self.dataset, "arm": self.arm, "seed": self.seed}
        cells |= {"stage": self.stage, "language": self.language}
        return cells | {"images": self.images, "captions": self.captions}, dict(self.metrics)


@dataclass(frozen=True)
class ClassRow(ReportRow):
    """The accuracy of one run on one class (``label``)."""

    run: str
    dataset: str
    arm: str
    seed: int
    label: str
    accuracy: float | None

    def sections(self) -> tuple[Cells, ...]:
        cells: Cells = {"run": self.run, "dataset": self.dataset, "arm": self.arm, "seed": self.seed}
        return (cells | {"class": self.label, "class_accuracy": self.accuracy},)
