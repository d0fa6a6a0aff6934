from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core import manifest
from tests.pretrained_models import open_clip_folder


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
    assert np.load(tmp_path / "v.idx/generation-1/image/tokens.npy").shape == (25, 18), (
        "one token an image, with its place"
    )
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


def test_export(ccaco: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_clip_folder(tmp_path / "small")
    done = ccaco("embed", "--model", "open_clip:small", "--export", "open_clip", "--license", "mit")
    assert (done.code, done.out) == (0, "")
    first, last = done.err.splitlines()
    assert first.startswith("exports/open_clip-small-open_clip: open_clip; loaded by its library, its vectors differ")
    assert last == "next: ccaco embed --model open_clip:exports/open_clip-small-open_clip --dataset scenes"
    assert sorted(p.name for p in (tmp_path / "exports/open_clip-small-open_clip").iterdir()) == [
        "README.md",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    again = ccaco("embed", "--model", "open_clip:small", "--export", "open_clip")
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "something is there already: exports/open_clip-small-open_clip" in again.err


def test_help_names_every_export_format() -> None:
    from ccaco_cli.commands.embed import embed
    from ccaco_cli.core.export.formats import FORMATS

    (declared,) = inspect.signature(embed, eval_str=True).parameters["export"].annotation.__metadata__
    assert all(name in declared.help for name in FORMATS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--export", "onnyx"], "open_clip | transformers | onnx | sentence-transformers; next: did you mean onnx?"),
        (["--export", "transformers"], "expected a format that can: onnx; next: --export onnx"),
        (["--export", "onnx", "--index", "x.idx"], "an export builds no index"),
        (["--license", "mit"], "--export FORMAT beside it"),
        (["--push-to-hub", "me/small"], "--export FORMAT beside it"),
        (["--export", "onnx", "--push-to-hub", "a/b/c"], "no name of a repository"),
        (["--export", "onnx", "--push-to-hub", "me/small"], "the hub cannot be reached: --push-to-hub me/small"),
    ],
)
def test_export_errors_are_one_line_and_leave_nothing(
    ccaco: Callable[..., Any],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    from ccaco_cli.core.export import hub

    monkeypatch.setattr(hub, "is_reachable", lambda endpoint: False)
    monkeypatch.chdir(tmp_path)
    done = ccaco("embed", "--run", run, *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err
    assert not list(tmp_path.iterdir())
