"""Several processes that train one model: collectives, the main process, and errors when a process is lost.

A launcher such as ``torchrun`` starts the processes and sets RANK and WORLD_SIZE. With one process every collective
returns its argument. Every rank holds an equal, consecutive part of the global batch, so ``gather`` gives the batch
that a single process would have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ccaco_cli.core import lost_process, runtime
from ccaco_cli.core.errors import CcacoError, ConfigError
from ccaco_cli.core.types import OnProgress, no_progress

T = TypeVar("T")
_members: ContextVar[lost_process.Members | None] = ContextVar("members", default=None)
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
        ConfigError: the processes cannot connect, or several would share a GPU.
        LostProcess: another process has ended or hangs; the message names it.
    """
    this_rank, size = runtime.launcher_rank()
    if size <= 1 or dist.is_initialized():
        yield
        return
    gpu = device != "cpu" and runtime.device(device).type == "cuda"
    timeout = timedelta(minutes=minutes)
    members = lost_process.Members(_connect(this_rank, size, gpu, timeout), this_rank, size, timeout)
    tokens = _members.set(members), _barrier_count.set([0])
    failed = True
    try:
        with members.shows_life(), members.abort_on_failure() if gpu else nullcontext():
            yield
        failed = False
    except CcacoError as error:
        error.rank = this_rank
        members.record_failure(str(error))
        raise
    except ProcessEnded:
        failed = False
        raise
    except (RuntimeError, OSError) as error:
        if not lost_process.is_connection_error(error):
            members.record_failure(f"{type(error).__name__}: {error}")
            raise
        _close(abort=gpu)  # first of all, so that waiting processes get an error, too
        raise members.lost(error) from None
    finally:
        _close(abort=gpu and failed)
        _members.reset(tokens[0])
        _barrier_count.reset(tokens[1])


def _close(*, abort: bool) -> None:
    """Closes the connections, if they are open; ``abort`` does not wait for collectives that have begun."""
    if dist.is_initialized():
        if abort:
            lost_process.abort_collectives()
        dist.destroy_process_group()


def _connect(this_rank: int, size: int, gpu: bool, timeout: timedelta) -> Any:
    """Opens the process group; returns the key-value store that the processes share."""
    if gpu:  # a collective without an answer ends the process after the timeout, also while Python waits for the GPU
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
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
    """Runs the block on the main process by itself; the others wait until it is done, then end without a message.

    They wait because NCCL closes its connections only together. Their exit code is 0, or 2 if the main process failed.
    """
    if world() == 1:
        yield
        return
    members = _members.get()
    assert members is not None
    store, key, acknowledged = members.store, f"main/{_next_barrier()}", f"acknowledged/{_barrier_count.get()[0]}"
    if not main():
        succeeded = _main_process_succeeded(members, key)
        if succeeded:
            store.set(f"{acknowledged}/{rank()}", "yes")
        raise ProcessEnded(0 if succeeded else 2)
    keys = [f"{acknowledged}/{process}" for process in range(1, world())]
    with _outcome_stored(store, key), single_process():
        yield
    with suppress(RuntimeError):  # a waiting process that was killed changes nothing
        # this process may host the store: the others must have read the outcome before it ends
        store.wait(keys, lost_process.DIAGNOSIS_TIMEOUT)


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

    The others wait as long as the main process shows signs of life. If it fails there, they end with ``ProcessEnded``.
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
    members = _members.get()
    assert members is not None
    key = f"main/{_next_barrier()}"
    if main():
        with _outcome_stored(members.store, key):
            return work()
    if not _main_process_succeeded(members, key):
        raise ProcessEnded(2)
    return None


@contextmanager
def _outcome_stored(store: Any, key: str) -> Iterator[None]:
    """Stores for the other processes whether the block succeeded."""
    try:
        yield
    except BaseException:
        store.set(key, "failed")
        raise
    store.set(key, "done")


def _main_process_succeeded(members: lost_process.Members, key: str) -> bool:
    """Waits for the outcome that the main process stores, as long as it shows signs of life."""
    try:
        members.wait_for({0: key}, while_alive=True)
        return bool(members.store.get(key) == b"done")
    except RuntimeError:  # the main process hosted the store and has ended
        return False


def barrier(*, while_alive: bool = False) -> None:
    """Waits until every process has called it.

    Args:
        while_alive: the others may take as long as they show signs of life; else they have the time of
            ``process_group``.
    Raises:
        LostProcess: a process has ended or does not answer; the message names it.
    """
    members = _members.get()
    if world() == 1 or members is None:
        return
    number = _next_barrier()
    keys = {process: f"barrier/{number}/{process}" for process in range(world())}
    members.store.set(keys[rank()], "reached")
    members.wait_for(keys, while_alive=while_alive)


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

    On a GPU n does not depend on the rows, so that the program need not wait for them: each process sends as many as
    it may have to.

    Args:
        rows: [R] int64, rows of the global batch, the same on every process.
        rows_per_process: rows of the global batch that every process holds.
    Returns:
        local_rows [n] int64: this process's rows among them, padded with its row 0 to the same n on every process.
        position [R] int64: position of each row among the gathered ones: ``gather(x[local_rows])[position]`` are the
        rows.
    """
    owner = rows // rows_per_process
    counts = torch.zeros(world(), dtype=rows.dtype, device=rows.device).index_add_(0, owner, torch.ones_like(owner))
    starts = counts.cumsum(0) - counts
    sent_rows = min(len(rows), rows_per_process) if rows.device.type == "cuda" else int(counts.max())
    sorted_owner, order = owner.sort(stable=True)
    all_numbers = torch.arange(len(rows), device=rows.device)
    number = all_numbers - starts[sorted_owner]
    position = torch.empty_like(rows).scatter_(0, order, sorted_owner * sent_rows + number)
    sent = all_numbers[:sent_rows]
    local_rows = rows[order[(starts[rank()] + sent).clamp(max=len(rows) - 1)]] - rank() * rows_per_process
    return local_rows.where(sent < counts[rank()], 0), position


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
