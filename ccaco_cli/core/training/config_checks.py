"""Checks of training settings that would only fail in the middle of a run."""

from __future__ import annotations

from ccaco_cli.core import config_io
from ccaco_cli.core.config import RunConfig, TowerConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.losses.total import check_losses
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.training import augment, parallel


def check(config: RunConfig) -> None:
    """Raises ConfigError: a setting is unknown, out of range, or does not fit another one."""
    config_io.validate(config)
    parallel.check(config)
    augment.check(config.model)
    _check_finetuning(config)
    if config.loss.beta > 0:
        check_losses(config.loss)
    if config.loss.gamma and not (config.loss.alpha or config.loss.beta):
        raise ConfigError(
            "captions alone align nothing that could be searched or validated",
            where=f"loss.gamma = {config.loss.gamma:g}, loss.alpha = 0, loss.beta = 0",
            expected="alpha or beta above 0",
            next="--alpha 1",
        )
    if not (config.loss.alpha or config.loss.beta or config.domain.classify):
        raise ConfigError(
            "nothing to learn",
            where="loss.alpha = 0, loss.beta = 0, domain.classify = 0",
            expected="one of them above 0",
        )
    if config.method == "gradient" and config.optim.batch_size == 1 and (config.loss.alpha or config.loss.beta):
        raise ConfigError(
            "the contrastive and the cross-attention loss compare a pair with the other pairs of its batch",
            where="optim.batch_size = 1",
            expected="2 or more",
            next="--batch-size 128, or, with too little memory, 16",
        )
    pairs = config.optim.batch_size * config.optim.captions
    if config.loss.beta > 0 and config.loss.cross in ("matching", "listwise") and config.loss.negatives >= pairs:
        raise ConfigError(
            "a batch has fewer negatives than each of its pairs should have",
            where=f"loss.negatives = {config.loss.negatives}, {pairs} pairs in a batch",
            expected=f"at most {pairs - 1}",
            next="--set loss.negatives=1",
        )
    if config.loss.beta > 0 and config.loss.cross == "infonce" and config.loss.cross_batch == 1:
        raise ConfigError(
            "the cross-attention loss compares a pair with the other pairs that it scores",
            where="loss.cross_batch = 1",
            expected="2 or more, or 0 for the whole batch",
            next="--set loss.cross_batch=32",
        )


def _check_finetuning(config: RunConfig) -> None:
    """Raises ConfigError: two ways of fine-tuning that exclude each other, or that a setting cannot be joined with."""
    towers, optim = {m: config.model.tower(m) for m in MODALITIES}, config.optim
    for modality, tower in towers.items():
        if tower.lock and tower.unlock:
            raise ConfigError(
                "a locked tower has no blocks that learn",
                where=f"--lock-{modality} --unlock-{modality} {tower.unlock}",
                expected="one of them",
            )
        if optim.lora and tower.unlock:
            raise ConfigError(
                "LoRA freezes all weights of a tower",
                where=f"--lora {optim.lora} --unlock-{modality} {tower.unlock}",
                expected="one of them",
            )
    if config.loss.balance == "gradnorm" and any(tower.head != TowerConfig.head for tower in towers.values()):
        raise ConfigError(
            "GradNorm reads the gradients of a projection that all losses share, and a pretrained model has none",
            where="loss.balance = 'gradnorm'",
            expected="another balance",
            next="--balance schedule",
        )
    if config.parallel.kind == "fsdp" and (optim.lora or optim.ema):
        raise ConfigError(
            "fsdp shards the weights that low-rank updates and averages are computed from",
            where=f"parallel.kind = 'fsdp', optim.lora = {optim.lora}, optim.ema = {optim.ema:g}",
            expected="--parallel ddp",
        )
