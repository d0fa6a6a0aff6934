"""A data set whose source is declared in one entry can be listed, prepared and opened."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.data import shards, sources
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.types import PairRecord


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 9, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def read(root: Path | None, options: SourceOptions) -> SourceData:
    assert root is not None

    def records() -> Iterator[PairRecord]:
        for number, line in enumerate((root / "list.txt").read_text().splitlines()):
            split = ("train", "val", "test")[number % 3]
            yield PairRecord(line, line, split, {"image": picture(number)}, [f"a picture of {line}"])

    return SourceData(records(), protocol="dummy: every third sample", licence="none", splits=("train", "val", "test"))


@pytest.fixture
def dummy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(f"{sources.__name__}.dummy")
    module.SOURCE = Source("dummy", ("image", "text"), "list.txt, one name a line", read)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sources.LOCATIONS, "dummy", "dummy.SOURCE")


def test_a_source_is_one_entry(dummy: None, ccaco: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "list.txt").write_text("".join(f"sample{i}\n" for i in range(12)))

    listed = json.loads(ccaco("prepare", "--list", "--format", "json").out)
    assert {"name": "dummy", "modalities": "image-text", "expects": "list.txt, one name a line"} in listed

    out = tmp_path / "out"
    prepared = ccaco(
        "prepare", "dummy", "--source", tmp_path / "in", "--limit", 3, "--workers", 0, "--out", out, "--format", "json"
    )
    assert prepared.code == 0, prepared.err
    assert [(row["split"], row["samples"]) for row in json.loads(prepared.out)] == [
        ("train", 3),
        ("val", 3),
        ("test", 3),
    ]
    data = shards.open(out)
    assert data.manifest.facts["protocol"] == "dummy: every third sample; at most 3 samples a split"
    assert data.split("val").captions == ["a picture of sample1", "a picture of sample4", "a picture of sample7"]

    assert "; next: ccaco prepare dummy --source PATH" in ccaco("prepare", "dummy").err
    assert "; next: ccaco prepare dummy\n" in ccaco("prepare", "dumy").err
