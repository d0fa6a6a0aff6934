from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import SearchOptions
from ccaco_cli.core.workflows.retrieve import by_text


def test_answers_are_those_of_the_core(ccaco: Callable[..., Any], index: Path) -> None:
    done = ccaco("retrieve", "a red cat", "a dog", "--index", index, "-k", 3, "--rerank", 0)
    assert (done.code, done.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    wanted = [
        (q, h) for q, hits in by_text(Index(index), ["a red cat", "a dog"], SearchOptions(3, rerank=0)) for h in hits
    ]
    assert [(r["query"], r["id"], int(r["rank"])) for r in rows] == [(q, h.item["id"], h.rank) for q, h in wanted]
    assert [float(r["cosine"]) for r in rows] == pytest.approx([h.cosine for _, h in wanted], abs=1e-4)


def test_queries_from_stdin_and_json(ccaco: Callable[..., Any], index: Path) -> None:
    done = ccaco("retrieve", "-", "-i", index, "-k", 1, "--format", "json", stdin="a cat\n\na dog\n")
    assert [row["query"] for row in json.loads(done.out)] == ["a cat", "a dog"]


@pytest.mark.parametrize("stdin", ["", "\n\n", " \t\n\u200b\n"])
@pytest.mark.parametrize("format", ["csv", "json", "table"])
def test_an_empty_stdin_is_refused(ccaco: Callable[..., Any], index: Path, stdin: str, format: str) -> None:
    done = ccaco("retrieve", "-", "-i", index, "--format", format, stdin=stdin)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("ccaco: no query: every line is empty; expected ") and done.err.count("\n") == 1


@pytest.mark.parametrize("query", ["", "  \t", "\u200b"])
def test_an_empty_query_is_refused(ccaco: Callable[..., Any], index: Path, query: str) -> None:
    done = ccaco("retrieve", "a dog", query, "-i", index)
    assert (done.code, done.out) == (2, "")
    assert done.err == "ccaco: query 2 is empty; expected a sentence; next: ccaco retrieve --help\n"


@pytest.mark.parametrize("stdin", [b"a dog\ncaf\xe9\n", b"a dog\n\xff\xfea\n", b"a dog\na\0b\n"])
def test_stdin_that_is_not_utf8_is_refused_with_its_line(ccaco: Callable[..., Any], index: Path, stdin: bytes) -> None:
    done = ccaco("retrieve", "-", "-i", index, stdin=stdin)
    assert (done.code, done.out) == (2, "")
    assert "stdin, line 2, byte " in done.err and "expected UTF-8 text" in done.err and done.err.count("\n") == 1


def test_a_picture_and_a_contact_sheet(ccaco: Callable[..., Any], index: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "orange").save(tmp_path / "q.png")
    done = ccaco("retrieve", "--image", tmp_path / "q.png", "-i", index, "-k", 2, "--save", tmp_path / "sheet.png")
    assert done.code == 0
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [r["query"] for r in rows] == [str(tmp_path / "q.png")] * 2
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 500


@pytest.mark.parametrize("method", ["attention", "gradient"])
def test_answers_are_explained(ccaco: Callable[..., Any], index: Path, tmp_path: Path, method: str) -> None:
    done = ccaco(
        "retrieve",
        "a red cat",
        "two dogs",
        "-i",
        index,
        "-k",
        2,
        "--explain",
        tmp_path / "why",
        "--explain-method",
        method,
    )
    assert (done.code, done.err) == (0, "")
    facts = json.loads((tmp_path / "why/explain.json").read_text())
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [(f["query"], str(f["rank"]), f["id"]) for f in facts] == [(r["query"], r["rank"], r["id"]) for r in rows]
    assert [w["word"] for w in facts[0]["words"]] == ["red", "cat"] and facts[0]["method"] == method
    for row in facts:
        with Image.open(tmp_path / "why" / row["picture"]) as picture:
            assert picture.width > 300


def test_captions_that_a_picture_finds_are_explained(ccaco: Callable[..., Any], index: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), "orange").save(tmp_path / "q.png")
    done = ccaco("retrieve", "--image", tmp_path / "q.png", "-i", index, "-k", 1, "--explain", tmp_path / "why")
    assert done.code == 0
    facts = json.loads((tmp_path / "why/explain.json").read_text())
    caption = next(csv.DictReader(io.StringIO(done.out)))["text"]
    assert all(word["word"] in caption for word in facts[0]["words"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a cat", "--index", "gone.idx"], "no index here: gone.idx"),
        (["--index", "INDEX"], "no query"),
        (["a cat", "--image", "x.png", "--index", "INDEX"], "more than one kind of query"),
        (["a cat", "-", "--index", "INDEX"], "both from the command line and from stdin"),
        (["--image", "gone.png", "--index", "INDEX"], "gone.png"),
        (["a cat", "--save", "sheet.txt", "--index", "INDEX"], ".png"),
        (["a cat", "--explain", "why", "--explain-method", "tea", "--index", "INDEX"], "no such way to explain: tea"),
    ],
)
def test_errors_are_one_line(
    ccaco: Callable[..., Any],
    index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = ccaco("retrieve", *(index if a == "INDEX" else a for a in arguments))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell is needed")
def test_a_closed_pipe_is_no_error(index: Path) -> None:
    ccaco = f"{sys.executable} -m ccaco_cli"
    retrieve = f'{{ {ccaco} retrieve - -i {index} -k 20 --rerank 0; echo "code $?" >&2; }}'
    script = f'for i in $(seq 130); do echo "cat $i"; done | {retrieve} | head -1'
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == "code 0\n"
