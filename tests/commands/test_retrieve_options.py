"""Conditions, columns, directions, duplicates, paths and completion of ``ccaco retrieve``."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from ccaco_cli.core import manifest
from ccaco_cli.core.retrieval.index import Index
from tests.manifests import edited


def rows_of(done: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(done.out)))


@pytest.fixture(scope="module")
def photos(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of images alone with the columns of files; the files lie in ``photos/`` beside it."""
    root = tmp_path_factory.mktemp("photos")
    copy = root / "me.idx"
    shutil.copytree(index, copy)
    shutil.rmtree(next(copy.glob("*/text")))
    file = next(copy.glob("*/image/items.arrow"))
    with pa.OSFile(str(file)) as source:
        items = pa.ipc.open_file(source).read_all()
    (root / "photos").mkdir()
    paths = []
    for number, thumbnail in enumerate(items["thumbnail"].to_pylist()):
        path = root / "photos" / ("new\nline.jpg" if number == 2 else f"{number:02} photo.jpg")
        path.write_bytes(thumbnail)
        paths.append(str(path))
    count = len(items)
    day = datetime.datetime(2020, 5, 1, 8, 30)
    items = pa.table(
        {
            "id": [Path(path).name for path in paths],
            "group": items["group"],
            "text": pa.array([[]] * count, pa.list_(pa.string())),
            "path": paths,
            "folder": ["/beach/" if n % 2 else "/" for n in range(count)],
            "year": pa.array([2000 + n for n in range(count)], pa.int64()),
            "taken": pa.array([None if n % 3 else day for n in range(count)], pa.timestamp("s")),
            "latitude": [48.123456 if n % 2 else None for n in range(count)],
            "thumbnail": items["thumbnail"],
        }
    )
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, items.schema) as writer:
        writer.write_table(items)
    with edited(copy) as body:
        body["facts"]["rows"] = {"image": count}
        body["files"] = [
            manifest.file_entry(copy, path)
            for path in sorted(copy.rglob("*"))
            if path.is_file() and path.name != manifest.NAME
        ]
    return copy


def test_a_condition_and_columns(ccaco: Callable[..., Any], photos: Path) -> None:
    where = "year >= 2010 and folder like '%beach%'"
    columns = ("--columns", "path,year", "--columns", "taken, latitude,id")
    done = ccaco("retrieve", "a cat", "-i", photos, "-k", 100, "--where", where, *columns)
    assert (done.code, done.err) == (0, "")
    rows = rows_of(done)
    assert list(rows[0]) == [
        "query",
        "rank",
        "score",
        "cosine",
        "match",
        "id",
        "text",
        "path",
        "year",
        "taken",
        "latitude",
    ]
    assert sorted(int(row["year"]) for row in rows) == list(range(2011, 2025, 2))
    assert all(Path(row["path"]).name == row["id"] and row["latitude"] == "48.123456" for row in rows)
    assert {row["taken"] for row in rows} == {"", "2020-05-01 08:30:00"}
    done = ccaco("retrieve", "a cat", "-i", photos, "-k", 100, "--where", where, *columns, "--format", "json")
    answers = json.loads(done.out)
    assert [row["year"] for row in answers] == [int(row["year"]) for row in rows]
    assert {row["taken"] for row in answers} == {None, "2020-05-01 08:30:00"} and answers[0]["latitude"] == 48.123456
    done = ccaco("retrieve", "a cat", "-i", photos, "-k", 100, *columns, "--format", "table")
    assert "2,0" not in done.out and "48.123456" in done.out and "2020-05-01 08:30:00" in done.out
    assert "text" not in done.out.splitlines()[1], "no item has a text"


