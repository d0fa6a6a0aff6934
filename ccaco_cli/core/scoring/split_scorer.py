"""Scores one split of one model: ranks of every stage, choices on single pairs, and classification."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.caption_languages import PARALLEL
from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.evaluation.calibration import Calibration, Reliability, fit, reliability
from ccaco_cli.core.evaluation.choice_metrics import best_threshold, choice_accuracy, matching_accuracy
from ccaco_cli.core.evaluation.metric_table import LANGUAGE_AGREEMENT
from ccaco_cli.core.evaluation.metrics import similarity_ranks, summary, zero_shot
from ccaco_cli.core.evaluation.protocols import Evaluation, by_similarity, evaluate
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.retrieval.match import match_logits
from ccaco_cli.core.retrieval.rerank import COSINE, CROSS, TWO_STAGE, Scorer, score_kind
from ccaco_cli.core.scoring import caption_choice, languages, pair_sampling, paired_examples
from ccaco_cli.core.scoring.two_stage import Shortlist, exhaustive, logit_scale, top_answers, two_stage
from ccaco_cli.core.types import EncodedSamples

Array = NDArray[Any]
PairScore = Callable[[Tensor], Tensor]
"""Index pairs [M, 2] -> scores [M], higher = better match."""
WordSpans = Callable[[str], list[tuple[str, list[int]]]]
CPU = torch.device("cpu")
CLASS_ACCURACY = "class_accuracy"
CLASS_METRICS = (CLASS_ACCURACY, "mean_class_accuracy")
NO_TWIN = "none"
STRATA: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    **{name: operator.itemgetter(name) for name in ("things", "combination", "tag", "relation")},
    "twin": lambda meta: (meta["twin"] or {}).get("kind", NO_TWIN),
}
"""Property by which results can be divided -> how it is read from ``Split.meta``; what a twin of the sample swaps."""


@dataclass(frozen=True)
class SplitEncodings:
    """The encoded samples of a split.

    Attributes:
        a, b: the items of both modalities (with tokens when the model has a cross branch).
        row_a, row_b: [items] int64, the row of each item.
        choices: caption choices of the split; None where it has none.
        classes: vectors [A, E] of the items of a and [C, E] of the classes, whose dot product is the score; None
            without classes.
        language: [items of b] str, the language of each caption; None where they are not told apart.
        word_spans: text -> its content words and the positions of their tokens; None where b is no text.
    """

    a: EncodedSamples
    b: EncodedSamples
    row_a: Array
    row_b: Array
    choices: caption_choice.CaptionChoices | None = None
    classes: tuple[Tensor, Tensor] | None = None
    language: Array | None = None
    word_spans: WordSpans | None = None

    def first(self, rows: int) -> SplitEncodings:
        """The items of the first rows, without choices and classes."""
        items_a, items_b = np.flatnonzero(self.row_a < rows), np.flatnonzero(self.row_b < rows)
        language = self.language if self.language is None else self.language[items_b]
        a, b = self.a[items_a], self.b[items_b]
        return SplitEncodings(a, b, self.row_a[items_a], self.row_b[items_b], language=language)

    def with_items_b(self, items: Array) -> SplitEncodings:
        """All items of a, and these items of b, without languages, choices and classes."""
        return SplitEncodings(self.a, self.b[items], self.row_a, self.row_b[items])


@dataclass(frozen=True, eq=False)
class StageResult:
    """What one stage measured on a split.

    Attributes:
        stage: cosine, two-stage, cross, small or classes.
        scoring: the score that ranked: cosine, two-stage, cross or classes.
        weight: weight of the cross score in the two-stage score.
        evaluation: ranks and metrics.
        strata: name -> one value per row of modality a, in order; a pool of the first rows has the first of them.
        items: name -> outcomes (0 or 1) of single choices, and their rows.
        reliability: of the probabilities that were calibrated on validation; None where they were not measured.
    """

    stage: str
    scoring: str
    weight: float
    evaluation: Evaluation
    strata: Mapping[str, list[Any]] = field(default_factory=dict)
    items: Mapping[str, Any] = field(default_factory=dict)
    reliability: Reliability | None = None

    def extended(self, metrics: Mapping[str, float], items: Mapping[str, Any]) -> StageResult:
        """The same result with more metrics and items."""
        evaluation = replace(self.evaluation, metrics={**self.evaluation.metrics, **metrics})
        return replace(self, evaluation=evaluation, items={**self.items, **items})


def classify(
    split: Split, rows: Array, classes: tuple[Tensor, Tensor], modalities: tuple[str, str]
) -> tuple[Evaluation, dict[str, list[int]]]:
    """Classification as retrieval of the class: ranks of each labelled sample among all classes, and of each class
    among the samples.

    Args:
        rows: [items] int64, the row of each item.
        classes: vectors of items and classes, as in ``SplitEncodings``.
    Returns:
        Evaluation with ``class_accuracy``, ``mean_class_accuracy`` and ``accuracy/NAME`` of each class that occurs,
        0..1; and per item ``class`` (1 = correct) and ``class_row``.
    Raises:
        DataError: no item has a label.
    """
    z, class_z = classes
    code = split.label[rows]
    labelled = np.flatnonzero(code >= 0)
    names = np.asarray(split.labels)
    label, occurring = names[code[labelled]], np.unique(code[labelled])
    ranks, class_metrics = zero_shot(z[labelled], class_z, label, split.labels)
    class_ranks = similarity_ranks(class_z[occurring], z[labelled], names[occurring], label)
    metrics = summary(ranks, class_ranks, (modalities[0], "class"))
    metrics |= dict(zip(CLASS_METRICS, (class_metrics["accuracy"], class_metrics["mean_class_accuracy"]), strict=True))
    metrics |= {name: value for name, value in class_metrics.items() if name.startswith("accuracy/")}
    sizes = ((len(labelled), len(names)),)
    evaluation = Evaluation("classes", (modalities[0], "class"), sizes, (ranks,), (class_ranks,), metrics)
    return evaluation, {"class": ranks.hits(1).tolist(), "class_row": rows[labelled].tolist()}


@dataclass(frozen=True)
class SplitScorer:
    """Scores one split of one model.

    Attributes:
        encodings: the encoded samples of the split.
        aligner: None for a model that has vectors only.
        weight: weight of the cross score in the two-stage score.
        tuned: True when the weight was chosen on validation.
        shortlists: of both directions, when they are computed already.
        thresholds: score -> value above which a pair is classified as true.
    """

    modalities: tuple[str, str]
    split: Split
    encodings: SplitEncodings
    aligner: Aligner | None
    config: RunConfig
    weight: float
    tuned: bool
    shortlists: tuple[Shortlist, Shortlist] | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    _pair_results: dict[str, tuple[dict[str, float], dict[str, Any]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def classes(self) -> StageResult | None:
        """As ``classify``; None where no sample has a label."""
        encodings = self.encodings
        if encodings.classes is None or not (self.split.label[encodings.row_a] >= 0).any():
            return None
        evaluation, items = classify(self.split, encodings.row_a, encodings.classes, self.modalities)
        return StageResult("classes", "classes", self.weight, evaluation, items=items)

    def stages(self) -> list[StageResult]:
        """The ranks of every stage that the model has, without choices on single pairs."""
        loss, evaluation = self.config.loss, self.config.eval
        test = self.split.name == "test"
        protocol = evaluation.protocol if test else "full"
        if loss.alpha == loss.beta == 0:
            return []
        if loss.alpha == 0:
            limit = evaluation.small if test else evaluation.exhaustive
            if len(self.split) <= limit:
                return [self._stage(CROSS, CROSS, self._evaluate(CROSS, self.encodings, protocol))]
            return [self._small(CROSS, limit)]
        scorings = [COSINE, TWO_STAGE] if self.tuned else [COSINE]
        stages = [self._stage(s, s, self._evaluate(s, self.encodings, protocol)) for s in scorings]
        if test and len(self.split) > evaluation.small:
            stages.append(self._small(score_kind(loss.alpha, loss.beta, self.weight), evaluation.small))
        return stages

    def _small(self, scoring: str, rows: int) -> StageResult:
        """The stage that ranks only the first rows."""
        evaluation = self._evaluate(scoring, self.encodings.first(rows), "full")
        return self._stage("small", scoring, replace(evaluation, protocol=f"first-{rows}"))

    def _stage(self, stage: str, scoring: str, evaluation: Evaluation) -> StageResult:
        return StageResult(stage, scoring, self.weight, evaluation, self._strata())

    def _evaluate(self, scoring: str, encodings: SplitEncodings, protocol: str) -> Evaluation:
        if encodings.language is not None:
            by_language = replace(self, shortlists=None)  # they are of captions of all languages
            return languages.evaluate_by_language(
                encodings.language,
                lambda items, of_each: by_language._evaluate(scoring, encodings.with_items_b(items), of_each),
                protocol,
            )
        a, b = encodings.a, encodings.b
        groups = self.split.group[encodings.row_a], self.split.group[encodings.row_b]
        if self.aligner is None or scoring == COSINE:
            device = CPU if self.aligner is None else next(self.aligner.parameters()).device
            rank_pool = by_similarity(a.z.to(device), b.z.to(device), *groups)
            return evaluate(protocol, *groups, rank_pool, self.modalities)
        if scoring == CROSS:
            return exhaustive(self.aligner, a, b, groups, protocol)
        config = replace(self.config.eval, protocol=protocol)
        return two_stage(self.aligner, a, b, groups, config, self.weight, self.shortlists)

    def _strata(self) -> dict[str, list[Any]]:
        metas = [self.split.meta(int(row)) for row in self.encodings.row_a]
        known = {name: read for name, read in STRATA.items() if metas and all(name in meta for meta in metas)}
        return {name: [read(meta) for meta in metas] for name, read in known.items()}

    def pairs(self, scoring: str) -> tuple[dict[str, float], dict[str, Any]]:
        """Accuracies (0..1) of one score on single pairs, and the outcome of every item; computed once per score.

        ``matching_accuracy``: each item of b chooses between its own item of a and a random one of another group.
        ``matching_sign_accuracy``: the sign of the logit of a matching head, on the same pairs.
        ``matching_binary_accuracy``: is a pair a true one? On the same pairs, by a threshold that was chosen on
        validation.
        ``matching_N_way_accuracy``: each item of a chooses its own partner among N (``eval.ways``) drawn at random.
        ``twin_accuracy``: each item of a chooses between its own partner and that of its near-twin (of its family).
        ``binding_accuracy``: each item of a chooses between a caption and the same caption with its attributes swapped;
        ``binding_KIND_accuracy``: where KIND is swapped (role, colour ...).
        ``language_agreement``: do captions that say the same in two languages have the same first answer?
        ``choice_.._accuracy``: as ``caption_choice.score_choices`` and ``paired_examples.score_examples``.
        """
        if scoring not in self._pair_results:
            self._pair_results[scoring] = self._score_pairs(scoring)
        return self._pair_results[scoring]

    def _score_pairs(self, scoring: str) -> tuple[dict[str, float], dict[str, Any]]:
        encodings, score = self.encodings, self._pair_score(scoring)
        metrics, items = self._matching(scoring, score)
        for name, (true, false) in self._choices().items():
            if len(true):
                correct = choice_accuracy(score(true), score(false).view(len(true), -1))
                metrics[f"{name}_accuracy"], items[name] = float(correct.mean()), correct.astype(int).tolist()
                items[f"{name}_row"] = encodings.row_a[true[:, 0].numpy()].tolist()
        more_metrics, more_items = self._binding_by_kind(items)
        metrics, items = metrics | more_metrics, items | more_items
        if encodings.choices is not None:
            score_texts = self._pair_score(scoring, encodings.choices.texts)
            more_metrics, more_items = caption_choice.score_choices(encodings.choices, self.split.group, score_texts)
            metrics, items = metrics | more_metrics, items | more_items
        examples = paired_examples.read_examples(self.split, encodings.row_a, encodings.row_b)
        if examples is not None:
            more_metrics, more_items = paired_examples.score_examples(examples, score)
            metrics, items = metrics | more_metrics, items | more_items
        if scoring != CROSS and encodings.language is not None and self.split.meta(0).get(PARALLEL):
            more_metrics, more_items = self._language_agreement(scoring, encodings.language)
            metrics, items = metrics | more_metrics, items | more_items
        return metrics, items

    def _language_agreement(self, scoring: str, language: Array) -> tuple[dict[str, float], dict[str, Any]]:
        """Do captions that say the same in two languages have the same first answer?"""
        encodings, size = self.encodings, self.config.eval.shortlist
        scale = 1.0 if self.aligner is None else logit_scale(self.aligner)
        scorer = Scorer.of(scoring, scale, self.weight)
        pairs = languages.parallel_pairs(language, encodings.row_b)
        if not len(pairs):
            return {}, {}
        same = languages.agreement(pairs, top_answers(self.aligner, encodings.a, encodings.b, scorer, size))
        rows = encodings.row_b[pairs[:, 0]].tolist()
        items = {LANGUAGE_AGREEMENT: same.astype(int).tolist(), f"{LANGUAGE_AGREEMENT}_row": rows}
        return {LANGUAGE_AGREEMENT: float(same.mean())}, items

    def _binding_by_kind(self, items: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
        """The choices of ``binding``, divided by what the twin swaps: one mean hides a kind that is not learned."""
        metrics: dict[str, float] = {}
        by_kind: dict[str, Any] = {}
        for row, correct in zip(items.get("binding_row", ()), items.get("binding", ()), strict=True):
            kind = STRATA["twin"]({"twin": None, **self.split.meta(int(row))})
            if kind != NO_TWIN:
                by_kind.setdefault(f"binding_{kind}", []).append(correct)
                by_kind.setdefault(f"binding_{kind}_row", []).append(row)
        for name in [name for name in by_kind if not name.endswith("_row")]:
            metrics[f"{name}_accuracy"] = float(np.mean(by_kind[name]))
        return metrics, by_kind

    def _matching(self, scoring: str, score: PairScore) -> tuple[dict[str, float], dict[str, Any]]:
        """The metrics on pairs of items with their own partner and with a random one."""
        true, false = self._matching_pairs()
        if not len(true):
            return {}, {}
        pairs, label = torch.cat([true, false]), np.repeat([True, False], len(true))
        scores = score(pairs)
        correct = choice_accuracy(scores[: len(true)], scores[len(true) :])
        metrics = {"matching_accuracy": float(correct.mean())}
        if scoring in self.thresholds:
            classified = matching_accuracy(scores - self.thresholds[scoring], label)
            metrics["matching_binary_accuracy"] = float(classified.mean())
        if self.config.loss.beta > 0 and self.config.loss.cross == "matching":
            logit = scores if scoring == CROSS else self._pair_score(CROSS)(pairs)
            metrics["matching_sign_accuracy"] = float(matching_accuracy(logit, label).mean())
        items = {"matching": correct.astype(int).tolist()}
        if self.encodings.language is not None:  # pools of languages have the captions in another order
            items["matching_row"] = self.encodings.row_b.tolist()
        return metrics, items

    def _choices(self) -> dict[str, pair_sampling.Choices]:
        """Name -> choices of items of a among items of b."""
        ways, encodings = self.config.eval.ways, self.encodings
        return {
            f"matching_{ways}_way": pair_sampling.n_way_pairs(ways, self.split.group, encodings.row_a, encodings.row_b),
            "twin": pair_sampling.twin_pairs(self.split, encodings.row_a, encodings.row_b),
            "binding": pair_sampling.swapped_caption_pairs(self.split, encodings.row_a),
        }

    def threshold(self, scoring: str) -> float | None:
        """The score above which a pair is best classified as true; None where no pair has a finite score."""
        true, false = map(self._pair_score(scoring), self._matching_pairs())
        return best_threshold(true, false) if true.isfinite().any() and false.isfinite().any() else None

    def calibrate(self, scoring: str) -> Calibration | None:
        """The probabilities of a score, fitted on pairs of this split; None where no pair has a finite score."""
        true, false = self._calibration_scores(scoring)
        return fit(true, false, self.split.name) if true.isfinite().any() and false.isfinite().any() else None

    def with_reliability(self, result: StageResult, calibrations: Mapping[str, Calibration]) -> StageResult:
        """A result with the reliability of its probabilities on pairs of this split, where its score is calibrated."""
        if result.scoring not in calibrations:
            return result
        calibration = calibrations[result.scoring]
        true, false = self._calibration_scores(result.scoring)
        probability = calibration.probability(torch.cat([true, false]))
        if not np.isfinite(probability).any():
            return result
        measured = reliability(probability, np.repeat([True, False], len(true)), calibration.threshold)
        return replace(result, reliability=measured)

    def _calibration_scores(self, scoring: str) -> tuple[Tensor, Tensor]:
        encodings = self.encodings
        pairs = pair_sampling.calibration_pairs(
            self.split.group, encodings.row_a, encodings.row_b, encodings.a.z, encodings.b.z
        )
        true, false = map(self._pair_score(scoring), pairs)
        return true, false

    def _matching_pairs(self) -> pair_sampling.Choices:
        return pair_sampling.matching_pairs(self.split.group, self.encodings.row_a, self.encodings.row_b)

    def _pair_score(self, scoring: str, texts: EncodedSamples | None = None) -> PairScore:
        """The score of items of a with items of b, or with other texts."""
        a, b, aligner = self.encodings.a, self.encodings.b if texts is None else texts, self.aligner

        def cosine(index: Tensor) -> Tensor:
            return (a.z[index[:, 0]].double() * b.z[index[:, 1]].double()).sum(-1)

        scorer = Scorer.of(scoring, logit_scale(aligner), self.weight) if aligner is not None else Scorer.of(COSINE)
        if aligner is None or not scorer.weight:
            return lambda index: scorer(cosine(index))
        tokens_a, tokens_b = a.local_tokens, b.local_tokens
        return lambda index: scorer(cosine(index), match_logits(aligner, tokens_a, tokens_b, index))
