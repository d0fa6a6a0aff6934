"""Leaves out the blocks of a tower that repeat another one: what all share is checked in a fraction of the time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

POSITIONS = ("layer_idx", "layer_index", "layer_id", "layer_num", "drop_prob")
"""Attributes that differ from block to block and change nothing in evaluation: its number, and the rate at which it is
dropped in training."""
SIMPLE = (int, float, str, bool, tuple, type(None))


@contextmanager
def without_repeated_blocks(module: nn.Module) -> Iterator[list[nn.Module]]:
    """Inside, blocks that repeat another one pass their input on.

    Of the blocks in one list that have equal structure, settings and shapes, the first and the last compute. Blocks
    whose output has another shape than their input compute, too.

    Args:
        module: of a tower, in evaluation mode.
    Yields:
        The blocks that are left out, if each passes on its input.
    """
    skipped: list[nn.Module] = []
    with ExitStack() as stack:
        for blocks in (m for m in module.modules() if isinstance(m, nn.ModuleList | nn.Sequential)):
            alike = defaultdict(list)
            for block in blocks:
                alike[_signature(block)].append(block)
            for first, *others in alike.values():
                if len(others) > 1 and any(True for _ in first.parameters()):
                    stack.enter_context(_passing_on(first, others[:-1]))
                    skipped += others[:-1]
        yield skipped


@contextmanager
def _passing_on(first: nn.Module, blocks: list[nn.Module]) -> Iterator[None]:
    last_call: list[Any] = [None, None]

    def remember(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        last_call[:] = _states(inputs, named), output

    hook = first.register_forward_hook(remember, with_kwargs=True)
    for block in blocks:
        block.forward = _pass_on(block.forward, last_call)
    try:
        yield
    finally:
        hook.remove()
        for block in blocks:
            del block.forward  # the method of its class is in place again


def _pass_on(forward: Callable[..., Any], last_call: list[Any]) -> Callable[..., Any]:
    """The forward pass of a block that returns its input, in the form of the output of the first block.

    Args:
        forward: of the block.
        last_call: states and output of the last call of the first block.
    """

    def pass_on(*inputs: Any, **named: Any) -> Any:
        states = _states(inputs, named)
        first_states, output = last_call
        first_output = output[0] if isinstance(output, tuple) else output
        if states is None or not _alike(states, first_states) or not _alike(states, first_output):
            return forward(*inputs, **named)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    return pass_on


def _alike(states: Tensor, expected: Any) -> bool:
    return isinstance(expected, Tensor) and states.shape == expected.shape and states.dtype == expected.dtype


def _states(inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor | None:
    """The tensor that a block changes: its first argument."""
    states = inputs[0] if inputs else named.get("hidden_states")
    return states if isinstance(states, Tensor) else None


def _signature(block: nn.Module) -> Any:
    """What decides how a block computes, except the values of its weights."""
    parts = []
    for name, module in block.named_modules():
        settings = {k: v for k, v in vars(module).items() if isinstance(v, SIMPLE) and k not in POSITIONS}
        parts.append((name, type(module), repr(sorted(settings.items()))))
    shapes = [(name, tuple(tensor.shape)) for name, tensor in block.state_dict().items()]
    return repr((parts, shapes))


def finite_weights(blocks: list[nn.Module]) -> bool:
    """Whether all weights of these blocks are finite."""
    return all(bool(torch.isfinite(p).all()) for block in blocks for p in block.parameters())
