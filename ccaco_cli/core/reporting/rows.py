"""The rows of report tables: one dataclass for each kind of table.

CSV and JSON hold every column of ``as_dicts(rows)``. How people see a row is decided by ``ccaco_cli.view.layouts``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ccaco_cli.core.evaluation.significance import Comparison, Estimate

Cells = dict[str, Any]
"""Column name -> value (fractions for recalls; a list of words for warnings)."""
FAILED = "failed"
"""The verdict on an arm of which no run has finished."""
ESTIMATE = ("low", "high", "query_low", "query_high", "seed_sd", "covers")
COMPARISON = ("low", "high", "covers", "p", "p_holm", "effect", "verdict")


@dataclass(frozen=True)
class ReportRow:
    """One row of a report table."""

    def sections(self) -> tuple[Cells, ...]:
        """The cells in groups (identity, metrics, evidence ...); rows of one table have equally many groups."""
        raise NotImplementedError

    def as_dict(self) -> Cells:
        """Every cell of this row alone; use ``as_dicts`` for a table, where all rows have the same columns."""
        return {name: value for section in self.sections() for name, value in section.items()}


def as_dicts(rows: Sequence[ReportRow]) -> list[Cells]:
    """Rows as dicts that all have the same columns in the same order; None where a row has no such value."""
    sections = zip(*(row.sections() for row in rows), strict=True)
    names = [list(dict.fromkeys(name for cells in section for name in cells)) for section in sections]
    return [
        {name: cells.get(name) for cells, columns in zip(row.sections(), names, strict=True) for name in columns}
        for row in rows
    ]


@dataclass(frozen=True)
class Stratum:
    """A part of the queries: those whose item has this value of a property, such as ``things`` = 3."""

    name: str
    value: Any


@dataclass(frozen=True)
class RunCost:
    """What training a run took.

    Attributes:
        seconds: training time without validation.
        samples_per_second: samples that were in the batches, per second of training.
        memory_mib: peak memory of training in MiB: of the GPU, or of the process without mapped files.
        fitted: False for a run whose training was not recorded, such as a result file without its run: it has no
            steps, seconds and memory.
    """

    parameters: int | None
    steps: int | None = None
    seconds: float | None = None
    samples_per_second: float | None = None
    memory_mib: float | None = None
    fitted: bool = False

    def as_dict(self) -> Cells:
        """The columns of a run's cost."""
        cells: Cells = {"parameters": self.parameters}
        if self.fitted:
            cells |= {"steps": self.steps, "seconds": self.seconds}
            cells |= {"samples/s": self.samples_per_second, "memory_MiB": self.memory_mib}
        return cells


@dataclass(frozen=True)
class RunRow(ReportRow):
    """One run and stage, or one stratum of it.

    Attributes:
        weight: of the match score in a two-stage score; None for other stages.
        metrics: name -> fraction (R-sum: 0..600).
        losses: ``loss_NAME`` -> last value in the training log.
        cost: None in tables by stratum.
        queries: number of queries of the stratum, both directions.
    """

    run: str
    dataset: str
    arm: str
    seed: int
    stage: str
    weight: float | None
    metrics: Mapping[str, float | None]
    losses: Mapping[str, float | None] = field(default_factory=dict)
    cost: RunCost | None = None
    warnings: Sequence[str] = ()
    stratum: Stratum | None = None
    queries: int | None = None

    def sections(self) -> tuple[Cells, ...]:
        identity: Cells = {"run": self.run, "dataset": self.dataset, "arm": self.arm, "seed": self.seed}
        identity |= {"stage": self.stage, "weight": self.weight}
        if self.stratum:
            identity |= {self.stratum.name: self.stratum.value, "queries": self.queries}
        cost = self.cost.as_dict() | {"warnings": list(self.warnings)} if self.cost else {}
        return identity, dict(self.metrics), {**self.losses, **cost}


@dataclass(frozen=True)
class ArmEvidence:
    """What the finished runs of an arm say about one metric.

    Attributes:
        value: the metric, mean over seeds.
        estimate: its intervals; None where there are too few queries for one.
        reference: the arm that this one is compared with.
        paired_seeds: number of seeds that both arms have.
        comparison: this arm minus the reference, p corrected by Holm over the arms; None for the reference itself,
            without a common seed, or with too few queries.
        verdict: better | worse | not separable ..., ``reference``, or why there is no verdict.
        seconds: training time, mean over seeds; None where it was not recorded.
    """

    metric: str
    value: float
    estimate: Estimate | None
    reference: str
    paired_seeds: int
    comparison: Comparison | None
    verdict: str
    seconds: float | None
    warnings: Sequence[str]

    def as_dict(self) -> Cells:
        """The columns of the evidence."""
        cells: Cells = {"metric": self.metric, "value": self.value}
        cells |= {name: getattr(self.estimate, name, None) for name in ESTIMATE}
        cells |= {"reference": self.reference, "paired_seeds": self.paired_seeds}
        compared = comparison_cells(self.comparison)
        cells |= {f"difference_{k}" if k in ("low", "high", "covers") else k: v for k, v in compared.items()}
        return cells | {"verdict": self.verdict, "seconds": self.seconds, "warnings": list(self.warnings)}


