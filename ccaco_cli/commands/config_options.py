"""The options of ``train`` and ``ablate`` that are settings of the config, generated from the config's own fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ccaco_cli.commands.parameters import Command, option, parameters_of, replace_parameter
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.recipes import RECIPES
from ccaco_cli.core.settings import ConfigKey, config_keys

GROUPS = {
    "model": "Model",
    "loss": "Losses",
    "optim": "Optimisation",
    "domain": "Domains",
    "parallel": "Processes",
    "eval": "Evaluation",
    "workers": "Processes",
}
"""First part of a key -> heading of its options in ``--help``; all others stand under "Run"."""


@dataclass(frozen=True)
class ConfigSettings:
    """The settings that a command line gives, as dotted overrides.

    Attributes:
        base: of ``--config``.
        explicit: of flags and ``--set``; they override ``base``.
    """

    base: Mapping[str, Any]
    explicit: Mapping[str, Any]


@dataclass(frozen=True)
class ConfigFlag:
    """One option that sets one key, or the same key of several towers.

    Attributes:
        declared: the first of the keys, with the declaration of all.
    """

    flag: str
    keys: tuple[str, ...]
    declared: ConfigKey

    @property
    def name(self) -> str:
        """Name of the parameter of the command function."""
        return self.flag.removeprefix("--").replace("-", "_")

    def parameter(self) -> inspect.Parameter:
        """The Typer option; its value is None where the flag is absent."""
        default, setting = self.declared.default, self.declared.setting
        flag = f"{self.flag}/--no-{self.flag[2:]}" if default is True else self.flag
        return option(
            self.name,
            type(default),
            flag,
            help=setting.help,
            metavar=setting.metavar,
            show_default=self._shown_default(),
            rich_help_panel=GROUPS.get(self.declared.key.split(".")[0], "Run"),
        )

    def _shown_default(self) -> str | bool:
        default = self.declared.default
        if self.declared.setting.shown_default is not None:
            return self.declared.setting.shown_default
        if any(key in recipe for key in self.keys for recipe in RECIPES.values()):
            return "by towers"
        if isinstance(default, bool):
            return "on" if default else False
        return f"{default:g}" if isinstance(default, int | float) else default or False


def config_flags(kind: type = RunConfig, without: tuple[str, ...] = ()) -> list[ConfigFlag]:
    """The generated options of a config class; ``without`` holds beginnings of keys that get no option."""
    keys_of: dict[str, list[ConfigKey]] = {}
    for key in config_keys(kind):
        if key.flag and not key.setting.custom_flag and not key.key.startswith(without):
            keys_of.setdefault(key.flag, []).append(key)
    return [ConfigFlag(flag, tuple(key.key for key in keys), keys[0]) for flag, keys in keys_of.items()]


def config_options(*, without: tuple[str, ...] = (), kind: type = RunConfig) -> Callable[[Command], Command]:
    """Replaces the parameter ``settings`` of a command by the options of the config.

    The command gets what they set as one ``ConfigSettings``. All values are checked first, so that a value that does
    not fit ends the command before it writes anything.
    """
    flags = config_flags(kind, without)
    shared = parameters_of(_shared)

    def collect(values: Mapping[str, Any]) -> ConfigSettings:
        overrides = {key: values[flag.name] for flag in flags for key in flag.keys if values[flag.name] is not None}
        return _collect(kind, overrides, **{parameter.name: values[parameter.name] for parameter in shared})

    generated = [*(flag.parameter() for flag in flags), *shared]
    return lambda command: replace_parameter(command, "settings", generated, collect)


def _shared(
    *,
    image_size: Annotated[
        str | None,
        typer.Option(
            "--image-size",
            metavar="SIDE|HxW",
            help="Pixels of the images that the image tower takes.",
            show_default="the tower's own",
            rich_help_panel="Model",
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            "--tile",
            min=1,
            max=16_384,
            metavar="SIDE",
            help="Cut larger images into square tiles of this side; each tile is encoded alone.",
            show_default="no tiles",
            rich_help_panel="Model",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="TOML file of settings; flags override it.",
            show_default=False,
            rich_help_panel="Run",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting of the config, for example --set loss.beta=0.5; overrides flags.",
            show_default=False,
            rich_help_panel="Run",
        ),
    ] = None,
) -> None:
    """Options that are settings, but not plain values of one key."""


def _collect(
    kind: type,
    flags: Mapping[str, Any],
    *,
    image_size: str | None,
    tile: int | None,
    config: Path | None,
    set_: list[str] | None,
) -> ConfigSettings:
    from ccaco_cli.core.config_io import load, override, parse_setting

    base = load(config) if config else {}
    explicit = {**flags, **dict(_tower_input(image_size, tile)), **dict(map(parse_setting, set_ or ()))}
    override(kind(), {**base, **explicit})
    return ConfigSettings(base, explicit)


def _tower_input(image_size: str | None, tile: int | None) -> Iterator[tuple[str, Any]]:
    """``--image-size 4096x4096 --tile 512`` -> a tower of 512 pixels over 8x8 tiles."""
    from ccaco_cli.core.errors import ConfigError

    if image_size is None and tile is None:
        return
    sides = [int(side) if side.isdecimal() and len(side) < 7 else 0 for side in (image_size or "").lower().split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise ConfigError(
            "cannot read this image size",
            where=f"--image-size {image_size or ''}",
            expected="pixels below 1,000,000, SIDE or HEIGHTxWIDTH",
        )
    height, width = sides[0], sides[-1]
    if tile is None and height != width:
        raise ConfigError(
            "the image tower takes square images",
            where=f"--image-size {image_size}",
            expected="a square, or --tile",
            next="add --tile SIDE",
        )
    if tile is not None and (height % tile or width % tile):
        raise ConfigError(
            "tiles must fill the image", where=f"--tile {tile}", expected=f"a divisor of {height} and {width}"
        )
    yield "model.image.size", tile or height
    yield "model.image.tiles", f"{height // tile}x{width // tile}" if tile else ""
