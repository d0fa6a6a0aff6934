"""Odd but undamaged inputs of the data sources, for ``fuzz.py``: tables with quotes, tars with odd keys, structures.

Of each input it is known what it holds. An input may be refused. In an accepted one every row or picture is one sample
or one reject, and no caption belongs to another picture.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ccaco_cli.core.data.checks import Passed, Rejected, Rules, check
from ccaco_cli.core.data.sources import SOURCES
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.types import PairRecord

PICTURES = 8
WORDS = ("dog", "a cat", "19", "caf\u00e9", "Mr.", "[sic]", "two, three", "it's", "5 cm")
TAR_STEMS = (
    "a",
    "x/a",
    "k",
    "k.seg",
    "photo v1.0",
    "photo v1.1",
    "st.paul",
    "st.john",
    "Dr. Smith",
    "2024.01.02",
    ".h",
)
SUFFIXES = ("jpg", "jpg", "png", "txt", "txt", "json", "cls", "heic", "JPG")
KEYS = ("raw", "caption", "text", "sentences", "tokens", "id", "captions")
Outcomes = list[tuple[PairRecord, Passed | Rejected]]
Check = Callable[[Outcomes], None]


def picture(number: int) -> bytes:
    """A small picture that no other number has."""
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 9)).save(out, "PNG")
    return out.getvalue()


def lay_pictures(folder: Path) -> None:
    (folder / "images").mkdir()
    for number in range(PICTURES):
        (folder / f"images/{number}.jpg").write_bytes(picture(number))


def outcomes(name: str, where: Path) -> Outcomes:
    """Every record of a source with the outcome of its check, as ``prepare`` does it."""
    rules = Rules(str(where.parent.resolve()), SOURCES[name].modalities)
    return [(record, check(record, rules)) for record in SOURCES[name].read(where, SourceOptions()).records]


def _refuse_lost_rows(results: Outcomes, rows: int) -> None:
    """Raises AssertionError: a row is lost or doubled, or something that is no row was accepted."""
    ids = Counter(record.id.replace('"', "").strip() for record, _ in results)
    lost = [number for number in range(rows) if ids[f"images/{number}.jpg"] != 1]
    assert not lost, f"rows {lost} are not there once; {dict(ids)}"
    extra = [r.id for r, result in results if isinstance(result, Passed) and not re.fullmatch(r"images/\d+\.jpg", r.id)]
    assert not extra, f"accepted, but no row: {extra}"


def quoted_table(file: Path, rng: random.Random) -> Check:
    """A CSV or TSV file, as a writer quotes it or without quotes, then with a few quotes more or less."""
    rows = rng.randint(1, PICTURES)
    separator, end = rng.choice("\t,;"), rng.choice(("\n", "\r\n"))
    columns = rng.sample(("filepath", "title", "label"), 3) if rng.random() < 0.5 else ["title", "filepath"]
    is_quoted = rng.random() < 0.7
    joints = [" ", '"', '""', "\n", separator, " "] if is_quoted else [" ", '"', "'"]
    table = []
    for number in range(rows):
        title = rng.choice(joints).join(rng.choices(WORDS, k=rng.randint(1, 4)))
        title = title if is_quoted else title.replace(separator, "")
        table.append({"filepath": f"images/{number}.jpg", "title": title, "label": "x"})
    text = io.StringIO(newline="")
    if is_quoted:
        quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        cells = [[row[name] for name in columns] for row in table]
        writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting)
        writer.writerows([columns, *cells])
    else:
        text.write(end.join(separator.join(row[name] for name in columns) for row in table))
        text = io.StringIO(separator.join(columns) + end + text.getvalue() + end)
    spoiled, edits = text.getvalue(), rng.choice((0, 1, 1, 2, 3))
    body = spoiled.index("\n") + 1
    for _ in range(edits):
        spoiled = _with_stray_quote(spoiled, body, separator, rng)
    file.write_bytes(spoiled.encode(rng.choice(("utf-8", "utf-8-sig", "utf-16"))))

    def verify(results: Outcomes) -> None:
        _refuse_lost_rows(results, rows)
        if not edits:
            texts = {record.id: list(record.captions) for record, _ in results}
            wrong = [row for row in table if texts[row["filepath"]] != [row["title"]]]
            assert not wrong, f"captions changed: {wrong}"

    return verify


def _with_stray_quote(text: str, body: int, separator: str, rng: random.Random) -> str:
    """One quote more, most often at the start or end of a cell, or one less."""
    quotes = [at for at in range(body, len(text)) if text[at] == '"']
    if quotes and rng.random() < 0.3:
        at = rng.choice(quotes)
        return text[:at] + text[at + 1 :]
    edges = [
        at for at in range(body, len(text) + 1) if text[at - 1] in separator + "\n" or text[at : at + 1] == separator
    ]
    at = rng.choice(edges) if rng.random() < 0.8 else rng.randrange(body, len(text) + 1)
    return text[:at] + '"' + text[at:]


def odd_tar(file: Path, rng: random.Random) -> Check:
    """A tar of members with dots, blanks and repeats in their names; each text is the stem of its own name."""
    names = [f"{stem}.{suffix}" for stem in rng.choices(TAR_STEMS, k=rng.randint(1, 5)) for suffix in _suffixes(rng)]
    if rng.random() < 0.2:
        rng.shuffle(names)
    images: dict[bytes, str] = {}
    with tarfile.open(file, rng.choice(("w", "w:gz"))) as tar:
        for number, name in enumerate(names):
            stem, _, suffix = name.rpartition(".")
            data = {"txt": stem.encode(), "json": json.dumps({"caption": stem}).encode()}.get(suffix, picture(number))
            if suffix.lower() in ("jpg", "png"):
                images[data] = stem
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))

    def verify(results: Outcomes) -> None:
        for _, result in results:
            if isinstance(result, Passed):
                stem = images.pop(result.row["image"])  # KeyError: one picture in two samples
                texts = result.row["captions"]
                wrong = [text for text in texts if not f"{stem}.".startswith(f"{text}.") and not text.startswith(stem)]
                assert not wrong, f"picture {stem} has the captions {texts}"
        rejects = sum(isinstance(result, Rejected) for _, result in results)
        without_sample = [stem for stem in images.values() if stem == "k.seg" or stem.startswith(".")]
        assert len(images) - len(without_sample) <= rejects, f"{sorted(images.values())} are gone, {rejects} rejects"
        ids = Counter(record.id for record, result in results if isinstance(result, Passed))
        assert not ids or max(ids.values()) == 1, f"repeated ids: {ids}"

    return verify


def _suffixes(rng: random.Random) -> list[str]:
    return ["jpg", "txt"] if rng.random() < 0.5 else rng.choices(SUFFIXES, k=rng.randint(1, 4))


def structures(file: Path, rng: random.Random) -> Check:
    """JSON, JSON lines or Parquet whose captions are texts, lists, objects, lists in strings, or missing."""
    rows, texts = rng.randint(1, PICTURES), set[str]()
    shape = rng.randint(0, 9)
    table = [{"filepath": f"images/{n}.jpg", "title": _value(rng, texts, shape)} for n in range(rows)]
    if file.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        try:
            arrow = pa.Table.from_pylist(table)
        except (pa.ArrowException, TypeError):  # values of several types are no column
            texts_only = [row | {"title": _spelled(row["title"])} for row in table]
            arrow = pa.Table.from_pylist(texts_only)
        parquet.write_table(arrow, file)
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, table)), "utf-8")
    else:
        file.write_text(json.dumps(table), "utf-8")

    def verify(results: Outcomes) -> None:
        _refuse_lost_rows(results, rows)
        captions = [text for _, result in results if isinstance(result, Passed) for text in result.row["captions"]]
        wrong = [text for text in captions if text not in texts]
        assert not wrong, f"captions that are no texts: {wrong}"

    return verify


def _value(rng: random.Random, texts: set[str], shape: int) -> Any:
    """A caption field; ``shape`` makes the rows of a table similar, ``texts`` collects the texts in it."""
    kind = shape if rng.random() < 0.8 else rng.randint(0, 9)
    if kind <= 1:
        return _text(rng, texts)
    if kind == 2:
        return rng.choice((None, float("nan"), "nan", "", "<NA>"))
    items = [_text(rng, texts) for _ in range(rng.randint(0, 3))]
    if kind == 3:
        return items
    if kind == 4:
        return json.dumps(items)
    if kind == 5:
        return str(items)
    entries = [{key: rng.choice((text, [text])) for key in rng.sample(KEYS, 2)} for text in items]
    if kind == 6:
        return entries
    if kind == 7:
        return {rng.choice(KEYS): items, "id": 3}
    if kind == 8:
        return rng.choice((json.dumps, str))({rng.choice(KEYS): items})
    return {"raw": _text(rng, texts), "tokens": [items]}


def _spelled(value: Any) -> str | None:
    """The value as a string column holds it."""
    if isinstance(value, str):
        return value
    return None if value is None or value != value else json.dumps(value)


def _text(rng: random.Random, texts: set[str]) -> str:
    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 3)))
    texts.add(text)
    return text
