from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core import manifest


def test_shards_and_index(
    ccaco: Callable[..., Any], run: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = ccaco("embed", "--run", run, "--split", "val", "--data", data_root, "--device", "cpu")
    assert (done.code, done.out) == (0, "")
    assert done.err == "embeddings/first-scenes-val: 25 image, 125 text\nnext: add --index scenes.idx to search them\n"
    small = ("--store-tokens", "int8", "--store-grid", 1, "--index-type", "flat")
    done = ccaco(
        "embed", "--run", run, "--split", "val", "--data", data_root, "--device", "cpu", "--index", "v.idx", *small
    )
    error_lines = done.err.splitlines()
    assert error_lines[0] == "v.idx: 25 image, 125 text"
    assert error_lines[1].startswith("image: flat, recall@10 1.000 of exact search, ")
    assert "; tokens int8, " in error_lines[2]
    assert error_lines[3].startswith("next: ccaco retrieve ")
    assert error_lines[3].endswith("--index v.idx")
    facts = manifest.open(tmp_path / "v.idx", kind="index", verify="full").facts
    assert facts["split"] == "val"
    assert facts["query"]["exported"]
    assert np.load(tmp_path / "v.idx/generation-1/image/tokens.npy").shape == (25, 16), "one token a picture"
    assert np.load(tmp_path / "v.idx/generation-1/image/tokens.npy").dtype == np.int8
    hits = ccaco("retrieve", "a red cat", "--index", "v.idx", "-k", 2, "--format", "csv")
    assert (hits.code, hits.err, hits.out.count("\n")) == (0, "", 3)
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
        (["--store-tokens", "int4"], "float16 | int8 | none"),
        (["--precision", "int4"], "auto | fp32 | bf16 | fp16"),
        (["--index-type", "annoy"], "auto | flat | ivf | hnsw | ivfpq"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    ccaco: Callable[..., Any],
    run: Path,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = ccaco("embed", "--run", run, "--data", data_root, *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err
    assert not list(tmp_path.iterdir())
