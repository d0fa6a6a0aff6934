"""Options that several commands share, and how their text is parsed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    latex = "latex"


Dataset = Annotated[
    str,
    typer.Option(
        "--dataset",
        "-d",
        help="Prepared data set: its NAME under data/, or its FOLDER.",
        show_default=True,
        rich_help_panel="Data",
    ),
]
Data = Annotated[Path, typer.Option("--data", help="Folder of the prepared data sets.", rich_help_panel="Data")]
OutputFormat = Annotated[
    Format | None,
    typer.Option(
        "--format",
        "-f",
        help="How results are printed; by default a table on a terminal, CSV in a pipe.",
        show_default=False,
        rich_help_panel="Output",
    ),
]
Wide = Annotated[
    bool,
    typer.Option(
        "--wide", help="Show every column on a terminal; by default those that fit.", rich_help_panel="Output"
    ),
]
ModelSource = Annotated[
    str | None,
    typer.Option(
        "--model",
        "--run",
        metavar="RUN|SPEC",
        help="A finished run, or a pretrained model: open_clip:NAME@TAG, open_clip:FOLDER, hf:NAME or hf:FOLDER.",
        show_default=False,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="Split of the data set; all means every split together.",
        show_default="test, else val, else train",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda[:N].")]
Metric = Annotated[
    str,
    typer.Option(
        "--metric", help="Metric of the statistical test: R-sum, text_to_image_R@1, ...", rich_help_panel="Output"
    ),
]
Reference = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="ARM",
        help="Arm that the others are compared with.",
        show_default="ccaco, else the first",
        rich_help_panel="Output",
    ),
]
Verify = Annotated[
    str,
    typer.Option(
        "--verify", help="quick: check sizes and manifests; full: also hash every file.", rich_help_panel="Data"
    ),
]


def data_option(data: Path) -> tuple[str | Path, ...]:
    """``--data FOLDER`` for a next step, or nothing for the default folder."""
    return () if data == Path("data") else ("--data", data)


def parse_column_mapping(texts: list[str] | None, flag: str) -> dict[str, str]:
    """Parses ``OURS=THEIRS`` of a flag that can be repeated.

    Raises:
        ConfigError: a text of another form.
    """
    from ccaco_cli.core.errors import ConfigError

    mapping = {}
    for text in texts or ():
        our_name, equals, their_name = text.partition("=")
        if not (our_name and equals and their_name):
            raise ConfigError(f"cannot read {flag}", where=text, expected="OURS=THEIRS, for example caption=text")
        mapping[our_name] = their_name
    return mapping


def parse_fraction(text: str, flag: str) -> float:
    """Parses a fraction: ``1%`` or ``0.01`` -> 0.01.

    Raises:
        ConfigError: no number from 0 to 1.
    """
    from ccaco_cli.core.errors import ConfigError

    number, percent, remainder = text.partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if remainder or not 0 <= value <= 1:
        raise ConfigError(f"cannot read {flag}", where=text, expected="a fraction such as 1% or 0.01")
    return value
