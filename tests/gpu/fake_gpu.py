"""A GPU that does not exist: fake tensors on the device ``cuda:0`` have shapes, types and a device, but no values.

Every operation on tensors of two devices raises, as on a real GPU. Private parts of torch are used: tests skip where a
version of torch does not have them.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccaco_cli.core.training import device_batches

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
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(device_batches, "ThreadPoolExecutor", InlineExecutor)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(FakeTensorMode, "avoid_device_init", property(lambda self: True))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: self.device.type == "cpu")
    # one copy, as on a GPU; a fake tensor would be read number by number
    monkeypatch.setattr(FakeTensor, "tolist", _tolist)
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: backward(self))
    monkeypatch.setattr(torch.autograd, "grad", lambda y, xs, **_: tuple(torch.zeros_like(x) for x in xs))
    to = torch.nn.Module.to

    def module_to(module: torch.nn.Module, *arguments: Any, **options: Any) -> torch.nn.Module:
        is_fake = any(isinstance(p, FakeTensor) for p in module.parameters())
        if arguments and (is_fake or str(arguments[0]).startswith("cuda")):
            return move_module(module, torch.device(arguments[0]))
        return to(module, *arguments, **options)

    monkeypatch.setattr(torch.nn.Module, "to", module_to)


def _tolist(tensor: torch.Tensor) -> Any:
    copied = tensor.to("cpu")
    return np.ones(copied.shape, float if copied.is_floating_point() else int).tolist()


class InlineExecutor(ThreadPoolExecutor):
    """Works at once in the calling thread, since the modes of fake tensors belong to a thread."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class FakeStream:
    """A stream without a GPU."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    def wait_stream(self, stream: FakeStream) -> None:
        """Returns at once."""


def on_gpu(module: torch.nn.Module, mode: FakeTensorMode) -> Any:
    """A copy of a module on the GPU."""
    with FakeCopyMode(mode):  # type: ignore[no-untyped-call]
        moved = copy.deepcopy(module)
    with mode:
        return move_module(moved, GPU)


@torch.no_grad()
def move_module(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """``Module.to``, which cannot move fake parameters. Tensors that are neither parameters nor buffers stay where they
    are."""
    on_device: dict[int, torch.Tensor] = {}
    moved: list[torch.Tensor] = []  # kept, since another tensor could have the id of one that is gone
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in on_device:
                    moved.append(tensor)
                    x = tensor.detach().to(device)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    on_device[id(tensor)] = torch.nn.Parameter(x, tensor.requires_grad) if is_parameter else x
                tensors[name] = on_device[id(tensor)]  # type: ignore[assignment]
    return module


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


aten = torch.ops.aten
VALUE_READS = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten.equal.default,
    aten.repeat_interleave.Tensor,
)
"""Operations whose result, or its shape, depends on values: the program waits until the GPU has computed them."""
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class HostWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations at which the program waits for the GPU, by source line of the package.

    Enter it last, inside of a ``FakeStepTracker``. Copies are waits, except those from pinned memory in the background.

    Attributes:
        waits: (kind, "package/module.py:line") -> how often.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if kind := _wait_kind(func, args, kwargs or {}, result):
            self.waits[kind, _source_line()] += 1
        return result

    @property
    def total(self) -> int:
        """Waits of all lines."""
        return sum(self.waits.values())


def _wait_kind(func: Any, args: Any, kwargs: Any, result: Any) -> str:
    """The name of the wait that an operation causes; "" = none."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    devices = {x.device.type for x in tensors} | ({result.device.type} if isinstance(result, torch.Tensor) else set())
    if "cuda" not in devices:
        return ""
    name: str = func._overloadpacket.__name__
    if func in VALUE_READS:
        return name
    if func in INDEXING:
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
        fills = len(args) > 2 and args[2].numel() == 1  # a fill with one number becomes ``masked_fill``
        on_cpu = [i for i in args[1] if i is not None and i.device.type == "cpu"]
        return "boolean index" if masks and not fills else "index on the CPU" if on_cpu else ""
    is_copy = name in ("_to_copy", "copy_") or (name == "to" and len(devices) > 1)
    if not is_copy or len(devices) == 1:
        return ""
    flags = [argument for argument in args[1:] if isinstance(argument, bool)]  # non_blocking comes first
    in_background = bool(kwargs.get("non_blocking")) or True in flags[:1]
    source = args[1] if name == "copy_" else args[0]
    return "" if in_background and source.device.type == "cpu" else f"copy from {source.device.type}"


def _source_line() -> str:
    """The innermost line of the package, without the simulation itself."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/ccaco_cli/" in path and not path.endswith("training/cost.py"):
            return f"{path.rpartition('/ccaco_cli/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
