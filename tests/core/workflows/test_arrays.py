"""The commands on arrays: a pair of embedding sets, and point clouds with captions."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.config_io import load
from ccaco_cli.core.data import shapes

FEW = ["--batch-size", 32, "--set", "model.width=32", "--set", "eval.ways=4", "--device", "cpu"]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def linear_pairs(folder: Path, count: int) -> None:
    """Two views of the same hidden vectors, far from zero and of different width."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(count, 6))
    np.save(folder / "a.npy", (hidden @ rng.normal(size=(6, 12)) + 50).astype(np.float32))
    np.save(folder / "b.npy", (hidden @ rng.normal(size=(6, 9)) - 20).astype(np.float64))
    (folder / "captions.txt").write_text("\n".join(f"number {i}" for i in range(count)))


def test_two_embedding_sets_are_aligned(ccaco: Callable[..., Any], place: Path) -> None:
    linear_pairs(place, 600)
    sides = ["--a", "a.npy", "--b", "b.npy", "--captions", "captions.txt"]
    done = ccaco("prepare", "pairs", *sides, "--workers", 0, "--preview", "p.png")
    assert done.code == 0 and (place / "p.png").stat().st_size, done.err
    done = ccaco("train", "--dataset", "pairs", "--name", "p", "--arm", "clip", "--epochs", 12, *FEW)
    assert done.code == 0, done.err
    row = rows(ccaco("report", "runs/p", "--format", "csv", "--wide").out)[0]
    assert min(float(row["array_to_array2_R@1"]), float(row["array2_to_array_R@1"])) > 0.5, "chance is 0.02"
    settings = load(place / "runs/p/config.toml")
    assert settings["model.array.columns"] == 12 and len(settings["model.array2.mean"]) == 9
    assert np.allclose(settings["model.array2.mean"], np.load("b.npy").mean(0), atol=0.5)
    done = ccaco("embed", "--run", "runs/p", "--dataset", "pairs", "--index", "p.idx", "--split", "all")
    assert done.code == 0, done.err
    np.save("query.npy", np.load("a.npy")[7])
    np.save("query2.npy", np.load("b.npy")[7][None])
    for flag, query in (("--array", "query.npy"), ("--array2", "query2.npy")):
        done = ccaco("retrieve", flag, query, "--index", "p.idx", "--format", "csv", "-k", 5, "--save", "hits.png")
        assert done.code == 0, done.err
        assert "00000007" in {hit["id"] for hit in rows(done.out)}
    assert ccaco("report", "runs/p", "--html", "page.html").code == 0 and (place / "page.html").stat().st_size > 1000

    np.save("wide.npy", np.zeros(7))
    np.save("rows.npy", np.zeros((3, 12)))
    (place / "pickle.npy").write_bytes(b"\x80\x04K\x01.")
    for file, message in (("wide", "another shape"), ("rows", "another shape"), ("pickle", "not an array file")):
        done = ccaco("retrieve", "--array", f"{file}.npy", "--index", "p.idx")
        assert done.code == 2 and message in done.err and file in done.err and "Traceback" not in done.err


def test_point_clouds_with_captions(ccaco: Callable[..., Any], place: Path) -> None:
    done = ccaco("prepare", "shapes", "--limit", 64, "--workers", 0)
    assert done.code == 0, done.err
    options = ["--epochs", 2, "--set", "loss.cross_start=0", *FEW]
    done = ccaco("ablate", "--dataset", "shapes", "--arms", "ccaco,clip", "--seeds", 1, *options)
    assert done.code == 0, done.err
    (run,) = place.glob("**/ccaco*/manifest.json")
    done = ccaco("report", run.parent, "--by", "twin", "--format", "csv")
    assert done.code == 0 and {"role", "colour", "size", "shape"} <= {row["twin"] for row in rows(done.out)}, done.err
    done = ccaco("report", run.parent, "--html", "page.html")
    assert done.code == 0, done.err
    done = ccaco("embed", "--run", run.parent, "--dataset", "shapes", "--index", "s.idx")
    assert done.code == 0, done.err
    done = ccaco("retrieve", "a big red ball on a small cube", "--index", "s.idx", "-k", 3)
    assert done.code == 0, done.err
    record = next(shapes.records("test", 4, 0))
    (place / "cloud.npy").write_bytes(record.media["array"]())  # type: ignore[operator]
    hits = rows(ccaco("retrieve", "--array", "cloud.npy", "--index", "s.idx", "-k", 3, "--format", "csv").out)
    assert len(hits) == 3 and hits[0]["text"]
    done = ccaco("retrieve", "--similar", "cloud.npy", "--index", "s.idx", "-k", 1, "--format", "csv")
    assert rows(done.out)[0]["id"] == record.id