@dataclass(frozen=True)
class ArmRow(ReportRow):
    """One arm on one data set and pool: means over its seeds, and the evidence for a difference from the reference.

    Attributes:
        pool: the protocol that says which items are in the gallery.
        metrics: name -> mean over seeds, fractions (R-sum: 0..600).
        queries: number of queries, both directions.
        evidence: None for an arm of which no run has finished.
        failed: number of runs of this arm that failed.
    """

    arm: str
    dataset: str | None = None
    pool: str | None = None
    seeds: int = 0
    queries: int | None = None
    stratum: Stratum | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    evidence: ArmEvidence | None = None
    failed: int = 0

    @property
    def verdict(self) -> str:
        return self.evidence.verdict if self.evidence else FAILED

    def sections(self) -> tuple[Cells, ...]:
        identity: Cells = {"dataset": self.dataset, "pool": self.pool, "arm": self.arm}
        if self.stratum:
            identity[self.stratum.name] = self.stratum.value
        identity["seeds"] = self.seeds
        if self.evidence is None:
            return identity, {}, {"verdict": self.verdict, "failed": self.failed}
        return (
            identity | {"queries": self.queries},
            dict(self.metrics),
            self.evidence.as_dict() | {"failed": self.failed},
        )


@dataclass(frozen=True)
class ArmMeanRow(ReportRow):
    """One arm on one data set and pool: means over its seeds alone.

    Attributes:
        metrics: name -> mean over seeds.
        spread_metric: the metric whose spread between seeds is shown; None shows none.
        seed_sd: sample standard deviation of that metric; None with one seed.
    """

    dataset: str
    pool: str
    arm: str
    seeds: int
    metrics: Mapping[str, float | None]
    spread_metric: str | None = None
    seed_sd: float | None = None

    def sections(self) -> tuple[Cells, ...]:
        spread = {f"{self.spread_metric}_seed_sd": self.seed_sd} if self.spread_metric else {}
        identity = {"dataset": self.dataset, "pool": self.pool, "arm": self.arm, "seeds": self.seeds}
        return identity, dict(self.metrics), spread


@dataclass(frozen=True)
class ComparisonRow(ReportRow):
    """One metric of two results, paired by query.

    Attributes:
        first_value, second_value: the metric of both results (fractions; R-sum 0..600; mean rank from 1).
        comparison: second minus first, p corrected by Holm over the metrics.
    """

    metric: str
    first_result: str
    second_result: str
    first_value: float
    second_value: float
    comparison: Comparison

    def sections(self) -> tuple[Cells, ...]:
        cells: Cells = {"metric": self.metric, "reference": self.first_result, "other": self.second_result}
        cells |= {"reference_value": self.first_value, "other_value": self.second_value}
        return (cells | comparison_cells(self.comparison),)


@dataclass(frozen=True)
class DomainRow(ReportRow):
    """One arm across domains: means over its seeds.

    Attributes:
        sources: names of the source domains, joined by commas.
        target, low, high: the metric on the target domain with its 95 % interval.
        gain: target minus the target of the reference arm.
        source: the metric on the source domains; ``retention`` is its ratio to the reference arm's.
        oracle: target of the checkpoint that was chosen with the target's labels (an upper bound, not a result).
        proxy_a_distance: distance of the two domains in the shared space after training, 0 (equal) to 2.
        proxy_a_distance_before: the same before training.
        domain_accuracy: accuracy of a linear classifier that separates the domains, after training.
    """

    dataset: str
    sources: str
    target_domain: str
    arm: str
    seeds: int
    metric: str
    target: float | None
    low: float | None
    high: float | None
    gain: float | None
    reference: str
    source: float | None
    retention: float | None
    oracle: float | None
    proxy_a_distance: float | None
    domain_accuracy: float | None
    proxy_a_distance_before: float | None
    warnings: Sequence[str] = ()

    def sections(self) -> tuple[Cells, ...]:
        cells: Cells = {"dataset": self.dataset, "sources": self.sources, "target_domain": self.target_domain}
        cells |= {"arm": self.arm, "seeds": self.seeds, "metric": self.metric, "target": self.target}
        cells |= {"low": self.low, "high": self.high, "gain": self.gain, "reference": self.reference}
        cells |= {"source": self.source, "retention": self.retention, "oracle (chosen on the target)": self.oracle}
        cells |= {"proxy_a_distance": self.proxy_a_distance, "domain_accuracy": self.domain_accuracy}
        return (cells | {"proxy_a_distance_before": self.proxy_a_distance_before, "warnings": list(self.warnings)},)


