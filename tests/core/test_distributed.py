from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ccaco_cli.core import distributed, lost_process
from ccaco_cli.core.errors import ConfigError, DataError, LostProcess
from tests.processes import free_port, launch


def test_alone_everything_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(x) is x
    assert distributed.all_reduce_sum(x) is x
    assert distributed.sum_disjoint(x) is x
    assert (distributed.rank(), distributed.world(), distributed.main()) == (0, 1, True)
    assert distributed.main_process_first(lambda: 5) == distributed.main_process_only(lambda: 5) == 5
    assert distributed.mean({"a": torch.tensor(2.0)}) == {"a": 2.0}
    assert distributed.all_reduce_max(2.5) == distributed.broadcast(2.5) == 2.5


def meet(folder: Path) -> None:
    with distributed.process_group("cpu"):
        rank, world = distributed.rank(), distributed.world()
        local_rows = torch.full((2, 3), float(rank), requires_grad=True)
        gathered = distributed.gather(local_rows)
        assert gathered[:, 0].tolist() == [i // 2 for i in range(2 * world)]
        (gathered.sum() * (rank + 1)).backward()
        assert (local_rows.grad == sum(range(1, world + 1))).all()
        rows = torch.tensor([5, 0, 2, 4, 1])
        owned, place = distributed.row_owners(rows, 2)
        numbers = torch.arange(2 * rank, 2 * rank + 2)
        assert torch.equal(distributed.gather(numbers[owned])[place], rows)
        assert distributed.pad_to_longest(torch.ones(2, 1 + rank)).shape == (2, world)
        filled = torch.zeros(world, 3, dtype=torch.float16)
        filled[rank] = torch.tensor([-0.0, 1.5, 1e-7])
        same = torch.tensor([-0.0, 1.5, 1e-7]).half().repeat(world, 1)
        assert torch.equal(distributed.sum_disjoint(filled).view(torch.int16), same.view(torch.int16))
        assert distributed.all_reduce_max(float(rank)) == world - 1
        assert distributed.broadcast(float(rank)) == 0
        assert float(distributed.mean({"a": torch.tensor(float(rank))})["a"]) == (world - 1) / 2
        first_result = distributed.main_process_first(lambda: (folder / "made").exists() or (folder / "made").touch())
        assert first_result == (None if rank == 0 else True)
        with distributed.single_process():
            assert distributed.world() == 1
        distributed.barrier()


def test_together_they_have_what_one_would_have(tmp_path: Path) -> None:
    assert launch(3, meet, tmp_path) == [0, 0, 0]


def fails(folder: Path) -> None:
    try:
        with distributed.process_group("cpu"):
            distributed.main_process_only(lambda: (_ for _ in ()).throw(DataError("nothing there")))
    except DataError as error:
        assert (str(error), error.rank) == ("nothing there", 0)
        raise SystemExit(5) from None


def test_what_fails_on_the_first_ends_the_others_without_a_word(tmp_path: Path) -> None:
    assert launch(2, fails, tmp_path) == [5, 2]


def dies(folder: Path, victim: int, how: str) -> None:
    begun = time.monotonic()
    try:
        with distributed.process_group("cpu"):
            for number in range(1000):
                if number == 3 and distributed.rank() == victim:
                    if how == "kill":
                        os.kill(os.getpid(), signal.SIGKILL)
                    raise DataError("its disk broke")
                distributed.mean({"a": torch.ones(())})
    except LostProcess as error:
        (folder / f"{os.environ['RANK']}").write_text(f"{time.monotonic() - begun:.1f} {error}")
        raise SystemExit(2) from None
    except DataError as error:
        assert error.rank == victim
        raise SystemExit(3) from None


@pytest.mark.parametrize(("victim", "how"), [(2, "kill"), (1, "error")])
def test_when_one_dies_the_others_stop_within_a_bound_and_say_who(tmp_path: Path, victim: int, how: str) -> None:
    codes = launch(3, dies, tmp_path, victim, how)
    left = [rank for rank in range(3) if rank != victim]
    assert [codes[rank] for rank in left] == [2, 2]
    assert codes[victim] == (-9 if how == "kill" else 3)
    for rank in left:
        seconds, _, message = (tmp_path / str(rank)).read_text().partition(" ")
        assert float(seconds) < 30
        assert f"process {victim} of 3 ended" in message
        assert ("its disk broke" in message) == (how == "error")
        assert "--resume latest" in message


def test_a_launcher_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="torchrun"), distributed.process_group("cpu"):
        pass


def scores_alone(folder: Path, fails: bool) -> None:
    rank = os.environ["RANK"]
    try:
        with distributed.process_group("cpu"):
            distributed.mean({"a": torch.ones(())})
            with distributed.main_process_continues():
                assert distributed.world() == 1
                time.sleep(1.0)
                (folder / "scored").touch()
                if fails:
                    raise DataError("no disk")
    except distributed.ProcessEnded:
        assert (folder / "scored").exists(), "the others stay until the main process is done"
        (folder / f"{rank}").touch()
        raise
    except DataError:
        raise SystemExit(3) from None
    (folder / rank).touch()


