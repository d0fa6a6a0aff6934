"""Batches reach a GPU in the background, one ahead, and no step uses a batch before its copy is done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ccaco_cli.core import runtime, types
from ccaco_cli.core.data.loader import load
from ccaco_cli.core.training import device_batches as batches_module
from ccaco_cli.core.training.device_batches import device_batches, worker_count
from ccaco_cli.core.types import Features, PairBatch, TensorRecord

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def batch_of(number: int) -> PairBatch:
    rows = torch.full((2,), number)
    features = Features(torch.full((2, 3, 4), float(number)), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 4))
    return PairBatch({"pixels": torch.full((2, 5), float(number))}, features, rows, rows, rows, at_a=rows)


def tensors_of(record: Any) -> list[torch.Tensor]:
    """All tensors of a record, whatever fields it has."""
    if isinstance(record, torch.Tensor):
        return [record]
    if isinstance(record, dict):
        return [tensor for value in record.values() for tensor in tensors_of(value)]
    if isinstance(record, TensorRecord):
        return [tensor for f in fields(record) for tensor in tensors_of(getattr(record, f.name))]  # type: ignore[arg-type]
    return []


class SimulatedGpu:
    """Copies run on streams: the data of a copy arrives when another stream has waited for it.

    Attributes:
        recorded: the tensors that were declared to be in use by the step.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[torch.Tensor] = []
        self.step_stream = SimulatedStream()
        self.thread = threading.local()
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimulatedStream())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.use)
        monkeypatch.setattr(types, "move_tensor", self.move)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.record(tensor, stream))

    @property
    def current(self) -> SimulatedStream:
        """The stream in use in this thread."""
        stream: SimulatedStream = getattr(self.thread, "stream", self.step_stream)
        return stream

    @contextmanager
    def use(self, stream: SimulatedStream) -> Any:
        self.thread.stream = stream
        yield
        del self.thread.stream

    def move(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        assert self.current is not self.step_stream, "a copy on the stream of the step would delay the step"
        arrived = torch.zeros_like(tensor)
        self.current.work.append(lambda: arrived.copy_(tensor))
        return arrived

    def record(self, tensor: torch.Tensor, stream: SimulatedStream) -> None:
        assert stream is self.step_stream
        self.recorded.append(tensor)


class SimulatedStream:
    def __init__(self) -> None:
        self.work: list[Callable[[], Any]] = []

    def wait_stream(self, stream: SimulatedStream) -> None:
        for copy in stream.work:
            copy()
        stream.work = []


def test_each_batch_has_arrived_and_the_next_one_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimulatedGpu(monkeypatch)
    loaded = [threading.Event() for _ in range(5)]

    def batches() -> Any:
        for number in range(1, 5):
            loaded[number].set()
            yield batch_of(number)

    used: list[int] = []
    for number, batch in enumerate(device_batches(batches(), GPU), start=1):
        assert all(torch.equal(x, y) for x, y in zip(tensors_of(batch), tensors_of(batch_of(number)), strict=True))
        assert all(any(tensor is recorded for recorded in gpu.recorded) for tensor in tensors_of(batch))
        assert loaded[min(number + 1, 4)].wait(10), "the next batch is loaded during the step"
        used.append(number)
    assert used == [1, 2, 3, 4]


def test_a_batch_that_is_used_without_a_wait_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    SimulatedGpu(monkeypatch)
    monkeypatch.setattr(SimulatedStream, "wait_stream", lambda self, stream: None)
    batch = next(device_batches([batch_of(1), batch_of(2)], GPU))
    assert not tensors_of(batch)[0].any()


def test_batches_are_decoded_where_they_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimulatedGpu(monkeypatch)
    streams = []

    def decode(batch: PairBatch) -> PairBatch:
        streams.append(gpu.current)
        return replace(batch, a={"pixels": batch.a["pixels"] + 1})

    batches = [*device_batches([batch_of(1), batch_of(2)], GPU, decode)]
    assert [int(batch.a["pixels"][0, 0]) for batch in batches] == [2, 3]
    assert gpu.step_stream not in streams
    monkeypatch.undo()
    assert [int(batch.a["pixels"][0, 0]) for batch in device_batches([batch_of(5)], CPU, decode)] == [6]


def test_an_error_of_the_loader_ends_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    SimulatedGpu(monkeypatch)

    def batches() -> Any:
        yield batch_of(1)
        raise RuntimeError("DataLoader worker (pid 1) is killed")

    on_device = device_batches(batches(), GPU)
    next(on_device)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        next(on_device)


def test_on_a_cpu_batches_are_read_when_they_are_needed() -> None:
    loaded: list[int] = []

    def batches() -> Any:
        for number in range(3):
            loaded.append(number)
            yield batch_of(number)

    for number, batch in enumerate(device_batches(batches(), CPU)):
        assert loaded == list(range(number + 1))
        assert int(batch.rows[0]) == number


def test_all_tensors_of_a_batch_are_pinned(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: set[int] = set()
    recorded = []

    def pin_memory(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        result = tensor.clone()
        recorded.append(result)
        pinned.add(id(result))
        return result

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    batch = batch_of(1).pin_memory()
    assert len(tensors_of(batch)) == 8
    assert {id(tensor) for tensor in tensors_of(batch)} == pinned


def test_the_loader_pins_memory_where_it_should(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[PairBatch] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: GPU)
    monkeypatch.setattr(PairBatch, "pin_memory", lambda self: calls.append(self) or self)
    dataset, plan = toy.data(toy.config())
    count = len([*load(dataset, plan.epoch(0), 0, pin_memory=True)])
    assert len(calls) == count > 1
    calls.clear()
    assert [*load(dataset, plan.epoch(0), 0)] and not calls


@pytest.mark.parametrize(
    ("cores", "processes", "shared_memory", "expected"),
    [(16, 1, 64, 8), (6, 1, 64, 5), (16, 4, 64, 3), (1, 1, 64, 0), (16, 1, 0.0625, 0), (16, 8, 4, 0)],
)
def test_workers_by_default(
    cores: int, processes: int, shared_memory: float, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = type("Usage", (), {"free": int(shared_memory * 2**30)})
    monkeypatch.setattr(runtime, "cpu_cores", lambda: cores)
    monkeypatch.setattr(batches_module.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(batches_module, "SHARED_MEMORY", tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert worker_count(-1, GPU) == expected
    assert worker_count(-1, CPU) == 0
    assert worker_count(3, GPU) == worker_count(3, CPU) == 3
    assert worker_count(0, GPU) == 0


def test_torchrun_leaves_each_process_its_share_of_the_cores_for_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cpu_cores", lambda: 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert runtime.decoding_threads() == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert runtime.decoding_threads() == 4
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    assert runtime.decoding_threads() == 1
