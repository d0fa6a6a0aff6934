from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.reporting.hit_explanation import ExplainedHit
from ccaco_cli.core.retrieval.explain import Explanation, Trial
from ccaco_cli.core.retrieval.search import Hit
from ccaco_cli.core.types import no_progress
from ccaco_cli.view.heat import overlay, write


def explained(query: str = "a cat", rank: int = 1, picture: bool = True) -> ExplainedHit:
    trial = Trial(5.0, np.array([0.5]), np.array([1.0]), np.array([4.0]), np.array([3.0]))
    explanation = Explanation("attention", ("cat",), np.eye(2)[None], trial)
    hit = Hit(rank, 3, 9.0, 0.5, 5.0, {"id": f"p{rank}", "text": ["t"]})
    return ExplainedHit(query, hit, explanation, np.full((8, 8, 3), 90, np.uint8) if picture else None, 0.5)


def test_the_hottest_cell_is_the_brightest() -> None:
    heat = np.zeros((4, 4))
    heat[1, 2] = 0.3
    shown = np.asarray(overlay(np.full((64, 64, 3), 120, np.uint8), heat).convert("L")).astype(int)
    height, width = shown.shape
    assert (height, width) == (224, 224)
    assert shown[height * 3 // 8, width * 5 // 8] > shown[height * 7 // 8, width // 8] + 40
    assert np.asarray(overlay(np.zeros((300, 400, 3), np.uint8), np.zeros((2, 2)))).shape == (300, 400, 3), (
        "no heat at all is no crash"
    )


def test_a_picture_an_answer_and_the_numbers_last(tmp_path: Path) -> None:
    folder = tmp_path / "why"
    write(folder, [explained(), explained(rank=2, picture=False), explained("../a dog?")], 3, no_progress)
    facts = json.loads((folder / "explain.json").read_text())
    assert [fact["picture"] for fact in facts] == ["01-a-cat-01.png", "01-a-cat-02.png", "02-a-dog-01.png"]
    for row in facts:
        with Image.open(folder / row["picture"]) as image:
            assert image.width > 200
    assert (
        facts[0]["deletion_gain"] == 2.0
        and facts[0]["insertion_gain"] == 1.0
        and facts[0]["words"] == [{"word": "cat", "heat": [[1.0, 0.0], [0.0, 1.0]]}]
    )

    def broken() -> Iterator[Any]:
        yield explained()
        raise DataError("no tokens")

    with pytest.raises(DataError):
        write(folder, broken(), 2, no_progress)
    assert not (folder / "explain.json").exists(), "numbers never stand beside pictures of another call"


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="something else lies here"):
        write(tmp_path, [explained()], 1, no_progress)
    write(tmp_path / "never", [], 0, no_progress)
    assert not (tmp_path / "never").exists()
