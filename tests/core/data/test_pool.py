from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccaco_cli.core.data import pool
from ccaco_cli.core.data.checks import Passed, Rules
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

RULES = Rules(None, ("raw", "text"))


def test_order_holds_and_reading_ahead_is_bounded() -> None:
    taken = 0

    def records() -> Iterator[PairRecord]:
        nonlocal taken
        for taken in range(1, 1001):
            yield PairRecord(str(taken), "", "train", {"raw": b"%d" % taken}, ["a"])

    furthest = 0
    ids = []
    for record, result in pool.checked(records(), RULES, 2):
        assert isinstance(result, Passed) and result.row["id"] == record.id
        ids.append(int(record.id))
        furthest = max(furthest, taken - int(record.id))
    assert ids == list(range(1, 1001))
    assert furthest <= pool.CHUNK * (2 * pool.AHEAD + 2)


def test_a_worker_that_dies_is_reported() -> None:
    killers = (PairRecord(str(i), "", "train", {"raw": b"a"}, [_Killer()]) for i in range(3))  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"a worker process died.*fewer --workers"):
        list(pool.checked(killers, RULES, 2))


class _Killer:
    """Kills the process that unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.abort, ())


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text("""
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from ccaco_cli.core import runtime
import os
if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=runtime.end_with_parent) as workers:
        print(workers.submit(os.getpid).result(), flush=True)
        time.sleep(60)
""")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)  # it is there
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not alive(worker):
            break
        time.sleep(0.05)
    assert not alive(worker)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
