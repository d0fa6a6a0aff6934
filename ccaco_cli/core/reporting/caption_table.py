"""Captions of runs in numbers: metrics against references, and the share of true ones on generated scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation.caption_metrics import caption_metrics
from ccaco_cli.core.reporting.rows import Cells, ReportRow
from ccaco_cli.core.scoring.captions import STAGE, CaptionedSample, load_captions
from ccaco_cli.core.scoring.results import Run

ALL = "all"
"""The row over all samples."""


@dataclass(frozen=True)
class CaptionRow(ReportRow):
    """One way to caption the samples of a split.

    Attributes:
        captions: ``decoder``, or ``nearest``: the training caption of largest cosine, the baseline without a decoder.
        samples: ``all``, or the number of things in a generated scene.
        n: number of samples.
        metrics: BLEU-4 and ROUGE-L (0..1) and CIDEr-D (0..10), over all samples only.
        true_captions: share of captions of which all is true, 0..1; None for data other than generated scenes.
    """

    run: str
    dataset: str
    arm: str
    seed: int
    captions: str
    samples: str
    n: int
    metrics: dict[str, float]
    true_captions: float | None

    def sections(self) -> tuple[Cells, ...]:
        cells: Cells = {"run": self.run, "dataset": self.dataset, "arm": self.arm, "seed": self.seed}
        cells |= {"captions": self.captions, "samples": self.samples, "n": self.n}
        cells |= {name: self.metrics.get(name) for name in ("BLEU-4", "ROUGE-L", "CIDEr-D")}
        return (cells | {"true_captions_accuracy": self.true_captions},)


def caption_rows(runs: Sequence[Run], split: str) -> list[CaptionRow]:
    """Rows of each run: the decoder and the nearest training caption, over all samples and by number of things.

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


def _rows(run: Run, samples: list[CaptionedSample]) -> list[CaptionRow]:
    rows = []
    identity = (run.name, run.dataset, run.label, int(run.facts["seed"]))
    described = [sample for sample in samples if sample.references]
    references = [sample.references for sample in described]
    for source, field in (("decoder", "caption"), ("nearest", "nearest")):
        metrics = caption_metrics([getattr(sample, field) for sample in described], references)
        true = f"{field}_true"
        rows.append(CaptionRow(*identity, source, ALL, len(samples), metrics, _share_true(samples, true)))
        for count in sorted({sample.things for sample in samples if sample.things is not None}):
            part = [sample for sample in samples if sample.things == count]
            rows.append(CaptionRow(*identity, source, f"{count} things", len(part), {}, _share_true(part, true)))
    return rows


def _share_true(samples: Sequence[CaptionedSample], field: str) -> float | None:
    values = [value for sample in samples if (value := getattr(sample, field)) is not None]
    return float(np.mean(values)) if values else None
