"""Engines for data-parallel training: DDP (every process holds the model) and FSDP2 (each holds a shard)."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ccaco_cli.core import distributed, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model.global_batch import convert_batch_norms
from ccaco_cli.core.training.step import StepLosses, trains_same_parameters


class Engine(Protocol):
    """A module whose forward returns the losses and whose backward leaves the mean gradient over processes."""

    module: nn.Module

    def __call__(self, *arguments: Any) -> dict[str, Tensor]: ...

    def accumulate(self) -> AbstractContextManager[Any]:
        """Inside, gradients are only accumulated, not exchanged between processes."""
        ...

    def reduce_remaining(self) -> None:
        """Averages gradients that the engine does not average itself; called after the last backward of an update."""
        ...

    def full_parameters(self) -> AbstractContextManager[Any]:
        """Inside, every process holds all parameters unsharded, to evaluate and to save."""
        ...


class SingleProcess:
    """The engine of a single process, which calls the module."""

    def __init__(self, losses: nn.Module):
        self.module = losses

    def __call__(self, *arguments: Any) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.module(*arguments)
        return losses

    def accumulate(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def reduce_remaining(self) -> None:
        return

    def full_parameters(self) -> AbstractContextManager[Any]:
        return nullcontext()


class Ddp(SingleProcess):
    """DistributedDataParallel. Buffers are not broadcast: the layers average their statistics over all processes."""

    def __init__(self, losses: StepLosses, config: RunConfig):
        device = next(losses.parameters()).device
        ids = [device.index] if device.type == "cuda" else None
        static = trains_same_parameters(config) and not drops_layers(losses)
        with warnings.catch_warnings():  # newer torch has renamed a flag, older torch does not know the new name
            warnings.simplefilter("ignore", FutureWarning)
            self.engine = DistributedDataParallel(
                losses,
                device_ids=ids,
                find_unused_parameters=not static,
                static_graph=static,
                broadcast_buffers=False,
            )
        super().__init__(self.engine)

    def accumulate(self) -> AbstractContextManager[Any]:
        return self.engine.no_sync()  # type: ignore[no-any-return]


class Fsdp(SingleProcess):
    """FSDP2 (``fully_shard``): each block of a tower is one unit, and all that remains is another one.

    A process then holds the parameters of one block at a time beside its shards, and the next block is exchanged while
    one is computed. Scalars cannot be sharded, so their gradients are averaged here. Shards, gradients and losses are
    float32 in every precision (``mixed_precision``).
    """

    def __init__(self, losses: StepLosses, config: RunConfig):
        device = next(losses.parameters()).device
        self.scalars = [p for p in losses.parameters() if p.ndim == 0]  # in the same order on every process
        for parameter in losses.parameters():  # FSDP2 cannot shard the channels_last layout of some towers
            parameter.data = parameter.data.contiguous()
        mesh = init_device_mesh(device.type, (distributed.world(),))
        scalars = set(self.scalars)
        # a compiled tower is one graph, in which blocks cannot be exchanged
        blocks = [] if config.optim.torchcompile or drops_layers(losses) else tower_blocks(losses)
        policy = mixed_precision(config, device)
        self.blocks: list[Any] = [
            fully_shard(
                block,
                mesh=mesh,
                ignored_params=scalars,
                mp_policy=MixedPrecisionPolicy() if has_batch_norm(block) else policy,
            )
            for block in blocks
        ]
        self.engine: Any = fully_shard(losses, mesh=mesh, ignored_params=scalars)
        for parameter in self.scalars:
            dist.broadcast(parameter.data, 0)
        super().__init__(losses)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        self.engine.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.engine.set_requires_gradient_sync(True)

    def reduce_remaining(self) -> None:
        for parameter in self.scalars:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= distributed.world()

    @contextmanager
    def full_parameters(self) -> Iterator[None]:
        # In place of ``unshard``, which gathers parameters in the precision of training. Without their hooks the units
        # exchange nothing: processes encode different numbers of batches.
        units = [*self.blocks, self.engine]
        hooks = [(unit._forward_pre_hooks, unit._forward_hooks) for unit in units]
        for unit in units:
            unit.reshard()
            unit._forward_pre_hooks, unit._forward_hooks = OrderedDict(), OrderedDict()
        places = [(module._parameters, name) for module in self.module.modules() for name in module._parameters]
        shards: list[Any] = [parameters[name] for parameters, name in places]
        full = {id(p): nn.Parameter(p.full_tensor().detach(), False) for p in shards if isinstance(p, DTensor)}
        try:
            for (parameters, name), shard in zip(places, shards, strict=True):
                parameters[name] = full.get(id(shard), shard)
            yield
        finally:
            for (parameters, name), shard in zip(places, shards, strict=True):
                parameters[name] = shard
            for unit, (before, after) in zip(units, hooks, strict=True):
                unit._forward_pre_hooks, unit._forward_hooks = before, after


def mixed_precision(config: RunConfig, device: torch.device) -> MixedPrecisionPolicy:
    """The precision of the blocks of ``Fsdp``.

    On a GPU in bf16 their parameters are exchanged in bf16, in half of the time, since autocast would multiply them in
    bf16 anyway. It also chooses the types of the inputs: the sums between the blocks stay in float32. Gradients are
    added up in float32.
    """
    if device.type != "cuda" or runtime.training_precision(config.optim.precision, device) != "amp_bf16":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def has_batch_norm(block: nn.Module) -> bool:
    """Whether a block has a batch norm, whose statistics are float32 and need parameters of that type."""
    return any(isinstance(module, _BatchNorm) for module in block.modules())


def drops_layers(losses: StepLosses) -> bool:
    """Whether a tower leaves out layers at random in training (LayerDrop, arXiv:1909.11556), on each process others."""
    return any(getattr(getattr(module, "config", None), "layerdrop", 0.0) for module in losses.modules())


def tower_blocks(losses: StepLosses) -> list[nn.Module]:
    """The blocks of the towers: members of a list of two or more modules of one class with parameters."""
    blocks: list[nn.Module] = []

    def collect(module: nn.Module) -> None:
        members = list(module.children())
        is_list = isinstance(module, nn.ModuleList | nn.Sequential) and len(members) > 1
        alike = is_list and len({type(member) for member in members}) == 1
        if alike and all(any(p.ndim for p in member.parameters()) for member in members):
            blocks.extend(members)
            return
        for member in members:
            collect(member)

    for modality in losses.aligner.modalities:
        collect(losses.aligner.encoder(modality).tower)
    return list(dict.fromkeys(blocks))  # both modalities may share a tower


ENGINES: dict[str, Callable[[StepLosses, RunConfig], Engine]] = {"ddp": Ddp, "fsdp": Fsdp}


def check(config: RunConfig) -> None:
    """Raises ConfigError: settings that several processes cannot train with, or that give wrong gradients."""
    parallel = config.parallel
    if parallel.local_loss and not parallel.gather_with_grad:
        raise ConfigError(
            "a local loss without gradient through the gather trains the encoders in a wrong direction",
            where="--local-loss --no-gather-with-grad",
            expected="one of them",
        )
    world = max(runtime.launcher_rank()[1], distributed.world())
    if config.optim.batch_size % world:
        size = max(1, config.optim.batch_size // world) * world
        raise ConfigError(
            f"{world} processes cannot share a batch equally",
            where=f"optim.batch_size = {config.optim.batch_size}",
            next=f"--batch-size {size}",
        )
    fsdp = world > 1 and parallel.kind == "fsdp"
    has_heads = config.domain.loss != "none" or config.domain.classify > 0
    if fsdp and (has_heads or config.loss.balance in ("uncertainty", "gradnorm")):
        raise ConfigError(
            "fsdp shards the model only, no domain heads and no learned weights",
            where="parallel.kind = 'fsdp'",
            expected="--parallel ddp",
        )
    if fsdp and config.optim.precision == "amp_fp16":
        raise ConfigError(
            "fsdp has no gradient scaler", where="--precision amp_fp16", expected="--precision amp_bf16 or fp32"
        )


def build_engine(losses: StepLosses, config: RunConfig) -> Engine:
    """The engine of the config around the losses. Every process must call it with the same weights."""
    if distributed.world() == 1:
        return SingleProcess(losses)
    device = next(losses.parameters()).device
    convert_batch_norms(losses, device)
    rng_state = torch.get_rng_state()  # building an engine may draw random numbers, different ones on each process
    engine = ENGINES[config.parallel.kind](losses, config)
    torch.set_rng_state(rng_state)
    return engine


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Clips the gradients to a total norm (0 = no clipping); returns the norm before clipping, a scalar."""
    with_grad = [p for p in parameters if p.grad is not None]
    plain = [p for p in with_grad if not isinstance(p, DTensor)]
    sharded = [p for p in with_grad if isinstance(p, DTensor)]
    parts = [part for part in (plain, sharded) if part]
    norms = [torch.nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for part in parts]
    norms = [n.full_tensor() if isinstance(n, DTensor) else n for n in norms]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    if plain:
        torch.nn.utils.clip_grads_with_norm_(plain, max_norm or float("inf"), norm)
    if sharded and max_norm:
        with torch.no_grad():
            shards = [p.grad.to_local() for p in sharded if isinstance(p.grad, DTensor)]
            torch._foreach_mul_(shards, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def full_state(state: Any) -> Any:
    """An optimiser's state (or a tensor) unsharded, as a single process would save it. All processes must call it."""
    return torch.utils._pytree.tree_map(lambda v: v.full_tensor() if isinstance(v, DTensor) else v, state)


def shard_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The inverse of ``full_state``: shards an optimiser's state as its parameters are sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entries in state["state"].items():
        p = parameters[number]
        if isinstance(p, DTensor):
            full = {k: v for k, v in entries.items() if torch.is_tensor(v) and v.shape == p.shape}
            entries |= {k: distribute_tensor(v.to(p.device), p.device_mesh, p.placements) for k, v in full.items()}
    return state
