"""Scores a trained model, with the same code for every arm, and writes ``results/SPLIT.STAGE.json`` with the ranks of
each query.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.domain_names import ORACLE, SOURCE_TEST
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.evaluation.calibration import Calibration
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.retrieval.rerank import score_kind
from ccaco_cli.core.scoring import shown_words
from ccaco_cli.core.scoring.split_scorer import CLASS_METRICS, SplitEncodings, SplitScorer, StageResult
from ccaco_cli.core.scoring.two_stage import choose_weight, logit_scale, shortlists


def score(
    data: PairData,
    encode: Callable[[str], SplitEncodings],
    aligner: Aligner | None,
    config: RunConfig,
    folder: Path,
    oracle: Callable[[], SplitEncodings] | None = None,
    *,
    cross_trained: bool = True,
) -> dict[str, Any]:
    """Scores a model on validation and test. The weight of the cross score and all thresholds are chosen on validation,
    and probabilities are calibrated there.

    Stages: ``cosine``; ``two-stage`` (cosine and cross score over a shortlist); ``cross`` (every pair, for models
    without a contrastive loss); ``classes`` (data sets with labels: each sample chooses its class); and on larger test
    splits ``small``: the model's headline score over the first ``eval.small`` rows, the only pool that all arms have.
    Across domains ``test`` is the target and ``test-source`` the sources.

    Args:
        encode: name of a split -> its encodings; called once per split.
        aligner: None for a model that has vectors only.
        oracle: encodes ``test`` by another checkpoint, which it leaves in the aligner; called last. Its results are
            named ``oracle``.
        cross_trained: False: the weight of the cross score is 0, and no other one is tried.
    Returns:
        Facts of the manifest of the run: {"metrics", "pool_rules", "headline", "weight", "weights_tried",
        "thresholds", "calibration", "word_threshold"}.
    """
    last = "test" if "test" in data.splits else "val"
    encoders: dict[str, Callable[[], SplitEncodings]] = {
        name: partial(encode, name) for name in ("val", "test", SOURCE_TEST) if name in data.splits
    }
    if oracle:
        encoders[ORACLE] = oracle
    weight = 0.0
    r_sums: dict[float, float] = {}
    thresholds: dict[str, float] = {}
    calibrations: dict[str, Calibration] = {}
    word_threshold: float | None = None
    scored: dict[str, StageResult] = {}
    for title, encode_split in encoders.items():
        name = "test" if title == ORACLE else title
        split, encodings, known = data.split(name), encode_split(), None
        if title == "val" and aligner and config.loss.alpha > 0 and config.loss.beta > 0 and cross_trained:
            groups = split.group[encodings.row_a], split.group[encodings.row_b]
            known = shortlists(aligner, encodings.a, encodings.b, groups, config.eval)
            weight, r_sums = choose_weight(*known, config.eval, logit_scale(aligner))
        scorer = SplitScorer(
            data.modalities,
            split,
            encodings,
            aligner,
            config,
            weight,
            tuned=bool(r_sums),
            shortlists=known,
            thresholds={} if title == ORACLE else thresholds,  # the oracle checkpoint has other scores
        )
        classes = scorer.classes() if title != "val" or last == "val" else None
        results = scorer.stages()
        for result in results:
            if title == "val" != last and (threshold := scorer.threshold(result.scoring)) is not None:
                thresholds[result.scoring] = threshold
        if title == "val":
            calibrations |= {
                result.scoring: calibration
                for result in results
                if (calibration := scorer.calibrate(result.scoring)) is not None
            }
            word_threshold = shown_words.threshold(split, encodings, aligner) if aligner is not None else None
        elif title != ORACLE:  # the oracle checkpoint has other scores
            results = [scorer.with_reliability(result, calibrations) for result in results]
        if name == last:  # pairs cost a slow matcher as much as the ranks, and nothing is chosen by them
            results = [result.extended(*scorer.pairs(result.scoring)) for result in results]
        if classes:
            class_metrics = {name: classes.evaluation.metrics[name] for name in CLASS_METRICS}
            results = [*(result.extended(class_metrics, classes.items) for result in results), classes]
        for result in results:
            store(folder / "results", data, config, title, result)
            scored[f"{title}.{result.stage}"] = result
    headline = score_kind(config.loss.alpha, config.loss.beta, weight)
    return {
        "metrics": {name: result.evaluation.metrics for name, result in scored.items()},
        "pool_rules": {name: result.evaluation.protocol for name, result in scored.items()},
        "headline": headline if f"{last}.{headline}" in scored else "small",
        "weight": weight,
        "weights_tried": {str(tried): r_sum for tried, r_sum in r_sums.items()},
        "thresholds": thresholds,
        "calibration": {name: calibration.as_dict() for name, calibration in calibrations.items()},
        "word_threshold": word_threshold,
    }


def store(folder: Path, data: PairData, config: RunConfig, title: str, result: StageResult, **origin: Any) -> Path:
    """Writes the result file of one stage, ``TITLE.STAGE.json``.

    Args:
        title: name of the split, or ``oracle``.
        origin: further entries of the file: where the result comes from.
    Returns:
        The file.
    """
    body = {
        "split": title,
        "stage": result.stage,
        "arm": config.arm,
        "seed": config.seed,
        "dataset": data.name,
        "data": data.manifest.sha256,
        "data_protocol": data.manifest.facts["protocol"],
        "weight": result.weight,
        "pool_rule": result.evaluation.protocol,
        "scoring": result.scoring,
        **origin,
        **result.evaluation.as_dict(),
        "strata": result.strata,
        "per_item": result.items,
        **({} if result.reliability is None else {"reliability": result.reliability.as_dict()}),
    }
    file = folder / f"{title}.{result.stage}.json"
    manifest.write_json(file, body)
    return file