def test_an_empty_selection_is_noted(ccaco: Callable[..., Any], photos: Path) -> None:
    for format in ("csv", "json", "table", "paths"):
        done = ccaco("retrieve", "a cat", "a dog", "-i", photos, "--where", "year > 2500", "--format", format)
        assert (done.code, done.err) == (0, "ccaco: no item of this index satisfies --where 'year > 2500'\n")
    assert ccaco("retrieve", "a cat", "-i", photos, "--where", "year = 2003").err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a cat", "--where", "yaer > 3"], "no column 'yaer' in this index: --where 'yaer > 3'; expected one of id"),
        (["a cat", "--where", "year >"], "cannot read this condition"),
        (["a cat", "--where", "year"], "a value, not a condition"),
        (["a cat", "--columns", "path,yaer"], "no column 'yaer' in this index: --columns; expected one of id"),
        (["a cat", "--columns", "thumbnail"], "no column 'thumbnail'"),
        (["a cat", "--target", "text"], "no items of the modality 'text'"),
        (["a cat", "--dedup", "1.2"], "'--dedup'"),
        (["a cat", "--plus", " "], "--plus is empty"),
        (["a cat", "--similar", "x.jpg"], "more than one kind of query"),
        (["--similar", "gone.jpg"], "gone.jpg"),
        (["a cat", "-0", "--format", "csv"], "zero bytes end paths only"),
        (["a cat", "--format", "paths", "--columns", "year"], "without columns"),
        (["a cat", "-k", "25", "--format", "paths"], "the name of a file holds a line end"),
        (["--audio", "a.wav"], "cannot encode audio"),
    ],
)
def test_errors_are_one_line(
    ccaco: Callable[..., Any],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = ccaco("retrieve", *arguments, "-i", photos)
    assert done.code == 2 and done.out == "" and message in done.err
    assert done.err.count("\n") == 1 or "Usage" in done.err
    assert not list(tmp_path.iterdir())


def test_similar_finds_the_file_itself_first(ccaco: Callable[..., Any], photos: Path, index: Path) -> None:
    query = photos.parent / "photos" / "07 photo.jpg"
    done = ccaco("retrieve", "--similar", query, "-i", photos, "-k", 5)
    rows = rows_of(done)
    assert (done.code, done.err) == (0, "") and [row["query"] for row in rows] == [str(query)] * 5
    assert rows[0]["id"] == "07 photo.jpg" and float(rows[0]["cosine"]) > 0.98
    assert rows == rows_of(ccaco("retrieve", "--image", query, "-i", photos, "-k", 5)), "the index holds images only"
    both = rows_of(ccaco("retrieve", "--similar", query, "-i", index, "-k", 5))
    assert [row["cosine"] for row in both] == [row["cosine"] for row in rows], "images, not captions"
    assert both == rows_of(ccaco("retrieve", "--image", query, "--target", "image", "-i", index, "-k", 5))
    captions = rows_of(ccaco("retrieve", "--image", query, "-i", index, "-k", 5))
    assert captions == rows_of(ccaco("retrieve", "--similar", query, "--target", "text", "-i", index, "-k", 5))
    assert captions[0]["id"] != both[0]["id"]


def test_texts_are_added_and_taken_away(ccaco: Callable[..., Any], index: Path) -> None:
    def ranking(*options: object) -> list[str]:
        done = ccaco("retrieve", "a dog", "-i", index, "-k", 25, "--rerank", 0, *options)
        assert (done.code, done.err) == (0, "")
        return [row["id"] for row in rows_of(done)]

    plain, plus, minus = ranking(), ranking("--plus", "a red ball"), ranking("--minus", "a red ball")
    assert sorted(plain) == sorted(plus) == sorted(minus) and plain != plus != minus
    twice = ranking("--plus", "a red ball", "--plus", "a cat", "--minus", "a box")
    assert twice not in (plain, plus, minus)


def test_near_duplicates_have_a_count(ccaco: Callable[..., Any], index: Path) -> None:
    every = ccaco("retrieve", "a dog", "-i", index, "-k", 100, "--dedup", 0)
    done = ccaco("retrieve", "a dog", "-i", index, "-k", 100, "--dedup", 0.9, "--format", "json")
    rows = json.loads(done.out)
    assert "duplicates" not in rows_of(every)[0]
    assert len(rows) + sum(row["duplicates"] for row in rows) == len(rows_of(every)) > len(rows)


def test_paths_for_a_pipeline(photos: Path) -> None:
    """A real process: what stands in the pipe, byte for byte."""

    def run(*options: str) -> Any:
        command = [sys.executable, "-m", "ccaco_cli", "retrieve", "a cat", "-i", str(photos), "-k", "30", *options]
        environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        return subprocess.run(command, capture_output=True, env=environment, cwd=Path(__file__).parents[2])

    wanted = {str(path) for path in (photos.parent / "photos").iterdir()}
    done = run("-0")
    assert (done.returncode, done.stderr) == (0, b"")
    names = done.stdout.split(b"\0")
    assert names.pop() == b"" and {os.fsdecode(name) for name in names} == wanted
    done = run("--format", "paths", "--where", "id not like '%' || chr(10) || '%'")
    assert done.returncode == 2 and b"chr" in done.stderr
    done = run("--format", "paths", "--where", "id like '% photo.jpg'")
    assert {line for line in done.stdout.decode().splitlines() if Path(line).exists()} == wanted - {
        str(photos.parent / "photos" / "new\nline.jpg")
    }


def test_an_index_without_files_has_no_paths(ccaco: Callable[..., Any], index: Path) -> None:
    done = ccaco("retrieve", "a cat", "-i", index, "--format", "paths")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "the items of this index are no files" in done.err and "embed --images" in done.err


@pytest.fixture
def viewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Puts a program on PATH in place of the system's viewer; it writes its arguments to the file that is returned."""

    def install(exit_code: int = 0) -> Path:
        log, program = tmp_path / "opened", tmp_path / "bin" / ("open" if sys.platform == "darwin" else "xdg-open")
        program.parent.mkdir()
        code = f"open({str(log)!r}, 'a').write(repr(sys.argv[1:]) + '\\n'); sys.exit({exit_code})"
        program.write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(program.parent))
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        return log

    return install


needs_programs = pytest.mark.skipif(sys.platform == "win32", reason="programs on PATH are scripts")


@needs_programs
def test_the_best_hits_are_opened(ccaco: Callable[..., Any], photos: Path, viewer: Callable[..., Path]) -> None:
    log = viewer()
    done = ccaco("retrieve", "a cat", "-i", photos, "--open", "--format", "json", "--columns", "path")
    assert (done.code, done.err) == (0, "")
    assert log.read_text().splitlines() == [repr([row["path"]]) for row in json.loads(done.out)[:3]]


