"""Reading configs from TOML and command-line settings, checking every value, and writing them as TOML."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.settings import ConfigKey, check_choice, check_range, config_keys
from ccaco_cli.core.text_input import decode_utf8

C = TypeVar("C")
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def load(path: Path) -> dict[str, Any]:
    """Reads a TOML file as dotted overrides, ``{"loss.beta": 0.5}``."""
    try:
        nested = tomllib.loads(decode_utf8(path.read_bytes(), path, error=ConfigError))
    except FileNotFoundError:
        raise ConfigError(
            "no such config file", where=path, expected="a TOML file", next="ccaco train --help"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot read this config file ({error.strerror})", where=path, expected="a TOML file"
        ) from None
    except (ValueError, RecursionError) as error:  # ValueError: not TOML, or a number of thousands of digits
        raise ConfigError(f"not TOML ({error})", where=path) from None
    return flatten(nested)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested tables into dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def parse_setting(text: str) -> tuple[str, Any]:
    """Parses ``loss.beta=0.5`` into ("loss.beta", 0.5); the value is TOML, or a word without quotes."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError("cannot read --set", where=text, expected="KEY=VALUE, for example loss.beta=0.5")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except (ValueError, RecursionError):  # ValueError: not TOML, or a number of thousands of digits
        return key.strip(), value


def override(config: C, settings: Mapping[str, Any]) -> C:
    """Returns a copy of a config with dotted settings applied.

    Raises:
        ConfigError: an unknown key (the message names the nearest one), a value of another type, or a number out of
            range.
    """
    for key, value in settings.items():
        config = _replace(config, key.split("."), value, key)
    return config


def validate(config: RunConfig) -> None:
    """Checks every number against its range and every word against its choices; imports the tables of choices.

    Raises:
        ConfigError: the first value that does not fit.
    """
    values, kind = flatten(asdict(config)), cast(Any, type(config))
    for key in _declared(kind).values():
        check_range(key, values[key.key])
        check_choice(key, values[key.key])


def from_dict(nested: Mapping[str, Any]) -> RunConfig:
    """The inverse of ``dataclasses.asdict``."""
    return override(RunConfig(), flatten(nested))


def to_toml(config: RunConfig) -> str:
    """Writes a config as TOML that ``--config`` reads back."""
    import tomli_w

    return tomli_w.dumps(asdict(config))


@cache
def _declared(kind: Any) -> dict[str, ConfigKey]:
    return {key.key: key for key in config_keys(kind)}


def _replace(config: Any, path: list[str], value: Any, full_key: str, root: type | None = None) -> Any:
    """Replaces one value at a path of field names; ``root`` is the class that ``full_key`` starts from."""
    name, inner = path[0], path[1:]
    root = root or type(config)
    known = [f.name for f in fields(config)]
    if name not in known:
        raise _unknown_key(name, known, full_key, root)
    current = getattr(config, name)
    if inner:
        if not is_dataclass(current):
            raise ConfigError("this config key has no parts", where=full_key, expected=name)
        return replace(config, **{name: _replace(current, inner, value, full_key, root)})
    if is_dataclass(current):
        raise ConfigError(
            "this config key is a table",
            where=full_key,
            expected=f"{full_key}.KEY with KEY one of {', '.join(f.name for f in fields(current))}",
        )
    declared = _declared(root)[full_key]
    value = _convert(value, declared)
    check_range(declared, value)
    return replace(config, **{name: value})


def _unknown_key(name: str, known: list[str], full_key: str, root: type) -> ConfigError:
    near = difflib.get_close_matches(name, known, 1)
    suggestions = [full_key[: full_key.rfind(name)] + match for match in near] or difflib.get_close_matches(
        full_key.split(".")[-1], list(_declared(root)), 1
    )
    hint = f"did you mean {suggestions[0]}?" if suggestions else None
    return ConfigError("unknown config key", where=full_key, expected=f"one of {', '.join(known)}", next=hint)


def _convert(value: Any, declared: ConfigKey) -> Any:
    """The value in the type of its setting; a whole number is accepted as a fraction."""
    default = declared.default
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
            raise ConfigError(
                f"{value!r} does not fit", where=declared.label, expected=f"numbers, like {list(default)}"
            )
        return tuple(_as_float(item, declared) for item in value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return _as_float(value, declared)
    if type(value) is not type(default):
        kind = TYPE_NAMES.get(type(default), "a list")
        example = list(default) if isinstance(default, tuple) else default
        raise ConfigError(f"{value!r} does not fit", where=declared.label, expected=f"{kind}, like {example!r}")
    return value


def _as_float(number: float, declared: ConfigKey) -> float:
    """The number as a float; unchanged where it is out of range, because it can be larger than any float."""
    return float(number) if declared.setting.in_range(number) else number
