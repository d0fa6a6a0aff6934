from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.losses import blocked
from ccaco_cli.core.losses.contrastive import info_nce
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model.attention import Attention
from ccaco_cli.core.training import cost, step
from ccaco_cli.core.training.optim import adamw
from ccaco_cli.core.types import PairBatch

SMALL = {
    "model.width": 32,
    "model.image.size": 64,
    "model.text.context_length": 40,
    "optim.batch_size": 8,
    "loss.cross_batch": 4,
}


def model_and_batch(**settings: Any) -> tuple[Any, PairBatch, RunConfig]:
    config = override(RunConfig(), SMALL | {k.replace("__", "."): v for k, v in settings.items()})
    torch.manual_seed(0)
    aligner, _ = aligners.build(config.model, config.loss, ("image", "text"))
    if config.optim.grad_checkpointing:
        aligner.set_grad_checkpointing()
    size, side = config.optim.batch_size, config.model.image.size
    pixels = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8)
    mask = torch.ones(size, config.model.text.context_length, dtype=torch.bool)
    every = torch.arange(size)
    return (
        aligner,
        PairBatch({"pixels": pixels}, {"ids": mask.long() * 5, "mask": mask}, every, every, every * 0),
        config,
    )


def measured(aligner: Any, batch: PairBatch, config: RunConfig) -> int:
    """The most bytes of tensors that live in a real second step, when AdamW has its moments."""
    optimizer = adamw(aligner, config.optim)
    aligner.train()
    for _ in range(2):
        with cost.MemoryTracker() as live:
            for tensor in (
                *aligner.parameters(),
                *aligner.buffers(),
                *(v for s in optimizer.state.values() for v in s.values()),
            ):
                live.track(tensor)
            step.StepLosses(aligner, config.loss)(batch, config.loss.beta)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return live.peak


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss__cross": "matching", "model__fusion__kind": "coattention"},
        {"model__fusion__kind": "unified", "model__fusion__attention": "window", "model__fusion__window": 16},
        {"model__fusion__kind": "coattention", "model__fusion__attention": "linear"},
        {"optim__grad_checkpointing": True, "model__image__size": 128},
        {"optim__grad_checkpointing": True, "model__fusion__kind": "unified", "model__fusion__attention": "window"},
    ],
    ids=lambda s: ",".join(map(str, s.values())) or "ccaco",
)
def test_the_peak_is_that_of_a_real_step(settings: dict[str, Any]) -> None:
    aligner, batch, config = model_and_batch(**settings)
    before = {k: v.clone() for k, v in aligner.state_dict().items()}
    step_cost = cost.step_cost(aligner, batch, config)
    assert all(torch.equal(v, before[k]) for k, v in aligner.state_dict().items()), (
        "nothing is computed, nothing is changed"
    )
    assert all(p.grad is None for p in aligner.parameters())
    real = measured(aligner, batch, config)
    assert 0.95 * real < step_cost.peak < 1.05 * real


def test_operations_grow_with_the_batch_and_count_attention() -> None:
    smaller, larger = (
        cost.step_cost(*model_and_batch(optim__batch_size=size, loss__beta=0.0)).flops for size in (8, 16)
    )
    assert larger == pytest.approx(2 * smaller, rel=0.01)


def test_live_counts_what_lives() -> None:
    with cost.MemoryTracker() as live:
        block = torch.zeros(256)
        for _ in range(3):
            gone = block + 1
            del gone
        view = block[3:]
    assert (live.now, live.peak) == (1024, 2048)
    del block, view
    assert live.now == 0


def test_attention_still_works_after_an_estimate() -> None:
    aligner, batch, config = model_and_batch(model__fusion__kind="unified", model__fusion__attention="window")
    cost.step_cost(aligner, batch, config)
    assert all(p.isfinite().all() for p in step.StepLosses(aligner, config.loss)(batch, 0.5).values())
    assert isinstance(aligner.matcher.stream.stream.attention[0], Attention)


def test_the_estimate_of_a_large_batch_has_no_float64_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = int(blocked.MAX_MATRIX_SCORES**0.5) + 8
    dtypes: list[torch.dtype] = []
    logits = blocked._logits

    def recorded_logits(*arguments: torch.Tensor) -> torch.Tensor:
        result = logits(*arguments)
        dtypes.append(result.dtype)
        return result

    monkeypatch.setattr(blocked, "_logits", recorded_logits)
    with FakeTensorMode(), cost.FakeStepTracker(rows):
        z = torch.ones(rows, 8, requires_grad=True)
        info_nce(z, z * 2, torch.arange(rows), torch.tensor(10.0)).backward()
    assert set(dtypes) == {torch.float32}
