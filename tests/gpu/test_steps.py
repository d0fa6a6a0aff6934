"""One step of the training loop of every recipe on fake GPU tensors: forward, backward, clipping, optimiser, log.

No tensor is on the wrong device, and the program waits for the GPU at most twice a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ccaco_cli.core import distributed
from ccaco_cli.core.losses import balance as balances
from ccaco_cli.core.losses import contrastive
from ccaco_cli.core.losses.domain import DOMAIN_LOSSES
from ccaco_cli.core.losses.total import CONTRASTIVE_LOSSES, CROSS_LOSSES
from ccaco_cli.core.model.matching import MATCHERS
from ccaco_cli.core.training import health_checks, metrics_log, parallel
from ccaco_cli.core.types import PairBatch
from tests.gpu.fake_gpu import HostWaits
from tests.gpu.fake_training import MODALITIES, PAIRS, cached_tokens, config_of, tower_widths, train_on_gpu

MAX_WAITS = 2
"""Waits of a step, besides the log."""
PRECISIONS = ("fp32", "amp_bf16", "amp_fp16")
pytestmark = pytest.mark.usefixtures("fake_gpu")


def check_step(precision: str = "amp_bf16", recipe: str = "scratch", **settings: Any) -> None:
    """Trains one step of a recipe, and counts the waits.

    Args:
        settings: of the config, and ``heads``: those of a run across domains.
    """
    heads = settings.pop("heads", {})
    config = config_of(recipe, optim__precision=precision, **settings)
    batch = cached_tokens(tower_widths(config), config.optim.captions) if recipe == "locked" else None
    check_waits(train_on_gpu(config, batch, **heads))


def check_waits(host: HostWaits, steps: int = 1) -> None:
    """Raises AssertionError: more than two waits a step, or more than one for each reading of the log.

    A slow machine reads the log more often, so tests of more than one step fix ``SECONDS_PER_READ``.
    """
    in_log = sum(count for (_, line), count in host.waits.items() if "metrics_log.py" in line)
    assert in_log <= -(-steps // metrics_log.STEPS_PER_READ)
    assert host.total - in_log <= MAX_WAITS * steps, host.waits


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("recipe", ["scratch", "finetune", "locked"])
def test_recipes(recipe: str, precision: str) -> None:
    check_step(precision, recipe)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradient_checkpointing(precision: str) -> None:
    check_step(precision, optim__grad_checkpointing=True)


@pytest.mark.parametrize("kind", MATCHERS)
def test_matchers(kind: str) -> None:
    check_step(PRECISIONS[list(MATCHERS).index(kind) % 3], model__fusion__kind=kind)


@pytest.mark.parametrize("kind", ["linear", "window"])
def test_sparse_attention(kind: str) -> None:
    check_step(model__fusion__kind="unified", model__fusion__attention=kind)


@pytest.mark.parametrize(("number", "cross"), [*enumerate(CROSS_LOSSES)])
def test_cross_losses(number: int, cross: str) -> None:
    check_step(PRECISIONS[number % 3], loss__cross=cross, model__fusion__kind="coattention")


@pytest.mark.parametrize("recipe", ["scratch", "locked"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_caption_loss(recipe: str, checkpointing: bool) -> None:
    check_step(
        "amp_fp16" if checkpointing else "amp_bf16", recipe, loss__gamma=1.0, optim__grad_checkpointing=checkpointing
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_low_rank_updates(precision: str) -> None:
    pytest.importorskip("peft", reason="LoRA needs the library peft")
    check_step(precision, "lora", optim__lora=2, model__image__spec="tiny:vit")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_towers_of_which_the_last_blocks_learn(precision: str) -> None:
    unlocked = {f"model__{m}__unlock": 1 for m in MODALITIES}
    check_step(precision, "last-blocks", model__image__spec="tiny:vit", **unlocked)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_places_of_patches(precision: str) -> None:
    check_step(precision, model__fusion__place=True, loss__separation=10.0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_sigmoid_loss(precision: str) -> None:
    check_step(precision, loss__contrastive="sigmoid")


def test_distillation() -> None:
    check_step(loss__teach=0.5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_average_of_the_weights(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    def copied(parameters: torch.nn.ParameterList) -> torch.nn.ParameterList:  # ``deepcopy`` of fake tensors fails
        return torch.nn.ParameterList(p.detach().clone() for p in parameters)

    monkeypatch.setattr("torch.optim.swa_utils.deepcopy", copied)
    monkeypatch.setattr(metrics_log, "SECONDS_PER_READ", 1e9)
    check_waits(train_on_gpu(config_of(optim__ema=0.9, optim__precision=precision), steps=2), steps=2)


@pytest.mark.parametrize("balance", balances.BALANCES)
def test_balances(balance: str) -> None:
    check_step(loss__balance=balance)


def domain_heads(loss: str) -> dict[str, Any]:
    return {
        "domains": {"image": 2},
        "source_code": torch.zeros(2, dtype=torch.long),
        "label": torch.zeros(PAIRS, dtype=torch.long),
        "adversarial": loss in ("dann", "both"),
        "classify": "image",
        "classes": 3,
    }


@pytest.mark.parametrize("loss", [name for name in DOMAIN_LOSSES if name != "none"])
def test_domain_losses(loss: str) -> None:
    check_step(domain__loss=loss, domain__classify=0.1, heads=domain_heads(loss))


@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.parametrize("contrastive_loss", CONTRASTIVE_LOSSES)
def test_a_large_batch_in_tiles(monkeypatch: pytest.MonkeyPatch, contrastive_loss: str, vectors: int) -> None:
    for module in ("blocked", "sigmoid"):
        monkeypatch.setattr(f"ccaco_cli.core.losses.{module}.MAX_MATRIX_SCORES", 4)
    check_step(loss__contrastive=contrastive_loss, model__vectors=vectors)


def test_batches_that_are_accumulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_log, "SECONDS_PER_READ", 1e9)
    host = train_on_gpu(config_of(optim__accum_freq=2), steps=2)
    check_waits(host, steps=2)


def test_the_log_waits_once_for_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_log, "SECONDS_PER_READ", 1e9)
    monkeypatch.setattr(metrics_log, "STEPS_PER_READ", 3)
    host = train_on_gpu(config_of(), steps=4)
    check_waits(host, steps=4)
    assert sum(count for (_, line), count in host.waits.items() if "metrics_log.py" in line) == 2


def single_process(losses: torch.nn.Module, *_: Any) -> parallel.Engine:
    return parallel.SingleProcess(losses)


@pytest.fixture
def four_processes(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is number 1 of 4; the others exist only in shapes."""
    monkeypatch.setattr(distributed, "all_reduce_max", lambda value: value)  # of CPU numbers, equal on all processes
    monkeypatch.setattr(parallel, "ENGINES", {"ddp": single_process})  # the reducer of DDP needs a driver
    monkeypatch.setattr(parallel, "convert_batch_norms", lambda losses, device: losses)  # its kernels have no fake form
    fake_pg = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", rank=1, world_size=4, store=fake_pg.FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("four_processes")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recipe": "locked"},
        {"recipe": "finetune", "precision": "amp_fp16"},
        {"parallel__local_loss": True},
        {"loss__cross": "matching"},
        {"optim__grad_checkpointing": True, "precision": "fp32"},
        {"loss__balance": "gradnorm"},
        {"domain__loss": "both", "domain__classify": 0.1, "heads": domain_heads("both")},
    ],
    ids=lambda settings: (
        ",".join(f"{name}={value}" for name, value in settings.items() if name != "heads") or "scratch"
    ),
)
def test_four_processes(settings: dict[str, Any]) -> None:
    check_step(**settings)


