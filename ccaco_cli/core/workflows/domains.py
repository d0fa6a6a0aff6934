"""Training across domains: what ``train`` needs for it, what is measured of it, and the table of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.domains import SOURCE_TEST, AcrossDomains, split_names, unpaired_rows
from ccaco_cli.core.data.loader import NONE, Array, Column
from ccaco_cli.core.data.shards import PairData, Split
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation import domains as measures
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.retrieval.embed import encode
from ccaco_cli.core.training import statistics, step
from ccaco_cli.core.workflows import results
from ccaco_cli.core.workflows.results import Result, Row, Run

SAMPLE = 400
"""Samples of each domain by which embeddings are compared and drawn."""
ORACLE = "oracle"
"""Name of the checkpoint, and of the results, that were chosen with the target's labels."""
PICTURE = "domains.json"
BASE = "source-only"
REESTIMATE = 256


def media(data: PairData) -> list[str]:
    """The modalities of which the target gives samples."""
    return [m for m in data.modalities if m != "text"]


def heads(data: PairData, config: RunConfig) -> Adaptation | None:
    """The heads that a run's domain settings ask for; None where they ask for none.

    Raises ConfigError: a side that the data set does not have, text with fewer than two sources; DataError: fewer than two classes
    """
    settings, split = config.domain, data.split("train")
    names = split_names(settings.sides) or tuple(media(data))
    terms = step.terms(settings)
    for name in names:
        if name not in data.modalities:
            raise ConfigError("no such side", where=f"--domain-sides {settings.sides}", expected=",".join(data.modalities))
    counts: dict[str, int] = {}
    codes = torch.zeros(len(split.domains), dtype=torch.long)
    if isinstance(data, AcrossDomains) and terms:
        for number, source in enumerate(data.sources):
            codes[split.domains.index(source)] = number
        counts = {m: 2 if m in media(data) else len(data.sources) for m in names}
        if min(counts.values()) < 2:
            raise ConfigError(
                "texts of one domain cannot be drawn together",
                where=f"--domain-sides {settings.sides}",
                expected="two source domains or more: the target's texts are withheld",
                next="--domain-sides image",
            )
    classify = media(data)[0] if settings.classify > 0 else ""
    classes = len(split.labels) if classify else 0
    if classify and classes < 2:
        raise DataError(
            "nothing to classify", where=data.name, expected="a label column of two classes or more", next="ccaco prepare --list"
        )
    if not counts and not classify:
        return None
    return Adaptation(
        settings,
        config.model.dim,
        counts,
        codes,
        torch.from_numpy(split.label),
        adversarial=step.ADVERSARIAL in terms,
        classify=classify,
        classes=classes,
    )


def unpaired(data: PairData, split: Split, columns: Mapping[str, Column], adaptation: Adaptation | None) -> tuple[Array, Array]:
    """Items of the target that training sees, for each modality: of the sides that are aligned."""
    wanted = adaptation.domains if adaptation is not None else {}
    a, b = (columns[m].start[unpaired_rows(split)] if m in wanted and m in media(data) else NONE for m in data.modalities)
    return a, b


def to_target(aligner: Aligner, columns: Mapping[str, Column], data: PairData) -> None:
    """AdaBN: running statistics of every side of which the target gives samples, estimated anew on those."""
    rows = unpaired_rows(data.split("train"))
    for modality in media(data):
        column = columns[modality]
        # batches of mixed content, or each would tell of its own kind only
        items = np.random.default_rng(0).permutation(column.start[rows])

        def batches(column: Column = column, items: Array = items) -> Iterator[Any]:
            return (column.inputs(items[i : i + REESTIMATE]) for i in range(0, len(items), REESTIMATE))

        statistics.reestimate(aligner, modality, batches())


def look(aligner: Aligner, columns: Mapping[str, Column], data: PairData) -> dict[str, dict[str, Any]]:
    """How training samples of the sources and of the target lie in the shared space, for each modality of which the target gives samples.

    Returns  modality -> {"domain_accuracy", "proxy_a_distance", "points": [[x, y], ...], "domain": ["source" | "target", ...]}; {} where
             no target is named, or too few samples are there
    """
    split = data.split("train")
    lone = unpaired_rows(split)
    found: dict[str, dict[str, Any]] = {}
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.permutation(part)[:SAMPLE]) for part in (np.arange(len(split) - len(lone)), lone)]
    if min(map(len, rows)) < 4:
        return {}
    for modality in media(data):
        column = columns[modality]
        z = [encode(aligner, modality, column, items=column.start[part]).z.numpy() for part in rows]
        if not all(np.isfinite(part).all() for part in z):
            continue
        told = ["source"] * len(rows[0]) + ["target"] * len(rows[1])
        points = measures.plane(np.concatenate(z)).round(4).tolist()
        found[modality] = {**measures.separability(z[0], z[1]), "points": points, "domain": told}
    return found


