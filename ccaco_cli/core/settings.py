"""How a config field declares itself: help, command-line flag and accepted values stand beside its default."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar, get_type_hints

from ccaco_cli.core.errors import ConfigError

T = TypeVar("T")

MAX = 1_000_000
"""Largest value of a number that declares no upper bound."""


@dataclass(frozen=True)
class Setting:
    """What a config field declares beside its type and default.

    Attributes:
        help: what the setting does, one line. In tower fields ``{modality}`` and the words of ``section`` are filled
            in.
        flag: option of ``train`` and ``ablate``, or "" when only ``--set`` reaches the setting. ``{modality}`` makes
            one flag per modality; without it, one flag sets the key of every modality in ``flag_modalities``.
        flag_modalities: modalities whose tower the flag sets; empty means all.
        custom_flag: the commands declare the flag themselves, because it is not a plain value of this one key.
        metavar: placeholder of the value in ``--help``.
        shown_default: default in ``--help`` and in the settings table; None means the default itself.
        min, above: smallest value, or exclusive lower bound. Every number declares one of them.
        max, below: largest value, or exclusive upper bound; ``MAX`` where a number declares none of them.
        choices: accepted words, or "module:TABLE" below ``ccaco_cli.core`` whose keys are the accepted words; the
            default is accepted, too.
    """

    help: str
    flag: str = ""
    flag_modalities: tuple[str, ...] = ()
    custom_flag: bool = False
    metavar: str | None = None
    shown_default: str | None = None
    min: float | None = None
    above: float | None = None
    max: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | str = ()

    def range_text(self) -> str:
        """The accepted numbers in words, for example "above 0, at most 1"."""
        if self.min is not None and self.max is not None:
            return f"{self.min} to {self.max}"
        parts = [f"{self.min} or more" if self.min is not None else f"above {self.above}"]
        parts += [f"at most {self.max}"] if self.max is not None else []
        parts += [f"below {self.below}"] if self.below is not None else []
        return ", ".join(parts)

    def in_range(self, number: float) -> bool:
        """Whether a number is finite and inside the range."""
        return (
            (isinstance(number, int) or math.isfinite(number))  # a whole number can be larger than any float
            and (self.min is None or number >= self.min)
            and (self.above is None or number > self.above)
            and (self.max is None or number <= self.max)
            and (self.below is None or number < self.below)
        )

    def choice_names(self) -> tuple[str, ...]:
        """The accepted words; a table is imported when this is called."""
        if isinstance(self.choices, tuple):
            return self.choices
        module, _, table = self.choices.partition(":")
        return tuple(getattr(importlib.import_module(f"ccaco_cli.core.{module}"), table))


@dataclass(frozen=True)
class ConfigKey:
    """One setting with its place in the config.

    Attributes:
        key: dotted, for example ``model.image.lock``.
        modality: of a tower setting, else "".
    """

    key: str
    default: Any
    setting: Setting
    modality: str = ""

    @property
    def flag(self) -> str:
        """The flag that sets this key, or ""."""
        return self.setting.flag

    @property
    def label(self) -> str:
        """How error messages name the setting."""
        return f"{self.key} ({self.flag})" if self.flag else self.key


def setting(default: Any, help: str, **declaration: Any) -> Any:
    """A dataclass field with its declaration: ``lr: float = setting(1e-3, "Learning rate.", flag="--lr", above=0)``.

    Args:
        declaration: fields of ``Setting``.
    Raises:
        TypeError: a number without a lower bound.
    """
    declared = Setting(help, **declaration)
    sample = default[0] if isinstance(default, tuple) else default
    if isinstance(sample, int | float) and not isinstance(sample, bool):
        if declared.min is declared.above is None:
            raise TypeError(f"a numeric setting must declare min or above: {help}")
        if declared.max is declared.below is None:
            declared = replace(declared, max=MAX)
    return field(default=default, metadata={"setting": declared})


def section(kind: type, **words: str) -> Any:
    """A dataclass field that is a table of settings; ``words`` are filled into the help of its settings."""
    return field(default_factory=kind, metadata={"words": words})


def with_sections(sections: Mapping[str, Any], *, before: str) -> Callable[[type[T]], type[T]]:
    """Adds sections, which come from a table, to a config class before ``dataclass`` reads its fields.

    Args:
        sections: name -> ``section(...)``.
        before: field that stands behind them in the order of declaration.
    """

    def add(kind: type[T]) -> type[T]:
        annotations, kind.__annotations__ = kind.__annotations__, {}
        for name, annotation in annotations.items():
            if name == before:
                kind.__annotations__ |= {added: item.default_factory for added, item in sections.items()}
            kind.__annotations__[name] = annotation
        for name, item in sections.items():
            setattr(kind, name, item)
        return kind

    return add


def config_keys(kind: type, prefix: str = "", words: Mapping[str, str] | None = None) -> Iterator[ConfigKey]:
    """Every setting of a config class, nested ones included, in the order of declaration."""
    types = get_type_hints(kind)
    for item in fields(kind):
        key, field_type = f"{prefix}{item.name}", types[item.name]
        if is_dataclass(field_type):
            inner = item.metadata.get("words") or {}
            inner_words = {"modality": item.name, **inner} if inner else None
            yield from config_keys(field_type, f"{key}.", inner_words)  # type: ignore[arg-type]
            continue
        if "setting" not in item.metadata or item.default is MISSING:
            raise TypeError(f"{kind.__name__}.{item.name} must be declared with setting(default, help, ...)")
        declared = _fill_in(item.metadata["setting"], words)
        yield ConfigKey(key, item.default, declared, words["modality"] if words else "")


def _fill_in(declared: Setting, words: Mapping[str, str] | None) -> Setting:
    if words is None:  # not a tower, or a tower config on its own, whose flags need a modality
        return replace(declared, flag="") if "{" in declared.flag else declared
    modality, limited_to = words["modality"], declared.flag_modalities
    flag = declared.flag.format(modality=modality) if not limited_to or modality in limited_to else ""
    return replace(declared, help=declared.help.format(**words), flag=flag)


def check_range(key: ConfigKey, value: Any) -> None:
    """Checks a number, or every number of a list, against the range of its setting.

    Raises:
        ConfigError: a number is not finite or out of range.
    """
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int | float) or key.setting.in_range(number):
            continue
        raise ConfigError(f"{_number_text(number)} does not fit", where=key.label, expected=key.setting.range_text())


def _number_text(number: float) -> str:
    """The number as it is written, unless it is very long: Python writes whole numbers of at most 4300 digits."""
    long = isinstance(number, int) and abs(number) >= 10**30
    return "a number of more than 30 digits" if long else repr(number)


def check_choice(key: ConfigKey, value: Any) -> None:
    """Checks a word against the choices of its setting.

    Raises:
        ConfigError: the word is none of them.
    """
    if key.setting.choices and value != key.default and value not in (names := key.setting.choice_names()):
        raise ConfigError(f"{value!r} does not fit", where=key.label, expected=" | ".join(names))
