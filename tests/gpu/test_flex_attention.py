"""Which kernel computes windowed attention on a GPU: none that would hold the scores of all pairs of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.model import attention_kernels
from ccaco_cli.core.model.attention_kernels import FLEX_SHAPES, WindowKernel
from ccaco_cli.core.model.layout import Segment, attention_plan
from tests.gpu.fake_gpu import GPU


@pytest.fixture
def kernels(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are called."""
    called: list[str] = []
    for kind in ("flex", "sliced"):
        monkeypatch.setattr(
            attention_kernels, f"{kind}_window_attention", lambda q, *_, kind=kind: called.append(kind) or q
        )

    def real_plan(*arguments: Any) -> Any:  # a plan depends on values, which fake tensors do not have
        with unset_fake_temporarily():
            return attention_plan(*arguments[:-1], "cpu")

    monkeypatch.setattr(attention_kernels, "attention_plan", real_plan)
    monkeypatch.setattr(attention_kernels, "_flex_shapes", set())
    return called


def attend(tokens: int, dropout: float = 0.0) -> None:
    kernel = WindowKernel(16, FusionConfig(attention="window", window=4))
    q = torch.zeros(2, tokens, 2, 16, device=GPU)
    layout: Any = ((Segment(tokens),), (Segment(tokens),))
    kernel(q, q, q, torch.ones(2, tokens, dtype=torch.bool, device=GPU), scale=0.25, dropout=dropout, layout=layout)


def test_after_some_shapes_slices_are_gathered(kernels: list[str]) -> None:
    assert torch._dynamo.config.recompile_limit > FLEX_SHAPES
    with FakeTensorMode():
        for tokens in range(8, 8 + FLEX_SHAPES + 3):
            attend(tokens)
        assert kernels == ["flex"] * FLEX_SHAPES + ["sliced"] * 3
        attend(8)
    assert kernels[-1] == "flex"


def test_with_dropout_slices_are_gathered(kernels: list[str]) -> None:
    with FakeTensorMode():
        attend(8, dropout=0.1)
        attend(8)
    assert kernels == ["sliced", "flex"]
