"""Emoji with their Unicode names, in the drawing styles of several vendors: the styles are domains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ccaco_cli.core.data.sources.delimited import open_delimited
from ccaco_cli.core.data.sources.fields import FieldReader
from ccaco_cli.core.data.sources.lists import REPEATED, repeated, revision_of
from ccaco_cli.core.data.sources.media_files import layout_error, locate
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

_EXPECTS = "emoji.tsv (codepoint, unicode_name, category, split, styles) beside one folder of PNG files per style"
_FILES = {
    "noto2018": "noto2018/png/128/emoji_u{}.png",
    "twemoji": "twemoji/png/128/{}.png",
    "fxemoji": "fxemoji/png128/{}.png",
}
_COLUMNS = {"codepoint", "unicode_name", "category", "split", "styles"}


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    table = root / "emoji.tsv" if root is not None else None
    if root is None or table is None or not table.is_file():
        raise layout_error("emoji-styles", "no emoji styles here", root, _EXPECTS)
    opened = open_delimited(table, "\t", quoted=False)
    rows = [dict(zip(opened.names, cells, strict=True)) for cells in opened.rows]
    if not rows or any(opened.names.count(column) != 1 for column in _COLUMNS):
        raise DataError(
            "a table without the expected columns", where=table, expected=f"the columns {', '.join(sorted(_COLUMNS))}"
        )

    twice = repeated(f"{style}/{row['codepoint']}" for row in rows for style in row["styles"].split(","))

    def records() -> Iterator[PairRecord]:
        for row in rows:
            for style in row["styles"].split(","):
                code = row["codepoint"]
                picture = locate(_FILES.get(style, style + "/{}.png").format(code), root, options.media_root)
                fields = FieldReader(REPEATED if f"{style}/{code}" in twice else "")
                yield PairRecord(
                    id=f"{style}/{code}",
                    group=code,
                    split=row["split"],
                    media={"image": picture},
                    captions=fields.captions(row["unicode_name"]),
                    domain=style,
                    label=fields.text(row["category"], "category"),
                    problem=fields.problem,
                )

    return SourceData(
        records=records(),
        protocol="emoji-styles: split by hash of the code point, so that no emoji is in two splits in whatever style",
        licence="noto2018 Apache-2.0; twemoji and fxemoji CC BY 4.0",
        revision=revision_of(table),
        text_files=(table,),
        counts=Counter(row["split"] for row in rows for _ in row["styles"].split(",")),
    )


SOURCE = Source("emoji-styles", ("image", "text"), _EXPECTS, _read)