@needs_programs
def test_what_is_no_file_is_opened_as_a_contact_sheet(
    ccaco: Callable[..., Any], index: Path, viewer: Callable[..., Path]
) -> None:
    log = viewer()
    done = ccaco("retrieve", "a cat", "-i", index, "-k", 2, "--open")
    assert done.code == 0 and done.err.startswith("ccaco: the contact sheet of the answers is ")
    (sheet,) = eval(log.read_text())
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"


@needs_programs
def test_what_cannot_be_opened_is_one_line(
    ccaco: Callable[..., Any],
    photos: Path,
    index: Path,
    tmp_path: Path,
    viewer: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = viewer(4)
    done = ccaco("retrieve", "a cat", "-i", photos, "--open", "--where", "year = 2004")
    assert done.code == 2 and "(exit code 4)" in done.err and done.err.count("\n") == 1
    log.unlink()
    picture = photos.parent / "photos" / "05 photo.jpg"
    done = ccaco("retrieve", "--image", picture, "-i", index, "--open")
    assert done.code == 2 and "have no pictures" in done.err
    assert ccaco("retrieve", "a cat", "-i", photos, "--open", "--where", "year = 9999").code == 0
    copy = tmp_path / "copy.idx"
    shutil.copytree(photos, copy)
    program = tmp_path / "05 photo.sh"
    program.write_text("echo")
    file = next(copy.glob("*/image/items.arrow"))
    for path, message in ((tmp_path / "gone.jpg", "is gone"), (program, "not a media file")):
        with pa.OSFile(str(file)) as source:
            items = pa.ipc.open_file(source).read_all()
        items = items.set_column(items.schema.get_field_index("path"), "path", pa.array([str(path)] * len(items)))
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, items.schema) as writer:
            writer.write_table(items)
        with edited(copy) as body:
            body["files"] = [e for e in body["files"] if "items.arrow" not in e["name"]]
        done = ccaco("retrieve", "a cat", "-i", copy, "--open")
        assert done.code == 2 and message in done.err and done.err.count("\n") == 1
    assert not log.exists(), "nothing was opened"
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    done = ccaco("retrieve", "a cat", "-i", photos, "--open")
    assert done.code == 2 and "is not installed" in done.err


def complete(words: str, folder: Path) -> list[str]:
    """What a shell is told when Tab is pressed after ``words``."""
    environment = os.environ | {
        "_CCACO_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    code = "from ccaco_cli.app import main; import sys; sys.argv = ['ccaco']; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("ccaco ret", ["retrieve"]),
        ("ccaco retrieve --simi", ["--similar"]),
        ("ccaco retrieve --format p", ["paths"]),
        ("ccaco retrieve --target i", ["image"]),
        ("ccaco retrieve --index ", ["me.idx"]),
        ("ccaco retrieve -i m", ["me.idx"]),
        ("ccaco retrieve --index x", []),  # the shell itself completes folders
        ("ccaco retrieve --index me.idx --columns ye", ["year"]),
        ("ccaco retrieve --index me.idx --columns path,ye", ["path,year"]),
        ("ccaco retrieve --index me.idx --where fold", ["folder"]),
        ("ccaco retrieve --index gone.idx --columns ye", []),
        ("ccaco retrieve --columns ye", []),
        ("ccaco retrieve --similar ", []),
    ],
)
def test_a_shell_completes(photos: Path, words: str, wanted: list[str]) -> None:
    assert complete(words, photos.parent) == wanted


@pytest.mark.skipif(sys.platform == "win32" or shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_by_the_script_that_is_installed(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    program = tmp_path / "ccaco"
    code = "import sys; from ccaco_cli.app import main; sys.argv[0] = 'ccaco'; main()"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -c {shlex.quote(code)} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    script = (
        'eval "$(ccaco --show-completion bash)"; COMP_WORDS=(ccaco retrieve --format p); COMP_CWORD=3; '
        '_ccaco_completion ccaco; echo "${COMPREPLY[@]}"; complete -p ccaco'
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SHELL": "/bin/bash"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == ["paths", "complete -o default -F _ccaco_completion ccaco"], done.stderr


def test_conditions_import_their_engine_only_when_there_is_one(photos: Path) -> None:
    code = (
        "import sys; from ccaco_cli.app import main\n"
        f"sys.argv = ['ccaco', 'retrieve', 'a cat', '-i', {str(photos)!r}, *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "print('IMPORTED', [m for m in ('torch', 'duckdb', 'matplotlib', 'starlette', 'pymilvus') if m in sys.modules])"
    )

    def imported(*options: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1]

    assert imported() == imported("--dedup", "0.9", "--columns", "year", "--plus", "a dog") == "IMPORTED []"
    assert imported("--where", "year = 2003") == "IMPORTED ['duckdb']"


def test_the_index_of_photos_opens(photos: Path) -> None:
    assert set(Index(photos, "full").sides) == {"image"}
