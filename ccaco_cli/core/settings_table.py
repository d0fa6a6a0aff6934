"""The table of all settings, for the guide of training: made from the declarations in ``config``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import TYPE_NAMES
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.recipes import RECIPES
from ccaco_cli.core.settings import ConfigKey, config_keys

HEADER = ("key", "default", "accepted values", "flag", "what it does")


@dataclass(frozen=True)
class SettingRow:
    """One setting; the keys of all towers are one row, with ``MODALITY`` in place of image, text, audio or video.

    Attributes:
        key: as ``--set`` takes it.
        default: as TOML; with the values of the recipes behind it, where they differ.
        accepted: type with range, or choices.
        flag: option of ``ccaco train``, or "".
        help: one line.
    """

    key: str
    default: str
    accepted: str
    flag: str
    help: str


def settings_table(kind: type = RunConfig) -> list[SettingRow]:
    """Every setting in the order of declaration. Tables of choices are imported, and torch with them."""
    rows: dict[str, SettingRow] = {}
    for key in config_keys(kind):
        name = _general(key.key)
        if name in rows and (rows[name].flag or not key.flag):
            continue
        flag, text = key.flag, key.setting.help
        if key.modality and f"-{key.modality}" in flag and not key.setting.flag_modalities:
            flag, text = (words.replace(key.modality, "MODALITY") for words in (flag, text))
        rows[name] = SettingRow(name, _default(key), _accepted(key), flag, text)
    return list(rows.values())


def settings_markdown(kind: type = RunConfig) -> str:
    """The table as Markdown."""
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    for row in settings_table(kind):
        cells = (f"`{row.key}`", row.default, row.accepted, f"`{row.flag}`" if row.flag else "", row.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _general(key: str) -> str:
    """``model.image.lock`` -> ``model.MODALITY.lock``; other keys stay as they are."""
    parts = key.split(".")
    return ".".join(["model", "MODALITY", *parts[2:]]) if parts[0] == "model" and parts[1] in MODALITIES else key


def _default(key: ConfigKey) -> str:
    """The default, and what recipes set instead: ``10; scratch 7, locked 25``."""
    changes = []
    for recipe, settings in RECIPES.items():
        values = {name: value for name, value in settings.items() if _general(name) == _general(key.key)}
        same_everywhere = not key.modality or (len(values) == len(MODALITIES) and len(set(values.values())) == 1)
        for name, value in list(values.items())[: 1 if same_everywhere else None]:
            modality = "" if same_everywhere else f"{name.split('.')[1]} "
            changes.append(f"{recipe} {modality}{_toml(value)}")
    return "; ".join([_toml(key.default), *([", ".join(changes)] if changes else [])])


def _accepted(key: ConfigKey) -> str:
    declared = key.setting
    if declared.choices:
        names = declared.choice_names()
        return " | ".join([*([] if key.default in names else [_toml(key.default)]), *names])
    sample = key.default[0] if isinstance(key.default, tuple) else key.default
    kind = "a list of numbers" if isinstance(key.default, tuple) else TYPE_NAMES[type(sample)]
    return kind if isinstance(sample, str | bool) else f"{kind}, {declared.range_text()}"


def _toml(value: Any) -> str:
    """A value as it is written in TOML, on one line."""
    import tomli_w

    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()
