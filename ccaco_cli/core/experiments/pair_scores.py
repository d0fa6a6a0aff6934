"""Scores of given pairs of samples: cosine, match logit, both together, and the probability of being a true pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccaco_cli.core import runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.checks import clean_caption
from ccaco_cli.core.data.split_shares import evaluation_split
from ccaco_cli.core.encoding.batching import prefetch
from ccaco_cli.core.encoding.encode import EncodeOptions, encode, reduce_precision
from ccaco_cli.core.encoding.sample_sides import SampleSide, read_file, read_side
from ccaco_cli.core.encoding.samples import PreprocessedColumn, decoded, sample_column
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation.calibration import EVEN, Calibration
from ccaco_cli.core.experiments.cross_dataset import encode_split
from ccaco_cli.core.experiments.datasets import prepared_for_evaluation
from ccaco_cli.core.experiments.pretrained import LoadedModel, open_model
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval.explain import attended_cosines, content_word_spans, word_cosines
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.match import match_logits
from ccaco_cli.core.retrieval.rerank import Scorer, score_kind
from ccaco_cli.core.scoring import shown_words
from ccaco_cli.core.scoring.split_scorer import SplitScorer
from ccaco_cli.core.scoring.two_stage import logit_scale
from ccaco_cli.core.text_input import is_blank
from ccaco_cli.core.types import EncodedSamples, OnProgress, no_progress

PAIRS = 256
"""Pairs that are read, encoded and scored at a time."""
EXPLAINED_AT_ONCE = 64
NOT_FINITE = "embedding is not finite"
CALIBRATE = "--calibrate DATASET"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two samples that may belong together.

    Attributes:
        a, b: of the first and of the second modality of the model: a text, or where the bytes of a file come from
            (``types.Media``).
        problem: why this is no pair; "" = it is one.
    """

    a: Any
    b: Any
    problem: str = ""


@dataclass(frozen=True, slots=True)
class PairScore:
    """The scores of one pair; all None where it has a ``problem``.

    Attributes:
        cosine: -1..1.
        match: match logit; None for a model without a cross branch.
        score: what ranks answers of this model (``Scorer``).
        probability: of being a true pair, 0..1; None without a calibration.
        missing: content words of the text that the other sample does not show; None where they were not asked for.
        problem: why the pair cannot be scored: a file that cannot be read, an empty text ...
    """

    cosine: float | None = None
    match: float | None = None
    score: float | None = None
    probability: float | None = None
    missing: tuple[str, ...] | None = None
    problem: str = ""


