from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from ccaco_cli.core import runtime
from ccaco_cli.core.errors import ConfigError


def test_devices() -> None:
    assert runtime.device("cpu") == torch.device("cpu")
    assert runtime.device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:77", "tpu-please"):
        with pytest.raises(ConfigError, match="no such device"):
            runtime.device(name)


def test_a_seed_governs_every_generator() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    runtime.seed(5)
    first = draw()
    assert draw() != first
    runtime.seed(5)
    assert draw() == first
    runtime.seed(2**40)  # numpy takes 32 bits only


def test_precisions() -> None:
    cpu = torch.device("cpu")
    x = torch.ones(2, 2)
    for name, wanted in (("fp32", torch.float32), ("auto", torch.float32), ("amp_bf16", torch.bfloat16)):
        with runtime.autocast(name, cpu):
            assert (x @ x).dtype == wanted
    with pytest.raises(ConfigError, match="amp_bf16"):
        runtime.autocast("half", cpu)


@pytest.mark.parametrize(
    ("bf16", "amx", "wanted"), [(True, False, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")]
)
def test_encoding_is_narrow_where_the_processor_multiplies_so(
    bf16: bool, amx: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    cpu = torch.device("cpu")
    assert runtime.encoding_dtype("auto", cpu) == getattr(torch, wanted)
    assert (runtime.encoding_dtype("fp32", cpu), runtime.encoding_dtype("fp16", cpu)) == (torch.float32, torch.float16)
    with pytest.raises(ConfigError, match=r"unknown precision: amp_bf16.*auto \| fp32"):
        runtime.encoding_dtype("amp_bf16", cpu)


@pytest.mark.parametrize("setting", ["3", "2,4", "", "many", "0"])
def test_threads_follow_the_environment_or_the_cores(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    monkeypatch.setattr(runtime, "cpu_cores", lambda: 6)
    for workers in (0, 4, 9):
        runtime.limit_threads(workers)
    assert counts == [{"3": 3, "2,4": 2}.get(setting, left) for left in (6, 2, 1)]


def test_cores_are_those_that_may_be_used() -> None:
    assert runtime.cpu_cores() == len(os.sched_getaffinity(0))
