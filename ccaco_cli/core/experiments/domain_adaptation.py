"""Training across domains: what ``train`` needs for it, what is measured of it, and the table of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.domains import AcrossDomains, split_names, unpaired_rows
from ccaco_cli.core.data.loader import NONE, Array, Column
from ccaco_cli.core.data.shards import PairData, Split
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation import domains as measures
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.training import statistics, step

SAMPLE = 400
"""Samples of each domain by which embeddings are compared and drawn."""
ORACLE = "oracle"
"""Name of the checkpoint, and of the results, that were chosen with the target's labels."""
PICTURE = "domains.json"
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
            raise ConfigError(
                "no such side", where=f"--domain-sides {settings.sides}", expected=",".join(data.modalities)
            )
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
            "nothing to classify",
            where=data.name,
            expected="a label column of two classes or more",
            next="ccaco prepare --list",
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


def unpaired(
    data: PairData, split: Split, columns: Mapping[str, Column], adaptation: Adaptation | None
) -> tuple[Array, Array]:
    """Items of the target that training sees, for each modality: of the sides that are aligned."""
    wanted = adaptation.domains if adaptation is not None else {}
    a, b = (
        columns[m].start[unpaired_rows(split)] if m in wanted and m in media(data) else NONE for m in data.modalities
    )
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
