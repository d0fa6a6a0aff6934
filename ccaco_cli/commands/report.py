"""``ccaco report``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ccaco_cli.commands import options


class Table(StrEnum):
    """Which table of the results."""

    runs = "runs"
    retrieval = "retrieval"
    matching = "matching"
    choices = "choices"
    ablation = "ablation"
    faithfulness = "faithfulness"
    domains = "domains"
    classes = "classes"


class Figure(StrEnum):
    """Which figure."""

    curves = "curves"
    recall = "recall"
    strata = "strata"
    confusion = "confusion"
    map = "map"
    domains = "domains"


def report(
    runs: Annotated[list[Path], typer.Argument(help="Runs, ablations, folders that hold runs, or result files.")],
    split: Annotated[str, typer.Option("--split", help="Which results.")] = "test",
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="DATASET",
            help="Score the runs on this prepared data set first (once), and report that.",
            show_default=False,
        ),
    ] = None,
    data: options.Data = Path("data"),
    device: options.Device = "auto",
    table: Annotated[
        Table | None,
        typer.Option(
            "--table",
            help="One row a run; retrieval, matching by data set and arm; choices by kind; arms with evidence; faithfulness of heat maps; "
            "domains; classes.",
            show_default="ablation for ablations, choices for sugarcrepe, else runs",
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="The two runs (or results) given, metric by metric, with a paired test.")
    ] = False,
    stages: Annotated[
        bool, typer.Option("--stages", help="Cosine and two-stage rows, not only the run's own score.")
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(
            "--by", metavar="STRATUM", help="Divide the queries, e.g. by 'things' in the picture.", show_default=False
        ),
    ] = None,
    metric: options.Metric = "R-sum",
    reference: options.Reference = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            metavar="CONDITION",
            help="Exit 1 when it holds for any run, e.g. 'text_to_image_R@1<0.40' or 'ccaco not better than clip on R-sum'.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE.html", help="Write one self-contained page.", show_default=False),
    ] = None,
    figure: Annotated[
        tuple[Figure, Path] | None,
        typer.Option(
            "--figure",
            metavar="KIND FILE",
            help="Draw curves, recall, strata (with --by), confusion, map, or domains before and after training (.png, .pdf, .svg).",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Redraw a run that is still training until it ends.")] = False,
    shown: options.Shown = None,
) -> None:
    """Set finished runs side by side: recalls, mAP, losses, time and memory; or arms, with what speaks for a difference.

    \b
    Examples:
      ccaco report runs/first --format json --fail-if 'text_to_image_R@1<0.05'
      ccaco report --compare runs/first runs/quick
      ccaco report runs/first --on sugarcrepe
      ccaco report runs/first --html first.html
    """
    from ccaco_cli.core.reporting import report_tables
    from ccaco_cli.core.workflows import report as workflow
    from ccaco_cli.view import progress, results

    if on:
        from ccaco_cli.core.experiments import cross_dataset

        with progress.bar(f"score on {on}") as tell:
            runs = cross_dataset.on(
                runs, on, split=split, every_stage=stages, device=device, data_root=data, on_progress=tell
            )
    asked = report_tables.ReportRequest(runs, split, stages, by, metric, reference)
    if watch:
        from ccaco_cli.view import watch as watching

        watching.watch(runs)
    if html or figure:
        _draw(asked, html, figure)
    rows = report_tables.table(asked, "compare" if compare else table)
    broken = workflow.broken(asked, fail_if or ())
    results.show(rows, shown, f"Results on {split}")
    for line in broken:
        progress.note(f"gate: {line}")
    if broken:
        raise typer.Exit(1)


def _draw(asked: Any, html: Path | None, figure: tuple[Figure, Path] | None) -> None:
    """The files that were asked for; the rows are printed all the same."""
    from ccaco_cli.core.reporting.page import gather
    from ccaco_cli.view import charts, page, progress

    with progress.bar("report") as tell:
        if figure:
            charts.save(figure[0].value, figure[1], asked, tell)
        if html:
            page.refuse(html)
            page.write(html, gather(asked, tell))
    for file in filter(None, (figure and figure[1], html)):
        progress.note(f"written: {file}")