def note(data: PairData, before: Mapping[str, Any], after: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Stores both looks for the picture; returns facts of the run's manifest."""
    if not isinstance(data, AcrossDomains):
        return {}
    manifest.write_json(folder / "results" / PICTURE, {"before": before, "after": after})
    figures = {
        when: {m: {k: one[k] for k in ("domain_accuracy", "proxy_a_distance")} for m, one in looks.items()}
        for when, looks in (("before", before), ("after", after))
    }
    return {"domains": {"sources": list(data.sources), "target": data.target, **figures}}


def stored(run: Run) -> dict[str, Any]:
    """What ``note`` stored of a run: {"before", "after"}, each as ``look`` gives it. Raises DataError: a run without a target domain."""
    file = run.path / "results" / PICTURE
    if not file.is_file():
        raise _no_target(run)
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def _no_target(run: Run) -> DataError:
    return DataError("this run has no target domain", where=run.path, expected="runs of ccaco train --target-domain NAME")


def table(runs: Sequence[Run], metric: str, reference: str | None) -> list[Row]:
    """One row an arm (and data set): the target with its interval, the gain there, what is left of the source, and the oracle apart.

    metric     ``R-sum``, ``text_to_image_R@1``, ``class_accuracy`` ...
    reference  whose figures gain and retention are held against; None = source-only where it is there, else the first
    Returns    means over seeds: ``target`` (``low .. high``), ``gain`` = target minus the reference's, ``source``, ``retention`` = source
               over the reference's, ``oracle`` = target by the checkpoint that the target chose, ``proxy_a_distance`` and
               ``domain_accuracy`` after training (first modality), ``proxy_a_distance_before``
    Raises     DataError: a run without a target domain; ConfigError: no such metric
    """
    for run in runs:
        if "domains" not in run.facts:
            raise _no_target(run)
    rows: list[Row] = []
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        told = run.facts["domains"]
        groups.setdefault((run.dataset, ",".join(told["sources"]), told["target"]), []).append(run)
    for (dataset, sources, target), group in groups.items():
        arms = {split: results.by_arm(_stored(group, split)) for split in ("test", SOURCE_TEST, ORACLE)}
        base = next((n for n in (reference, BASE, *arms["test"]) if n in arms["test"]), None)
        if base is None or (reference and reference not in arms["test"]):
            raise DataError("no finished run of the reference arm", where=reference, expected=" | ".join(arms["test"]))
        figures = {split: {label: _means(found, metric) for label, found in of.items()} for split, of in arms.items()}
        for label, seeds in arms["test"].items():
            head: Row = {
                "dataset": dataset,
                "sources": sources,
                "target_domain": target,
                "arm": label,
                "seeds": len(seeds),
                "metric": metric,
            }
            value, source = (figures[split].get(label) for split in ("test", SOURCE_TEST))
            row = head | {"target": value} | _interval(list(seeds.values()), metric)
            was, source_was = figures["test"][base], figures[SOURCE_TEST].get(base)
            row |= {"gain": None if value is None or was is None else value - was, "reference": base, "source": source}
            row |= {"retention": source / source_was if source is not None and source_was else None}
            row |= {"oracle (chosen on the target)": figures[ORACLE].get(label)}
            looks = [one.run.facts["domains"] for one in seeds.values()]
            for name, when in (("proxy_a_distance", "after"), ("domain_accuracy", "after"), ("proxy_a_distance", "before")):
                told = [next(iter(look[when].values()))[name] for look in looks if look[when]]
                row[name if when == "after" else f"{name}_{when}"] = float(np.mean(told)) if told else None
            row["warnings"] = list(dict.fromkeys(w["kind"] for one in seeds.values() for w in one.run.facts.get("warnings", ())))
            rows.append(row)
    return rows


def classes(runs: Sequence[Run], split: str) -> list[Row]:
    """One row a run and class: accuracy over the samples of that class, 0..1. Raises DataError: a run that classified nothing."""
    rows: list[Row] = []
    for run in runs:
        found = run.facts["metrics"].get(f"{split}.classes")
        if found is None:
            raise DataError(f"this run classified nothing on {split}", where=run.path, expected="a data set with labels")
        identity = {"run": run.name, "dataset": run.dataset, "arm": run.label, "seed": run.facts["seed"]}
        rows += [identity | {"class": k.partition("/")[2], "class_accuracy": v} for k, v in found.items() if k.startswith("accuracy/")]
    return rows


def _stored(runs: Sequence[Run], split: str) -> Iterator[Result]:
    return (results.result(run, split) for run in runs if f"{split}.{run.facts['headline']}" in run.facts["metrics"])


def _means(seeds: Mapping[int, Result], metric: str) -> float | None:
    values = []
    for one in seeds.values():
        if metric not in one.metrics:
            raise ConfigError("no such metric", where=metric, expected=" | ".join(one.metrics))
        values.append(one.metrics[metric])
    return None if any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))


def _interval(seeds: Sequence[Result], metric: str) -> Row:
    """Over seeds and things, where the metric is a mean over queries."""
    try:
        found = significance.estimate([one.per_query(metric) for one in seeds])
    except (ConfigError, DataError):
        return {"low": None, "high": None}
    return {"low": found.low, "high": found.high}
