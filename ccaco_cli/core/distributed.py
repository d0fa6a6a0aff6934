"""Several processes that act as one: who is here, what is gathered, and whose turn it is.

Started by a launcher (``torchrun``), which says by RANK and WORLD_SIZE who each process is. Alone, every function here is the identity.
Every rank holds an equal, consecutive part of the global batch, so gathering in rank order gives the batch that one process would have had.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ccaco_cli.core import runtime
from ccaco_cli.core.errors import CcacoError, ConfigError, LostProcess

T = TypeVar("T")
ROLL_CALL = timedelta(seconds=10)
"""How long those who are left wait for each other's word before they say who is gone."""
_store: ContextVar[Any] = ContextVar("store", default=None)
_alone: ContextVar[bool] = ContextVar("alone", default=False)
_turns: ContextVar[list[int]] = ContextVar("turns")


class Leaves(SystemExit):
    """This process has done its part (code 0), or another one tells the user what is wrong (code 2): it ends without a word."""


def rank() -> int:
    """Which process this is, 0 .. world - 1."""
    return dist.get_rank() if world() > 1 else 0


def world() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone.get() else 1


def main() -> bool:
    """True for the one process that writes and speaks."""
    return rank() == 0


@contextmanager
def process_group(device: str = "auto", minutes: float = 30.0) -> Iterator[None]:
    """Joins the other processes of the launcher for the time of a block; nothing where there is one process.

    device   of ``runtime.device``; on a GPU tensors travel by NCCL, else by gloo
    minutes  after which a process that does not answer counts as lost
    Raises   LostProcess: another one has ended or hangs; says which, within seconds of its end
    """
    here, size = runtime.launched()
    if size <= 1 or dist.is_initialized():
        yield
        return
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(runtime.device("cuda"))
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    limit = timedelta(minutes=minutes)
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store: Any = dist.TCPStore(address, port, size, here == 0 and not hosted, limit, wait_for_workers=False)  # type: ignore[attr-defined]
        store = dist.PrefixStore(f"ccaco/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)  # type: ignore[attr-defined]
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo", store=store, rank=here, world_size=size, timeout=limit
        )
    except (KeyError, ValueError, RuntimeError) as error:
        what = f"the processes cannot meet ({' '.join(str(error).split())[:120]})"
        raise ConfigError(what, expected="torchrun --nproc-per-node N -m ccaco_cli ...") from None
    tokens = _store.set(store), _turns.set([0])
    try:
        yield
    except CcacoError as error:
        error.rank = here
        _say(store, here, str(error))
        raise
    except Leaves:
        raise
    except (RuntimeError, OSError) as error:
        if not _is_loss(error):
            _say(store, here, f"{type(error).__name__}: {error}")
            raise
        dist.destroy_process_group()  # closes the lines, so that those who wait for this process learn of it too
        raise _lost(store, here, size, error) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        _store.reset(tokens[0])
        _turns.reset(tokens[1])


@contextmanager
def single_process() -> Iterator[None]:
    """Work that a process does by itself, though others are there: inside, it is alone."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def main_process_first(work: Callable[[], T]) -> T:
    """The first process works, then all the others do: what the first leaves on disk is there for them. Waits as long as it takes.

    Raises what ``work`` raises on the first process; the others then leave.
    """
    if world() == 1:
        return work()
    found = main_process_only(work)
    return work() if found is None and not main() else found  # type: ignore[return-value]


def main_process_only(work: Callable[[], T]) -> T | None:
    """The first process works, the others wait for it (and leave when it fails); None for them."""
    if world() == 1:
        return work()
    store = _store.get()
    assert store is not None
    turns = _turns.get()
    turns[0] += 1
    key = f"turn/{turns[0]}"
    if main():
        try:
            found = work()
        except BaseException:
            store.set(key, "failed")
            raise
        store.set(key, "done")
        return found
    try:
        store.wait([key], timedelta(days=30))
        done = store.get(key) == b"done"
    except RuntimeError:  # the first process kept the store, and is gone
        done = False
    if not done:
        raise Leaves(2)
    return None


def wait() -> None:
    """Until every process is here, as long as it takes."""
    store = _store.get()
    if world() == 1 or store is None:
        return
    turns = _turns.get()
    turns[0] += 1
    keys = [f"wait/{turns[0]}/{number}" for number in range(world())]
    store.set(keys[rank()], "here")
    store.wait(keys, timedelta(days=30))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, through: bool) -> Tensor:
        ctx.through, ctx.rows = through, len(x)
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        own = slice(rank() * ctx.rows, (rank() + 1) * ctx.rows)
        if not ctx.through:  # all processes compute one and the same loss, so their gradients are equal: no need to ask
            return grad[own] * world(), None
        whole = grad.contiguous().clone()
        dist.all_reduce(whole)
        return whole[own], None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        whole = x.detach().clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        whole = grad.contiguous().clone()
        dist.all_reduce(whole)
        return whole


def gather(x: Tensor, *, through: bool = True) -> Tensor:
    """Rows of every process, in rank order: [b, ...] -> [world * b, ...].

    through  gradients travel back to the process that a row came from, summed over processes. Without it each process keeps what its own
             loss says of its own rows, times world: the same when all compute one loss from the gathered rows, and wrong when they do not
    The mean over processes of the parameters' gradients (what DDP does) is then that of one process with the global batch.
    """
    return x if world() == 1 else _Gather.apply(x, through)  # type: ignore[no-untyped-call]


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over processes, with gradient."""
    return x if world() == 1 else _Total.apply(x)  # type: ignore[no-untyped-call]


