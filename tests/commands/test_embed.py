from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core import manifest


def test_shards_and_index(ccaco: Callable[..., Any], run: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = ccaco("embed", "--run", run, "--split", "val", "--data", data_root, "--device", "cpu")
    assert (done.code, done.out) == (0, "")
    assert done.err == "embeddings/first-scenes-val: 25 image, 125 text\nnext: add --index scenes.idx to search them\n"
    done = ccaco("embed", "--run", run, "--split", "val", "--data", data_root, "--device", "cpu", "--index", "v.idx")
    assert done.err.startswith("v.idx: 25 image, 125 text\nnext: ccaco retrieve ")
    assert done.err.endswith("--index v.idx\n")
    assert manifest.open(tmp_path / "v.idx", kind="index", verify=True).facts["split"] == "val"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["embeddings", "v.idx"]
    again = ccaco("embed", "--run", run, "--split", "val", "--data", data_root, "--index", "v.idx")
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "an index is there already" in again.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "gone"], "no run here: gone"),
        (["--split", "dev"], "no split 'dev'"),
        (["--dataset", "flickr8k"], "not prepared"),
        (["--device", "cuda:77"], "no such device"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    ccaco: Callable[..., Any], run: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = ccaco("embed", "--run", run, "--data", data_root, *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err
    assert not list(tmp_path.iterdir())
