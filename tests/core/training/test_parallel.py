"""Several processes give the losses, gradients and parameters of one process with the same global batch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from ccaco_cli.core import distributed, runtime
from ccaco_cli.core.data.loader import NONE, PairDataset, PairPlan, part
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.losses.domain import ADVERSARIAL
from ccaco_cli.core.model import low_rank, weights
from ccaco_cli.core.model.adaptation import Adaptation, AdaptationTask
from ccaco_cli.core.training import checkpoint, parallel, step
from ccaco_cli.core.training.config_checks import check
from ccaco_cli.core.training.loop import TrainingCallbacks, TrainingData, fit
from ccaco_cli.core.types import Features
from tests.processes import launch

LOW_RANK = "low-rank"
SETTINGS: dict[str, dict[str, Any]] = {
    "infonce": {},
    "matching": {"loss__cross": "matching"},
    "listwise": {"loss__cross": "listwise", "loss__negatives": 2},
    "mse": {"loss__cross": "mse", "model__fusion__kind": "residual"},
    "contrastive": {"loss__beta": 0.0},
    "separation": {"loss__separation": 10.0},
    "place": {"model__fusion__place": True},
    "sigmoid": {"loss__contrastive": "sigmoid"},
    "sigmoid-local": {"loss__contrastive": "sigmoid", "parallel__local_loss": True},
    "sigmoid-accumulated": {"loss__contrastive": "sigmoid", "optim__accum_freq": 2, "optim__batch_size": 4},
    LOW_RANK: {},
    "cross": {"loss__alpha": 0.0},
    "local-loss": {"parallel__local_loss": True},
    "own-rows-only": {"parallel__gather_with_grad": False},
    "not-shared": {"model__fusion__share": False, "loss__cross_batch": 5},
    "dropout": {"model__text__input_dropout": 0.3, "model__fusion__kind": "coattention", "model__fusion__dropout": 0.2},
    "accumulated": {"optim__accum_freq": 2, "optim__batch_size": 4},
    "captions": {"optim__captions": 2, "model__image__head_dropout": 0.0},
    "caption": {"loss__gamma": 0.8, "model__decoder__layers": 1},
    "caption-gradnorm": {"loss__gamma": 0.8, "loss__balance": "gradnorm", "model__decoder__dropout": 0.0},
    "uncertainty": {"loss__balance": "uncertainty"},
    "gradnorm": {"loss__balance": "gradnorm"},
    "dann": {"domain__loss": "dann", "domain__weight": 0.5, "domain__target": "t"},
    "mmd": {"domain__loss": "mmd", "domain__weight": 0.5, "domain__target": "t"},
    "coral": {"domain__loss": "coral", "domain__weight": 0.5, "domain__target": "t"},
    "fsdp": {"parallel__kind": "fsdp"},
    "fsdp-caption": {"parallel__kind": "fsdp", "loss__gamma": 0.8, "model__decoder__layers": 1},
    "fsdp-accumulated": {
        "parallel__kind": "fsdp",
        "optim__accum_freq": 2,
        "optim__batch_size": 4,
        "loss__cross": "matching",
    },
}
SETTING_NAMES = [name for name in SETTINGS if name != LOW_RANK or importlib.util.find_spec("peft")]
"""LoRA needs the library peft."""


class Block(torch.nn.Module):
    """A residual layer, of which a tower has several: FSDP shards each by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        residual: torch.Tensor = tokens + 0.1 * self.linear(tokens)
        return residual


