"""Estimates the cost of a training step without computing it: the real step runs on fake tensors, which have only
shapes."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
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
    """Cost of one step.

    Attributes:
        flops: floating-point operations, forward and backward.
        peak: largest number of bytes that tensors occupy at once.
    """

    flops: int
    peak: int


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations create, as long as these are alive.

    Attributes:
        now, peak: current and largest number of bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.storages: set[int] = set()

    def track(self, tensor: Tensor) -> None:
        """Counts a tensor that exists already."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return
        self.storages.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.now -= size

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self.run(func, args, kwargs or {})
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.track(leaf)
        return out


class FakeStepTracker(MemoryTracker):  # type: ignore[no-untyped-call]
    """``MemoryTracker`` for fake tensors that counts operations, too.

    Operations whose result depends on tensor contents return that of a full batch of finite values.

    Args:
        max_unique: most values that ``torch.unique`` can return: the rows of the batch.
    Attributes:
        flops: operations so far. ``FlopCounterMode`` counts the same, but its module hooks keep activations that
            checkpointing frees.
    """

    def __init__(self, max_unique: int) -> None:
        super().__init__()
        self.max_unique, self.flops = max_unique, 0

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        fake_result = FAKE_RESULTS.get(func)
        result = fake_result(self.max_unique, *args, **kwargs) if fake_result else None
        out = super().run(func, args, kwargs) if result is None else result
        count = flop_registry.get(func._overloadpacket)
        self.flops += count(*args, **kwargs, out_val=out) if count else 0
        return out


def _number(max_unique: int, tensor: Tensor) -> Any:
    return True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1


def _nonzero(max_unique: int, tensor: Tensor) -> Tensor:
    return tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.long)


def _index(max_unique: int, tensor: Tensor, indices: list[Tensor | None]) -> Tensor | None:
    mask = indices[0] if len(indices) == 1 else None
    return tensor.flatten(0, mask.dim() - 1).clone() if mask is not None and mask.dtype == torch.bool else None


def _unique(max_unique: int, tensor: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    values = tensor.new_empty(min(max_unique, tensor.numel()))
    return values, torch.zeros_like(tensor), torch.empty_like(values)


FAKE_RESULTS: dict[Any, Callable[..., Any]] = {
    aten._local_scalar_dense.default: _number,
    aten.nonzero.default: _nonzero,
    aten.index.Tensor: _index,
    aten._unique2.default: _unique,
}
"""Operations whose result, or its shape, depends on contents: every condition is true, every mask full, every pair
drawn."""


def step_cost(aligner: Aligner, batch: PairBatch, config: RunConfig) -> Cost:
    """Cost of one step of ``loop.fit`` after the first one, when AdamW holds its two moments.

    Nothing is computed or changed.

    Args:
        aligner: on its device, with real tensors.
        batch: real tensors of the shapes in question; their contents do not matter (expanded tensors work).
    """
    device = next(aligner.parameters()).device
    layout.attention_plan.cache_clear()  # plans hold tensors: fake ones must not be used later, nor real ones here
    try:
        # tensors that the step creates from Python numbers are real
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            with FakeCopyMode(fake):
                model = copy.deepcopy(aligner).train()
            batch_tensors: list[Tensor] = []

            def to_fake(tensor: Tensor) -> Tensor:
                batch_tensors.append(fake.from_tensor(tensor))
                return batch_tensors[-1]

            inputs = batch.map(to_fake)
            moments = [
                torch.empty_like(p, dtype=torch.float32)
                for p in model.parameters()
                if p.requires_grad
                for _ in range(2)
            ]
            with FakeStepTracker(len(batch.rows)) as tracker:
                for tensor in (*model.parameters(), *model.buffers(), *moments):
                    tracker.track(tensor)
                for tensor in batch_tensors:
                    tracker.now += tensor.numel() * tensor.element_size()  # an expanded view counts in full
                with runtime.autocast(config.optim.precision, device):
                    losses = step.StepLosses(model, config.loss)(inputs, config.loss.beta)
                losses["total"].backward()  # type: ignore[no-untyped-call]
            return Cost(tracker.flops, tracker.peak)
    finally:
        layout.attention_plan.cache_clear()