def test_a_tensor_that_stays_on_the_cpu_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PairBatch, "to", lambda self, device: self)
    with pytest.raises(RuntimeError, match="device"):
        check_step()


def planted(read: Any) -> Any:
    """``info_nce`` with one more operation on its result."""
    original = contrastive.info_nce

    def info_nce(*arguments: Any) -> Tensor:
        loss = original(*arguments)
        read(loss)
        return loss

    return info_nce


READS = {
    "item": lambda loss: loss.item(),
    "float": float,
    "bool": lambda loss: bool(loss > 0),
    "tolist": lambda loss: loss[None].tolist(),
    "cpu": lambda loss: loss.cpu(),
    "nonzero": lambda loss: loss[None].nonzero(),
    "boolean index": lambda loss: loss[None][loss[None] > 0],
    "from the CPU": lambda loss: torch.ones(3).to(loss.device),
}


@pytest.mark.parametrize("read", READS)
def test_a_read_in_a_loss_is_noticed(read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "info_nce", planted(lambda loss: [READS[read](loss) for _ in range(MAX_WAITS)]))
    with pytest.raises(AssertionError, match=r"elsewhere|total\.py"):
        check_step()


def test_a_read_in_the_loop_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    not_finite = health_checks.not_finite

    def with_reads(step: int, values: Any) -> Any:
        for batch in values:
            _ = [value.item() for value in batch.values()]
        return not_finite(step, values)

    monkeypatch.setattr(health_checks, "not_finite", with_reads)
    with pytest.raises(AssertionError, match=r"loop\.py"):
        check_step()
