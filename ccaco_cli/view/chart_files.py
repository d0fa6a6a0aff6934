"""The figures of ``ccaco report --figure``: read what a request names, draw it, and write a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.reporting import comparison, report_tables
from ccaco_cli.core.reporting.report_tables import ReportRequest
from ccaco_cli.core.reporting.training_log import read_log
from ccaco_cli.core.scoring import results
from ccaco_cli.core.types import OnProgress, no_progress
from ccaco_cli.view import charts, fonts

SUFFIXES = (".png", ".pdf", ".svg")


def save(kind: str, path: Path, request: ReportRequest, on_progress: OnProgress = no_progress) -> None:
    """Draws a figure of ``FIGURES`` and writes it.

    Raises:
        DataError: as ``refuse``, or nothing to draw.
    """
    refuse(kind, path)
    with charts.style():
        figure = FIGURES[kind](request, on_progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        fonts.save(figure, path, dpi=200)


def refuse(kind: str, path: Path) -> None:
    """Raises DataError: no such kind of figure, or no picture file (checked before the work, not after it)."""
    if kind not in FIGURES:
        raise DataError("no such figure", where=kind, expected=" | ".join(FIGURES))
    if path.suffix.lower() not in SUFFIXES:
        raise DataError("no such kind of picture", where=path, expected=" | ".join(SUFFIXES))


def _curves(request: ReportRequest, on_progress: OnProgress) -> Any:
    return charts.curves({run.name: read_log(run.path) for run in request.runs() if run.path.is_dir()})


def _recall(request: ReportRequest, on_progress: OnProgress) -> Any:
    return charts.recall({run.name: results.load_result(run, request.split) for run in request.measured_runs()})


def _calibration(request: ReportRequest, on_progress: OnProgress) -> Any:
    return charts.calibration({run.name: results.load_result(run, request.split) for run in request.measured_runs()})


def _strata(request: ReportRequest, on_progress: OnProgress) -> Any:
    if request.by is None:
        raise DataError(
            "this figure needs a stratum by which queries are divided",
            where="--figure strata",
            expected="a stratum",
            next="add --by things",
        )
    runs = request.measured_runs()
    pools = results.by_pool(runs, request.split)
    # the pool on which the largest number of arms was measured
    (_, pool), measured = max(pools.items(), key=lambda item: len({result.run.label for result in item[1]}))
    a, b = measured[0].evaluation.names
    metrics = [f"{b}_to_{a}_R@1", f"{a}_to_{b}_R@1", "R-sum"]
    metrics += ["binding_accuracy"] if all(result.items.get("binding") for result in measured) else []
    rows_by_metric = {}
    for metric in metrics:
        rows = comparison.arm_rows(runs, split=request.split, metric=metric, reference=request.reference, by=request.by)
        rows_by_metric[metric] = [row for row in rows if row.pool == pool]
    return charts.strata(rows_by_metric)


def _confusion(request: ReportRequest, on_progress: OnProgress) -> Any:
    from ccaco_cli.core.reporting import inspection

    return charts.confusion(*inspection.confusion_matrix(_load_run(request, on_progress)))


def _map(request: ReportRequest, on_progress: OnProgress) -> Any:
    from ccaco_cli.core.reporting import inspection

    loaded = _load_run(request, on_progress)
    rows, points_a, points_b = inspection.embedding_map(loaded)
    try:
        row_class = [inspection.row_classes(loaded)[1][row] for row in rows]
    except DataError:
        row_class = None
    return charts.embedding_map(points_a, points_b, loaded.data.modalities, row_class)


def _domains(request: ReportRequest, on_progress: OnProgress) -> Any:
    return charts.domains(report_tables.domain_embeddings(request))


def _load_run(request: ReportRequest, on_progress: OnProgress) -> Any:
    from ccaco_cli.core.reporting import inspection  # loads torch, which figures of stored results do not need

    runs = request.runs()
    if len(runs) != 1:
        raise DataError(f"{len(runs)} runs, but this figure is of one model", where=request.where, expected="one run")
    return inspection.open_run(runs[0], request.split, on_progress)


FIGURES: dict[str, Callable[[ReportRequest, OnProgress], Any]] = {
    "curves": _curves,
    "recall": _recall,
    "strata": _strata,
    "confusion": _confusion,
    "calibration": _calibration,
    "map": _map,
    "domains": _domains,
}
"""Kind of ``--figure`` -> what draws it; called within ``charts.style``."""
