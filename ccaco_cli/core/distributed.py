"""Several processes that train one model: collectives, the main process, and errors when a process is lost.

A launcher such as ``torchrun`` starts the processes and sets RANK and WORLD_SIZE. With one process every collective
returns its argument. Every rank holds an equal, consecutive part of the global batch, so ``gather`` gives the batch
that a single process would have.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ccaco_cli.core import runtime
from ccaco_cli.core.errors import CcacoError, ConfigError, LostProcess
from ccaco_cli.core.types import OnProgress, no_progress

T = TypeVar("T")
DIAGNOSIS_TIMEOUT = timedelta(seconds=10)
"""How long the remaining processes wait for a sign of life from each other before they report which process is lost."""
NO_LIMIT = timedelta(days=30)
_store: ContextVar[Any] = ContextVar("store", default=None)
_single: ContextVar[bool] = ContextVar("single", default=False)
_barrier_count: ContextVar[list[int]] = ContextVar("barrier_count")


class ProcessEnded(SystemExit):
    """Ends this process without a message: it is done (code 0), or the main process reports the error (code 2)."""


def rank() -> int:
    """Number of this process, 0 .. world - 1."""
    return dist.get_rank() if world() > 1 else 0


def world() -> int:
    """Number of processes that share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _single.get() else 1


def main() -> bool:
    """True for the process of rank 0, which alone writes files and messages."""
    return rank() == 0


@contextmanager
def session(device: str, report_progress: OnProgress, minutes: float = 30.0) -> Iterator[OnProgress]:
    """``process_group`` for a workflow.

    Yields the progress callback of this process, which does nothing on all but the main process.
    """
    with process_group(device, minutes):
        yield report_progress if main() else no_progress


@contextmanager
def process_group(device: str = "auto", minutes: float = 30.0) -> Iterator[None]:
    """Connects the processes of the launcher for the time of a block; does nothing for a single process.

    Args:
        device: as for ``runtime.device``; GPU tensors are exchanged by NCCL, all others by gloo.
        minutes: a process that does not answer for so long counts as lost.
    Raises:
        LostProcess: another process has ended or hangs; the message names it.
    """
    this_rank, size = runtime.launcher_rank()
    if size <= 1 or dist.is_initialized():
        yield
        return
    store = _connect(this_rank, size, device, timedelta(minutes=minutes))
    tokens = _store.set(store), _barrier_count.set([0])
    try:
        yield
    except CcacoError as error:
        error.rank = this_rank
        _record_failure(store, this_rank, str(error))
        raise
    except ProcessEnded:
        raise
    except (RuntimeError, OSError) as error:
        if not _is_connection_error(error):
            _record_failure(store, this_rank, f"{type(error).__name__}: {error}")
            raise
        dist.destroy_process_group()  # closes the connections, so that waiting processes get an error, too
        raise _lost_process(store, this_rank, size, error) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        _store.reset(tokens[0])
        _barrier_count.reset(tokens[1])


def _connect(this_rank: int, size: int, device: str, timeout: timedelta) -> Any:
    """Opens the process group; returns the key-value store that the processes share."""
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(runtime.device("cuda"))
    hosted_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        is_host = this_rank == 0 and not hosted_by_launcher
        store: Any = dist.TCPStore(address, port, size, is_host, timeout, wait_for_workers=False)  # type: ignore[attr-defined]
        store = dist.PrefixStore(f"ccaco/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=this_rank, world_size=size, timeout=timeout)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the processes cannot connect ({' '.join(str(error).split())[:120]})",
            expected="torchrun --nproc-per-node N -m ccaco_cli ...",
        ) from None
    return store


@contextmanager
def single_process() -> Iterator[None]:
    """Inside the block this process works by itself: ``world()`` is 1 and collectives return their argument."""
    token = _single.set(True)
    try:
        yield
    finally:
        _single.reset(token)


