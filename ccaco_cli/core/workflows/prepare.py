"""``ccaco prepare``: a source, as published, becomes a data set on disk."""

from __future__ import annotations

from ccaco_cli.core.data.preparation import out_name, prepare

__all__ = ["listing", "notes", "out_name", "prepare", "summary"]

from typing import Any

from ccaco_cli.core.data.dataset_stats import LEAKAGE, REJECTS
from ccaco_cli.core.data.sources import SOURCES
from ccaco_cli.core.manifest import Manifest


def listing() -> list[dict[str, str]]:
    """Every source and what it expects to find, as rows."""
    return [{"name": s.name, "modalities": "-".join(s.modalities), "expects": s.expects} for s in SOURCES.values()]


def summary(found: Manifest) -> list[dict[str, object]]:
    """What a prepared data set holds, one row a split: counts; least, mean and most of what was measured; rejects and why; the protocol."""
    told: dict[str, dict[str, Any]] = found.facts["inspection"]
    measured = list(dict.fromkeys(name for part in told.values() for name in part if name != "rejects"))
    rows: list[dict[str, object]] = []
    for split, counts in found.facts["splits"].items():
        spreads = {
            f"{name}_{part}": told[split].get(name, {}).get(part)
            for name in measured
            for part in ("min", "mean", "max")
        }
        reasons = [f"{reason} {count}" for reason, count in told[split]["rejects"].items()]
        rows.append({"split": split, **counts, **spreads, "reasons": reasons, "protocol": found.facts["protocol"]})
    return rows


def notes(found: Manifest) -> list[str]:
    """What a person should know of a data set before training on it."""
    lines = []
    if leaks := found.facts["leakage"]:
        lines.append(
            f"leakage: {leaks:,} media lie in several splits, byte for byte; they are listed in {found.path / LEAKAGE}"
        )
    if rejects := found.facts["rejects"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in rejects.items())
        lines.append(
            f"{sum(rejects.values()):,} samples were skipped ({reasons}); they are listed in {found.path / REJECTS}"
        )
    return lines
