"""Training across domains: the heads and target samples that training needs, and how far apart the domains lie before
and after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.domain_names import DOMAIN_EMBEDDINGS
from ccaco_cli.core.data.domains import AcrossDomains, split_names, unpaired_rows
from ccaco_cli.core.data.loader import NONE, Array, Column
from ccaco_cli.core.data.shards import PairData, Split
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation import domains as domain_metrics
from ccaco_cli.core.model.adaptation import Adaptation, AdaptationTask
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.training import statistics, step

SAMPLE_SIZE = 400
"""Samples of each domain on which the embeddings of two domains are compared and drawn."""
STATISTICS_BATCH = 256
"""Batch size of the re-estimation of normalisation statistics."""
COMPARED = ("domain_accuracy", "proxy_a_distance")


def target_modalities(data: PairData) -> list[str]:
    """The modalities that the target domain has samples of: every one but text."""
    return [modality for modality in data.modalities if modality != "text"]


def build_heads(data: PairData, config: RunConfig, embedding_size: int) -> Adaptation | None:
    """Builds the domain and label heads of a run; None where its settings need none.

    Raises:
        ConfigError: a modality that the data set does not have, or text with fewer than two source domains.
        DataError: fewer than two classes.
    """
    domain, split = config.domain, data.split("train")
    counts, codes = _domain_codes(data, config)
    classify = target_modalities(data)[0] if domain.classify > 0 else ""
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
    task = AdaptationTask(
        domains=counts,
        source_code=codes,
        label=torch.from_numpy(split.label),
        adversarial=step.uses_domain_classifier(domain),
        classify=classify,
        classes=classes,
    )
    return Adaptation(domain, embedding_size, task)


def _domain_codes(data: PairData, config: RunConfig) -> tuple[dict[str, int], torch.Tensor]:
    """Number of domains of each modality that the domain loss aligns, and the number of each domain of the data set."""
    sides, split = config.domain.sides, data.split("train")
    modalities = split_names(sides) or tuple(target_modalities(data))
    for modality in modalities:
        if modality not in data.modalities:
            raise ConfigError("no such side", where=f"--domain-sides {sides}", expected=",".join(data.modalities))
    codes = torch.zeros(len(split.domains), dtype=torch.long)
    if not isinstance(data, AcrossDomains) or not step.uses_domain_loss(config.domain):
        return {}, codes
    for number, source in enumerate(data.sources):
        codes[split.domains.index(source)] = number
    counts = {m: 2 if m in target_modalities(data) else len(data.sources) for m in modalities}
    if min(counts.values()) < 2:
        raise ConfigError(
            "texts of a single domain cannot be aligned",
            where=f"--domain-sides {sides}",
            expected="two source domains or more: the target's texts are withheld",
            next="--domain-sides image",
        )
    return counts, codes


def unpaired(
    data: PairData, split: Split, columns: Mapping[str, Column], adaptation: Adaptation | None
) -> tuple[Array, Array]:
    """The items of the target that training sees, for both modalities; none of a modality that is not aligned."""
    aligned = adaptation.domains if adaptation is not None else {}
    a, b = (
        columns[m].start[unpaired_rows(split)] if m in aligned and m in target_modalities(data) else NONE
        for m in data.modalities
    )
    return a, b


def reestimate_on_target(aligner: Aligner, columns: Mapping[str, Column], data: PairData) -> None:
    """Re-estimates normalisation statistics on the target samples of each modality (AdaBN, arXiv:1603.04779)."""
    rows = unpaired_rows(data.split("train"))
    for modality in target_modalities(data):
        column = columns[modality]
        # a fixed shuffle, so that every batch has mixed content
        items = np.random.default_rng(0).permutation(column.start[rows])

        def batches(column: Column = column, items: Array = items) -> Iterator[Any]:
            return (column.inputs(items[i : i + STATISTICS_BATCH]) for i in range(0, len(items), STATISTICS_BATCH))

        statistics.reestimate(aligner, modality, batches())


def compare_domains(aligner: Aligner, columns: Mapping[str, Column], data: PairData) -> dict[str, dict[str, Any]]:
    """Compares the embeddings of training samples of the sources and of the target.

    Returns:
        Modality -> {"domain_accuracy", "proxy_a_distance", "points": [[x, y], ...], "domain": ["source" | "target",
        ...]}, for modalities that the target has samples of. {} where no target is named, or there are too few samples.
    """
    split = data.split("train")
    target_rows = unpaired_rows(split)
    source_rows = np.arange(len(split) - len(target_rows))
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.permutation(part)[:SAMPLE_SIZE]) for part in (source_rows, target_rows)]
    if min(map(len, rows)) < 4:
        return {}
    comparison: dict[str, dict[str, Any]] = {}
    for modality in target_modalities(data):
        column = columns[modality]
        z = [encode(aligner, modality, column, items=column.start[part]).z.numpy() for part in rows]
        if not all(np.isfinite(part).all() for part in z):
            continue
        domain = ["source"] * len(rows[0]) + ["target"] * len(rows[1])
        points = domain_metrics.plane(np.concatenate(z)).round(4).tolist()
        comparison[modality] = {**domain_metrics.separability(z[0], z[1]), "points": points, "domain": domain}
    return comparison


def store_comparison(
    data: PairData, before: Mapping[str, Any], after: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Writes both results of ``compare_domains`` to the folder of a run; returns facts for its manifest."""
    if not isinstance(data, AcrossDomains):
        return {}
    manifest.write_json(folder / "results" / DOMAIN_EMBEDDINGS, {"before": before, "after": after})
    metrics = {
        when: {modality: {name: values[name] for name in COMPARED} for modality, values in comparison.items()}
        for when, comparison in (("before", before), ("after", after))
    }
    return {"domains": {"sources": list(data.sources), "target": data.target, **metrics}}