@contextmanager
def main_process_continues() -> Iterator[None]:
    """Ends all processes but the main one (exit code 0), which runs the block by itself."""
    if not main():
        raise ProcessEnded(0)
    with single_process():
        yield


@contextmanager
def on_main_process(context: Callable[[], AbstractContextManager[T]]) -> Iterator[T | None]:
    """Enters a context manager, such as a file lock, on the main process only; yields None on the others."""
    if not main():
        yield None
        return
    with context() as value:
        yield value


def main_process_first(work: Callable[[], T]) -> T:
    """Runs ``work`` on the main process, then on all others, which find on disk what the main process has written.

    No time limit.

    If it fails on the main process, the others end with ``ProcessEnded``.
    """
    if world() == 1:
        return work()
    result = main_process_only(work)
    return work() if result is None and not main() else result  # type: ignore[return-value]


def main_process_only(work: Callable[[], T]) -> T | None:
    """Runs ``work`` on the main process while the others wait; returns None there.

    If it fails, they end with ``ProcessEnded``.
    """
    if world() == 1:
        return work()
    store = _store.get()
    assert store is not None
    key = f"main/{_next_barrier()}"
    if main():
        try:
            result = work()
        except BaseException:
            store.set(key, "failed")
            raise
        store.set(key, "done")
        return result
    try:
        store.wait([key], NO_LIMIT)
        succeeded = store.get(key) == b"done"
    except RuntimeError:  # the main process hosted the store and has ended
        succeeded = False
    if not succeeded:
        raise ProcessEnded(2)
    return None


def barrier() -> None:
    """Waits until every process has called it. No time limit."""
    store = _store.get()
    if world() == 1 or store is None:
        return
    number = _next_barrier()
    keys = [f"barrier/{number}/{process}" for process in range(world())]
    store.set(keys[rank()], "reached")
    store.wait(keys, NO_LIMIT)


def _next_barrier() -> int:
    """Number of this synchronisation point: all processes reach them in the same order."""
    count = _barrier_count.get()
    count[0] += 1
    return count[0]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, with_grad: bool) -> Tensor:
        ctx.with_grad, ctx.rows = with_grad, len(x)
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        local_rows = slice(rank() * ctx.rows, (rank() + 1) * ctx.rows)
        if not ctx.with_grad:  # every process computes the same loss, so the gradients are equal: no exchange needed
            return grad[local_rows] * world(), None
        summed = grad.contiguous().clone()
        dist.all_reduce(summed)
        return summed[local_rows], None


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        summed = x.detach().clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        summed = grad.contiguous().clone()
        dist.all_reduce(summed)
        return summed


def gather(x: Tensor, *, with_grad: bool = True) -> Tensor:
    """Rows of every process, in rank order: [b, ...] -> [world * b, ...].

    Args:
        with_grad: gradients return to the process that a row came from, summed over processes. Without it each process
            uses the gradient
            of its own loss for its own rows, times world: equal if all processes compute one loss of the gathered rows,
                wrong otherwise.
    The mean over processes of the parameters' gradients (as in DDP) then equals that of a single process with the
    global batch.
    """
    return x if world() == 1 else _Gather.apply(x, with_grad)  # type: ignore[no-untyped-call]


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over processes, with gradient."""
    return x if world() == 1 else _AllReduceSum.apply(x)  # type: ignore[no-untyped-call]


def row_owners(rows: Tensor, rows_per_process: int) -> tuple[Tensor, Tensor]:
    """Finds which process holds which of the given rows of the global batch, so that only these rows are exchanged.

    Args:
        rows: [R] int64, rows of the global batch, the same on every process.
        rows_per_process: rows of the global batch that every process holds.
    Returns:
        local_rows [n] int64: this process's rows among them, padded with its row 0 to the same n on every process.
        position [R] int64: position of each row among the gathered ones: ``gather(x[local_rows])[position]`` are the
        rows.
    """
    owner = rows // rows_per_process
    counts = torch.bincount(owner, minlength=world())
    sent_rows = int(counts.max())
    sorted_owner, order = owner.sort(stable=True)
    number = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[sorted_owner]
    position = torch.empty_like(rows).scatter_(0, order, sorted_owner * sent_rows + number)
    local_rows = rows[owner == rank()] - rank() * rows_per_process
    return torch.cat([local_rows, local_rows.new_zeros(sent_rows - len(local_rows))]), position


def pad_to_longest(x: Tensor) -> Tensor:
    """[b, N, ...] padded with zeros to the largest N of all processes."""
    longest = int(all_reduce_max(x.shape[1]))
    return x if longest == x.shape[1] else torch.cat([x, x.new_zeros(len(x), longest - x.shape[1], *x.shape[2:])], 1)


def all_reduce_max(value: float) -> float:
    """Maximum of a number over processes."""
    if world() == 1:
        return value
    number = torch.tensor(float(value), dtype=torch.float64)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return number.item()


def broadcast(value: float) -> float:
    """The main process's number, on every process: decisions must be equal to the bit."""
    if world() == 1:
        return value
    number = torch.tensor(float(value), dtype=torch.float64)
    dist.broadcast(number, 0)
    return number.item()


