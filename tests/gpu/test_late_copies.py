"""Results that come back from a GPU are complete before they are read: no copy to the CPU runs in the background."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from ccaco_cli.core import manifest, types
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.encoding.token_cache import cached
from ccaco_cli.core.evaluation.metrics import similarity_ranks
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.retrieval import explain
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.match import match_logits
from ccaco_cli.core.retrieval.search import SearchOptions, ask
from ccaco_cli.core.types import EncodedSamples, Features, PairBatch, move, move_tensor
from ccaco_cli.core.workflows.embed import EmbedRequest, embed
from ccaco_cli.core.workflows.train import train
from tests.gpu.fake_gpu import GPU, CopyRecorder


def encoded(toy: Any) -> dict[str, EncodedSamples]:
    aligner = toy.aligner(toy.config())
    columns = dict(zip(("image", "text"), toy.columns(), strict=True))
    return {modality: encode(aligner, modality, column, local_tokens=True) for modality, column in columns.items()}


def test_the_simulation_notices_a_copy_in_the_background(late_copies: list[Any]) -> None:
    x = torch.ones(2)
    assert x.to("cpu").tolist() == [1.0, 1.0]
    assert x.to("cpu", non_blocking=True).tolist() == [0.0, 0.0]
    assert x.to("cpu", torch.float64, True).tolist() == [0.0, 0.0]
    assert torch.ones(2).copy_(x, non_blocking=True).tolist() == [0.0, 0.0]
    assert len(late_copies) == 3


def test_encoded_samples_are_complete(toy: Any, request: pytest.FixtureRequest) -> None:
    expected = encoded(toy)
    late_copies = request.getfixturevalue("late_copies")
    for modality, samples in encoded(toy).items():
        assert torch.equal(samples.z, expected[modality].z)
        assert torch.equal(samples.local_tokens.tokens, expected[modality].local_tokens.tokens)
        assert torch.equal(samples.local_tokens.mask, expected[modality].local_tokens.mask)
    assert not late_copies


def test_token_caches_are_complete(toy: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    column, tower = toy.columns()[0], toy.tower("image", 6).module

    def tokens(name: str) -> Any:
        cache = cached(tower, column, tmp_path / name, grid=None, max_tokens=0, device="cpu")
        return cache.inputs(np.arange(len(column.row)))

    expected = tokens("expected")
    late_copies = request.getfixturevalue("late_copies")
    result = tokens("late")
    assert expected.mask.any()
    for name in ("tokens", "mask", "pooled"):
        assert torch.equal(getattr(result, name), getattr(expected, name)), name
    assert not late_copies


def test_match_logits_and_relevance_are_complete(toy: Any, request: pytest.FixtureRequest) -> None:
    aligner, samples = toy.aligner(toy.config()), encoded(toy)
    a, b = (samples[modality].local_tokens[torch.arange(4)] for modality in ("image", "text"))
    index = torch.tensor([[0, 1], [2, 3]])

    def results() -> list[torch.Tensor]:
        return [match_logits(aligner, a, b, index), *(explain.relevance(aligner, a, b, m) for m in explain.METHODS)]

    expected = results()
    late_copies = request.getfixturevalue("late_copies")
    for result, expected_result in zip(results(), expected, strict=True):
        assert expected_result.any()
        assert torch.equal(result, expected_result)
    assert not late_copies


def test_search_results_are_complete(index: Path, request: pytest.FixtureRequest) -> None:
    opened = Index(index)
    queries = {"text": ["a red ball", "two cats"], "image": [Image.new("RGB", (32, 32), "red")]}
    expected = {modality: ask(opened, modality, samples, SearchOptions(5)) for modality, samples in queries.items()}
    late_copies = request.getfixturevalue("late_copies")
    assert {
        modality: ask(opened, modality, samples, SearchOptions(5)) for modality, samples in queries.items()
    } == expected
    assert not late_copies


def test_ranks_are_complete(request: pytest.FixtureRequest) -> None:
    z, group = torch.nn.functional.normalize(torch.randn(2, 30, 8), dim=-1), np.arange(30) // 2
    expected = similarity_ranks(z[0], z[1], group, group)
    late_copies = request.getfixturevalue("late_copies")
    assert similarity_ranks(z[0], z[1], group, group).as_dict() == expected.as_dict()
    assert not late_copies


def test_embeddings_on_the_disk_are_complete(
    run: Path, data_root: Path, embedded: Manifest, tmp_path: Path, late_copies: list[Any]
) -> None:
    files = {"out": tmp_path / "test", "index": tmp_path / "late.idx"}
    embed(EmbedRequest(run, "scenes", **files, device="cpu", shard=10, precision="fp32"), data_root=data_root)
    assert manifest.open(tmp_path / "test", kind="embeddings").files == embedded.files
    assert not late_copies


def test_a_run_and_its_figures_are_complete(
    small: dict[str, Any], run: Path, data_root: Path, tmp_path: Path, late_copies: list[Any]
) -> None:
    result = train(TrainRequest("scenes", explicit=small), tmp_path / "run", data_root=data_root)
    assert result.facts["metrics"] == manifest.open(run, kind="run").facts["metrics"]
    assert not late_copies


@pytest.mark.usefixtures("fake_gpu")
def test_copies_from_a_gpu_wait_for_their_data() -> None:
    with FakeTensorMode():
        x = torch.ones(2, 3, 4, device=GPU)
        rows = torch.arange(2, device=GPU)
        batch = PairBatch({"pixels": x}, Features(x, x[..., 0].bool(), x[:, 0]), rows, rows, rows)
        with CopyRecorder() as recorder:
            assert move_tensor(x, "cpu").device.type == "cpu"
            batch.b.to("cpu")
            move(batch.a, torch.device("cpu"))
            batch.to("cpu")
        assert recorder.copies == 1 + 3 + 1 + 7
        assert not recorder.background_copies
        with CopyRecorder() as recorder:
            x.to("cpu", non_blocking=True)
        assert recorder.background_copies == 1


def test_only_copies_from_pinned_memory_run_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[tuple[bool, bool]] = []
    pinned: set[int] = set()

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.add(id(tensor))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: id(self) in pinned)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking: copies.append((self.is_pinned(), non_blocking))
    )
    monkeypatch.setattr(types, "MAX_PINNED", 8)
    small, large = torch.ones(2), torch.ones(3)
    for x in (small, large):
        for device in ("cpu", "mps", "cuda:1"):
            move_tensor(x, torch.device(device))
    # a small tensor is pinned on its way to a GPU
    assert copies == [(False, False), (False, False), (True, True)] + [(False, False)] * 3
    copies.clear()
    pin(large)
    for device in ("cpu", "mps", "cuda"):
        move_tensor(large, torch.device(device))
    assert copies == [(True, False), (True, True), (True, True)]