@dataclass(frozen=True)
class PairOptions:
    """How pairs are scored.

    Attributes:
        prior: share of true pairs that is expected, 0 < prior < 1.
        folders: real paths of the folders that files may lie in; () = anywhere.
        missing: also find the words that are not shown.
    """

    prior: float = EVEN
    folders: tuple[str, ...] = ()
    missing: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError: a prior of 0 or 1, which no score could change."""
        if not 0 < self.prior < 1:
            raise ConfigError("a number out of range", where=f"--prior {self.prior}", expected="between 0 and 1")


@dataclass(frozen=True, eq=False)
class PairModel:
    """A model that scores pairs as it scores the answers of a search.

    Attributes:
        aligner, towers: of two modalities.
        scorer: the score that ranks.
        calibration: of that score; None = there is none.
        word_threshold: attended cosine below which a word counts as not shown; None = not chosen.
        manifest: of the run, the index, or the pretrained model.
        max_tokens: as in ``EncodeOptions``.
    """

    aligner: Aligner
    towers: Mapping[str, Tower]
    scorer: Scorer
    calibration: Calibration | None
    word_threshold: float | None
    manifest: Manifest
    has_cross: bool
    max_tokens: int = 0

    @property
    def modalities(self) -> tuple[str, str]:
        return self.aligner.modalities

    def score(self, pairs: Iterable[Pair], options: PairOptions = PairOptions()) -> Iterator[PairScore]:
        """Scores pairs in their order; a few batches are in memory at a time, whatever the number of pairs.

        Within a batch, each distinct file or text is read and encoded once. A thread reads the next batch meanwhile.
        """
        if options.missing:
            self._require_words()
        iterator = iter(pairs)
        batches = iter(lambda: list(islice(iterator, PAIRS)), [])
        for batch, sides in prefetch(partial(self._read, folders=options.folders), batches):
            yield from self._score_batch(batch, sides, options)

    def _require_words(self) -> None:
        if self.word_threshold is None or "text" not in self.modalities:
            raise ConfigError(
                "this model does not tell which words are shown",
                where=self.manifest.path,
                expected="a model with a cross branch that attends from words, scored on a validation split",
                next=f"train with --beta 0.5, or add {CALIBRATE} where the model has a cross branch",
            )

    def _read(self, batch: Sequence[Pair], folders: tuple[str, ...]) -> tuple[SampleSide, SampleSide]:
        first, second = self.modalities
        return (
            read_samples(self.towers[first], [pair.a for pair in batch], folders),
            read_samples(self.towers[second], [pair.b for pair in batch], folders),
        )

    def _encode(self, modality: str, side: SampleSide) -> EncodedSamples | None:
        if not side.samples:
            return None
        tower = self.towers[modality]
        text = MODALITIES[modality].kind == "text"
        column = sample_column(tower, side.samples) if text else PreprocessedColumn(modality, side.samples)
        options = EncodeOptions(max_tokens=self.max_tokens)
        return encode(self.aligner, modality, column, local_tokens=self.has_cross, options=options)

    def _score_batch(
        self, batch: Sequence[Pair], sides: tuple[SampleSide, SampleSide], options: PairOptions
    ) -> Iterator[PairScore]:
        a, b = (self._encode(modality, side) for modality, side in zip(self.modalities, sides, strict=True))
        problems = [
            pair.problem or first or second
            for pair, first, second in zip(batch, sides[0].problems, sides[1].problems, strict=True)
        ]
        for number, (place_a, place_b) in enumerate(zip(sides[0].places, sides[1].places, strict=True)):
            if not problems[number] and a is not None and b is not None:
                finite = a.z[place_a].isfinite().all() and b.z[place_b].isfinite().all()
                problems[number] = "" if finite else NOT_FINITE
        numbers = [number for number, problem in enumerate(problems) if not problem]
        scores = [PairScore(problem=problem) for problem in problems]
        if numbers and a is not None and b is not None:
            places = [[side.places[number] for number in numbers] for side in sides]
            for number, score in zip(numbers, self.score_places(a, b, torch.tensor(places).T, options), strict=True):
                scores[number] = score
            if options.missing:
                texts = [batch[n].b if self.modalities[1] == "text" else batch[n].a for n in numbers]
                words = self._missing(a, b, torch.tensor(places).T, texts)
                for number, missing in zip(numbers, words, strict=True):
                    scores[number] = replace(scores[number], missing=missing)
        yield from scores

    def score_places(
        self, a: EncodedSamples, b: EncodedSamples, places: Tensor, options: PairOptions = PairOptions()
    ) -> list[PairScore]:
        """Scores of pairs of encoded samples; ``places`` [M, 2] are their rows."""
        cosine = (a.z[places[:, 0]].double() * b.z[places[:, 1]].double()).sum(-1)
        match = match_logits(self.aligner, a.local_tokens, b.local_tokens, places).double() if self.has_cross else None
        score = self.scorer(cosine, match)
        probability = None if self.calibration is None else self.calibration.probability(score, options.prior)
        return [
            PairScore(
                float(cosine[i]),
                None if match is None else float(match[i]),
                float(score[i]),
                None if probability is None else float(probability[i]),
            )
            for i in range(len(places))
        ]

    def _missing(
        self, a: EncodedSamples, b: EncodedSamples, places: Tensor, texts: Sequence[str]
    ) -> list[tuple[str, ...]]:
        """For each pair the content words whose attended cosine is below the threshold, the least shown first."""
        assert self.word_threshold is not None
        missing = []
        for rows in torch.split(torch.arange(len(places)), EXPLAINED_AT_ONCE):
            chunk = a.local_tokens[places[rows, 0]], b.local_tokens[places[rows, 1]]
            for cosines, row in zip(attended_cosines(self.aligner, *chunk), rows.tolist(), strict=True):
                words = word_cosines(cosines, content_word_spans(self.towers["text"], clean_caption(texts[row])))
                below = sorted((cosine, word) for word, cosine in words if cosine < self.word_threshold)
                missing.append(tuple(dict.fromkeys(word for _, word in below)))
        return missing


def read_samples(tower: Tower, samples: Sequence[Any], folders: tuple[str, ...]) -> SampleSide:
    """Reads and preprocesses the samples of one modality in a batch."""
    read = _read_text if MODALITIES[tower.modality].kind == "text" else partial(_read_media, tower, folders)
    return read_side(read, samples, runtime.decoding_threads())


def _read_text(text: str) -> tuple[str, str]:
    cleaned = clean_caption(text)
    return cleaned, "no caption" if is_blank(cleaned) else ""


def _read_media(tower: Tower, folders: tuple[str, ...], media: Any) -> tuple[Any, str]:
    def preprocessed(data: bytes) -> Any:
        return tower.preprocess(decoded(tower.modality, data, tower.preprocess))

    return read_file(tower.modality, preprocessed, media, folders)


def open_pair_model(
    model: str | Path,
    device: str = "auto",
    calibrate: str = "",
    *,
    precision: str = "auto",
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
) -> PairModel:
    """Opens a run or a pretrained model for scoring pairs.

    Args:
        model: folder of a run, or SPEC of a pretrained model.
        calibrate: a prepared data set on whose ``val`` (else ``test``, else ``train``) probabilities are calibrated;
            "" = on the validation split of the run, when it was scored.
        precision: of the towers, as in ``ccaco embed``; scores in 16 bits differ by up to scale * 1e-3.
    Raises:
        As ``open_model``; DataError: no such data set, or one of other modalities.
    """
    runtime.limit_threads()
    loaded = open_model(model, device)
    facts, loss = loaded.manifest.facts, loaded.config.loss
    scorer = _scorer(loaded.aligner, loaded.config, float(facts.get("weight") or 0.0))
    calibration, word_threshold = _stored(facts, scorer)
    if calibrate:
        calibration, word_threshold = _calibrated(loaded, scorer, calibrate, data_root, on_progress)
    reduce_precision(loaded.aligner, runtime.encoding_dtype(precision, next(loaded.aligner.parameters()).device))
    return PairModel(loaded.aligner, loaded.towers, scorer, calibration, word_threshold, loaded.manifest, loss.beta > 0)


def index_pair_model(index: Index) -> PairModel:
    """The model of an index, which scores pairs as the index scores its answers."""
    aligner, towers, config = index.model
    calibration, word_threshold = _stored(index.manifest.facts, index.scorer)
    return PairModel(
        aligner,
        towers,
        index.scorer,
        calibration,
        word_threshold,
        index.manifest,
        config.loss.beta > 0,
        index.store_grid,
    )


def _scorer(aligner: Aligner, config: RunConfig, weight: float) -> Scorer:
    return Scorer.of(score_kind(config.loss.alpha, config.loss.beta, weight), logit_scale(aligner), weight)


def _stored(facts: Mapping[str, Any], scorer: Scorer) -> tuple[Calibration | None, float | None]:
    """The calibration of a score and the threshold of words, where the run stored them."""
    stored = (facts.get("calibration") or {}).get(scorer.kind)
    return None if stored is None else Calibration.from_dict(stored), facts.get("word_threshold")


def _calibrated(
    model: LoadedModel, scorer: Scorer, dataset: str, data_root: Path, on_progress: OnProgress
) -> tuple[Calibration | None, float | None]:
    data = shards.open(prepared_for_evaluation(dataset, data_root, on_progress))
    name = "val" if "val" in data.splits else evaluation_split(data.splits)
    split, encodings = data.split(name), encode_split(model, data, name, on_progress)
    split_scorer = SplitScorer(
        data.modalities, split, encodings, model.aligner, model.config, scorer.weight, tuned=bool(scorer.weight)
    )
    calibration = split_scorer.calibrate(scorer.kind)
    if calibration is None:
        raise DataError(
            "these pairs cannot calibrate a score",
            where=f"{name} of {data.manifest.path}",
            expected="samples of at least two groups, with finite scores",
        )
    named = replace(calibration, split=f"{name} of {data.name}")
    return named, shown_words.threshold(split, encodings, model.aligner)
