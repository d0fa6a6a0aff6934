"""Captions of runs in numbers: metrics against references, and on scenes what they say and whether it is true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ccaco_cli.core.data.scene_parser import SceneClaims, parse
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation.caption_metrics import caption_metrics
from ccaco_cli.core.reporting.rows import Cells, ReportRow
from ccaco_cli.core.scoring.captions import STAGE, CaptionedSample, StoredCaptions, load_captions
from ccaco_cli.core.scoring.results import Run

ALL = "all"
"""The row over all samples."""


@dataclass(frozen=True)
class CaptionRow(ReportRow):
    """One way to caption the samples of a split.

    Attributes:
        captions: ``decoder``, ``nearest`` (the training caption of largest cosine, the baseline without a decoder), or
            ``references`` (those of the data set).
        beam: captions that the decoder followed at a time, 1 = greedy; None for the others.
        samples: ``all``, or the number of things in a generated scene.
        n: number of samples.
        metrics: BLEU-4 and ROUGE-L (0..1) and CIDEr-D (0..10), over all samples only; {} for references.
        true_captions: share of captions of which all is true, 0..1; None for references, and for data other than
            generated scenes.
        things_named, relation_named: mean number of things in a caption, and share of captions with a relation, 0..1: a
            caption that says less is more often true. One that is no sentence of the grammar names neither. None for
            other data.
    """

    run: str
    dataset: str
    arm: str
    seed: int
    captions: str
    beam: int | None
    samples: str
    n: int
    metrics: dict[str, float]
    true_captions: float | None
    things_named: float | None
    relation_named: float | None

    def sections(self) -> tuple[Cells, ...]:
        cells: Cells = {"run": self.run, "dataset": self.dataset, "arm": self.arm, "seed": self.seed}
        cells |= {"captions": self.captions, "beam": self.beam, "samples": self.samples, "n": self.n}
        cells |= {name: self.metrics.get(name) for name in ("BLEU-4", "ROUGE-L", "CIDEr-D")}
        cells |= {"true_captions_accuracy": self.true_captions}
        return (cells | {"things_named": self.things_named, "relation_named": self.relation_named},)


def caption_rows(runs: Sequence[Run], split: str) -> list[CaptionRow]:
    """Rows of each run: the decoder, the nearest training caption and the references, over all samples and by number
    of things.

    Raises:
        ConfigError: the extra ``captions`` is not installed.
        DataError: no run has stored captions of the split.
    """
    captioned = [run for run in runs if (run.path / "results" / f"{split}.{STAGE}.json").is_file()]
    if not captioned and runs:
        load_captions(runs[0].path, split)  # says what is missing
    if not captioned:
        raise DataError("no runs", expected="a run that was trained with --gamma above 0")
    return [row for run in captioned for row in _rows(run, load_captions(run.path, split))]


def _rows(run: Run, stored: StoredCaptions) -> list[CaptionRow]:
    samples = stored.samples
    described = [sample for sample in samples if sample.references]
    references = [sample.references for sample in described]
    metrics = {
        source: caption_metrics([getattr(sample, field) for sample in described], references)
        for source, field in (("decoder", "caption"), ("nearest", "nearest"))
    }
    parts = {ALL: samples}
    for count in sorted({sample.things for sample in samples if sample.things is not None}):
        parts[f"{count} things"] = [sample for sample in samples if sample.things == count]
    return [
        CaptionRow(
            run.name,
            run.dataset,
            run.label,
            int(run.facts["seed"]),
            source,
            stored.beam if source == "decoder" else None,
            name,
            len(part),
            metrics.get(source, {}) if name == ALL else {},
            *_truth_and_claims(part, source),
        )
        for source in ("decoder", "nearest", "references")
        for name, part in parts.items()
    ]


def _truth_and_claims(samples: Sequence[CaptionedSample], source: str) -> tuple[float | None, ...]:
    """(Share of true captions, mean number of things, share with a relation); None where there are no scenes."""
    scenes = [sample for sample in samples if sample.caption_true is not None]
    if source == "references":
        is_true, texts = [], [text for sample in scenes for text in sample.references]
    elif source == "nearest":
        is_true, texts = [sample.nearest_true for sample in scenes], [sample.nearest for sample in scenes]
    else:
        is_true, texts = [sample.caption_true for sample in scenes], [sample.caption for sample in scenes]
    parsed = [parse(text) or SceneClaims(()) for text in texts]
    return (
        _mean(is_true),
        _mean([len(scene.objects) for scene in parsed]),
        _mean([bool(scene.relation) for scene in parsed]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    return float(np.mean(values)) if values else None  # type: ignore[arg-type]
