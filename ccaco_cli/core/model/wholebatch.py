"""Layers that must see the batch of all processes to do what they do in one: batch norm, and dropout's draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ccaco_cli.core import distributed

_pairs: ContextVar[int] = ContextVar("pairs", default=0)


@contextmanager
def paired_rows(pairs: int) -> Iterator[None]:
    """Inside, so many of a process's rows are pairs, with rows without a partner behind them: in the global batch all pairs come first."""
    token = _pairs.set(pairs)
    try:
        yield
    finally:
        _pairs.reset(token)


def own(rows: int) -> Tensor:
    """Where a process's rows lie in the global batch: [rows] int64."""
    pairs = min(_pairs.get(), rows)
    first = torch.arange(pairs) + distributed.rank() * pairs
    return torch.cat(
        [first, torch.arange(rows - pairs) + distributed.world() * pairs + distributed.rank() * (rows - pairs)]
    )


class Dropout(nn.Dropout):
    """Dropout whose mask is drawn for the global batch, of which a process uses its rows: every process draws the same numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """x [b, ...] or [b, N, ...] with N that differs between processes -> the same shape."""
        if not self.training or not self.p or distributed.world() == 1:
            return self.drop(x)
        shape = [len(x) * distributed.world(), *x.shape[1:]]
        if x.ndim > 2:
            shape[1] = int(distributed.all_reduce_max(shape[1]))
        mask = self.drop(x.new_ones(shape))[own(len(x))]
        return x * (mask[:, : x.shape[1]] if x.ndim > 2 else mask)

    def drop(self, x: Tensor) -> Tensor:
        """What one process does."""
        return F.dropout(x, self.p, self.training)


class InputDropout(Dropout):
    """Dropout over whole grids of tokens. On a CPU the mask is drawn in bytes, with p rounded to 1/256: torch's own draws a float a value,
    and takes longer than the rest of a step on cached tokens."""

    def drop(self, x: Tensor) -> Tensor:
        dropped = round(256 * self.p)
        if x.device.type != "cpu" or not self.training or dropped in (0, 256):
            return super().drop(x)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * kept * (256 / (256 - dropped))


class WholeBatchNorm(_BatchNorm):
    """Batch norm over the rows of all processes, for devices on which torch's SyncBatchNorm does not run (it wants a GPU)."""

    def _check_input_dim(self, x: Tensor) -> None:
        """Any shape [b, C, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, C, ...] -> the same shape."""
        if not self.training or distributed.world() == 1:
            return super().forward(x)
        over = [d for d in range(x.ndim) if d != 1]
        count = x.numel() // x.shape[1] * distributed.world()
        shape = [1, -1, *[1] * (x.ndim - 2)]
        average = distributed.all_reduce_sum(x.sum(over)) / count
        centred = x - average.view(shape)
        spread = distributed.all_reduce_sum(centred.square().sum(over)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(average, share)
                self.running_var.lerp_(spread * count / (count - 1), share)
        normal = centred * torch.rsqrt(spread + self.eps).view(shape)
        return normal * self.weight.view(shape) + self.bias.view(shape) if self.affine else normal


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """Every batch norm of a module as one over all processes; nothing changes where there is one process."""
    if distributed.world() == 1:
        return module
    if device.type == "cuda":
        found: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return found
    for part in module.modules():
        if isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm):
            part.__class__ = WholeBatchNorm  # the same parameters and buffers under the same names
    return module
