"""What one training step costs, found without doing it: the real step runs on tensors that have shapes and no contents."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ccaco_cli.core import runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.model import layout
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.training import step
from ccaco_cli.core.types import PairBatch

aten = torch.ops.aten


@dataclass(frozen=True)
class Cost:
    """Of one step of a batch: floating-point operations (forward and backward), and the most bytes of tensors that live at once."""

    flops: int
    peak: int


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations make, as long as they live: ``now`` and ``peak``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def hold(self, tensor: Tensor) -> None:
        """Counts a tensor that is there already."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self.run(func, args, kwargs or {})
        for found in tree_leaves(out):
            if isinstance(found, Tensor):
                self.hold(found)
        return out


class Phantom(Live):  # type: ignore[no-untyped-call]
    """``Live`` for tensors without contents: what depends on them is answered as for a full, healthy batch. Counts operations, too.

    most   values that ``torch.unique`` can find: the rows of the batch
    flops  so far (``FlopCounterMode`` would count the same, but its hooks on modules keep what a checkpoint recomputes)
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.flops = most, 0

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = ANSWERS.get(func)
        found = answer(self.most, *args, **kwargs) if answer else None
        out = super().run(func, args, kwargs) if found is None else found
        count = flop_registry.get(func._overloadpacket)
        self.flops += count(*args, **kwargs, out_val=out) if count else 0
        return out


def _number(most: int, tensor: Tensor) -> Any:
    return True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1


def _nonzero(most: int, tensor: Tensor) -> Tensor:
    return tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.long)


def _index(most: int, tensor: Tensor, indices: list[Tensor | None]) -> Tensor | None:
    mask = indices[0] if len(indices) == 1 else None
    return tensor.flatten(0, mask.dim() - 1).clone() if mask is not None and mask.dtype == torch.bool else None


def _unique(most: int, tensor: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    found = tensor.new_empty(min(most, tensor.numel()))
    return found, torch.zeros_like(tensor), torch.empty_like(found)


ANSWERS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _number,
    aten.nonzero.default: _nonzero,
    aten.index.Tensor: _index,
    aten._unique2.default: _unique,
}
"""Operations whose result, or its shape, depends on contents: every test holds, every mask is full, every pair is drawn."""


def of_step(aligner: Aligner, batch: PairBatch, config: RunConfig) -> Cost:
    """The cost of one step as ``loop.fit`` takes it, once AdamW's two moments are there; nothing is computed, nothing is changed.

    aligner  on its device, real
    batch    of the shapes in question, real (its contents do not matter; expanded tensors will do)
    """
    device = next(aligner.parameters()).device
    layout.plan.cache_clear()  # plans are tensors too: those made here have no contents, and real ones do not mix with them
    try:
        # tensors that are made from Python numbers on the way are real
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            with FakeCopyMode(fake):
                model = copy.deepcopy(aligner).train()
            given = [fake.from_tensor(t) for t in _tensors(batch)]
            inputs = _with(batch, iter(given))
            moments = [
                torch.empty_like(p, dtype=torch.float32)
                for p in model.parameters()
                if p.requires_grad
                for _ in range(2)
            ]
            with Phantom(len(batch.rows)) as live:
                for tensor in (*model.parameters(), *model.buffers(), *moments):
                    live.hold(tensor)
                for tensor in given:
                    live.now += tensor.numel() * tensor.element_size()  # as if it were no expanded view
                with runtime.autocast(config.optim.precision, device):
                    parts = step.losses(model, inputs, config.loss, config.loss.beta)
                parts["total"].backward()  # type: ignore[no-untyped-call]
            return Cost(live.flops, live.peak)
    finally:
        layout.plan.cache_clear()


def _tensors(batch: PairBatch) -> list[Tensor]:
    found: list[Tensor] = []
    for side in (batch.a, batch.b):
        found += side.values() if isinstance(side, dict) else (side.tokens, side.mask, side.pooled)
    return [*found, batch.rows, batch.group, batch.domain]


def _with(batch: PairBatch, tensors: Any) -> PairBatch:
    sides = [
        {name: next(tensors) for name in side}
        if isinstance(side, dict)
        else type(side)(*(next(tensors) for _ in range(3)))
        for side in (batch.a, batch.b)
    ]
    rows, group, domain = tensors
    return replace(batch, a=sides[0], b=sides[1], rows=rows, group=group, domain=domain)