class NormTower(torch.nn.Module):
    """Two blocks, a matrix and a batch norm over all tokens, without bias, whose true gradient is zero: Adam would
    follow noise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(Block(width), Block(width))
        self.linear, self.norm = torch.nn.Linear(width, width, bias=False), torch.nn.BatchNorm1d(width)
        self.linear.weight.data = (
            self.linear.weight.data.t().contiguous().t()
        )  # not contiguous, as weights of channels_last towers are

    def forward(self, inputs: dict[str, torch.Tensor]) -> Features:
        tokens = self.norm(self.linear(self.blocks(inputs["tokens"])).transpose(1, 2)).transpose(1, 2)
        return Features(tokens, inputs["mask"], tokens[:, 0])


def model(toy: Any, config: Any) -> Any:
    runtime.seed(3)
    aligner = toy.aligner(config)
    aligner.sides["image"].tower = NormTower(6)
    return aligner.train()


def low_rank_model(toy: Any, config: Any) -> Any:
    """The model with low-rank updates that do not start at zero, so that both of their matrices have gradients."""
    aligner = model(toy, config)
    low_rank.add_low_rank(aligner, 2)
    for name, parameter in aligner.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return aligner.train()


def data_of(toy: Any, config: Any) -> tuple[Any, Any, Any]:
    """Data and batches; of a run across domains eight of the rows have no partner, and there are heads for them."""
    if config.domain.loss == "none":
        return *toy.data(config), None
    a, b = toy.columns(24)
    plan = PairPlan(a, b, np.arange(16) // 2, config.optim.batch_size, config.seed, unpaired=(np.arange(16, 24), NONE))
    codes, label = torch.zeros(2, dtype=torch.long), torch.full((24,), -1)
    torch.manual_seed(4)
    task = AdaptationTask({"image": 2}, codes, label, adversarial=config.domain.loss == ADVERSARIAL)
    heads = Adaptation(config.domain, 8, task)
    return PairDataset(a, b, np.arange(24), np.arange(24) // 16), plan, heads


def validation_figures(aligner: Any, columns: dict[str, Any]) -> dict[str, float]:
    """A figure of the vectors of all samples."""
    vectors = [encode(aligner, modality, column).z for modality, column in columns.items()]
    return {"R-sum": sum(float(z[:, 0].sum()) for z in vectors)}


def measure(toy: Any, root: Path, names: list[str]) -> None:
    """Leaves gradients of one batch and the outcome of three steps of every setting under ``root``."""
    with distributed.process_group("cpu"):
        for name in names:
            config = toy.config(optim__epochs=1, **SETTINGS[name])
            make = low_rank_model if name == LOW_RANK else model
            aligner = make(toy, config)
            data, plan, heads = data_of(toy, config)
            engine = parallel.build_engine(step.StepLosses(aligner, config.loss, config.parallel, heads), config)
            batch = data[part(plan.epoch(0)[0], distributed.rank(), distributed.world())]
            torch.manual_seed(5)
            parts = engine(batch, config.loss.beta, torch.Generator().manual_seed(1), 0.5)
            parts["total"].backward()
            engine.reduce_remaining()
            gradients = {
                k: parallel.full_state(p.grad).clone() for k, p in aligner.named_parameters() if p.grad is not None
            }
            losses = {f"loss.{k}": v.clone() for k, v in distributed.mean(parts).items()}
            folder = root / name
            if distributed.main():
                folder.mkdir(parents=True)
                save_file({k: v.contiguous() for k, v in (gradients | losses).items()}, folder / "gradients")
            distributed.barrier()
            aligner = make(toy, config)
            data, plan, heads = data_of(toy, config)
            columns = dict(zip(aligner.modalities, (data.a, data.b), strict=True))
            callbacks = TrainingCallbacks(partial(validation_figures, columns=columns))
            fit(aligner, TrainingData(data, plan), config, folder, callbacks, heads)


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[Any]]:
    """The gradients of a batch, the weights after training, and its losses with the validation figure behind them."""
    last = checkpoint.latest(folder / "checkpoints")
    assert last
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (
        load_file(folder / "gradients"),
        load_file(last / weights.WEIGHTS),
        [e["total"] for e in log if "total" in e] + [e["validation"]["R-sum"] for e in log if "validation" in e],
    )


@pytest.fixture(scope="module")
def single_process(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one")
    measure(toy, root, SETTING_NAMES)
    return root


@pytest.mark.parametrize("world", [2, 4])
def test_losses_gradients_and_parameters_equal_those_of_one_process(
    toy: Any, tmp_path: Path, single_process: Path, world: int
) -> None:
    names = (
        SETTING_NAMES
        if world == 2
        else ["infonce", "matching", "listwise", "mse", "dann", "mmd", "coral", "local-loss", "fsdp"]
    )
    assert launch(world, measure, toy, tmp_path, names) == [0] * world
    for name in names:
        (gradients, weights, losses), (same_gradients, same_weights, same_losses) = (
            outcome(tmp_path / name),
            outcome(single_process / name),
        )
        assert gradients.keys() == same_gradients.keys(), name
        assert weights.keys() == same_weights.keys(), name
        assert losses[:-1] == pytest.approx(same_losses[:-1], rel=1e-4), name
        assert losses[-1] == pytest.approx(same_losses[-1], rel=1e-3), name  # of validation, as exact as the weights
        for key, value in same_gradients.items():
            assert torch.allclose(gradients[key], value, rtol=1e-4, atol=2e-6), f"{name}: gradient of {key}"
        for key, value in same_weights.items():
            assert torch.allclose(weights[key].float(), value.float(), rtol=1e-3, atol=1e-3), (
                f"{name}: {key}"
            )  # a tenth of one of Adam's steps


def wrong(toy: Any, root: Path) -> None:
    """A local loss whose gathered rows carry no gradient: what our flags refuse."""
    with distributed.process_group("cpu"):
        config = toy.config(loss__beta=0.0, parallel__local_loss=True, parallel__gather_with_grad=False)
        aligner = model(toy, config)
        data, plan = toy.data(config)
        engine = parallel.build_engine(step.StepLosses(aligner, config.loss, config.parallel), config)
        engine(data[part(plan.epoch(0)[0], distributed.rank(), 2)], 0.0)["total"].backward()
        if distributed.main():
            save_file(
                {k: p.grad.contiguous() for k, p in aligner.named_parameters() if p.grad is not None}, root / "wrong"
            )


def test_this_test_can_fail_and_the_flags_that_would_make_it_are_refused(
    toy: Any, tmp_path: Path, single_process: Path
) -> None:
    assert launch(2, wrong, toy, tmp_path) == [0, 0]
    gradients, same = load_file(tmp_path / "wrong"), load_file(single_process / "contrastive/gradients")
    name = "sides.image.heads.0.project.weight"
    assert not torch.allclose(gradients[name], same[name], rtol=1e-2)
    with pytest.raises(ConfigError, match=r"wrong direction.*--local-loss --no-gather-with-grad"):
        check(toy.config(parallel__local_loss=True, parallel__gather_with_grad=False))


def test_a_batch_that_cannot_be_shared_is_refused(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"3 processes cannot share.*batch_size = 8.*--batch-size 6"):
        check(toy.config())
    with pytest.raises(ConfigError, match=r"ddp \| fsdp"):
        check(toy.config(parallel__kind="dp"))


def test_blocks_of_towers_are_listed(toy: Any) -> None:
    aligner = model(toy, toy.config())
    tower = aligner.sides["image"].tower
    losses = step.StepLosses(aligner, toy.config().loss)
    assert parallel.tower_blocks(losses) == list(tower.blocks)
    assert not parallel.drops_layers(losses)
    tower.config = SimpleNamespace(layerdrop=0.1)
    assert parallel.drops_layers(losses)


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({}, True),
        ({"loss__beta": 0.0}, True),
        ({"loss__balance": "schedule", "loss__cross_start": 0.0, "loss__cross_ramp": 0.0}, True),
        ({"loss__balance": "schedule", "loss__cross_start": 0.2, "loss__cross_ramp": 0.1}, False),
        ({"loss__balance": "gradnorm"}, False),
        ({"optim__accum_freq": 2}, False),
    ],
    ids=str,
)
def test_steps_that_train_the_same_parameters(toy: Any, settings: dict[str, Any], same: bool) -> None:
    fixed = {"loss__balance": "fixed", "loss__cross_ramp": 0.0, "loss__cross_start": 0.0}
    assert step.trains_same_parameters(toy.config(**fixed | settings)) == same


@pytest.fixture
def fake_group() -> Iterator[None]:
    """This process is number 1 of 2; nothing is exchanged."""
    fake_pg = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", rank=1, world_size=2, store=fake_pg.FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("precision", "device", "parameters"),
    [
        ("amp_bf16", "cuda", torch.bfloat16),
        ("auto", "cuda", torch.bfloat16),
        ("fp32", "cuda", None),
        ("amp_bf16", "cpu", None),
        ("auto", "cpu", None),
    ],
)
def test_blocks_are_exchanged_in_bf16_on_a_gpu_in_bf16(
    toy: Any, precision: str, device: str, parameters: torch.dtype | None
) -> None:
    policy = parallel.mixed_precision(toy.config(optim__precision=precision), torch.device(device))
    assert policy.param_dtype == parameters
    assert policy.reduce_dtype == (torch.float32 if parameters else None)
    assert policy.output_dtype is None


@pytest.mark.usefixtures("fake_group")
@pytest.mark.parametrize("in_bf16", [True, False])
def test_each_block_is_a_unit_that_computes_in_its_precision(
    toy: Any, in_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed_precision = parallel.mixed_precision
    if in_bf16:  # the CPU has the policy of a GPU
        monkeypatch.setattr(
            parallel, "mixed_precision", lambda config, _: mixed_precision(config, torch.device("cuda"))
        )
    config = toy.config(parallel__kind="fsdp", optim__precision="amp_bf16")
    aligner = model(toy, config)
    tower = aligner.sides["image"].tower
    blocks, state = tower.blocks, {name: p.detach().clone() for name, p in aligner.named_parameters()}
    engine: Any = parallel.build_engine(step.StepLosses(aligner, config.loss, config.parallel), config)
    assert engine.blocks == list(blocks)
    dtypes: list[tuple[torch.dtype, torch.dtype]] = []

    def record(block: Any, inputs: Any, output: Any) -> None:
        dtypes.append((block.linear.weight.dtype, output.dtype))
        sharded = [isinstance(other.linear.weight, DTensor) for other in blocks]
        assert sharded == [other is not block for other in blocks], "one block at a time has all of its parameters"

    handles = [block.register_forward_hook(record, prepend=True) for block in blocks]
    data, plan = toy.data(config)
    batch = data[part(plan.epoch(0)[0], 1, 2)]
    for _ in range(2):
        with runtime.autocast("amp_bf16", torch.device("cpu")):
            losses = engine(batch, 0.5, torch.Generator().manual_seed(1))
        losses["total"].backward()
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        trained = [p for p in aligner.parameters() if p.grad is not None]
        assert {(p.dtype, p.grad.dtype) for p in trained} == {(torch.float32, torch.float32)}
        with engine.full_parameters():
            assert not any(isinstance(p, DTensor) for p in aligner.parameters())
            for name, p in aligner.named_parameters():
                assert p.dtype == torch.float32 and p.shape == state[name].shape
            encode(aligner, "image", toy.columns()[0])
        assert all(isinstance(p, DTensor) for p in aligner.parameters() if p.ndim)
    for handle in handles:
        handle.remove()
    expected = torch.bfloat16 if in_bf16 else torch.float32
    assert dtypes == [(expected, torch.float32)] * 4


def test_blocks_with_batch_norm_stay_in_float32() -> None:
    assert parallel.has_batch_norm(NormTower(4))
    assert not parallel.has_batch_norm(Block(4))
