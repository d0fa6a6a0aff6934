"""A tower in another number format, for encoding on devices that multiply bf16 faster than float32."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from ccaco_cli.core.types import Features


class ReducedPrecision(nn.Module):
    """A copy of a tower that computes in ``dtype``; inputs and outputs are float32, as those of the tower."""

    def __init__(self, tower: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.tower, self.dtype = deepcopy(tower).to(dtype), dtype

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        features: Features = self.tower({name: _floats_to(tensor, self.dtype) for name, tensor in inputs.items()})
        return features.map(lambda tensor: _floats_to(tensor, torch.float32))  # type: ignore[no-any-return]


def _floats_to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