@dataclass(frozen=True)
class MixRow(ReportRow):
    """One mix of a run with the pretrained model that it started from (``report --wise``).

    Attributes:
        mix: fraction of the trained weights: 0 = the start, 1 = the run.
        chosen: whether it has the highest R-sum on validation.
        folder: where its results are; of the chosen mix, a run with weights.
        stage: the score that ranks: two-stage, or cosine.
        weight: of the match score, chosen on validation.
        r_sums: ``SPLIT_STAGE_R-sum`` of the data set of the run -> R-sum (0..600); None where it was not measured.
        metrics: of ``stage`` on test (or on val, without a test split).
        retained_on: the data set that stands for the abilities of the start; None where none was named.
        retained_metric: R-sum, or an accuracy.
        retained, retained_start: that metric of the mix and of the start, by cosine.
        retained_two_stage: that metric of the mix by the two-stage score; None where it has none.
        retention: ``retained / retained_start``.
    """

    run: str
    dataset: str
    arm: str
    seed: int
    mix: float
    chosen: bool
    folder: str
    stage: str
    weight: float
    r_sums: Mapping[str, float | None]
    metrics: Mapping[str, float | None]
    retained_on: str | None = None
    retained_metric: str = ""
    retained: float | None = None
    retained_start: float | None = None
    retained_two_stage: float | None = None
    retention: float | None = None

    def sections(self) -> tuple[Cells, ...]:
        identity: Cells = {"run": self.run, "dataset": self.dataset, "arm": self.arm, "seed": self.seed}
        identity |= {"mix": self.mix, "chosen": self.chosen, "folder": self.folder}
        identity |= {"stage": self.stage, "weight": self.weight}
        if self.retained_on is None:
            return identity, {**self.r_sums, **self.metrics}, {}
        retained: Cells = {"retained_on": self.retained_on, "retained_metric": self.retained_metric}
        retained |= {"retained": self.retained, "retained_start": self.retained_start}
        retained |= {"retained_two_stage": self.retained_two_stage, "retention": self.retention}
        return identity, {**self.r_sums, **self.metrics}, retained


@dataclass(frozen=True)
class FaithfulnessRow(ReportRow):
    """How faithful the heat maps of a run are, by one measure.

    Attributes:
        method: how heat maps are computed: attention | gradient.
        measure: deletion, insertion (gain over random cells, in units of the match score) or pointing (fraction of
            hits).
        word: the word that is pointed at; "" over all words.
        value, low, high: the measure with its 95 % interval over images.
        random, centre: the two baselines: a random cell, and the centre of the image (pointing only).
        cases: number of pairs, or of words.
    """

    run: str
    method: str
    measure: str
    word: str
    value: float
    low: float | None
    high: float | None
    random: float
    centre: float | None
    cases: int
    verdict: str

    def sections(self) -> tuple[Cells, ...]:
        cells: Cells = {"run": self.run, "method": self.method, "measure": self.measure, "word": self.word}
        cells |= {"value": self.value, "low": self.low, "high": self.high, "random": self.random}
        return (cells | {"centre": self.centre, "cases": self.cases, "verdict": self.verdict},)


@dataclass(frozen=True)
class SplitRow(ReportRow):
    """What one split of a prepared data set holds.

    Attributes:
        counts: samples, groups, captions and rejects.
        ranges: measure -> (min, mean, max), such as the width of images; None where this split has no such measure.
        reasons: why samples were rejected, with counts.
        protocol: which items are in the gallery at evaluation; one for all splits.
    """

    split: str
    counts: Mapping[str, int]
    ranges: Mapping[str, tuple[float, float, float] | None]
    reasons: Sequence[str]
    protocol: str

    def sections(self) -> tuple[Cells, ...]:
        cells: Cells = {"split": self.split, **self.counts}
        for measure, limits in self.ranges.items():
            cells |= {f"{measure}_{part}": limits and limits[i] for i, part in enumerate(("min", "mean", "max"))}
        return (cells | {"reasons": list(self.reasons), "protocol": self.protocol},)


def comparison_cells(comparison: Comparison | None) -> Cells:
    """The columns of a difference; all None without one."""
    cells: Cells = {"difference": comparison and comparison.value}
    return cells | {name: comparison and getattr(comparison, name) for name in COMPARISON}
