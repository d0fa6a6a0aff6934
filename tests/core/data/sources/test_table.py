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
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.fields import MISSING_TEXTS
from ccaco_cli.core.data.sources.lists import hash_split
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.data.sources.table import SOURCE
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.retrieval.item_columns import row_facts, types_of

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


ALONE = {
    "t.csv": "filepath,year,ok,note\na.jpg,2020,true,x\nb.jpg,,false,\n",
    "t.tsv": "filepath\tyear\tok\tnote\na.jpg\t2020\ttrue\tx\nb.jpg\t\tfalse\tNaN\n",
    "t.jsonl": '{"filepath": "a.jpg", "year": 2020, "ok": true, "note": "x"}\n{"filepath": "b.jpg", "ok": false}\n',
    "t.json": '[{"filepath": "a.jpg", "year": 2020, "ok": true, "note": "x"}, {"filepath": "b.jpg", "ok": false}]',
}


@pytest.mark.parametrize("kind", [*ALONE, "t.parquet"])
@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_a_table_of_paths_alone_is_a_data_set_of_one_modality(tmp_path: Path, kind: str, modality: str) -> None:
    path, suffix = tmp_path / kind, {"image": ".jpg", "audio": ".wav", "video": ".mp4"}[modality]
    if kind == "t.parquet":
        table = pd.DataFrame(
            {"filepath": ["a.jpg", "b.jpg"], "year": [2020, None], "ok": [True, False], "note": ["x", None]}
        )
        table = table.replace({"filepath": {".jpg": suffix}}, regex=True)
        table.to_parquet(path)
    else:
        path.write_text(ALONE[kind].replace(".jpg", suffix))
    data = SOURCE.read(path, SourceOptions(modality="" if modality == "image" else modality))
    assert data.modalities == (modality,) and "all in test" in data.protocol and data.splits == ("test",)
    first, second = data.records
    assert (first.split, first.captions, dict(first.media)) == ("test", [], {modality: tmp_path / f"a{suffix}"})
    assert dict(first.meta) == {"year": 2020, "ok": True, "note": "x"} and dict(second.meta) == {"ok": False}


def test_a_split_column_is_kept_without_captions(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("filepath,split\na.jpg,train\nb.jpg,dev\nc.jpg,\n")
    assert [record.split for record in SOURCE.read(path, SourceOptions()).records] == ["train", "val", "test"]


def test_captions_of_sounds_are_pairs(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("file,title\na.wav,a dog barks\n")
    data = SOURCE.read(path, SourceOptions(modality="audio", columns={"audio": "file"}))
    (record,) = data.records
    assert data.modalities == ("audio", "text") and record.captions == ["a dog barks"]
    assert dict(record.media) == {"audio": tmp_path / "a.wav"}


def test_a_named_caption_column_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("filepath,x\na.jpg,1\n")
    with pytest.raises(DataError, match=r"not one column 'text' for caption.*one of filepath, x"):
        SOURCE.read(path, SourceOptions(columns={"caption": "text"}))
    path.write_text("filepath,title,title\na.jpg,1,2\n")
    with pytest.raises(DataError, match="not one column 'title' for caption"):
        SOURCE.read(path, SourceOptions())


def test_paths_of_another_modality_name_the_option(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("filepath\n\na.wav\n")
    with pytest.raises(DataError, match=r"are audio files, not image.*ccaco prepare table --source .*--modality audio"):
        SOURCE.read(path, SourceOptions())
    with pytest.raises(DataError, match=r"no such modality of files: --modality adio.*did you mean audio"):
        SOURCE.read(path, SourceOptions(modality="adio"))


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-2", " 3 "], [1, -2, 3]),
        (["1", "2.5", "1e3", ".5"], [1.0, 2.5, 1000.0, 0.5]),
        (["01234", "98765"], ["01234", "98765"]),
        (["1", "x"], ["1", "x"]),
        (["true", "FALSE", "NaN"], [True, False, None]),
        (["9223372036854775807", "1"], [9223372036854775807, 1]),
        (["9223372036854775808", "1"], [9223372036854775808.0, 1.0]),
        (["2020-01-01", "2021-05-06T07:08:09"], ["2020-01-01", "2021-05-06T07:08:09"]),
        (["", "null", "None"], [None, None, None]),
        (["[1, 2]", "1"], ["[1, 2]", "1"]),
        (["inf", "1"], ["inf", "1"]),
        (["+1", "2"], [1.0, 2.0]),
        (["日本", " x "], ["日本", " x "]),
    ],
)
def test_columns_of_a_text_file_have_the_type_that_all_their_values_spell(
    tmp_path: Path, cells: list[str], values: list[Any]
) -> None:
    rows = [{"filepath": f"{n}.jpg", "title": "t", "x": cell} for n, cell in enumerate(cells)]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    read = [record.meta.get("x") for record in SOURCE.read(tmp_path / "t.csv", SourceOptions()).records]
    assert read == values and [type(a) for a in read] == [type(b) for b in values]


def test_reserved_names_structures_and_columns_without_a_name(tmp_path: Path) -> None:
    entry = {
        "filepath": "a.jpg", "title": "t", "id": 7, "Path": "/etc/passwd", "size": 3, "score": 0.5, "": 1, "year": 1999,
        "tags": ["a", "b"], "box": {"x": 1}, "none": None, "long": "x" * 70_000, "image": "other",
    }  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps([entry]))
    (record,) = SOURCE.read(tmp_path / "t.json", SourceOptions()).records
    assert dict(record.meta) == {
        "id_": 7,
        "Path_": "/etc/passwd",
        "size_": 3,
        "score_": 0.5,
        "year": 1999,
        "tags": '["a", "b"]',
        "box": '{"x": 1}',
        "image": "other",
    }


