"""Checks of training settings that would only fail in the middle of a run."""

from __future__ import annotations

from ccaco_cli.core import runtime
from ccaco_cli.core.config import OptimConfig, RunConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.losses import balance as balances
from ccaco_cli.core.losses.domain import domain_terms
from ccaco_cli.core.losses.total import check_losses
from ccaco_cli.core.training import augment, parallel


def check(config: RunConfig) -> None:
    """Raises ConfigError: a training setting is unknown, out of range, or does not fit another one."""
    parallel.check(config)
    augment.check(config.model)
    balances.build(config.loss)
    if config.loss.beta > 0:
        check_losses(config.loss)
    _check_optim(config.optim)
    _check_loss_weights(config)
    _check_domain(config)


def _check_optim(optim: OptimConfig) -> None:
    if optim.precision not in runtime.PRECISIONS:
        raise ConfigError("unknown precision", where=optim.precision, expected=" | ".join(runtime.PRECISIONS))
    counts = {
        "optim.epochs": optim.steps or optim.epochs,
        "optim.batch_size": optim.batch_size,
        "optim.accum_freq": optim.accum_freq,
        "optim.captions": optim.captions,
    }
    for key, value in counts.items():
        if value < 1:
            raise ConfigError(f"{value} is out of range", where=key, expected="1 or more")


def _check_loss_weights(config: RunConfig) -> None:
    alpha, beta = config.loss.alpha, config.loss.beta
    trains = alpha > 0 or beta > 0 or config.domain.classify > 0
    if min(alpha, beta) < 0 or not trains:
        raise ConfigError(
            "nothing to learn", where=f"loss.alpha {alpha}, loss.beta {beta}", expected="one above 0, none below"
        )


def _check_domain(config: RunConfig) -> None:
    domain_terms(config.domain.loss)
    if config.domain.weight < 0 or config.domain.stats not in ("source", "target"):
        raise ConfigError(
            f"weight {config.domain.weight} and stats {config.domain.stats!r} are out of range",
            where="domain",
            expected="weight 0 or more, stats source | target",
        )
