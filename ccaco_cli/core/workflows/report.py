"""``ccaco report``: what finished runs measured, as rows; and gates for CI."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError, GateError

Row = dict[str, Any]
_GATE = re.compile(r"\s*([\w@:./-]+)\s*(<=|>=|<|>|==)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}


def rows(paths: Iterable[Path], *, split: str = "test", every_stage: bool = False) -> list[Row]:
    """One row a run (and a stage, when asked): what it is, its metrics (fractions), and what it cost.

    paths  run folders, ablation folders, or folders that hold runs
    """
    return [row for path in paths for run in runs_of(path) for row in _rows_of(run, split, every_stage)]


def runs_of(path: Path) -> list[Path]:
    """The finished runs at a path. Raises DataError when there are none."""
    if manifest.exists(path) and _is_run(path / manifest.NAME):
        return [path]
    found = [p.parent for p in sorted(path.glob(f"*/{manifest.NAME}")) if _is_run(p)]
    if not found:
        raise DataError("no finished run here", where=path, expected="a run folder, or a folder of runs", next="ccaco train --dataset scenes")
    return found


def _is_run(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_text("utf-8"))["kind"] == "run")
    except (ValueError, KeyError, TypeError):
        return False


def _rows_of(path: Path, split: str, every_stage: bool) -> list[Row]:
    facts = manifest.open(path, kind="run").facts
    stages = [name.partition(".")[2] for name in facts["metrics"] if name.startswith(f"{split}.")]
    if not stages:
        known = sorted({name.partition(".")[0] for name in facts["metrics"]})
        raise DataError(f"this run has no results on {split}", where=path, expected=" or ".join(known))
    chosen = stages if every_stage else [facts["headline"]]
    fitted = facts["fitted"]
    cost = {"parameters": facts["parameters"], "steps": fitted["steps"], "seconds": fitted["seconds"]}
    cost |= {"samples/s": fitted["samples_per_second"], "memory_MiB": fitted["memory"]}
    losses = _last_losses(path / "metrics.jsonl")
    return [
        {"run": facts["name"], "arm": facts["arm"], "seed": facts["seed"], "stage": stage, "weight": facts["weight"] if stage == "two-stage" else None}
        | facts["metrics"][f"{split}.{stage}"]
        | losses
        | cost
        for stage in chosen
    ]


def _last_losses(log: Path) -> Row:
    last: Row = {}
    for line in log.read_text("utf-8").splitlines():
        entry = json.loads(line)
        last |= {f"loss_{k}": entry[k] for k in ("contrastive", "cross", "total") if k in entry}
    return last


def failed(table: Sequence[Mapping[str, Any]], gate: str) -> list[str]:
    """The rows for which a condition such as ``text_to_image_R@1<0.40`` holds, as lines to print; NaN fails every gate.

    Raises GateError: cannot be read, or names a column that is not there
    """
    found = _GATE.fullmatch(gate)
    if not found:
        raise GateError("cannot read this condition", where=gate, expected="METRIC<NUMBER, for example 'text_to_image_R@1<0.40'")
    name, sign, number = found.groups()
    lines = []
    for row in table:
        if name not in row or isinstance(row[name], str):
            raise GateError(f"no column {name}", where=gate, expected=", ".join(k for k, v in row.items() if isinstance(v, int | float)))
        value = row[name]
        if value is None or value != value or _COMPARE[sign](value, float(number)):
            lines.append(f"{row['run']}: {name} = {value} ({gate})")
    return lines
