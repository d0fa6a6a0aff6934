"""Filters training pairs by the probability that a model gives them (DataComp, arXiv:2304.14108)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ccaco_cli.core.data.checks import UNLIKELY
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.experiments.pair_scores import CALIBRATE, NOT_FINITE, Pair, PairModel, PairOptions, PairScore
from ccaco_cli.core.types import PairRecord

FILTERED_SPLIT = "train"
"""The only split that is filtered: results on ``val`` and ``test`` stay comparable with those of other runs."""


@dataclass(frozen=True, eq=False)
class PairFilter:
    """Keeps the pairs of ``train`` whose probability is at least ``threshold``; a ``types.RecordFilter``.

    Each caption of a sample is a pair of its own. A pair below is a record of its own with the problem ``UNLIKELY``,
    so that pairs in = captions kept + rejects. What cannot be scored (a broken file, an empty caption) is passed on
    to the checks of ``prepare``, which have their own reasons.

    Attributes:
        prior: share of true pairs that is expected.
    """

    model: PairModel
    threshold: float
    prior: float

    def __post_init__(self) -> None:
        """Raises ConfigError: a threshold out of range, or a model without a calibration."""
        if not 0 < self.threshold < 1:
            raise ConfigError(
                "a number out of range", where=f"--keep-above {self.threshold}", expected="a probability from 0 to 1"
            )
        if self.model.calibration is None:
            raise ConfigError(
                "this model has no calibrated probability",
                where=f"--by {self.model.manifest.path}",
                expected="a run that was scored on a validation split",
                next=f"add {CALIBRATE}",
            )

    @property
    def facts(self) -> Mapping[str, Any]:
        model, calibration = self.model, self.model.calibration
        assert calibration is not None
        return {
            "by": str(model.manifest.path),
            "sha256": model.manifest.sha256,
            "score": model.scorer.kind,
            "keep_above": self.threshold,
            "prior": self.prior,
            "calibration": calibration.as_dict(),
            "split": FILTERED_SPLIT,
        }

    def select(
        self, records: Iterable[PairRecord], modalities: tuple[str, ...], folders: tuple[str, ...]
    ) -> Iterator[PairRecord]:
        """As ``types.RecordFilter``. Raises DataError: the model aligns other modalities."""
        if tuple(modalities) != self.model.modalities:
            raise DataError(
                f"the model aligns other modalities: {' and '.join(self.model.modalities)}",
                where=f"--by {self.model.manifest.path}",
                expected=f"a model of {' and '.join(modalities)}",
            )
        return self._select(records, PairOptions(self.prior, folders))

    def _select(self, records: Iterable[PairRecord], options: PairOptions) -> Iterator[PairRecord]:
        waiting: deque[tuple[PairRecord, int]] = deque()

        def pairs() -> Iterator[Pair]:
            for record in records:
                pairs_of_record = self._pairs(record)
                waiting.append((record, len(pairs_of_record)))
                yield from pairs_of_record

        scores: list[PairScore] = []
        for score in self.model.score(pairs(), options):
            while not waiting[0][1]:
                yield waiting.popleft()[0]
            scores.append(score)
            if len(scores) == waiting[0][1]:
                yield from self._divided(waiting.popleft()[0], scores)
                scores = []
        yield from (record for record, _ in waiting)

    def _pairs(self, record: PairRecord) -> list[Pair]:
        """The pairs of a record; none of another split, or where a side is missing."""
        sides = [
            list(record.captions) if m == "text" else [record.media[m]] if m in record.media else []
            for m in self.model.modalities
        ]
        if record.split != FILTERED_SPLIT or record.problem or not all(sides):
            return []
        return [Pair(a, b) for a in sides[0] for b in sides[1]]

    def _divided(self, record: PairRecord, scores: Sequence[PairScore]) -> Iterator[PairRecord]:
        """The record with the captions that are kept, after a reject for each pair that is not."""
        captions = list(record.captions) if "text" in self.model.modalities else []
        below = [self._below(score) for score in scores]
        names = {m: media for m, media in record.media.items() if isinstance(media, Path)}
        for number, detail in enumerate(below):
            if detail:
                text = f": {captions[number]}" if captions else ""
                rejected = replace(record, media=names, problem=UNLIKELY, detail=f"{detail}{text}")
                yield replace(rejected, captions=captions[number : number + 1])
        if captions:
            record = replace(
                record, captions=[text for text, detail in zip(captions, below, strict=True) if not detail]
            )
        if not all(below):
            yield record

    def _below(self, score: PairScore) -> str:
        """The probability of a pair that is not kept, in words; "" = it is kept."""
        if score.problem:
            return "no finite score" if score.problem == NOT_FINITE else ""
        probability = float("nan") if score.probability is None else score.probability
        return "" if probability >= self.threshold else f"probability {probability:.4f}"