@pytest.mark.parametrize(("fails", "codes"), [(False, [0, 0, 0]), (True, [3, 2, 2])])
def test_no_process_leaves_the_group_before_the_main_one_is_done(tmp_path: Path, fails: bool, codes: list[int]) -> None:
    started = time.monotonic()
    assert launch(3, scores_alone, tmp_path, fails) == codes
    assert all((tmp_path / str(rank)).exists() for rank in (1, 2))
    assert time.monotonic() - started < 60


def stops_waiting(folder: Path) -> None:
    """Process 1 is killed while the main one scores: that changes nothing for the main one."""
    with distributed.process_group("cpu"):
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with distributed.main_process_continues():
            (folder / "scored").touch()


def test_the_main_process_finishes_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch(2, stops_waiting, tmp_path) == [0, -signal.SIGKILL]
    assert (tmp_path / "scored").exists()


def test_the_failure_of_another_process_aborts_collectives(monkeypatch: pytest.MonkeyPatch) -> None:
    aborted = threading.Event()
    monkeypatch.setattr(lost_process, "WATCH_INTERVAL", 0.01)
    monkeypatch.setattr(lost_process, "abort_collectives", aborted.set)
    store = dist.TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    first, second = (lost_process.Members(store, rank, 2) for rank in range(2))
    with first.abort_on_failure():
        first.record_failure("its own failure is not that of another process")
        assert not aborted.wait(0.2)
        second.record_failure("its disk broke")
        assert aborted.wait(10)
    assert "process 1 of 2 ended: its disk broke" in str(first.lost(RuntimeError("NCCL")))


def test_nobody_watches_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    aborted: list[int] = []
    monkeypatch.setattr(lost_process, "WATCH_INTERVAL", 0.01)
    monkeypatch.setattr(lost_process, "abort_collectives", lambda: aborted.append(1))
    store = dist.HashStore()  # type: ignore[attr-defined]
    stop = threading.Event()
    stop.set()
    lost_process.Members(store, 1, 2).record_failure("late")
    lost_process.Members(store, 0, 2).watch(stop)
    assert not aborted


def two_members(timeout: float) -> tuple[lost_process.Members, lost_process.Members]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    first, second = (lost_process.Members(store, rank, 2, timedelta(seconds=timeout)) for rank in range(2))
    return first, second


@pytest.mark.parametrize("while_alive", [False, True])
def test_a_process_that_does_not_answer_in_time_is_lost(while_alive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_process, "DIAGNOSIS_TIMEOUT", timedelta(seconds=0.2))
    monkeypatch.setattr(lost_process, "WATCH_INTERVAL", 0.05)
    first, _ = two_members(0.3)
    started = time.monotonic()
    with pytest.raises(LostProcess, match="process 1 of 2 ended without a message"):
        first.wait_for({1: "barrier/1/1"}, while_alive=while_alive)
    assert time.monotonic() - started < 10


def test_a_process_that_shows_signs_of_life_may_take_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_process, "DIAGNOSIS_TIMEOUT", timedelta(seconds=0.2))
    monkeypatch.setattr(lost_process, "WATCH_INTERVAL", 0.05)
    monkeypatch.setattr(lost_process, "PULSE_INTERVAL", 0.05)
    first, second = two_members(0.5)
    stop = threading.Event()
    threading.Thread(target=second.store_pulses, args=(stop,), daemon=True).start()
    threading.Timer(1.5, lambda: second.store.set("barrier/1/1", "reached")).start()
    started = time.monotonic()
    first.wait_for({1: "barrier/1/1"}, while_alive=True)
    assert time.monotonic() - started > 1.0
    with pytest.raises(LostProcess):
        first.wait_for({1: "barrier/2/1"}, while_alive=False)
    stop.set()
    with pytest.raises(LostProcess):
        first.wait_for({1: "barrier/2/1"}, while_alive=True)


def test_a_process_that_ends_with_an_error_is_named_at_once() -> None:
    first, second = two_members(600)
    second.record_failure("its disk broke")
    with pytest.raises(LostProcess, match="process 1 of 2 ended: its disk broke"):
        first.wait_for({1: "barrier/1/1"}, while_alive=False)


def test_a_key_that_was_set_before_the_end_counts() -> None:
    first, second = two_members(600)
    second.store.set("main/1", "failed")
    second.record_failure("its disk broke")
    first.wait_for({1: "main/1"}, while_alive=True)


def hangs_before_the_barrier(folder: Path) -> None:
    lost_process.DIAGNOSIS_TIMEOUT = timedelta(seconds=1)
    try:
        with distributed.process_group("cpu", minutes=0.05):
            if distributed.rank() == 1:
                time.sleep(8)
                os._exit(7)
            distributed.barrier()
    except LostProcess as error:
        (folder / "message").write_text(str(error))
        raise SystemExit(2) from None


def test_a_barrier_does_not_wait_longer_than_the_configured_time(tmp_path: Path) -> None:
    assert launch(2, hangs_before_the_barrier, tmp_path) == [2, 7]
    assert "process 1 of 2 ended without a message" in (tmp_path / "message").read_text()
