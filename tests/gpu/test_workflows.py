"""Evaluation, embedding, search and explanation from end to end, with the model on a fake GPU.

Files and CPU results hold zeros; what counts is that every operation has its tensors on one device, and that no copy to
the CPU runs in the background.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from ccaco_cli.core.config import EvalConfig
from ccaco_cli.core.data.loader import PixelColumn, TextColumn
from ccaco_cli.core.encoding.encode import EncodeOptions, encode
from ccaco_cli.core.evaluation.protocols import by_similarity, evaluate
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.retrieval import explain, match
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import SearchOptions, ask
from ccaco_cli.core.scoring import two_stage
from ccaco_cli.core.training import cost
from ccaco_cli.core.types import EncodedSamples, LocalTokens
from ccaco_cli.core.workflows import embed as embed_module
from ccaco_cli.core.workflows.embed import EmbedRequest, embed
from tests.gpu.fake_gpu import CopyRecorder, on_gpu
from tests.gpu.test_inference import FakeColumn


def to_numpy(tensor: torch.Tensor, *_: Any, **__: Any) -> Any:
    """Zeros. As on a real GPU, only tensors on the CPU become arrays."""
    assert tensor.device.type == "cpu", tensor.device
    with unset_fake_temporarily():
        return torch.zeros(tensor.shape, dtype=tensor.dtype).numpy()


@pytest.fixture
def mode(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """The mode of all fake tensors of a test."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def on_fake_cpu(read: Any) -> Any:
        """Inputs are read on the CPU, from real files."""

        def inputs(column: Any, items: Any) -> dict[str, torch.Tensor]:
            with unset_fake_temporarily():
                real = read(column, items)
            return {name: fake.from_tensor(tensor) for name, tensor in real.items()}

        return inputs

    for name in ("numpy", "__array__"):
        monkeypatch.setattr(FakeTensor, name, to_numpy, raising=False)
    for column in (TextColumn, PixelColumn):
        monkeypatch.setattr(column, "inputs", on_fake_cpu(column.inputs))
    monkeypatch.setattr(match, "_trim", lambda tokens: tokens)  # the longest sample depends on values
    return fake


@contextmanager
def simulated(mode: FakeTensorMode) -> Iterator[None]:
    """Operations of the block run on fake tensors; copies to the CPU must be complete when they return."""
    with mode, cost.FakeStepTracker(64), CopyRecorder() as recorder:
        yield
    assert recorder.copies and not recorder.background_copies


def encoded(toy: Any, mode: FakeTensorMode) -> tuple[Any, EncodedSamples, EncodedSamples]:
    aligner = on_gpu(toy.aligner(toy.config()), mode)
    a, b = (
        encode(aligner, modality, FakeColumn(column, mode), local_tokens=True, options=EncodeOptions(batch_size=24))
        for modality, column in zip(aligner.modalities, toy.columns(), strict=True)
    )
    return aligner, a, b


def test_evaluation(toy: Any, mode: FakeTensorMode) -> None:
    with simulated(mode):
        aligner, a, b = encoded(toy, mode)
        groups = tuple(column.row for column in toy.columns())
        device = next(aligner.parameters()).device
        similarity = by_similarity(a.z.to(device), b.z.to(device), *groups)
        results = [evaluate("full", *groups, similarity)]
        results += [two_stage.two_stage(aligner, a, b, groups, EvalConfig(shortlist=4, shortlist_back=4), 1.0)]
        results += [two_stage.exhaustive(aligner, a, b, groups, "full")]
    assert all("image_to_text_R@1" in result.metrics for result in results), results[0].metrics


def test_embedding_a_split(
    run: Path,
    data_root: Path,
    embedded: Manifest,
    tmp_path: Path,
    mode: FakeTensorMode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aligner, towers, config, facts = embed_module.open_model(run, "cpu")
    gpu_aligner = on_gpu(aligner, mode)
    indexed: list[Path] = []  # the index is built on the CPU
    monkeypatch.setattr(embed_module, "_build_index", lambda job, folder: indexed.append(folder))
    monkeypatch.setattr(embed_module, "open_model", lambda *_: (gpu_aligner, towers, config, facts))
    files = {"out": tmp_path / "test", "index": tmp_path / "new.idx"}
    with simulated(mode):
        embed(EmbedRequest(run, "scenes", **files, device="cuda", shard=10, precision="fp32"), data_root=data_root)
    assert len(indexed) == 1
    written, expected = (
        {path.relative_to(folder) for path in folder.rglob("*.npy")} for folder in (tmp_path / "test", embedded.path)
    )
    assert written == expected and len(written) > 1


def test_search(index: Path, mode: FakeTensorMode) -> None:
    opened = Index(index)
    aligner, towers, config = opened.model
    opened.model = on_gpu(aligner, mode), towers, config  # type: ignore[misc]
    with simulated(mode):
        hits = ask(opened, "image", [Image.new("RGB", (32, 32), "red")] * 2, SearchOptions(5, rerank=8))
    assert [len(hits_of_query) for hits_of_query in hits] == [5, 5]


@pytest.mark.parametrize("method", explain.METHODS)
def test_explanation(toy: Any, mode: FakeTensorMode, method: str) -> None:
    with simulated(mode):
        aligner = on_gpu(toy.aligner(toy.config()), mode)
        tokens = LocalTokens(torch.ones(1, 4, 8), torch.ones(1, 4, dtype=torch.bool))
        explanation = explain.explain(aligner, tokens, tokens, (2, 2), [("ball", [0, 1])], method)
    assert explanation.heat.shape == (1, 2, 2)


def test_a_copy_in_the_background_is_noticed(toy: Any, mode: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    to_cpu = EncodedSamples.to
    monkeypatch.setattr(
        EncodedSamples,
        "to",
        lambda self, device: (
            self.map(lambda t: t.to("cpu", non_blocking=True)) if device == "cpu" else to_cpu(self, device)
        ),
    )
    with pytest.raises(AssertionError), simulated(mode):
        encoded(toy, mode)


def test_an_array_of_a_tensor_on_the_gpu_is_noticed(mode: FakeTensorMode) -> None:
    with mode, pytest.raises(AssertionError, match="cuda"):
        np.asarray(torch.ones(2, device="cuda"))
