"""The options of ``ccaco retrieve`` that say which items answer, and how the answers are shown."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ccaco_cli.core.modalities import MODALITIES


class AnswerFormat(StrEnum):
    """How answers are printed."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    latex = "latex"
    paths = "paths"


def complete_index(incomplete: str) -> list[str]:
    """Indexes beside what was typed so far; nothing else, so that the shell completes other folders itself."""
    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    prefix = incomplete.rpartition("/")[0] + "/" if "/" in incomplete else ""
    try:
        names = sorted(prefix + path.name for path in folder.iterdir() if (path / "manifest.json").is_file())
    except OSError:
        return []
    return [name for name in names if name.startswith(incomplete) and name.endswith(".idx")]


def complete_columns(ctx: typer.Context, incomplete: str) -> list[str]:
    """Columns of the index that the command line names, after a list of columns or at the start of a condition."""
    before, comma, start = incomplete.rpartition(",")
    try:
        from ccaco_cli.core.retrieval.open_index import column_names

        names = column_names(str(ctx.params.get("index") or ""))
    except Exception:  # without an index there is nothing to complete, and nobody to tell
        return []
    return [before + comma + name for name in names if name.startswith(start)]


def complete_modalities(incomplete: str) -> list[str]:
    """Names of modalities."""
    return [name for name in MODALITIES if name.startswith(incomplete)]


Index = Annotated[
    str,
    typer.Option(
        "--index",
        "-i",
        metavar="FOLDER",  # a Path would change an address
        help="Index built by 'ccaco embed': a folder, milvus:FILE.db or milvus:http://HOST:19530#COLLECTION.",
        autocompletion=complete_index,
    ),
]
Similar = Annotated[
    Path | None,
    typer.Option(
        "--similar",
        metavar="FILE",
        help="Find items of the same modality as this file: images like an image, sounds like a sound.",
        show_default=False,
    ),
]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="MODALITY",
        help="Modality of the answers: image, text, ..., or several (image,audio), in one list.",
        show_default="the other one; all in an index of media files",
        autocompletion=complete_modalities,
    ),
]
Plus = Annotated[
    list[str] | None,
    typer.Option("--plus", metavar="TEXT", help="A text that is added to the query (repeatable).", show_default=False),
]
Minus = Annotated[
    list[str] | None,
    typer.Option(
        "--minus", metavar="TEXT", help="A text that is taken away from the query (repeatable).", show_default=False
    ),
]
MixWeight = Annotated[
    float,
    typer.Option(
        "--mix-weight", min=0.01, max=100.0, help="Weight of each text of --plus and --minus; the query has 1."
    ),
]
Language = Annotated[
    str,
    typer.Option(
        "--language",
        metavar="CODE",
        help="Language of the texts that --explain cuts into words: en, zh, ...",
        show_default="detected",
    ),
]
Where = Annotated[
    str,
    typer.Option(
        "--where",
        metavar="CONDITION",
        help="Only items whose columns satisfy this, in SQL: \"year >= 2020 and folder like '%/beach/%'\".",
        show_default=False,
        autocompletion=complete_columns,
    ),
]
Dedup = Annotated[
    float,
    typer.Option(
        "--dedup",
        metavar="COSINE",
        min=0.0,
        max=1.0,
        help="Show near-duplicates, of at least this cosine (such as 0.97), as one hit.",
        show_default="off",
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="NAMES",
        help="Also show these columns of the items: path,year.",
        show_default=False,
        autocompletion=complete_columns,
    ),
]
Format = Annotated[
    AnswerFormat | None,
    typer.Option(
        "--format",
        "-f",
        help="How answers are printed; by default a table on a terminal, CSV in a pipe. paths: one path a line.",
        show_default=False,
    ),
]
ZeroByte = Annotated[
    bool,
    typer.Option("-0", "--null", help="Print paths that end with a zero byte, for 'xargs -0'. Means --format paths."),
]
OpenHits = Annotated[bool, typer.Option("--open", help="Open the best hits (at most 3) in the viewer of the system.")]
