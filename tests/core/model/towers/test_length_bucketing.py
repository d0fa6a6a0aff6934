from __future__ import annotations

from typing import Any

import pytest
import torch

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.model.towers import build
from ccaco_cli.core.model.towers.length_bucketing import encode_by_length


@pytest.fixture(scope="module")
def tower() -> Any:
    torch.manual_seed(0)
    text_tower = build(TowerConfig("tiny", context_length=300), "text")
    text_tower.module.eval()
    return text_tower


def test_buckets_change_nothing_but_the_work(tower: Any) -> None:
    inputs = tower.preprocess(["word " * n for n in (3, 280, 20, 5, 130, 9, 1)])
    calls = []
    tower.module.register_forward_pre_hook(lambda module, args: calls.append(tuple(args[0]["ids"].shape)))
    wanted = tower.module(inputs)
    features = encode_by_length(tower.module, inputs | {"lengths": inputs["mask"].sum(1)})
    assert torch.equal(features.mask, inputs["mask"])
    assert torch.allclose(features.tokens[features.mask], wanted.tokens[wanted.mask], atol=1e-5)
    assert torch.allclose(features.pooled, wanted.pooled, atol=1e-5)
    assert sum(rows * length for rows, length in calls[1:]) < 0.4 * calls[0][0] * calls[0][1]
    features.tokens.sum().backward()


@pytest.mark.parametrize("words", [(3, 40, 7), (250, 250, 240)])
def test_short_or_even_batches_are_one_call(tower: Any, words: tuple[int, ...]) -> None:
    inputs = tower.preprocess(["word " * n for n in words])
    calls = []
    hook = tower.module.register_forward_pre_hook(lambda module, args: calls.append(tuple(args[0]["ids"].shape)))
    encode_by_length(tower.module, inputs | {"lengths": inputs["mask"].sum(1)})
    hook.remove()
    assert len(calls) == 1
