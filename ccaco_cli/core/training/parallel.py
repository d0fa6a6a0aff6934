"""The engines that keep the processes of one run in step: DDP (every process holds the model) and FSDP2 (each holds a part of it)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ccaco_cli.core import distributed, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model.wholebatch import synchronise
from ccaco_cli.core.training.step import Losses


class Engine(Protocol):
    """A model whose forward gives the losses and whose backward leaves the mean gradient of all processes."""

    module: nn.Module

    def __call__(self, *arguments: Any) -> dict[str, Tensor]: ...

    def adding(self) -> AbstractContextManager[Any]:
        """A batch whose gradients wait for the next one (accumulation): nothing is exchanged."""
        ...

    def reduced(self) -> None:
        """Called after the backward of an update's last batch: what the engine has not averaged itself."""
        ...

    def whole(self) -> AbstractContextManager[Any]:
        """All parameters in one piece, to evaluate and to save."""
        ...


class Alone:
    """One process."""

    def __init__(self, losses: nn.Module):
        self.module = losses

    def __call__(self, *arguments: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.module(*arguments)
        return found

    def adding(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def reduced(self) -> None:
        return

    def whole(self) -> AbstractContextManager[Any]:
        return nullcontext()


class Ddp(Alone):
    """DistributedDataParallel. Buffers need no exchange: what they average is averaged over all processes where it is made."""

    def __init__(self, losses: nn.Module):
        device = next(losses.parameters()).device
        ids = [device.index] if device.type == "cuda" else None
        with (
            warnings.catch_warnings()
        ):  # newer releases of torch call this flag by another name, older ones do not know that
            warnings.simplefilter("ignore", FutureWarning)
            self.engine = DistributedDataParallel(
                losses, device_ids=ids, find_unused_parameters=True, broadcast_buffers=False
            )
        super().__init__(self.engine)

    def adding(self) -> AbstractContextManager[Any]:
        return self.engine.no_sync()  # type: ignore[no-any-return]


class Fsdp(Alone):
    """FSDP2 (``fully_shard``), one unit; parameters without a dimension cannot be cut and are averaged by hand."""

    def __init__(self, losses: nn.Module):
        device = next(losses.parameters()).device
        self.small = [p for p in losses.parameters() if p.ndim == 0]  # in one order on every process
        for parameter in losses.parameters():  # of channels_last towers they are not, and FSDP2 cannot cut them so
            parameter.data = parameter.data.contiguous()
        mesh = init_device_mesh(device.type, (distributed.world(),))
        self.engine: Any = fully_shard(losses, mesh=mesh, ignored_params=set(self.small))
        for parameter in self.small:
            dist.broadcast(parameter.data, 0)
        super().__init__(losses)

    @contextmanager
    def adding(self) -> Iterator[None]:
        self.engine.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.engine.set_requires_gradient_sync(True)

    def reduced(self) -> None:
        for parameter in self.small:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= distributed.world()

    @contextmanager
    def whole(self) -> Iterator[None]:
        self.engine.unshard()
        try:
            yield
        finally:
            self.engine.reshard()


KINDS: dict[str, Callable[[nn.Module], Engine]] = {"ddp": Ddp, "fsdp": Fsdp}


def check(config: RunConfig) -> None:
    """Raises ConfigError for settings that several processes cannot share, or with which their gradients would be wrong."""
    parallel = config.parallel
    if parallel.kind not in KINDS:
        raise ConfigError(
            "unknown kind of parallel training", where=f"parallel.kind = {parallel.kind!r}", expected=" | ".join(KINDS)
        )
    if parallel.local_loss and not parallel.gather_with_grad:
        raise ConfigError(
            "a local loss without gradient through the gather points the encoders in a wrong direction",
            where="--local-loss --no-gather-with-grad",
            expected="one of them",
        )
    world = max(runtime.launched()[1], distributed.world())
    if config.optim.batch_size % world:
        size = max(1, config.optim.batch_size // world) * world
        raise ConfigError(
            f"{world} processes cannot share a batch equally",
            where=f"optim.batch_size = {config.optim.batch_size}",
            next=f"--batch-size {size}",
        )
    heads = config.domain.loss != "none" or config.domain.classify > 0
    if world > 1 and parallel.kind == "fsdp" and (heads or config.loss.balance in ("uncertainty", "gradnorm")):
        raise ConfigError(
            "fsdp cuts the model only, no domain heads and no learned weights",
            where="parallel.kind = 'fsdp'",
            expected="--parallel ddp",
        )
    if world > 1 and parallel.kind == "fsdp" and config.optim.precision == "amp_fp16":
        raise ConfigError(
            "fsdp has no gradient scaler", where="--precision amp_fp16", expected="--precision amp_bf16 or fp32"
        )


def engine(losses: Losses, config: RunConfig) -> Engine:
    """The losses under the engine of the config; alone, as they are. Every process must call it with the same weights."""
    if distributed.world() == 1:
        return Alone(losses)
    device = next(losses.parameters()).device
    synchronise(losses, device)
    drawn = torch.get_rng_state()  # an engine may draw while it is built, each process as it likes
    found = KINDS[config.parallel.kind](losses)
    torch.set_rng_state(drawn)
    return found


def clip(parameters: list[nn.Parameter], most: float) -> Tensor:
    """Clips gradients to a norm over all of them (0 = not at all); returns the norm before."""
    kinds = [[p for p in parameters if p.grad is not None and isinstance(p, DTensor) == cut] for cut in (False, True)]
    norms = [torch.nn.utils.get_total_norm([p.grad for p in some if p.grad is not None]) for some in kinds if some]
    norms = [n.full_tensor() if isinstance(n, DTensor) else n for n in norms]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    plain, cut = kinds
    if plain:
        torch.nn.utils.clip_grads_with_norm_(plain, most or float("inf"), norm)
    for parameter in cut if most else ():
        if parameter.grad is not None:
            parameter.grad.mul_(min(1.0, most / (float(norm) + 1e-6)))
    return norm


def gathered(state: Any) -> Any:
    """An optimiser's state with every part in one piece: what one process would save. All processes must call it."""
    return torch.utils._pytree.tree_map(lambda v: v.full_tensor() if isinstance(v, DTensor) else v, state)


def spread(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The inverse of ``gathered`` for the parameters of this optimiser."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entries in state["state"].items():
        p = parameters[number]
        if isinstance(p, DTensor):
            cut = {k: v for k, v in entries.items() if torch.is_tensor(v) and v.shape == p.shape}
            entries |= {k: distribute_tensor(v.to(p.device), p.device_mesh, p.placements) for k, v in cut.items()}
    return state