def shares(rows: Tensor, each: int) -> tuple[Tensor, Tensor]:
    """Who holds which of some rows of the global batch, so that only these rows travel.

    rows     [R] int64 into the global batch, the same on every process
    each     rows that every process holds
    Returns  own [most] int64, this process's rows among them (filled up with its row 0, so that every process sends as many), and
             place [R] int64, where each row lies in what is gathered of them: ``gather(x[own])[place]`` are the rows
    """
    owner = rows // each
    counts = torch.bincount(owner, minlength=world())
    most = int(counts.max())
    owner, order = owner.sort(stable=True)
    nth = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[owner]
    place = torch.empty_like(rows).scatter_(0, order, owner * most + nth)
    mine = rows[rows // each == rank()] - rank() * each
    return torch.cat([mine, mine.new_zeros(most - len(mine))]), place


def padded(x: Tensor) -> Tensor:
    """[b, N, ...] filled up with zeros to the longest N of all processes."""
    longest = int(all_reduce_max(x.shape[1]))
    return x if longest == x.shape[1] else torch.cat([x, x.new_zeros(len(x), longest - x.shape[1], *x.shape[2:])], 1)


def all_reduce_max(value: float) -> float:
    """The highest of all processes' numbers."""
    if world() == 1:
        return value
    found = torch.tensor(float(value), dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.item()


def broadcast(value: float) -> float:
    """The first process's number, for all: what decides for every process must be the same to the bit."""
    if world() == 1:
        return value
    found = torch.tensor(float(value), dtype=torch.float64)
    dist.broadcast(found, 0)
    return found.item()


def mean(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean over processes of named scalars, without gradient; NaN on one is NaN on all."""
    if world() == 1:
        return {name: value.detach() for name, value in values.items()}
    found = torch.stack([value.detach().float() for value in values.values()])
    dist.all_reduce(found)
    return dict(zip(values, found / world(), strict=True))


def join_parts(x: Tensor) -> Tensor:
    """Adds up CPU tensors of which every process filled other rows and left zeros elsewhere: bit by bit what one process would have."""
    if world() > 1 and x.numel():
        raw = x.contiguous().view(-1).view(torch.uint8)
        dist.all_reduce(raw)
        return raw.view(x.dtype).view(x.shape)
    return x


def gather_states(state: Tensor) -> list[Tensor]:
    """A small CPU tensor of every process, in rank order."""
    return [state] if world() == 1 else list(_all_gather(state[None]))


def _all_gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def _is_loss(error: BaseException) -> bool:
    return isinstance(error, dist.DistError | ConnectionError) or any(
        word in str(error) for word in ("gloo", "Connection closed", "Connection reset", "NCCL")
    )


def _say(store: Any, here: int, what: str) -> None:
    """Leaves a last word for the others, who will find the line dead."""
    try:
        store.set(f"left/{here}", " ".join(what.split())[:300])
    except RuntimeError:
        return


def _lost(store: Any, here: int, size: int, error: BaseException) -> LostProcess:
    """The roll is called by the store: who does not answer is gone."""
    silent = {number for number in range(size) if number != here}
    words: dict[int, str] = {}
    try:
        store.set(f"alive/{here}", "here")
        end = time.monotonic() + ROLL_CALL.total_seconds()
        while silent and time.monotonic() < end:
            for number in sorted(silent):
                if store.check([f"left/{number}"]):
                    words[number] = store.get(f"left/{number}").decode("utf-8", "replace")
                if number in words or store.check([f"alive/{number}"]):
                    silent.discard(number)
            time.sleep(0.05)
    except RuntimeError:  # the store itself is gone, and the first process (or the launcher) kept it
        silent = {0}
    gone = [f"process {number} of {size} ended: {word}" for number, word in words.items()]
    gone += [f"process {number} of {size} ended without a word" for number in sorted(silent)]
    what = "; ".join(gone) or f"the line to the other processes broke ({' '.join(str(error).split())[:120]})"
    return LostProcess(what, expected=f"{size} processes to the end", next="the same command with --resume latest")
