"""The options of scores for given pairs: ``ccaco retrieve --pairs`` and ``ccaco prepare --keep-above``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ccaco_cli.core.experiments.pair_filter import PairFilter

ONLY_WORDS = Path("-")
"""Value of ``--explain`` with ``--pairs``."""

Pairs = Annotated[
    Path | None,
    typer.Option(
        "--pairs",
        metavar="TABLE",
        help="Score the pairs of a table (.csv, .tsv, .json, .jsonl, .parquet; columns filepath and title) by --index, "
        "--run or --model: one row each, with cosine, match, score and the probability of being a true pair.",
        show_default=False,
    ),
]
Calibrate = Annotated[
    str | None,
    typer.Option(
        "--calibrate",
        metavar="DATASET",
        help="Calibrate probabilities on the validation split of this prepared data set.",
        show_default="as the run was scored",
    ),
]
Prior = Annotated[
    float,
    typer.Option("--prior", min=0.001, max=0.999, help="Share of true pairs that is expected, for probabilities."),
]
PairRoot = Annotated[
    Path | None,
    typer.Option(
        "--image-root",
        metavar="FOLDER",
        help="With --pairs: folder of the listed images, sounds or videos.",
        show_default="folder of the table",
    ),
]
KeepAbove = Annotated[
    float | None,
    typer.Option(
        "--keep-above",
        metavar="PROBABILITY",
        min=0.0,
        max=1.0,
        help="Reject the pairs of train whose probability of being true is lower, by the model of --by.",
        show_default=False,
    ),
]
By = Annotated[
    str | None,
    typer.Option("--by", metavar="RUN|SPEC", help="With --keep-above: the model that scores.", show_default=False),
]


def score_table(
    table: Path,
    index: str,
    model: str | None,
    calibrate: str | None,
    prior: float,
    media_root: Path | None,
    explain: Path | None,
    device: str,
    output_format: str | None,
    has_query: bool,
) -> None:
    """Scores the pairs of a table and prints them.

    Args:
        index, model: one of them names the model.
        explain: ``ONLY_WORDS``: also print the words that are not shown.
        has_query: whether the command also names a query or another output.
    Raises:
        ConfigError: options that do not fit together; also what ``by_pairs`` and opening the model raise.
    """
    from ccaco_cli.core.errors import ConfigError
    from ccaco_cli.core.experiments.pair_scores import PairOptions, index_pair_model, open_pair_model
    from ccaco_cli.core.retrieval.open_index import open_index
    from ccaco_cli.core.workflows import retrieve as workflow
    from ccaco_cli.view import pair_table, progress

    if has_query:
        raise ConfigError("pairs and a search at the same time", where=f"--pairs {table}", expected="one of them")
    if bool(index) == bool(model):
        raise ConfigError(
            "pairs need one model",
            where=f"--pairs {table}",
            expected="one of --index NAME.idx, --run RUN and --model SPEC",
            next=f"ccaco retrieve --pairs {table} --run RUN",
        )
    if explain not in (None, ONLY_WORDS):
        raise ConfigError(
            "heat maps are drawn for the hits of a search",
            where=f"--explain {explain}",
            expected="--explain - with --pairs, which adds the column missing",
        )
    if index and calibrate:
        raise ConfigError(
            "an index has the calibration of its run",
            where=f"--calibrate {calibrate}",
            expected="--calibrate with --run or --model",
        )
    if output_format == "paths":
        raise ConfigError("scores are no paths", where="--format paths", expected="table, csv, json, markdown, latex")
    options = PairOptions(prior, missing=explain is not None)
    with progress.bar("score pairs") as report_progress:
        if model:
            opened = open_pair_model(model, device, calibrate or "", on_progress=report_progress)
        else:
            opened = index_pair_model(open_index(index))
        rows = workflow.by_pairs(opened, table, options, media_root, report_progress)
        notes = pair_table.show(rows, output_format, match=opened.has_cross, missing=options.missing)
    for line in [*notes, *pair_table.calibration_notes(opened, prior)]:
        progress.note(line)


def pair_filter(
    keep_above: float | None, by: str | None, prior: float, calibrate: str | None, device: str
) -> PairFilter | None:
    """The filter that the options of ``prepare`` name; None = none.

    Raises:
        ConfigError: one option without the other; also what opening the model and ``PairFilter`` raise.
    """
    from ccaco_cli.core.errors import ConfigError

    if keep_above is None and by is None and calibrate is None:
        return None
    if keep_above is None or not by:
        raise ConfigError(
            "a filter needs a model and a probability",
            where="--keep-above" if keep_above is not None else "--by" if by else "--calibrate",
            expected="--keep-above 0.5 --by RUN",
        )
    from ccaco_cli.core.experiments.pair_filter import PairFilter
    from ccaco_cli.core.experiments.pair_scores import open_pair_model
    from ccaco_cli.view import progress

    with progress.bar("calibrate") as report_progress:
        model = open_pair_model(by, device, calibrate or "", on_progress=report_progress)
    return PairFilter(model, keep_above, prior)


def require_index(index: str) -> str:
    """The index of a search. Raises ConfigError: none was named."""
    from ccaco_cli.core.errors import ConfigError

    if not index:
        raise ConfigError("no index", where="--index", expected="--index NAME.idx", next="ccaco retrieve --help")
    return index
