"""Which GPU a process uses, and what a run keeps when it moves between a GPU and the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ccaco_cli.core import distributed, runtime
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.losses.pairing import sample_hard_negatives, true_pairs
from ccaco_cli.core.training import checkpoint
from ccaco_cli.core.training.state import TrainingState
from tests.gpu.fake_gpu import GPU, on_gpu, pretend_gpu

LAUNCHER = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def current_devices(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two GPUs; the list receives the devices that are made the current one."""
    pretend_gpu(monkeypatch, gpus=2)
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def launched(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in (LAUNCHER | variables).items():
        monkeypatch.setenv(name, value)


def test_a_named_gpu_becomes_the_current_one(current_devices: list[torch.device]) -> None:
    with FakeTensorMode():
        assert runtime.device("cuda:1") == torch.device("cuda", 1)
        assert runtime.device("cuda") == runtime.device("auto") == torch.device("cuda", 0)
        assert runtime.device("cpu") == torch.device("cpu")
    assert [device.index for device in current_devices] == [1, 0, 0]


def test_every_process_has_its_own_gpu(current_devices: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch)
    assert runtime.device("auto") == runtime.device("cuda") == torch.device("cuda", 1)
    assert current_devices == [torch.device("cuda", 1)] * 2


@pytest.mark.usefixtures("current_devices")
@pytest.mark.parametrize("rank", ["0", "2"])
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_more_processes_than_gpus_are_refused_on_every_process(
    name: str, rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="3", LOCAL_WORLD_SIZE="3")
    with pytest.raises(ConfigError, match="3 processes, 2 GPUs; expected torchrun --nproc-per-node 2, or --device cpu"):
        runtime.device(name)
    with pytest.raises(ConfigError, match="more processes than GPUs"), distributed.process_group(name):
        pass


@pytest.mark.usefixtures("current_devices")
def test_one_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch)
    with FakeTensorMode():
        with pytest.raises(ConfigError, match=r"one GPU: --device cuda:0 with 2 .* expected --device cuda"):
            runtime.device("cuda:0")
        with pytest.raises(ConfigError, match="cannot share one GPU"), distributed.process_group("cuda:0"):
            pass
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # the other process is on another machine
        assert runtime.device("cuda:0") == torch.device("cuda", 0)


def test_a_checkpoint_holds_the_generator_of_the_gpu_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {torch.device("cuda", number): torch.full((16,), number, dtype=torch.uint8) for number in (0, 1)}
    restored: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda:0": states[torch.device(device)])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device="cuda:0": restored.append((state, device)))
    second_gpu, cpu = torch.device("cuda", 1), torch.device("cpu")
    stored = checkpoint.generator_states(second_gpu)
    assert torch.equal(stored["cuda"], states[second_gpu])
    checkpoint.set_generator_states(stored, cpu)
    assert not restored
    checkpoint.set_generator_states(stored, second_gpu)
    assert len(restored) == 1 and torch.equal(restored[0][0], states[second_gpu]) and restored[0][1] == second_gpu
    assert not len(checkpoint.generator_states(cpu)["cuda"])


@pytest.mark.usefixtures("fake_gpu")
def test_a_run_moves_between_a_gpu_and_the_cpu_in_mid_epoch(toy: Any) -> None:
    config = toy.config()
    aligner = toy.aligner(config)
    mode = FakeTensorMode()
    gpu_aligner = on_gpu(aligner, mode)
    with mode:
        on_a_gpu = TrainingState(gpu_aligner, config, updates_per_epoch=3)
        z, group = torch.ones(6, 4, device=GPU), torch.arange(6, device=GPU)
        assert true_pairs(z, z, group, 4, 1, on_a_gpu.generator).rows.device == GPU
        assert sample_hard_negatives(z @ z.T, group, 1, on_a_gpu.generator).device == GPU
    on_the_cpu = TrainingState(aligner, config, updates_per_epoch=3)
    assert on_a_gpu.device == GPU
    on_the_cpu.generator.set_state(on_a_gpu.generator.get_state())
    on_a_gpu.generator.set_state(on_the_cpu.generator.get_state())
    assert torch.equal(torch.rand(3, generator=on_the_cpu.generator), torch.rand(3, generator=on_a_gpu.generator))


def test_the_memory_of_a_gpu_is_what_is_free_and_what_this_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1 << 30)
    assert runtime.available_memory(GPU) == 6 << 30
