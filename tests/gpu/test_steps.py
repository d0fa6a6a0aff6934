"""One training step of every recipe on fake GPU tensors: forward, backward, clipping, optimiser. No tensor is on the
wrong device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ccaco_cli.core import distributed, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.losses import balance as balances
from ccaco_cli.core.losses.domain import DOMAIN_LOSSES
from ccaco_cli.core.losses.total import CROSS_LOSSES
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model.adaptation import Adaptation, AdaptationTask
from ccaco_cli.core.model.matching import MATCHERS
from ccaco_cli.core.recipes import RECIPES
from ccaco_cli.core.training import cost, optim, parallel
from ccaco_cli.core.training.step import StepLosses
from ccaco_cli.core.types import Features, PairBatch
from tests.gpu.fake_gpu import GPU, backward, on_gpu

PAIRS, SIZE, WORDS = 12, 32, 9
SMALL = {"model.width": 32, "model.image.size": SIZE, "loss.cross_batch": 6, "optim.batch_size": PAIRS}
LOCKED = {"model.image.lock": True, "model.text.lock": True}


def config_of(recipe: str = "scratch", **settings: Any) -> RunConfig:
    changes = {key.replace("__", "."): value for key, value in settings.items()}
    locked = LOCKED if recipe == "locked" else {}
    return override(RunConfig(), RECIPES[recipe] | locked | SMALL | changes)


def pixels_and_words() -> PairBatch:
    rows = torch.arange(PAIRS)
    pixels = torch.zeros(PAIRS, 3, SIZE, SIZE, dtype=torch.uint8)
    ids = torch.ones(PAIRS, WORDS, dtype=torch.long)
    return PairBatch({"pixels": pixels}, {"ids": ids, "mask": ids.bool()}, rows, rows // 2, rows % 2)


def cached_tokens(widths: tuple[int, int], captions: int) -> PairBatch:
    """Tokens of locked towers; every picture serves several pairs."""

    def features(rows: int, tokens: int, width: int) -> Features:
        x = torch.zeros(rows, tokens, width, dtype=torch.float16)
        return Features(x, torch.ones(rows, tokens, dtype=torch.bool), x[:, 0])

    picture = torch.arange(PAIRS).repeat_interleave(captions)
    images, texts = features(PAIRS, 17, widths[0]), features(PAIRS * captions, WORDS, widths[1])
    return PairBatch(images, texts, picture, picture, picture * 0, at_a=picture)


def step_on_gpu(config: RunConfig, precision: str = "fp32", batch: PairBatch | None = None, **heads: Any) -> None:
    """One step; all losses and gradients must be on the GPU."""
    aligner, _ = aligners.build(config.model, config.loss, ("image", "text"))
    if config.optim.grad_checkpointing:
        aligner.set_grad_checkpointing()
    adaptation = Adaptation(config.domain, aligner.embedding_size, AdaptationTask(**heads)) if heads else None
    losses = StepLosses(aligner, config.loss, config.parallel, adaptation, balances.build(config.loss)).train()
    if batch is None:
        batch = pixels_and_words()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    on_device = on_gpu(losses, mode)
    generator = torch.Generator()
    with mode:
        fake_batch = cost._with_tensors(batch, iter([mode.from_tensor(t) for t in cost._tensors(batch)]))
        optimizer = optim.adamw(on_device, config.optim)
        with cost.FakeStepTracker(len(batch.rows)):
            with runtime.autocast(precision, GPU):
                parts: dict[str, Tensor] = on_device(fake_batch.to(GPU), 0.5, generator, 0.5)
            backward(parts["total"])
            parallel.clip_gradients([p for p in on_device.parameters() if p.requires_grad], 1.0)
            optimizer.step()
    assert {part.device for part in parts.values()} == {GPU}
    assert {part.dtype for part in parts.values()} == {torch.float32}
    gradients = [p.grad for p in on_device.parameters() if p.grad is not None]
    assert gradients and {gradient.device for gradient in gradients} == {GPU}


def fake_counts(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    """The result of ``torch.bincount``, whose shape depends on contents."""

    def counts(max_unique: int, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x.new_ones(values)

    monkeypatch.setitem(cost.FAKE_RESULTS, torch.ops.aten.bincount.default, counts)


pytestmark = pytest.mark.usefixtures("fake_gpu")


@pytest.mark.parametrize("precision", ["fp32", "amp_bf16", "amp_fp16"])
@pytest.mark.parametrize("recipe", ["scratch", "finetune"])
def test_trained_towers(recipe: str, precision: str) -> None:
    step_on_gpu(config_of(recipe), precision)


@pytest.mark.parametrize("precision", ["fp32", "amp_bf16", "amp_fp16"])
def test_locked_towers_with_a_token_cache(precision: str) -> None:
    config = config_of("locked")
    _, towers = aligners.build(config.model, config.loss, ("image", "text"))
    step_on_gpu(config, precision, cached_tokens((towers["image"].width, towers["text"].width), config.optim.captions))


@pytest.mark.parametrize("precision", ["fp32", "amp_bf16"])
def test_gradient_checkpointing(precision: str) -> None:
    step_on_gpu(config_of(optim__grad_checkpointing=True), precision)


@pytest.mark.parametrize("kind", MATCHERS)
def test_matchers(kind: str) -> None:
    step_on_gpu(config_of(model__fusion__kind=kind), "amp_bf16")


@pytest.mark.parametrize("kind", ["linear", "window"])
def test_sparse_attention(kind: str) -> None:
    step_on_gpu(config_of(model__fusion__kind="unified", model__fusion__attention=kind), "amp_bf16")


@pytest.mark.parametrize("cross", CROSS_LOSSES)
def test_cross_losses(cross: str) -> None:
    step_on_gpu(config_of(loss__cross=cross, model__fusion__kind="coattention"), "amp_bf16")


@pytest.mark.parametrize("balance", balances.BALANCES)
def test_balances(balance: str) -> None:
    step_on_gpu(config_of(loss__balance=balance), "amp_bf16")


@pytest.mark.parametrize("loss", [name for name in DOMAIN_LOSSES if name != "none"])
def test_domain_losses(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_counts(monkeypatch, 2)
    heads = {
        "domains": {"image": 2},
        "source_code": torch.zeros(2, dtype=torch.long),
        "label": torch.zeros(PAIRS, dtype=torch.long),
        "adversarial": loss in ("dann", "both"),
        "classify": "image",
        "classes": 3,
    }
    step_on_gpu(config_of(domain__loss=loss, domain__classify=0.1), "amp_bf16", **heads)


def test_a_large_batch_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccaco_cli.core.losses.blocked.MAX_MATRIX_SCORES", 4)
    step_on_gpu(config_of(), "amp_bf16")


def test_a_tensor_that_stays_on_the_cpu_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PairBatch, "to", lambda self, device: self)
    with pytest.raises(RuntimeError, match="device"):
        step_on_gpu(config_of())


def fake_row_owners(rows: Tensor, rows_per_process: int) -> tuple[Tensor, Tensor]:
    """``distributed.row_owners`` where the rows are spread equally; the real one depends on values."""
    local_rows = torch.arange(len(rows) // 4 + 1, device=rows.device)
    return local_rows, torch.arange(len(rows), device=rows.device)


@pytest.fixture
def four_processes(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is number 1 of 4; the others exist only in shapes."""
    monkeypatch.setattr(distributed, "all_reduce_max", lambda value: value)  # of CPU numbers, equal on all processes
    monkeypatch.setattr(distributed, "row_owners", fake_row_owners)
    fake_pg = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", rank=1, world_size=4, store=fake_pg.FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("four_processes")
@pytest.mark.parametrize("settings", [{}, {"parallel__local_loss": True}, {"loss__cross": "matching"}], ids=str)
def test_four_processes(settings: dict[str, Any]) -> None:
    step_on_gpu(config_of(**settings), "amp_bf16")
