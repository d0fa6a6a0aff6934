"""Losses compute in float32, whatever the precision of the model: in 16 bits a solved batch has wrong gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function of tensors: 16-bit tensors become float32, and autocast is off inside. float64 stays.

    Autocast would multiply vectors in 16 bits. Scores of 100 times a cosine then have errors of 0.2, and the gradient
    of a batch whose pairs are nearly all found errors of 10 %.
    """

    @wraps(function)
    def compute(*args: P.args, **kwargs: P.kwargs) -> R:
        widened: Any = [_widened(argument) for argument in args]
        named: Any = {name: _widened(argument) for name, argument in kwargs.items()}
        device = next((x.device.type for x in (*widened, *named.values()) if isinstance(x, torch.Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return function(*widened, **named)

    return compute


def _widened(argument: object) -> object:
    if isinstance(argument, torch.Tensor) and argument.dtype in (torch.bfloat16, torch.float16):
        return argument.float()
    return argument
