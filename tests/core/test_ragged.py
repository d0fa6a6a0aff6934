from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccaco_cli.core import ragged

VALUES, OFFSETS = np.arange(12.0).reshape(6, 2), np.array([0, 2, 2, 6])


def test_places_are_those_of_the_rows_in_the_given_order() -> None:
    where, mask = ragged.gather_index(OFFSETS, np.array([2, 1, 0]))
    assert where.tolist() == [2, 3, 4, 5, 0, 1]
    assert mask.tolist() == [[True] * 4, [False] * 4, [True, True, False, False]]


@pytest.mark.parametrize(
    ("values", "offsets", "rows", "message"),
    [
        (VALUES, OFFSETS, 4, "other rows"),
        (VALUES[:, 0], OFFSETS, 3, "other rows"),
        (VALUES, OFFSETS.astype(np.float32), 3, "other rows"),
        (VALUES, OFFSETS + 1, 3, "leave the values"),
        (VALUES[:5], OFFSETS, 3, "leave the values"),
        (VALUES, np.array([0, 4, 2, 6]), 3, "leave the values"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(
    values: np.ndarray, offsets: np.ndarray, rows: int, message: str
) -> None:
    ragged.check(VALUES, OFFSETS, 3)
    ragged.check(VALUES[:0], np.array([0]), 0)
    with pytest.raises(ValueError, match=message):
        ragged.check(values, offsets, rows)


def test_a_growing_file_can_be_read_whenever_it_is_in_step(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.float16).reshape(8, 3)
    with ragged.GrowingArray(tmp_path / "x.npy") as file:
        file.add(rows[:2])
        file.sync()
        assert (np.load(tmp_path / "x.npy") == rows[:2]).all()
        file.add(rows[2:5])
    assert (np.load(tmp_path / "x.npy") == rows[:5]).all()
    with ragged.GrowingArray(tmp_path / "x.npy", keep_rows=4) as file:  # what lies behind them is cut off
        file.add(rows[4:])
    assert (np.load(tmp_path / "x.npy") == rows).all()
    assert np.load(tmp_path / "x.npy").dtype == np.float16
    with ragged.GrowingArray(tmp_path / "none.npy"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("killed_at", [0, 1, 3, 5])
def test_rows_are_written_once_however_late_the_writer_is_stopped(tmp_path: Path, killed_at: int) -> None:
    every, reads = np.array([3, 0, 2, 1, 4, 1]), []

    def make(first: int) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
        reads.append(first)
        if first == killed_at and reads.count(first) == 1:
            raise KeyboardInterrupt
        rows = np.arange(first, min(6, first + 1 + first % 2))
        return every[rows], {"values": np.repeat(rows, every[rows])[:, None]}, {"one": rows}

    with pytest.raises(KeyboardInterrupt):
        ragged.write(tmp_path, 6, make)
    ragged.write(tmp_path, 6, make)
    assert sorted(reads) == sorted([0, 1, 3, 5, killed_at])
    assert np.load(tmp_path / "values.npy")[:, 0].tolist() == [0, 0, 0, 2, 2, 3, 4, 4, 4, 4, 5]
    assert np.load(tmp_path / "one.npy").tolist() == [0, 1, 2, 3, 4, 5]
    assert np.load(tmp_path / "offsets.npy").tolist() == [0, 3, 3, 5, 6, 10, 11]
    assert len(list(tmp_path.iterdir())) == 3
