"""How a trained model is scored: the same code for every arm. Leaves ``results/SPLIT.STAGE.json`` with per-query ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.domains import SOURCE_TEST
from ccaco_cli.core.data.shards import PairData, Split
from ccaco_cli.core.evaluation.metrics import (
    best_threshold,
    choice_accuracy,
    matching_accuracy,
    similarity_ranks,
    summary,
    zero_shot,
)
from ccaco_cli.core.evaluation.protocols import Evaluation, by_similarity, evaluate
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.retrieval import rerank
from ccaco_cli.core.scoring import caption_choice, pair_sampling
from ccaco_cli.core.types import EncodedSamples

Array = NDArray[Any]
PairScore = Callable[[Tensor], Tensor]
"""Pairs of items [M, 2] -> scores [M], higher = better match."""
CLASS_ACCURACY = "class_accuracy"
CLASSIFIED = (CLASS_ACCURACY, "mean_class_accuracy")
STRATA = ("things", "combination")
"""Facts of a thing (``Split.meta``) by which results can be split."""


@dataclass(frozen=True)
class SplitEncodings:
    """A split as a model sees it.

    a, b          items of either modality (with tokens when the model has a cross branch)
    row_a, row_b  [items] int64, the row of each item
    negatives     true captions and hard negatives of which the pictures must choose, where the split has such
    classes       vectors of the items of a and of every class, whose dot product says how well they fit; None = nothing to classify
    """

    a: EncodedSamples
    b: EncodedSamples
    row_a: Array
    row_b: Array
    negatives: caption_choice.CaptionChoices | None = None
    classes: tuple[Tensor, Tensor] | None = None

    def first(self, rows: int) -> SplitEncodings:
        """The items of the first rows only."""
        one, other = np.flatnonzero(self.row_a < rows), np.flatnonzero(self.row_b < rows)
        return SplitEncodings(self.a[one], self.b[other], self.row_a[one], self.row_b[other])


def score(
    data: PairData,
    encode: Callable[[str], SplitEncodings],
    aligner: Aligner | None,
    config: RunConfig,
    folder: Path,
    oracle: Callable[[], SplitEncodings] | None = None,
) -> dict[str, Any]:
    """Scores a model: the weight of the cross score is chosen on validation, the test split is touched once.

    encode   split name -> its items; called once a split
    aligner  None for a model that has vectors only
    oracle   called last: items of ``test`` by another checkpoint, which is in the aligner from then on; scored under the name ``oracle``
    Returns  facts of the run's manifest: {"metrics", "pool_rules", "headline", "weight", "weights_tried", "thresholds"}

    Stages: ``cosine``, ``two-stage`` (cosine and cross score over a shortlist), ``cross`` (every pair, models without a contrastive half),
    ``classes`` (data sets with labels: each sample chooses its class); and, on larger test splits, ``small``: the model's own score over
    the first ``eval.small`` things, the one pool that all arms share. Across domains ``test`` is the target, ``test-source`` the sources.
    """
    weight = 0.0
    sums: dict[float, float] = {}
    metrics: dict[str, dict[str, float]] = {}
    rules: dict[str, str] = {}
    last = "test" if "test" in data.splits else "val"
    thresholds: dict[str, float] = {}
    wanted = {name: (name, partial(encode, name)) for name in ("val", "test", SOURCE_TEST) if name in data.splits}
    for title, (name, items_of) in (wanted | ({"oracle": ("test", oracle)} if oracle else {})).items():
        split, found = data.split(name), items_of()
        known: tuple[rerank.Shortlist, rerank.Shortlist] | None = None
        if title == "val" and aligner and config.loss.alpha > 0 and config.loss.beta > 0:
            known = rerank.stages(
                aligner, found.a, found.b, split.group[found.row_a], split.group[found.row_b], config.eval
            )
            weight, sums = rerank.choose_weight(*known, config.eval)
        judge = SplitScorer(data.modalities, split, found, aligner, config, weight, tuned=bool(sums), known=known)
        judge = replace(
            judge, thresholds={} if title == "oracle" else thresholds
        )  # they are of the other checkpoint's scores
        told = judge.classes() if title != "val" or last == "val" else None
        for label, (how, result) in judge.stages().items():
            if title == "val" != last and (chosen := judge.threshold(how)) is not None:
                thresholds[how] = chosen
            # single pairs choose nothing, and cost a slow matcher as much as its ranks: they wait for the last split
            measured, items = judge.pairs(how) if name == last else ({}, {})
            if told:
                measured, items = measured | {k: told[0].metrics[k] for k in CLASSIFIED}, items | told[1]
            found_here = replace(result, metrics=result.metrics | measured)
            store(folder / "results", data, config, title, label, weight, how, found_here, judge.strata(result), items)
            metrics[f"{title}.{label}"], rules[f"{title}.{label}"] = found_here.metrics, result.protocol
        if told:
            store(folder / "results", data, config, title, "classes", weight, "classes", told[0], {}, told[1])
            metrics[f"{title}.classes"], rules[f"{title}.classes"] = told[0].metrics, told[0].protocol
    own = (
        "two-stage"
        if weight > 0
        else "cosine"
        if config.loss.alpha > 0
        else "cross"
        if config.loss.beta > 0
        else "classes"
    )
    headline = own if f"{last}.{own}" in metrics else "small"
    tried = {str(k): v for k, v in sums.items()}
    return {
        "metrics": metrics,
        "pool_rules": rules,
        "headline": headline,
        "weight": weight,
        "weights_tried": tried,
        "thresholds": thresholds,
    }


def store(
    folder: Path,
    data: PairData,
    config: RunConfig,
    title: str,
    stage: str,
    weight: float,
    how: str,
    result: Evaluation,
    strata: Mapping[str, Any],
    items: Mapping[str, Any],
    **about: Any,
) -> None:
    """Writes the result file of one stage, ``SPLIT.STAGE.json``; ``about`` is what else is to be said of where it comes from."""
    body = {
        "split": title,
        "stage": stage,
        "arm": config.arm,
        "seed": config.seed,
        "dataset": data.name,
        "data": data.manifest.sha256,
    }
    body |= {
        "data_protocol": data.manifest.facts["protocol"],
        "weight": weight,
        "pool_rule": result.protocol,
        "scoring": how,
    }
    body |= {**about, **result.as_dict(), "strata": strata, "per_item": items}
    manifest.write_json(folder / f"{title}.{stage}.json", body)


def accuracies(
    split: Split, rows: Array, classes: tuple[Tensor, Tensor], modalities: tuple[str, str]
) -> tuple[Evaluation, dict[str, list[int]]]:
    """Classification as retrieval of the class: ranks of every labelled sample among all classes, and of every class met among the samples.

    rows     [items] int64, the row of each item
    classes  vectors of items and classes, as ``SplitEncodings`` has them
    Returns  Evaluation with ``class_accuracy``, ``mean_class_accuracy`` and ``accuracy/NAME`` of each class met, 0..1, and by item
             ``class`` (1 = right) and ``class_row``
    Raises   DataError: no item has a label
    """
    z, class_z = classes
    code = split.label[rows]
    chosen = np.flatnonzero(code >= 0)
    names = np.asarray(split.labels)
    label, met = names[code[chosen]], np.unique(code[chosen])
    ranks, named = zero_shot(z[chosen], class_z, label, split.labels)
    back = similarity_ranks(class_z[met], z[chosen], names[met], label)
    figures = summary(ranks, back, (modalities[0], "class")) | dict(
        zip(CLASSIFIED, (named["accuracy"], named["mean_class_accuracy"]), strict=True)
    )
    figures |= {name: value for name, value in named.items() if name.startswith("accuracy/")}
    sizes = ((len(chosen), len(names)),)
    return (
        Evaluation("classes", (modalities[0], "class"), sizes, (ranks,), (back,), figures),
        {"class": ranks.hits(1).tolist(), "class_row": rows[chosen].tolist()},
    )


@dataclass(frozen=True)
class SplitScorer:
    """One split of one model. ``tuned`` = the weight of the cross score was chosen; ``known`` = from these shortlists and cross scores;
    ``thresholds`` = the score of each kind above which a pair counts as a true one."""

    modalities: tuple[str, str]
    split: Split
    found: SplitEncodings
    aligner: Aligner | None
    config: RunConfig
    weight: float
    tuned: bool
    known: tuple[rerank.Shortlist, rerank.Shortlist] | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    _paired: dict[str, tuple[dict[str, float], dict[str, Any]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def classes(self) -> tuple[Evaluation, dict[str, list[int]]] | None:
        """As ``accuracies``; None where nothing has a label."""
        if self.found.classes is None or not (self.split.label[self.found.row_a] >= 0).any():
            return None
        return accuracies(self.split, self.found.row_a, self.found.classes, self.modalities)

    def stages(self) -> dict[str, tuple[str, Evaluation]]:
        """Stage -> (which score, what it measured)."""
        test = self.split.name == "test"
        protocol = self.config.eval.protocol if test else "full"
        if self.config.loss.alpha == self.config.loss.beta == 0:
            return {}
        if self.config.loss.alpha == 0:
            most = self.config.eval.small if test else self.config.eval.exhaustive
            if len(self.split) <= most:
                return {"cross": ("cross", self._evaluate("cross", self.found, protocol))}
            return {"small": ("cross", self._small("cross", most))}
        wanted = ["cosine", "two-stage"] if self.tuned else ["cosine"]
        stages = {how: (how, self._evaluate(how, self.found, protocol)) for how in wanted}
        if test and len(self.split) > self.config.eval.small:
            own = "two-stage" if self.weight > 0 else "cosine"
            stages["small"] = (own, self._small(own, self.config.eval.small))
        return stages

    def _small(self, how: str, rows: int) -> Evaluation:
        return replace(self._evaluate(how, self.found.first(rows), "full"), protocol=f"first-{rows}")

    def _evaluate(self, how: str, items: SplitEncodings, protocol: str) -> Evaluation:
        a, b, groups = items.a, items.b, (self.split.group[items.row_a], self.split.group[items.row_b])
        if self.aligner is None or how == "cosine":
            return evaluate(protocol, *groups, by_similarity(a.z, b.z, *groups), self.modalities)
        if how == "cross":
            return rerank.exhaustive(self.aligner, a, b, *groups, protocol)
        return rerank.two_stage(
            self.aligner, a, b, *groups, replace(self.config.eval, protocol=protocol), self.weight, self.known
        )

    def strata(self, result: Evaluation) -> dict[str, list[Any]]:
        """Name -> its value for every row of the first modality that was in the pool, in order."""
        rows = self.found.row_a[: result.pools[0][0]] if result.protocol.startswith("first-") else self.found.row_a
        metas = [self.split.meta(int(row)) for row in rows]
        return {name: [m[name] for m in metas] for name in STRATA if metas and all(name in m for m in metas)}

    def pairs(self, how: str) -> tuple[dict[str, float], dict[str, Any]]:
        """What a score says of single pairs: accuracies (0..1) and the outcome of every item.

        ``matching_accuracy``        each item of the second modality chooses between its own partner and a random other one
        ``matching_sign_accuracy``   the sign of a matching head's logit, on the same pairs
        ``matching_N_way_accuracy``  each item of the first modality chooses its own partner among N (``eval.ways``) drawn at random
        ``matching_binary_accuracy`` is a pair a true one? On the pairs of ``matching_accuracy``, above a threshold chosen on validation
        ``twin_accuracy``            each item of the first modality chooses between its own partner and that of its near-twin (its family)
        ``binding_accuracy``         each thing chooses between a caption and the same one with what it says swapped
        ``choice_.._accuracy``       as ``caption_choice.measure`` has them, where the split has hard negatives of its own

        Several stages rank by one score; what it says of pairs is found once.
        """
        if how not in self._paired:
            self._paired[how] = self._pairs(how)
        return self._paired[how]

    def _pairs(self, how: str) -> tuple[dict[str, float], dict[str, Any]]:
        metrics: dict[str, float] = {}
        items: dict[str, Any] = {}
        scores, found = self._score(how), self.found
        true, false = self._partners()
        if len(true):
            both = torch.cat([true, false])
            said, label = scores(both), np.repeat([True, False], len(true))
            right = choice_accuracy(said[: len(true)], said[len(true) :])
            metrics["matching_accuracy"], items["matching"] = float(right.mean()), right.astype(int).tolist()
            if how in self.thresholds:
                metrics["matching_binary_accuracy"] = float(
                    matching_accuracy(said - self.thresholds[how], label).mean()
                )
            if self.config.loss.beta > 0 and self.config.loss.cross == "matching":
                logit = said if how == "cross" else self._score("cross")(both)
                metrics["matching_sign_accuracy"] = float(matching_accuracy(logit, label).mean())
        drawn = {
            f"matching_{self.config.eval.ways}_way": pair_sampling.among(
                self.config.eval.ways, self.split.group, found.row_a, found.row_b
            ),
            "twin": pair_sampling.twins(self.split, found.row_a, found.row_b),
            "binding": pair_sampling.swapped(self.split, found.row_a),
        }
        for name, (own, others) in drawn.items():
            if len(own):
                right = choice_accuracy(scores(own), scores(others).view(len(own), -1))
                metrics[f"{name}_accuracy"], items[name] = float(right.mean()), right.astype(int).tolist()
                items[f"{name}_row"] = found.row_a[own[:, 0].numpy()].tolist()
        if (asked := found.negatives) is not None:
            measured, outcomes = caption_choice.measure(asked, self.split.group, self._score(how, asked.texts))
            metrics, items = metrics | measured, items | outcomes
        return metrics, items

    def threshold(self, how: str) -> float | None:
        """The score above which a pair is best taken for a true one; None where no pair has one."""
        true, false = map(self._score(how), self._partners())
        return best_threshold(true, false) if true.isfinite().any() and false.isfinite().any() else None

    def _partners(self) -> tuple[Tensor, Tensor]:
        return pair_sampling.partners(self.split.group, self.found.row_a, self.found.row_b)

    def _score(self, how: str, texts: EncodedSamples | None = None) -> PairScore:
        a, b, aligner = self.found.a, self.found.b if texts is None else texts, self.aligner

        def cosine(index: Tensor) -> Tensor:
            return (a.z[index[:, 0]].double() * b.z[index[:, 1]].double()).sum(-1)

        # at weight 0 the cross branch has no say, not even when it is NaN
        if aligner is None or how == "cosine" or (how == "two-stage" and not self.weight):
            return cosine
        tokens_a, tokens_b = a.local_tokens, b.local_tokens
        if how == "cross":
            return lambda index: rerank.match(aligner, tokens_a, tokens_b, index)
        scale = float(aligner.logit_scale().detach())
        return lambda index: scale * cosine(index) + self.weight * rerank.match(aligner, tokens_a, tokens_b, index)
