"""The table of matchers, and building the one that a config names."""

from __future__ import annotations

from collections.abc import Callable

from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model.attention_kernels import check_attention
from ccaco_cli.core.model.cosine_matchers import Attended, Late, MaxSim, Residual
from ccaco_cli.core.model.fusion_matchers import CoAttention, Concat, Early, Unified
from ccaco_cli.core.model.layout import LINE, Layout
from ccaco_cli.core.model.matcher import Matcher

MATCHERS: dict[str, Callable[[int, FusionConfig, tuple[Layout, Layout]], Matcher]] = {
    "attended": Attended,
    "maxsim": MaxSim,
    "residual": Residual,
    "coattention": CoAttention,
    "unified": Unified,
    "early": Early,
    "late": Late,
    "concat": Concat,
}
"""``model.fusion.kind`` -> matcher for tokens of a width."""


def build(width: int, config: FusionConfig, layouts: tuple[Layout, Layout] = (LINE, LINE)) -> Matcher:
    """Builds the matcher that a config names.

    Args:
        width: D of the tokens.
        config: kind, direction, heads and attention.
        layouts: of the tokens of both modalities.
    Raises:
        ConfigError: an unknown kind or direction, heads that do not divide the width, or attention that the kind does
            not have.
    """
    if config.kind not in MATCHERS:
        raise ConfigError(
            "unknown fusion kind", where=f"model.fusion.kind = {config.kind!r}", expected=" | ".join(MATCHERS)
        )
    if config.direction not in ("both", "b_to_a", "a_to_b"):
        raise ConfigError(
            "unknown direction",
            where=f"model.fusion.direction = {config.direction!r}",
            expected="both | b_to_a | a_to_b",
        )
    if width % config.heads:
        raise ConfigError(
            "heads must divide the width",
            where=f"model.fusion.heads = {config.heads}",
            expected=f"a divisor of {width}",
        )
    check_attention(config)
    matcher = MATCHERS[config.kind](width, config, layouts)
    if config.attention not in matcher.kinds:
        raise ConfigError(
            f"fusion {config.kind!r} has no {config.attention} attention",
            where=f"model.fusion.attention = {config.attention!r}",
            expected=" | ".join(matcher.kinds),
            next="--set model.fusion.kind=coattention (or attended, unified, early)",
        )
    return matcher
