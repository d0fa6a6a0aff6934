"""``ccaco report``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ccaco_cli.commands import options


class Table(StrEnum):
    """Tables of results."""

    runs = "runs"
    retrieval = "retrieval"
    matching = "matching"
    choices = "choices"
    languages = "languages"
    ablation = "ablation"
    faithfulness = "faithfulness"
    domains = "domains"
    classes = "classes"
    captions = "captions"
    answers = "answers"
    calibration = "calibration"


class Figure(StrEnum):
    """Kinds of figures."""

    curves = "curves"
    recall = "recall"
    strata = "strata"
    confusion = "confusion"
    calibration = "calibration"
    map = "map"
    domains = "domains"


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Runs, ablations, folders that contain runs, or result files.", show_default=False),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="SPEC",
            help="With --on: also score this pretrained model (open_clip:NAME@TAG, open_clip:FOLDER, hf:NAME or "
            "hf:FOLDER) or run; repeat the flag for several.",
            show_default=False,
        ),
    ] = None,
    split: options.Split = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="DATASET",
            help="Score the runs and models on this prepared data set, or folder of class folders, first (only once), "
            "and report these results.",
            show_default=False,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            metavar="NAME[=FOLDER],...",
            help="Score the runs and models on these suites first (only once), and show one table for each: "
            "winoground, aro, sugarcrepe, flickr8k-roles, flickr30k-roles, crossmodal-3600. FOLDER is "
            "the suite as published; without it, it must be "
            "prepared.",
            show_default=False,
        ),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            "--templates",
            metavar="openai|simple|FILE",
            help="With --on a data set with classes: sentences for the names of the classes.",
            show_default="the data set's own",
        ),
    ] = None,
    data: options.Data = Path("data"),
    device: options.Device = "auto",
    table: Annotated[
        Table | None,
        typer.Option(
            "--table",
            help="runs: one row per run. retrieval, matching: by data set and arm. choices: caption choice by kind. "
            "languages: retrieval by language. ablation: arms with a statistical test. faithfulness: of heat maps. "
            "domains: shift between domains. classes: by class. captions: of runs with --gamma. "
            "answers: by kind of question. calibration: how reliable probabilities are.",
            show_default="ablation for ablations, the table of a suite, else runs",
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare two runs (or result files) metric by metric, with a paired test.")
    ] = False,
    stages: Annotated[
        bool, typer.Option("--stages", help="Show cosine and two-stage results, not only the main score of each run.")
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="STRATUM",
            help="Split the queries by a property: things, twin, relation ...",
            show_default=False,
        ),
    ] = None,
    metric: options.Metric = "R-sum",
    reference: options.Reference = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            metavar="CONDITION",
            help="Exit with 1 when the condition is true for any run, e.g. 'text_to_image_R@1<0.40' or "
            "'ccaco not better than clip on R-sum'.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE.html", help="Write one self-contained HTML page.", show_default=False),
    ] = None,
    figure: Annotated[
        tuple[Figure, Path] | None,
        typer.Option(
            "--figure",
            metavar="KIND FILE",
            help="Draw curves, recall, strata (with --by), confusion, calibration, map, or domains (before and after "
            "training) into FILE (.png, .pdf, .svg).",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show a run that is still training, until it ends.")] = False,
    wise: Annotated[
        str | None,
        typer.Option(
            "--wise",
            metavar="MIXES",
            help="Mix the weights of each run with those of the pretrained model that it started from (WiSE-FT): 0 is "
            "the start and 1 the run, for example 0,0.25,0.5,0.75,1. The mix with the highest R-sum on validation is "
            "chosen, and stored as a run. With --on, 'retention' is what is left of the start's score there.",
            show_default=False,
        ),
    ] = None,
    output_format: options.OutputFormat = None,
    wide: options.Wide = False,
) -> None:
    """Show and compare the results of finished runs. Rows hold recalls, mAP, losses, time and memory.

    \b
    Examples:
      ccaco report runs/first --format json --fail-if 'text_to_image_R@1<0.05'
      ccaco report --compare runs/first runs/quick
      ccaco report runs/first --on sugarcrepe
      ccaco report --model open_clip:ViT-B-32@openai --on coco
      ccaco report runs/mine --wise 0,0.25,0.5,0.75,1 --on coco --fail-if 'retention<0.97'
      ccaco report --model open_clip:ViT-B-32@openai --suite winoground,aro=ARO
      ccaco report runs/first --html first.html
    """
    from ccaco_cli.commands.report_mixes import end_with_gates, refuse_with_mixes, report_mixes
    from ccaco_cli.core.errors import ConfigError
    from ccaco_cli.core.evaluation.metric_table import check_metric
    from ccaco_cli.core.reporting import report_tables
    from ccaco_cli.core.scoring import run_splits
    from ccaco_cli.core.scoring.results import find_runs
    from ccaco_cli.core.workflows import report as workflow
    from ccaco_cli.view import progress, results

    check_metric(metric)  # these before the runs are scored
    _refuse_files(html, figure)
    paths = _sources(runs or [], model or [], on, suite)
    how = {"split": split, "every_stage": stages, "templates": templates or "", "device": device}
    if wise is not None:
        refuse_with_mixes(model=model, suite=suite, table=table, compare=compare, html=html, figure=figure, watch=watch)
        return report_mixes(paths, wise, on, how, data, fail_if or (), {"output_format": output_format, "wide": wide})
    if suite and "," in suite and (html or figure or watch or compare):
        raise ConfigError(
            "pages, figures, comparisons and --watch show one data set",
            where=f"--suite {suite}",
            expected="one suite",
            next=f"--suite {suite.partition(',')[0]}",
        )
    measured = _scored(paths, on, suite, data, **how) if on or suite else {"": paths}
    tables, failed_gates = [], []
    for name, files in measured.items():
        finished_runs = find_runs(files)
        shown_split = split or run_splits.default_split(finished_runs)
        request = report_tables.ReportRequest(files, shown_split, stages, by, metric, reference)
        if watch:
            from ccaco_cli.view import watch as live_view

            live_view.watch(files)
        rows = report_tables.table(request, "compare" if compare else table)
        failed_gates += workflow.failed_gates(request, fail_if or ())
        if html or figure:  # after everything that a wrong option could end
            _write_files(request, html, figure)
        for line in run_splits.missing_notes(finished_runs, shown_split):
            progress.note(line)
        tables.append((f"Results on {f'{name}, ' if suite else ''}{shown_split}", rows))
    results.show_tables(tables, output_format, wide=wide)
    end_with_gates(failed_gates)


def _scored(
    models: list[Path], on: str | None, suite: str | None, data_root: Path, **how: Any
) -> dict[str, list[Path]]:
    """Scores models on a data set or on suites; ``how`` are the ``ScoreOptions``. Name of each -> its result files."""
    from ccaco_cli.core.experiments import cross_dataset, suites
    from ccaco_cli.view import progress

    score_options = cross_dataset.ScoreOptions(**how)
    with progress.bar(f"score on {on or suite}") as report_progress:
        datasets = {on or "": on or ""}
        if suite:
            folders = suites.parse_suites(suite)
            datasets = suites.prepared_suites(folders, data_root, report_progress, progress.note)
        return {
            name: cross_dataset.score_on(
                models, dataset, score_options, data_root=data_root, on_progress=report_progress, on_note=progress.note
            )
            for name, dataset in datasets.items()
        }


def _sources(runs: list[Path], models: list[str], on: str | None, suite: str | None) -> list[Path]:
    """The runs and models to report, as one list."""
    from ccaco_cli.core.errors import ConfigError
    from ccaco_cli.core.shell import command_line

    if on and suite:
        raise ConfigError("two kinds of data sets", where=f"--on {on} --suite {suite}", expected="one of them")
    if models and not (on or suite):
        raise ConfigError(
            "a pretrained model has no results of its own",
            where=f"--model {models[0]}",
            expected="--on DATASET or --suite NAME",
            next=command_line("report", "--model", models[0], "--on", "DATASET"),
        )
    if not runs and not models:
        raise ConfigError(
            "nothing to report", expected="runs, ablations, result files, or --model SPEC", next="ccaco report runs"
        )
    return [*runs, *map(Path, models)]


def _refuse_files(html: Path | None, figure: tuple[Figure, Path] | None) -> None:
    """Raises DataError: a file of another kind than the option writes."""
    if html:
        from ccaco_cli.view import page

        page.refuse(html)
    if figure:
        from ccaco_cli.view import chart_files

        chart_files.refuse(figure[0].value, figure[1])


def _write_files(request: Any, html: Path | None, figure: tuple[Figure, Path] | None) -> None:
    """Writes the requested figure and page, in addition to the printed rows."""
    from ccaco_cli.core.reporting.page import gather
    from ccaco_cli.view import chart_files, page, progress

    with progress.bar("report") as report_progress:
        page_data = gather(request, report_progress) if html else None
        if figure:
            chart_files.save(figure[0].value, figure[1], request, report_progress)
        if html and page_data:
            page.write(html, page_data)
    for file in filter(None, (figure and figure[1], html)):
        progress.note(f"written: {file}")
