"""What makes a GPU fast: its number formats, batches and memory. On a CPU nothing of it changes."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ccaco_cli.core import runtime
from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.encoding import columns, token_cache
from ccaco_cli.core.encoding.encode import EncodeOptions, encode
from ccaco_cli.core.evaluation import tiles
from ccaco_cli.core.evaluation.protocols import Pool, by_similarity
from ccaco_cli.core.losses import blocked
from ccaco_cli.core.retrieval import match
from ccaco_cli.core.scoring.two_stage import shortlists
from ccaco_cli.core.training import augment, cost
from ccaco_cli.core.types import Embedding, EncodedSamples, LocalTokens
from tests.gpu.fake_gpu import GPU, CopyRecorder, on_gpu
from tests.gpu.test_inference import FakeColumn

CPU = torch.device("cpu")


@pytest.mark.usefixtures("fake_gpu")
def test_a_gpu_encodes_with_tf32_and_a_cpu_with_float32(toy: Any) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    aligner = toy.aligner(toy.config())
    gpu_aligner, column = on_gpu(aligner, mode), toy.columns()[1]
    precisions: list[str] = []
    for model in (aligner, gpu_aligner):
        model.encoder("text").tower.register_forward_hook(
            lambda *_: precisions.append(torch.get_float32_matmul_precision())
        )
    encode(aligner, "text", column, options=EncodeOptions(batch_size=24))
    assert set(precisions) == {"highest"}
    precisions.clear()
    with mode, cost.FakeStepTracker(48):
        encode(gpu_aligner, "text", FakeColumn(column, mode), options=EncodeOptions(batch_size=24))
    assert set(precisions) == {"high"}
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("fake_gpu")
def test_results_leave_a_gpu_while_it_computes_the_next_batch(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    aligner = on_gpu(toy.aligner(toy.config()), mode)
    copies: list[int] = []
    with mode, cost.FakeStepTracker(48), CopyRecorder() as recorder:
        aligner.encoder("text").tower.register_forward_pre_hook(lambda *_: copies.append(recorder.copies))
        encode(aligner, "text", FakeColumn(toy.columns()[1], mode), options=EncodeOptions(batch_size=12))
    assert copies == [0, 0, 2, 4], "z and pooled of a batch are copied after the next batch has begun"


@pytest.mark.parametrize("variable", [None, *runtime.ALLOCATOR_VARIABLES])
def test_memory_grows_in_segments_unless_the_user_has_set_it(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in runtime.ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    runtime.device("cpu")
    assert not any(name in os.environ for name in runtime.ALLOCATOR_VARIABLES)
    if variable:
        monkeypatch.setenv(variable, "max_split_size_mb:64")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runtime.device("auto")
    first, second = (os.environ.pop(name, None) for name in runtime.ALLOCATOR_VARIABLES)
    expected = {
        None: ("expandable_segments:True", None),
        runtime.ALLOCATOR_VARIABLES[0]: ("max_split_size_mb:64", None),
    }
    assert (first, second) == expected.get(variable, (None, "max_split_size_mb:64"))


@pytest.mark.usefixtures("fake_gpu")
def test_locked_towers_compute_in_16_bits_on_a_gpu_only() -> None:
    assert runtime.locked_dtype(GPU) == torch.bfloat16
    assert runtime.locked_dtype(CPU) == torch.float32
    assert isinstance(runtime.locked_precision(CPU), nullcontext)
    with runtime.locked_precision(GPU):
        assert torch.is_autocast_enabled("cuda")
        assert torch.get_autocast_dtype("cuda") == torch.bfloat16


def test_a_cache_is_made_in_the_precision_and_in_batches_of_its_device(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "move", lambda inputs, device: inputs)  # the GPU is a CPU here
    monkeypatch.setattr(token_cache, "BATCH_SIZE", {"cpu": 5, "cuda": 20})
    monkeypatch.setattr(
        runtime, "locked_precision", lambda device: torch.autocast("cpu", torch.bfloat16, enabled=device.type == "cuda")
    )
    tower, column = toy.tower("x", 6).module, toy.columns()[0]
    calls: list[tuple[int, bool]] = []
    tower.register_forward_pre_hook(
        lambda _, args: calls.append((len(args[0]["mask"]), torch.is_autocast_enabled("cpu")))
    )
    for device in ("cpu", "cuda:0"):
        cache = token_cache.cached(tower, column, tmp_path / device, grid=None, max_tokens=0, device=device)
        assert cache.inputs(np.arange(2)).tokens.dtype == torch.float16
        batches, autocast = zip(*calls, strict=True)
        calls.clear()
        assert max(batches) == (5 if device == "cpu" else 20)
        assert set(autocast) == {device != "cpu"}


def test_caches_of_two_precisions_are_two_caches(toy: Any, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[str] = []
    monkeypatch.setattr(columns, "cached", lambda tower, column, path, **_: folders.append(path.name) or column)
    data = shards.open(data_root / "scenes")
    tower = toy.tower("text", 6)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        monkeypatch.setattr(runtime, "locked_dtype", lambda device, dtype=dtype: dtype)
        columns._cached(data, "test", tower, toy.columns()[1], toy.config().model, CPU, lambda *_: None)
    assert folders[0] == folders[2] != folders[1]


@pytest.mark.usefixtures("fake_gpu")
def test_pictures_are_augmented_all_at_once_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    box = {"top": 1, "left": 2, "height": 20, "width": 20}
    monkeypatch.setattr(augment, "_draw", lambda *_: ([box] * 5, [True, False] * 2 + [True]))  # of a real generator
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        pixels = mode.from_tensor(torch.zeros(5, 3, 24, 32, dtype=torch.uint8)).to(GPU)
        with CopyRecorder() as recorder:
            augmented = augment.augment_pixels(pixels, TowerConfig(crop=0.5, grayscale=0.5), torch.arange(5))
        assert (augmented.device, augmented.dtype, augmented.shape) == (GPU, torch.uint8, pixels.shape)
        assert not recorder.copies


@pytest.mark.parametrize(("free", "expected"), [(10 << 20, 2**18), (1 << 30, 2**22), (80 << 30, 2**26)])
def test_tiles_of_ranks_follow_the_free_memory(monkeypatch: pytest.MonkeyPatch, free: int, expected: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - 2048, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3072)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1024)
    assert runtime.free_memory(GPU) == free
    assert tiles.tile_size(GPU) == expected
    assert tiles.tile_size(CPU) == tiles.TILE_SCORES


@pytest.mark.parametrize(("free", "expected"), [(1 << 20, 256), (200 << 20, 1280), (80 << 30, 4096)])
def test_tiles_of_losses_follow_the_free_memory(monkeypatch: pytest.MonkeyPatch, free: int, expected: int) -> None:
    monkeypatch.setattr(runtime, "free_memory", lambda device: free)
    assert blocked.tile_side(GPU) == expected
    assert blocked.tile_side(CPU) == blocked.TILE


@pytest.mark.usefixtures("fake_gpu")
def test_ranks_are_counted_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "tile_size", lambda device: 64)
    monkeypatch.setattr(tiles._Side, "result", lambda side, gallery: side)  # NumPy does not read fake tensors
    with FakeTensorMode(allow_non_fake_inputs=True), CopyRecorder() as recorder:
        z = torch.ones(30, 8, device=GPU)
        sides: Any = by_similarity(z, z, np.arange(30), np.arange(30))(Pool(np.arange(20), np.arange(20)))
    for side in sides:
        assert {part.device for part in (side.score, side.above, side.tied)} == {GPU}
    assert not recorder.copies


@pytest.mark.usefixtures("fake_gpu")
def test_shortlists_are_made_on_the_gpu(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match, "_trim", lambda tokens: tokens)  # the longest sample depends on values
    config, mode = toy.config(), FakeTensorMode(allow_non_fake_inputs=True)
    aligner = on_gpu(toy.aligner(config), mode)
    with mode, cost.FakeStepTracker(16), CopyRecorder() as recorder:
        z, mask = torch.ones(4, 8), torch.ones(4, 5, dtype=torch.bool)
        samples = EncodedSamples(Embedding(z, z), LocalTokens(torch.ones(4, 5, 8), mask))
        directions = shortlists(aligner, samples, samples, (np.arange(4), np.arange(4)), config.eval)
        for shortlist in directions:
            assert shortlist.z_query.device == shortlist.z_gallery.device == GPU
            assert shortlist.columns.device == shortlist.match.device == shortlist._cosines.device == CPU
    assert not recorder.background_copies


@pytest.mark.usefixtures("fake_gpu")
def test_match_logits_leave_the_gpu_in_one_copy(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match, "_trim", lambda tokens: tokens)
    monkeypatch.setattr(match, "PAIRS_AT_ONCE", 4)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    aligner = on_gpu(toy.aligner(toy.config()), mode)
    with mode, cost.FakeStepTracker(16), CopyRecorder() as recorder:
        tokens = LocalTokens(torch.ones(4, 5, 8), torch.ones(4, 5, dtype=torch.bool))
        match.match_logits(aligner, tokens, tokens, torch.arange(12)[:, None].expand(12, 2) % 4)
    assert recorder.copies == 1
