"""The table of all settings, for the guide of training: made from the declarations in ``config``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import TYPE_NAMES
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
        name = _general_name(key)
        if name not in rows or (key.flag and not rows[name].flag):
            flag, help = (text.replace(key.modality, "MODALITY") if _per_modality(key) else text
                          for text in (key.flag, key.setting.help))  # fmt: skip
            rows[name] = SettingRow(name, _default(key), _accepted(key), flag, help)
    return list(rows.values())


def settings_markdown(kind: type = RunConfig) -> str:
    """The table as Markdown."""
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    for row in settings_table(kind):
        cells = (f"`{row.key}`", row.default, row.accepted, f"`{row.flag}`" if row.flag else "", row.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _general_name(key: ConfigKey) -> str:
    return key.key.replace(f"model.{key.modality}.", "model.MODALITY.") if key.modality else key.key


def _per_modality(key: ConfigKey) -> bool:
    return bool(key.modality) and key.modality in key.flag and not key.setting.flag_modalities


def _default(key: ConfigKey) -> str:
    """The default, and what recipes set instead: ``10; scratch 7, locked 25``."""
    changes = []
    for recipe, settings in RECIPES.items():
        values = {
            name.split(".")[1] if key.modality else "": value
            for name, value in settings.items()
            if name == key.key or (key.modality and _same_tower_key(name, key))
        }
        if len(values) == 4 and len(set(map(str, values.values()))) == 1:
            values = {"": next(iter(values.values()))}
        changes += [" ".join(filter(None, (recipe, modality, toml_value(value)))) for modality, value in values.items()]
    return "; ".join([toml_value(key.default), *([", ".join(changes)] if changes else [])])


def _same_tower_key(name: str, key: ConfigKey) -> bool:
    parts = name.split(".")
    return len(parts) == 3 and parts[0] == "model" and parts[1] != "fusion" and parts[2] == key.key.split(".")[2]


def _accepted(key: ConfigKey) -> str:
    declared = key.setting
    if declared.choices:
        names = declared.choice_names()
        return " | ".join([*([] if key.default in names else [toml_value(key.default)]), *names])
    sample = key.default[0] if isinstance(key.default, tuple) else key.default
    kind = "a list of numbers" if isinstance(key.default, tuple) else TYPE_NAMES[type(sample)]
    return kind if isinstance(sample, str | bool) else f"{kind}, {declared.range_text()}"


def toml_value(value: Any) -> str:
    """A default as it is written in TOML."""
    import tomli_w

    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip().replace("\n", " ")