def mean(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean over processes of named scalars, without gradient; NaN on one process gives NaN on all."""
    if world() == 1:
        return {name: value.detach() for name, value in values.items()}
    stacked = torch.stack([value.detach().float() for value in values.values()])
    dist.all_reduce(stacked)
    return dict(zip(values, stacked / world(), strict=True))


def sum_disjoint(x: Tensor) -> Tensor:
    """Sum over processes of CPU tensors of which each process filled different rows and left the others zero.

    Exact to the bit.
    """
    if world() > 1 and x.numel():
        raw_bytes = x.contiguous().view(-1).view(torch.uint8)
        dist.all_reduce(raw_bytes)
        return raw_bytes.view(x.dtype).view(x.shape)
    return x


def gather_states(state: Tensor) -> list[Tensor]:
    """A small CPU tensor of every process, in rank order."""
    return [state] if world() == 1 else list(_all_gather(state[None]))


def _all_gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def _is_connection_error(error: BaseException) -> bool:
    return isinstance(error, dist.DistError | ConnectionError) or any(
        word in str(error) for word in ("gloo", "Connection closed", "Connection reset", "NCCL")
    )


def _record_failure(store: Any, this_rank: int, message: str) -> None:
    """Stores the reason why this process ends, so that the others can report it."""
    try:
        store.set(f"left/{this_rank}", " ".join(message.split())[:300])
    except RuntimeError:
        return


def _lost_process(store: Any, this_rank: int, size: int, error: BaseException) -> LostProcess:
    """The error that names the lost processes: each process signs the store, and those without a signature are lost."""
    silent = {number for number in range(size) if number != this_rank}
    reasons: dict[int, str] = {}
    try:
        store.set(f"alive/{this_rank}", "yes")
        end = time.monotonic() + DIAGNOSIS_TIMEOUT.total_seconds()
        while silent and time.monotonic() < end:
            for number in sorted(silent):
                if store.check([f"left/{number}"]):
                    reasons[number] = store.get(f"left/{number}").decode("utf-8", "replace")
                if number in reasons or store.check([f"alive/{number}"]):
                    silent.discard(number)
            time.sleep(0.05)
    except RuntimeError:  # the store itself is gone: the main process (or the launcher) hosted it
        silent = {0}
    lost = [f"process {number} of {size} ended: {reason}" for number, reason in reasons.items()]
    lost += [f"process {number} of {size} ended without a message" for number in sorted(silent)]
    message = "; ".join(lost) or f"the connection to the other processes broke ({' '.join(str(error).split())[:120]})"
    return LostProcess(message, expected=f"{size} processes to the end", next="the same command with --resume latest")