def test_a_column_that_differs_between_the_captions_of_a_picture_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("filepath,title,who,year\na.jpg,x,ann,1\na.jpg,y,bob,1\nb.jpg,z,ann,2\n")
    assert [dict(record.meta) for record in SOURCE.read(path, SourceOptions()).records] == [
        {"year": 1},
        {"who": "ann", "year": 2},
    ]


def test_types_of_parquet(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "filepath": ["a.jpg", "b.jpg"],
            "title": ["x", "y"],
            "when": pd.to_datetime(["2020-01-02T03:04:05", None]),
            "day": [pd.Timestamp("2020-01-02").date(), None],
            "n": pd.array([1, None], "Int64"),
            "z": [0.5, float("nan")],
            "raw": [b"1", b"2"],
            "tags": [["a"], []],
        }
    )
    table.to_parquet(tmp_path / "t.parquet")
    first, second = SOURCE.read(tmp_path / "t.parquet", SourceOptions()).records
    assert dict(first.meta) == {
        "when": "2020-01-02T03:04:05",
        "day": "2020-01-02",
        "n": 1,
        "z": 0.5,
        "tags": '["a"]',
    }
    assert dict(second.meta) == {"tags": "[]"}


def test_a_table_of_photos_ends_as_typed_columns_of_an_index(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (9, 7)).save(tmp_path / name)
    (tmp_path / "t.csv").write_text("filepath,stars,when,year\na.jpg,5,2020-05-06,1999\nb.jpg,4,2021-05-06,\n")
    prepare("table", source_path=tmp_path / "t.csv", out=tmp_path / "d", write=WriteOptions(workers=0))
    split = shards.open_any(tmp_path / "d").split("all")
    types = types_of(split)
    assert {name: str(type) for name, type in types.schema().items()} == {
        "folder": "string",
        "height": "int64",
        "modified": "timestamp[s]",
        "path": "string",
        "sha256": "string",
        "size": "int64",
        "stars": "int64",
        "when": "timestamp[s]",
        "width": "int64",
        "year": "int64",
    }
    columns = types.arrays(row_facts(split, [0, 1]))
    assert columns["stars"].to_pylist() == [5, 4] and columns["path"].to_pylist()[1] == str(tmp_path / "b.jpg")
    first, second = columns["year"].to_pylist()
    assert first == 1999 and second >= 2024, "the year of the table, else that of the file"


@pytest.mark.parametrize(
    ("names", "root", "paths"),
    [
        (["photos\\a.jpg", "photos\\trip\\b.jpg"], "", ["photos/a.jpg", "photos/trip/b.jpg"]),
        (["C:\\me\\photos\\a.jpg", "C:\\me\\photos\\trip\\b.jpg"], "photos", ["photos/a.jpg", "photos/trip/b.jpg"]),
        (["C:\\me\\a.jpg", "D:\\me\\b.jpg"], "photos", ["photos/C:/me/a.jpg", "photos/D:/me/b.jpg"]),
        (["D:\\trip\\b.jpg", "", "D:\\trip\\c.jpg"], "photos/trip", ["photos/trip/b.jpg", "photos/trip/c.jpg"]),
        (["odd\\name.jpg", "b\\c.jpg"], "", ["odd\\name.jpg", "b\\c.jpg"]),
        (["photos/a.jpg", "b\\c.jpg"], "", ["photos/a.jpg", "b\\c.jpg"]),
    ],
)
def test_paths_that_were_written_on_windows(tmp_path: Path, names: list[str], root: str, paths: list[str]) -> None:
    """``--image-root`` names the folder that all paths with a drive letter lie in; names with a backslash stay."""
    (tmp_path / "odd\\name.jpg").touch()
    table = tmp_path / "t.csv"
    table.write_text("filepath,title\n" + "".join(f"{name},x\n" for name in names))
    data = SOURCE.read(table, SourceOptions(media_root=tmp_path / root if root else None))
    assert [r.media["image"] for r in data.records if "image" in r.media] == [tmp_path / path for path in paths]
