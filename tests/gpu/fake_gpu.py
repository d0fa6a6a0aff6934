"""A GPU that does not exist: fake tensors on the device ``cuda:0`` have shapes, types and a device, but no values.

Every operation on tensors of two devices raises, as on a real GPU. Private parts of torch are used: tests skip where a
version of torch does not have them.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 0)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, gpus: int = 1) -> None:
    """Lets ``torch.cuda`` report GPUs, and fake tensors use them without a driver."""
    try:
        torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]  # autograd needs a guard to name streams
        _ = FakeTensorMode.avoid_device_init
    except AttributeError as error:
        pytest.skip(f"this version of torch has no {error.name}")
    answers = {
        "is_available": True,
        "device_count": gpus,
        "current_device": 0,
        "_lazy_init": None,
        "is_bf16_supported": True,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(FakeTensorMode, "avoid_device_init", property(lambda self: True))


def on_gpu(module: torch.nn.Module, mode: FakeTensorMode) -> Any:
    """A copy of a module on the GPU. Tensors that are neither parameters nor buffers stay where they are, as with
    ``Module.to``, which cannot move fake parameters itself."""
    with FakeCopyMode(mode):  # type: ignore[no-untyped-call]
        moved = copy.deepcopy(module)
    on_device: dict[int, torch.Tensor] = {}
    with mode, torch.no_grad():
        for part in moved.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in on_device:
                        x = tensor.detach().to(GPU)
                        is_parameter = isinstance(tensor, torch.nn.Parameter)
                        on_device[id(tensor)] = torch.nn.Parameter(x, tensor.requires_grad) if is_parameter else x
                    tensors[name] = on_device[id(tensor)]  # type: ignore[assignment]
    return moved


@torch.no_grad()
def backward(loss: torch.Tensor) -> None:
    """``loss.backward()``, without autograd's engine, which needs a driver: calls the nodes of the graph in order.

    Raises AssertionError where a gradient is on another device than its tensor.
    """
    open_inputs: Counter[Any] = Counter()
    stack, visited = [loss.grad_fn], set()
    while stack:
        node = stack.pop()
        if node not in visited:
            visited.add(node)
            following = [n for n, _ in node.next_functions if n is not None]
            open_inputs.update(following)
            stack += following
    gradients: dict[Any, dict[int, torch.Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready: list[Any] = [loss.grad_fn]
    while ready:
        node = ready.pop()
        received = gradients.pop(node, {})
        if hasattr(node, "variable"):
            for gradient in received.values():
                node.variable.grad = gradient if node.variable.grad is None else node.variable.grad + gradient
            continue
        call = node.apply if isinstance(node, BackwardCFunction) else node
        outputs = call(*(received.get(i) for i in range(len(node._input_metadata)))) if received else ()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for position, (target, slot) in enumerate(node.next_functions):
            if target is None:
                continue
            gradient = outputs[position] if position < len(outputs) else None
            if gradient is not None:
                expected = target._input_metadata[slot]
                assert gradient.device == expected.device, (node, target, gradient.device, expected.device)
                shape = tuple(expected.shape)
                gradient = gradient if tuple(gradient.shape) == shape else gradient.sum_to_size(shape)
                slots = gradients.setdefault(target, {})
                gradient = gradient.to(expected.dtype)
                slots[slot] = slots[slot] + gradient if slot in slots else gradient
            open_inputs[target] -= 1
            if not open_inputs[target]:
                ready.append(target)


class CopyRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the copies from the GPU to the CPU, and whether the program waits for them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.background_copies = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_move = func._overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to)  # ``to`` in inference mode only
        if is_move and args[0].device.type != "cpu" and result.device.type == "cpu":
            flags = [argument for argument in args if isinstance(argument, bool)]  # non_blocking, copy
            self.copies += 1
            self.background_copies += bool((kwargs or {}).get("non_blocking")) or True in flags[:1]
        return result
