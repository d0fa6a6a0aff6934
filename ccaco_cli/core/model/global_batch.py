"""Dropout and batch norm over the batch of all processes: several processes compute what one would."""

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
    """Declares that only the first ``pairs`` rows of a process are pairs: the global batch has all pairs first."""
    token = _pairs.set(pairs)
    try:
        yield
    finally:
        _pairs.reset(token)


def global_rows(rows: int, device: torch.device | None = None) -> Tensor:
    """Returns the positions of this process's rows in the global batch: [rows] int64."""
    pairs, rank = min(_pairs.get(), rows), distributed.rank()
    unpaired = rows - pairs
    first = torch.arange(pairs, device=device) + rank * pairs
    return torch.cat([first, torch.arange(unpaired, device=device) + distributed.world() * pairs + rank * unpaired])


class GlobalDropout(nn.Dropout):
    """Dropout over the global batch: every process draws the same mask, and applies the part of its own rows."""

    def forward(self, x: Tensor) -> Tensor:
        """x [b, ...] or [b, N, ...] with N that differs between processes -> the same shape."""
        if not self.training or not self.p or distributed.world() == 1:
            return self.drop(x)
        shape = [len(x) * distributed.world(), *x.shape[1:]]
        if x.ndim > 2:
            shape[1] = int(distributed.all_reduce_max(shape[1]))
        mask = self.drop(x.new_ones(shape))[global_rows(len(x), x.device)]
        return x * (mask[:, : x.shape[1]] if x.ndim > 2 else mask)

    def drop(self, x: Tensor) -> Tensor:
        """The dropout of a single process."""
        return F.dropout(x, self.p, self.training)


class InputDropout(GlobalDropout):
    """Dropout of token values. On a CPU the mask is drawn in bytes, with p rounded to 1/256: torch's dropout draws one
    float per value, and takes longer than the rest of a step on cached tokens."""

    def drop(self, x: Tensor) -> Tensor:
        threshold = round(256 * self.p)
        if x.device.type != "cpu" or not self.training or threshold in (0, 256):
            return super().drop(x)
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        mask = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= threshold
        return x * mask * (256 / (256 - threshold))


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the rows of all processes, for devices without torch's SyncBatchNorm (it runs on GPUs only)."""

    def _check_input_dim(self, x: Tensor) -> None:
        """Accepts any shape [b, C, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, C, ...] -> the same shape."""
        if not self.training or distributed.world() == 1:
            return super().forward(x)
        dims = [d for d in range(x.ndim) if d != 1]
        count = x.numel() // x.shape[1] * distributed.world()
        shape = [1, -1, *[1] * (x.ndim - 2)]
        values = x.to(torch.promote_types(x.dtype, torch.float32))  # under autocast, statistics stay in float32
        mean = distributed.all_reduce_sum(values.sum(dims)) / count
        centred = values - mean.view(shape)
        variance = distributed.all_reduce_sum(centred.square().sum(dims)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1), momentum)
        normalised = centred * torch.rsqrt(variance + self.eps).view(shape)
        scaled = normalised * self.weight.view(shape) + self.bias.view(shape) if self.affine else normalised
        return scaled.to(x.dtype)


def convert_batch_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Makes every batch norm of a module one over all processes; a single process keeps the module as it is."""
    if distributed.world() == 1:
        return module
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    for part in module.modules():
        if isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm):
            part.__class__ = GlobalBatchNorm  # the same parameters and buffers under the same names
    return module
