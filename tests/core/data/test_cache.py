from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ccaco_cli.core.data import cache
from ccaco_cli.core.errors import ManifestError


def write(folder: Path) -> None:
    cache.new_array(folder / "x.npy", (3, 2), np.uint8)[:] = 7


def test_equal_parts_equal_name() -> None:
    assert cache.key(a=1, b="x") == cache.key(b="x", a=1) != cache.key(a=2, b="x")
    assert cache.key(a=Path("p")) == cache.key(a="p")


def test_made_once_and_read_only(tmp_path: Path) -> None:
    calls: list[Path] = []

    def counted(folder: Path) -> None:
        calls.append(folder)
        write(folder)

    for _ in range(2):
        array = cache.read_array(cache.folder(tmp_path / "deep/c", counted) / "x.npy")
        assert array.tolist() == [[7, 7]] * 3
    assert len(calls) == 1
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["c"]


def test_whole_or_absent(tmp_path: Path) -> None:
    def killed(folder: Path) -> None:
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.folder(tmp_path / "c", killed)
    assert not list(tmp_path.iterdir())


def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    built: list[str] = []
    begun, may_end = threading.Event(), threading.Event()

    def slowly(folder: Path) -> None:
        begun.set()
        may_end.wait(10)
        built.append("first")
        write(folder)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.folder, tmp_path / "c", slowly)
        begun.wait(10)
        second = pool.submit(cache.folder, tmp_path / "c", lambda folder: built.append("second"))
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        may_end.set()
        assert first.result() == second.result()
    assert built == ["first"]
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ManifestError, match=r"pickle|Array can't be memory-mapped"):
        cache.read_array(tmp_path / "x.npy")
