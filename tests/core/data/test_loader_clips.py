from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.clips import Clip
from ccaco_cli.core.data.loader import ClipColumn, MediaColumn, pad
from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.types import PairRecord
from tests.recordings import film, tone


class Grey:
    """Frames at eight a second, each as its mean grey: uint8 [n, 1]."""

    calls = 0

    def __call__(self, recording: Clip) -> torch.Tensor:
        Grey.calls += 1
        return torch.tensor([[int(np.asarray(frame).mean())] for frame in recording.frames(8.0)], dtype=torch.uint8)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    lengths = (1.0, 0.25, 2.0)
    clips = [film(seconds=s, samples=tone(s, 16_000)) for s in lengths]
    rows = [PairRecord(str(i), str(i), "train", {"video": data, "audio": data}) for i, data in enumerate(clips)]
    shards.write(
        rows,
        tmp_path / "d",
        shards.DatasetInfo(name="toy", modalities=("video", "audio")),
        shards.WriteOptions(workers=0),
    )
    return shards.open(tmp_path / "d").split("train")


def test_padded() -> None:
    padded = pad([torch.ones(2, 3, dtype=torch.uint8), torch.full((4, 3), 7, dtype=torch.uint8)])
    assert (
        padded["values"].shape == (2, 4, 3)
        and padded["values"].dtype == torch.uint8
        and padded["values"][0, 2:].sum() == 0
    )
    assert padded["mask"].tolist() == [[True, True, False, False], [True] * 4]


def test_clips_are_decoded_once_and_equal_those_decoded_on_the_fly(split: Split, tmp_path: Path) -> None:
    Grey.calls = 0
    progress: list[Any] = []
    column = ClipColumn(
        split,
        "video",
        Grey(),
        tmp_path / "cache",
        lambda done, total, facts: progress.append((done, total, facts["what"])),
    )
    assert Grey.calls == 3 and progress == [(3, 3, "video of train")] and column.length.tolist() == [8, 2, 16]
    again = ClipColumn(split, "video", Grey(), tmp_path / "cache")
    assert Grey.calls == 3, "read, not made again"
    items = np.array([2, 0, 1])
    for batch in (column.inputs(items), again.inputs(items)):
        wanted = MediaColumn(split, "video", Grey()).inputs(items)
        assert all(torch.equal(batch[key], wanted[key]) for key in ("values", "mask"))
    assert batch["values"][1, :4, 0].tolist() == pytest.approx([20, 30, 40, 50], abs=2)
    assert column.inputs(np.array([1]))["values"].shape == (1, 2, 1), "no further than the longest asked for"
