from __future__ import annotations

import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccaco_cli.core.data.sources.fields import MISSING_TEXTS
from ccaco_cli.core.data.sources.lists import hash_split
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.data.sources.table import SOURCE
from ccaco_cli.core.errors import DataError

ROWS = pd.DataFrame(
    {
        "filepath": ["b.jpg", "a.jpg", "b.jpg", "c.jpg"],
        "title": ["one, two", 'said "x"\nline', "three", "four"],
        "split": ["train", "dev", "train", "test"],
        "domain": ["d", "e", "d", "d"],
    }
)


def read(path: Path, **options: Any) -> list[tuple[Any, ...]]:
    return [(r.id, r.split, list(r.captions), r.domain) for r in SOURCE.read(path, SourceOptions(**options)).records]


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda text: text.strip() not in MISSING_TEXTS and text.strip()[0] not in "[{"
)


@given(rows=st.lists(st.tuples(st.sampled_from(["a.jpg", "b.jpg", "c.jpg"]), WORDS), min_size=1))
@pytest.mark.parametrize("kind", ["t.csv", "t.jsonl", "t.parquet"])
def test_every_caption_of_any_table_arrives_in_order(kind: str, rows: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / kind
        table = pd.DataFrame(rows, columns=["filepath", "title"])
        if kind == "t.csv":
            table.to_csv(path, index=False, quoting=csv.QUOTE_ALL)
        elif kind == "t.jsonl":
            table.to_json(path, orient="records", lines=True)
        else:
            table.to_parquet(path)
        captions_by_id = {id: captions for id, _, captions, _ in read(path)}
        assert captions_by_id == {id: [text for other, text in rows if other == id] for id in dict(rows)}


@pytest.mark.parametrize(
    "kind", ["t.csv", "tabs.csv", "t.tsv", "semicolons.csv", "bom.csv", "utf16.csv", "t.jsonl", "t.parquet"]
)
def test_every_kind_gives_the_same_records(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "t.jsonl":
        ROWS.to_json(path, orient="records", lines=True)
    elif kind == "t.parquet":
        ROWS.to_parquet(path)
    else:
        separator = ";" if "semi" in kind else "\t" if "tabs" in kind or "tsv" in kind else ","
        ROWS.to_csv(
            path, index=False, sep=separator, encoding={"bom": "utf-8-sig", "utf16": "utf-16"}.get(path.stem, "utf-8")
        )
    assert read(path) == [
        ("b.jpg", "train", ["one, two", "three"], "d"),
        ("a.jpg", "val", ['said "x"\nline'], "e"),
        ("c.jpg", "test", ["four"], "d"),
    ]
    (first, *_) = SOURCE.read(path, SourceOptions()).records
    assert first.media["image"] == tmp_path / "b.jpg" and first.group == "b.jpg"


def test_columns_by_other_names_groups_and_hash_split(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("photo|text|who\n" + "".join(f"{i}.jpg|t{i}|g{i // 2}\n" for i in range(40)))
    data = SOURCE.read(
        path, SourceOptions(columns={"image": "photo", "caption": "text", "group": "who"}, separator="|")
    )
    rows = list(data.records)
    assert len(rows) == 40 and "hash of the group" in data.protocol and data.facts == {"rows": 40}
    assert all(r.split == hash_split(r.group) and r.group == f"g{i // 2}" for i, r in enumerate(rows))
    assert {r.split for r in rows} == {"train", "val", "test"}


def test_one_cell_in_another_encoding_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("filepath,title\na.jpg,caf\u00e9\n".encode() + b"b.jpg,caf\xe9\nc.jpg,\n")
    assert [(r[0], r[2]) for r in read(path)] == [("a.jpg", ["caf\u00e9"]), ("b.jpg", ["caf\u00e9"]), ("c.jpg", [""])]


def test_jsonl_captions_may_be_lists_and_numbers_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = ['{"filepath": "a.jpg", "title": ["x", "y"], "label": 3}', "", '{"filepath": "b.jpg", "title": null}']
    path.write_text("\n".join([*lines, '{"filepath": "a.jpg", "title": "z"}']))
    rows = list(SOURCE.read(path, SourceOptions()).records)
    assert [(r.id, list(r.captions), r.label) for r in rows] == [("a.jpg", ["x", "y", "z"], "3"), ("b.jpg", [""], "")]


def test_refusals_name_the_columns_there_are(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,caption\na.jpg,x\n")
    with pytest.raises(DataError, match=r"not one column 'filepath' for image.*one of image, caption.*--column image="):
        read(path)
    with pytest.raises(DataError, match="not one column 'where' for domain"):
        read(path, columns={"image": "image", "caption": "caption", "domain": "where"})
    with pytest.raises(DataError, match="unknown column name: picture"):
        read(path, columns={"picture": "image"})
    path.write_text("filepath,title,title\na.jpg,x,y\n")
    with pytest.raises(DataError, match="not one column 'title'"):
        read(path)
    path.write_text("filepath,title\na.jpg,x,y\n")
    with pytest.raises(DataError, match=r"unreadable table.*expected 2 cells, got 3.*t.csv:2"):
        read(path)
    path.write_text("")
    with pytest.raises(DataError, match="an empty table"):
        read(path)
    (tmp_path / "t.jsonl").write_text('{"filepath": "a.jpg"}\n[1]\n')
    with pytest.raises(DataError, match=r"not a JSON object.*t.jsonl:2"):
        read(tmp_path / "t.jsonl")
    (tmp_path / "t.parquet").write_text("no")
    with pytest.raises(DataError, match="not a Parquet file"):
        read(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="a table of unknown kind"):
        read(Path(__file__))
    with pytest.raises(DataError, match="no table here"):
        read(tmp_path)


STRUCTS = [
    ("a.jpg", {"raw": "a dog", "tokens": ["a", "dog"]}, ["a dog"]),
    ("b.jpg", [{"raw": "one"}, {"raw": "two"}], ["one", "two"]),
    ("c.jpg", '["one", "two"]', ["one", "two"]),
    ("d.jpg", ["one", None], ["one", ""]),
    ("e.jpg", float("nan"), [""]),
    ("f.jpg", {"id": 3}, [""]),
]


@pytest.mark.parametrize("kind", ["t.jsonl", "t.json", "t.parquet"])
@pytest.mark.parametrize(("image", "value", "captions"), STRUCTS)
def test_structures_are_taken_apart_or_refused(
    tmp_path: Path, kind: str, image: str, value: Any, captions: list[str]
) -> None:
    path = tmp_path / kind
    rows = [{"filepath": image, "title": value}]
    if kind == "t.parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text(json.dumps(rows[0] if kind == "t.jsonl" else rows))
    (record,) = SOURCE.read(path, SourceOptions()).records
    assert (record.id, list(record.captions)) == (image, captions)
    assert record.problem == ("caption is an object without a known key" if image == "f.jpg" else "")


@pytest.mark.parametrize("kind", ["t.csv", "t.jsonl", "t.json", "t.parquet"])
def test_missing_values_are_one_rule(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    table = pd.DataFrame(
        {
            "filepath": ["a.jpg", "b.jpg", None, None],
            "title": [float("nan"), "nan", "no picture", "none again"],
            "domain": ["x", float("nan"), None, "nan"],
            "label": ["1", None, "NaN", ""],
        }
    )
    if kind == "t.csv":
        table.to_csv(path, index=False)
    elif kind == "t.parquet":
        table.to_parquet(path)
    else:
        rows = table.to_dict("records")
        path.write_text("\n".join(map(json.dumps, rows)) if kind == "t.jsonl" else json.dumps(rows))  # writes NaN
    rows = list(SOURCE.read(path, SourceOptions()).records)
    assert [(r.id, list(r.captions), r.domain, r.label, len(r.media)) for r in rows] == [
        ("a.jpg", [""], "x", "1", 1),
        ("b.jpg", [""], "", "", 1),
        ("row 3", ["no picture"], "", "", 0),
        ("row 4", ["none again"], "", "", 0),
    ]


@pytest.mark.parametrize("name", ["split", "domain", "label", "group"])
def test_rows_of_one_file_must_agree(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"filepath,title,{name}\na.jpg,1,x\nb.jpg,2,x\na.jpg,3,y\nb.jpg,4,\n")
    rows = {r.id: r.problem for r in SOURCE.read(path, SourceOptions()).records}
    assert rows == {"a.jpg": f"rows of one file differ in {name}", "b.jpg": ""}


def test_annotations_of_blip_and_lavis(tmp_path: Path) -> None:
    path = tmp_path / "coco_karpathy_train.json"
    path.write_text(
        '[{"image": "a.jpg", "caption": "one", "image_id": "x"}, {"image": "b.jpg", "caption": ["two", "three"]}, '
        '{"caption": "four", "image": "a.jpg"}]'
    )
    assert read(path) == [("a.jpg", hash_split("a.jpg"), ["one", "four"], "")] + [
        ("b.jpg", hash_split("b.jpg"), ["two", "three"], "")
    ]
    assert read(path, columns={"image": "image", "caption": "caption"}) == read(path)
    for text, words in (
        ('{"images": []}', "a JSON file with other content"),
        ('[{"image": "a"}, 3]', "entry 2"),
        ("[", "not a JSON file"),
        ('[{"image": "a", "image": "b"}]', "repeated key 'image'"),
        ('[{"photo": "a"}]', "not one column 'image' for image.*one of photo"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read(path)


def test_columns_of_other_types_are_refused_or_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"filepath": [{"bytes": b"x", "path": "a"}], "title": ["x"]}).to_parquet(path)
    with pytest.raises(DataError, match=r"column 'filepath' holds struct.*ccaco prepare hub --source"):
        read(path)
    pd.DataFrame({"filepath": [7, 8], "title": [1.5, 2.0], "label": [[1], [1, 2]]}).to_parquet(path)
    rows = list(SOURCE.read(path, SourceOptions()).records)
    assert [(r.id, list(r.captions), r.label, r.problem) for r in rows] == [
        ("7", ["1.5"], "1", ""),
        ("8", ["2.0"], "", "several values of label in one row"),
    ]


def test_a_repeated_key_of_json_lines_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"filepath": "a.jpg", "title": "x"}\n{"filepath": "a.jpg", "title": "x", "title": "y"}\n')
    with pytest.raises(DataError, match=r"repeated key 'title'.*t.jsonl:2"):
        read(path)


def test_a_stray_quote_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    rows = 'a.jpg\t"Hello there\nb.jpg\ttwo\nc.jpg\tthree\nd.jpg\t19" wheels\n'
    path.write_text(f'filepath\ttitle\nz.jpg\t"quoted\tcell"\n{rows}')
    with pytest.raises(DataError, match=r"unreadable table.*t.tsv:3-6"):
        read(path)
    path.write_text(f"filepath\ttitle\n{rows}")
    data = SOURCE.read(path, SourceOptions())
    assert [list(record.captions) for record in data.records] == [['"Hello there'], ["two"], ["three"], ['19" wheels']]
    assert data.facts == {"rows": 4, "quotes": "ordinary characters"}
