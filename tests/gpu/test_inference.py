"""Encoding, scoring and explaining on fake GPU tensors: none is on the wrong device, and results are on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ccaco_cli.core.encoding.encode import EncodeOptions, encode
from ccaco_cli.core.retrieval import explain, match
from ccaco_cli.core.training import cost
from ccaco_cli.core.types import EncodedSamples, LocalTokens
from tests.gpu.fake_gpu import GPU, CopyRecorder, on_gpu

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("fake_gpu")


class FakeColumn:
    """A column whose inputs are fake tensors on the CPU."""

    def __init__(self, column: Any, mode: FakeTensorMode) -> None:
        self.column, self.mode = column, mode
        self.row, self.start, self.length = column.row, column.start, column.length

    def inputs(self, items: Any) -> dict[str, torch.Tensor]:
        return {name: self.mode.from_tensor(tensor) for name, tensor in self.column.inputs(items).items()}


def devices(samples: EncodedSamples) -> set[torch.device]:
    tensors = (samples.embedding.z, samples.embedding.pooled, samples.local_tokens.tokens, samples.local_tokens.mask)
    return {tensor.device for tensor in tensors}


@pytest.mark.parametrize("max_tokens", [0, 4])
def test_encoding(toy: Any, max_tokens: int) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    aligner = on_gpu(toy.aligner(toy.config()), mode)
    column = FakeColumn(toy.columns()[1], mode)
    options = EncodeOptions(max_tokens=max_tokens, batch_size=5)
    with mode, cost.FakeStepTracker(48), CopyRecorder() as recorder:
        samples = encode(aligner, "text", column, local_tokens=True, options=options)
    assert samples.z.shape == (48, 8)
    assert devices(samples) == {CPU}
    assert recorder.copies and not recorder.background_copies


def test_match_logits_and_relevance(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match, "_trim", lambda tokens: tokens)  # the longest sample depends on values
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    aligner = on_gpu(toy.aligner(toy.config()), mode)
    with mode, cost.FakeStepTracker(4), CopyRecorder() as recorder:
        tokens = LocalTokens(torch.ones(4, 5, 8), torch.ones(4, 5, dtype=torch.bool))
        results = [match.match_logits(aligner, tokens, tokens, torch.arange(4)[:, None].expand(4, 2))]
        results += [explain.relevance(aligner, tokens, tokens, "attention")]
    assert {result.device for result in results} == {CPU}
    assert recorder.copies and not recorder.background_copies


def test_inputs_that_stay_on_the_cpu_are_noticed(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    aligner = on_gpu(toy.aligner(toy.config()), mode)
    monkeypatch.setattr("ccaco_cli.core.encoding.encode.move", lambda inputs, device: inputs)
    with mode, cost.FakeStepTracker(48), pytest.raises(RuntimeError, match="device"):
        encode(aligner, "text", FakeColumn(toy.columns()[1], mode))
    assert next(aligner.parameters()).device == GPU
