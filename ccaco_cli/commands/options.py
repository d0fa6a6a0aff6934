"""Options that several commands share, named once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How rows are printed."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    latex = "latex"


Dataset = Annotated[
    str,
    typer.Option(
        "--dataset", "-d", help="A prepared data set: its NAME under data/, or its FOLDER.", show_default=True
    ),
]
Data = Annotated[Path, typer.Option("--data", help="Where prepared data sets lie.")]
Shown = Annotated[
    Format | None,
    typer.Option(
        "--format",
        "-f",
        help="How rows are printed; by default a table on a terminal, CSV in a pipe.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda[:N].")]
Metric = Annotated[str, typer.Option("--metric", help="The one that is tested: R-sum, text_to_image_R@1, ...")]
Reference = Annotated[
    str | None,
    typer.Option(
        "--reference", metavar="ARM", help="The arm that others are held against.", show_default="ccaco, else the first"
    ),
]
Verify = Annotated[str, typer.Option("--verify", help="quick: sizes and manifests; full: hash every file first.")]


def pairs(given: list[str] | None, flag: str) -> dict[str, str]:
    """``OURS=THEIRS`` of a flag that may be given several times."""
    from ccaco_cli.core.errors import ConfigError

    found = {}
    for text in given or ():
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise ConfigError(f"cannot read {flag}", where=text, expected="OURS=THEIRS, for example caption=text")
        found[ours] = theirs
    return found


def share(text: str, flag: str) -> float:
    """``1%`` or ``0.01`` -> 0.01."""
    from ccaco_cli.core.errors import ConfigError

    number, percent, rest = text.partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if rest or not 0 <= value <= 1:
        raise ConfigError(f"cannot read {flag}", where=text, expected="a share such as 1% or 0.01")
    return value
