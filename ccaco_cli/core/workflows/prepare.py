"""``ccaco prepare``: makes a data set on disk from a source as it is published."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from ccaco_cli.core.data.checks import UNLIKELY
from ccaco_cli.core.data.dataset_stats import DUPLICATES, LEAKAGE, REJECTS
from ccaco_cli.core.data.preparation import out_name, prepare
from ccaco_cli.core.data.sources import SOURCES
from ccaco_cli.core.data.sources.media import MEDIA
from ccaco_cli.core.data.split_shares import prepare_command
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.reporting.rows import SplitRow
from ccaco_cli.core.shell import command_line

__all__ = ["listing", "notes", "out_name", "prepare", "summary"]


def listing() -> list[dict[str, str]]:
    """Rows of all sources: name, modalities, and the files that each expects."""
    return [
        {"name": s.name, "modalities": "-".join(s.modalities) or " or ".join(MEDIA), "expects": s.expects}
        for s in SOURCES.values()
    ]


def summary(data: Manifest) -> list[SplitRow]:
    """What a prepared data set holds, one row for each split."""
    inspection: dict[str, dict[str, Any]] = data.facts["inspection"]
    measures = list(dict.fromkeys(name for split in inspection.values() for name in split if name != "rejects"))
    rows = []
    for split, counts in data.facts["splits"].items():
        spreads = {name: inspection[split].get(name) for name in measures}
        ranges = {name: spread and (spread["min"], spread["mean"], spread["max"]) for name, spread in spreads.items()}
        reasons = [f"{reason} {count}" for reason, count in inspection[split]["rejects"].items()]
        rows.append(SplitRow(split, counts, ranges, reasons, data.facts["protocol"]))
    return rows


def next_step(data: Manifest, dataset: object) -> str:
    """The command to type after ``prepare``: training where that is possible, else what makes it possible."""
    splits = [name for name, counts in data.facts["splits"].items() if counts["samples"]]
    if len(data.facts["modalities"]) == 1:
        index = f"{PurePath(str(dataset)).name}.idx"
        return command_line("embed", "--model", "SPEC", "--dataset", dataset, "--index", index)
    if "train" not in splits:
        return command_line("report", "RUN", "--on", dataset)
    if "val" not in splits:
        return prepare_command(data, ["val"])
    return command_line("train", "--dataset", dataset)


def notes(data: Manifest) -> list[str]:
    """Sentences on leaked, unread and rejected samples and on missing splits, to read before training."""
    lines = []
    source = data.facts.get("source", {})
    used = source.get("split_shares", {})
    for name, share in data.config.get("split_shares", {}).items():
        if share and name not in used:
            lines.append(f"--{name} was not used: the source has a split {name!r} of its own")
    for file, encoding in source.get("assumed_encodings", {}).items():
        lines.append(f"{file} is not UTF-8: its other bytes were read as {encoding}; convert it if captions look wrong")
    if "quotes" in source:
        lines.append(f"the quotes of the table do not add up: they were read as {source['quotes']}, one row a line")
    if leaks := data.facts["leakage"]:
        lines.append(
            f"leakage: {leaks:,} media lie in several splits, byte for byte; they are listed in {data.path / LEAKAGE}"
        )
    if (alike := data.facts.get("duplicates", {})).get("groups"):
        across = f" ({alike['across_splits']:,} of them across splits)" if alike["across_splits"] else ""
        lines.append(
            f"near-duplicates: {alike['samples']:,} images in {alike['groups']:,} groups{across} look alike; they are "
            f"listed in {data.path / DUPLICATES}"
        )
    if passed_over := source.get("passed_over"):
        suffixes = ", ".join(f"{suffix or 'no suffix'} {n:,}" for suffix, n in passed_over["suffixes"].items())
        if count := sum(passed_over["suffixes"].values()):
            lines.append(f"files that are no samples were not read: {count:,} ({suffixes})")
        if passed_over["hidden"]:
            lines.append(f"hidden files and folders were not read: {passed_over['hidden']:,}")
        if links := passed_over.get("links"):
            lines.append(f"links to what is read under its own name were not followed: {links:,}")
    ranges = [split["range_high"]["max"] for split in data.facts["inspection"].values() if "range_high" in split]
    if ranges:
        lines.append(
            f"images of one channel of more than 8 bits (values up to {max(ranges):g}) are read as 8 bits, each from "
            "its 1st to its 99th percentile; its range is stored with it"
        )
    rejects = dict(data.facts["rejects"])
    if pair_filter := data.config.get("filter"):
        unlikely = rejects.pop(UNLIKELY, 0)
        pairs = data.facts["splits"].get(pair_filter["split"], {}).get("captions", 0) + unlikely
        lines.append(
            f"filter: {unlikely:,} of {pairs:,} pairs of {pair_filter['split']} have a probability below "
            f"{pair_filter['keep_above']:g} by {pair_filter['by']}; they are listed in {data.path / REJECTS}"
        )
    if rejects:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in rejects.items())
        lines.append(
            f"{sum(rejects.values()):,} samples were skipped ({reasons}); they are listed in {data.path / REJECTS}"
        )
    samples = {name: counts["samples"] for name, counts in data.facts["splits"].items()}
    if samples.get("train") and len(data.facts["modalities"]) > 1:
        if not samples.get("val"):
            lines.append("there are no samples of val, which training needs to choose the best epoch")
        if not samples.get("test"):
            lines.append("there are no samples of test: results will be those on val")
    return lines
