"""The blocks of a tower, from its input to its output: for training the last ones only, and for rates by depth."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from timm.models import group_parameters
from torch import nn

from ccaco_cli.core.errors import ConfigError

STAGE = re.compile(r"layer\d+")
"""Names of the stages of a ResNet of open_clip or torchvision."""
IN_BLOCK = re.compile(r"\.\d+\.")
"""Names of parameters inside a numbered block of a timm model."""
PROJECTIONS = ("proj", "text_projection")
"""Parameters that open_clip registers before the blocks and applies after them."""


@dataclass(frozen=True)
class Blocks:
    """The depth of every parameter of a tower.

    Attributes:
        count: L, number of blocks.
        depth: name of a parameter -> 0 = before the first block, 1..L = in this block, L + 1 = after the last block
            (final norm, projection).
    """

    count: int
    depth: dict[str, int]


def find_blocks(tower: nn.Module) -> Blocks | None:
    """The blocks of a tower: timm's own groups, the stages of a ResNet, or the largest list of layers of a transformer;
    None where there is none."""
    for name, module in tower.named_modules():
        if hasattr(module, "group_matcher"):  # a model of timm, alone or inside another library's model
            return _timm_blocks(tower, name, module)
    prefixes = _prefixes(tower)
    if not prefixes:
        return None
    depth: dict[str, int] = {}
    last = 0
    for name, _ in tower.named_parameters():  # in the order of registration
        block = next((n for n, prefix in enumerate(prefixes, start=1) if name.startswith(prefix)), None)
        if block is not None:
            last = block
        after = last > 0 or name.rpartition(".")[2] in PROJECTIONS
        depth[name] = block or (len(prefixes) + 1 if after else 0)
    return Blocks(len(prefixes), depth)


def require_blocks(tower: nn.Module, spec: str, setting: str) -> Blocks:
    """As ``find_blocks``. Raises ConfigError: the tower has no blocks; ``setting`` is what needs them."""
    blocks = find_blocks(tower)
    if blocks is None:
        raise ConfigError(
            "this tower has no blocks that could be told apart",
            where=f"{setting}, {spec}",
            expected="a transformer, a ResNet or a model of timm",
            next="the same command without this setting",
        )
    return blocks


def freeze_first_blocks(tower: nn.Module, trained: int, spec: str, setting: str) -> None:
    """Freezes a tower except its last blocks, its final norm and its projection.

    Args:
        trained: number of blocks that learn; -N = at most N.
        spec, setting: of the tower and of the number, for errors.
    Raises:
        ConfigError: the tower has fewer blocks, or none.
    """
    blocks = require_blocks(tower, spec, setting)
    if trained > blocks.count:
        raise ConfigError(
            f"this tower has {blocks.count} blocks", where=f"{setting}, {spec}", expected=f"1 to {blocks.count}"
        )
    first = blocks.count - min(abs(trained), blocks.count) + 1
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(blocks.depth[name] >= first)


def evaluate_frozen_parts(tower: nn.Module) -> None:
    """Puts the parts of a tower whose parameters are all frozen in evaluation mode: no dropout, fixed statistics."""
    for module in tower.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _prefixes(tower: nn.Module) -> list[str]:
    """The beginnings of the names of the parameters of each block."""
    max_size, prefixes = 0, list[str]()
    for name, module in tower.named_modules():
        blocks = _children_that_are_blocks(module)
        size = sum(parameter.numel() for block in blocks.values() for parameter in block.parameters())
        if size > max_size:
            path = f"{name}." if name else ""
            max_size, prefixes = size, [f"{path}{child}." for child in blocks]
    return prefixes


def _children_that_are_blocks(module: nn.Module) -> dict[str, nn.Module]:
    if isinstance(module, nn.ModuleList):
        return dict(module.named_children())
    return {name: child for name, child in module.named_children() if STAGE.fullmatch(name)}


def _timm_blocks(tower: nn.Module, name: str, model: nn.Module) -> Blocks | None:
    prefix = f"{name}." if name else ""
    groups = list(group_parameters(model, model.group_matcher(coarse=False)).values())  # type: ignore[operator]
    # timm's first group is the stem; after the blocks there may be a group of the final norm and the pooling
    blocks = list(takewhile(lambda group: any(map(IN_BLOCK.search, group)), groups[1:]))
    if not blocks:
        return None
    depth = dict(_depths(groups, len(blocks), prefix))
    return Blocks(len(blocks), {n: depth.get(n, len(blocks) + 1) for n, _ in tower.named_parameters()})


def _depths(groups: list[list[str]], count: int, prefix: str) -> Iterator[tuple[str, int]]:
    for number, group in enumerate(groups):
        for parameter in group:
            yield prefix + parameter, min(number, count + 1)
