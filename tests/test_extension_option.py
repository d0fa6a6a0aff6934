"""A new setting is one declaration: its flag, ``--set``, the table of settings and the range check follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import typer

from ccaco_cli.commands.config_options import ConfigSettings, config_options
from ccaco_cli.core.config import LossConfig, RunConfig
from ccaco_cli.core.config_io import override, parse_setting
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.settings import section, setting
from ccaco_cli.core.settings_table import settings_markdown, settings_table


@dataclass(frozen=True)
class ExtendedLoss(LossConfig):
    dummy: float = setting(0.5, "Strength of the dummy loss.", flag="--dummy-strength", min=0, max=2)


@dataclass(frozen=True)
class ExtendedConfig(RunConfig):
    loss: ExtendedLoss = section(ExtendedLoss)


def run(*arguments: str) -> ConfigSettings:
    received: list[ConfigSettings] = []
    app = typer.Typer()

    @app.command()
    @config_options(kind=ExtendedConfig)
    def command(settings: ConfigSettings) -> None:
        received.append(settings)

    app(list(arguments), standalone_mode=False)
    return received[0]


def test_a_new_setting_is_one_declaration(capsys: pytest.CaptureFixture[str]) -> None:
    assert override(ExtendedConfig(), run("--dummy-strength", "1.5").explicit).loss.dummy == 1.5
    assert override(ExtendedConfig(), run("--set", "loss.dummy=0.25").explicit).loss.dummy == 0.25
    with pytest.raises(ConfigError, match=r"did you mean loss\.dummy"):
        override(ExtendedConfig(), dict([parse_setting("loss.dumy=1")]))
    for arguments in (("--dummy-strength", "nan"), ("--dummy-strength", "3"), ("--set", "loss.dummy=-1")):
        with pytest.raises(ConfigError, match=r"loss\.dummy \(--dummy-strength\); expected 0 to 2"):
            run(*arguments)
    (row,) = (row for row in settings_table(ExtendedConfig) if row.key == "loss.dummy")
    assert (row.default, row.accepted, row.flag) == ("0.5", "a number, 0 to 2", "--dummy-strength")
    assert "Strength of the dummy loss." in settings_markdown(ExtendedConfig)
    with pytest.raises(SystemExit):
        typer_help()
    printed = capsys.readouterr().out
    assert "--dummy-strength" in printed and "Strength of the dummy loss." in printed


def typer_help() -> None:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(config_options(kind=ExtendedConfig)(lambda settings: None))
    app(["--help"])


def test_every_setting_is_in_the_table() -> None:
    keys = {row.key for row in settings_table()}
    assert {"loss.beta", "optim.lr", "seed", "eval.rerank_weights", "model.MODALITY.spec", "parallel.timeout"} <= keys
    rows = {row.key: row for row in settings_table()}
    assert rows["optim.epochs"].default == (
        "10; scratch 7, locked 25, finetune 5, adapter 25, last-blocks 5, everything 5, pretrained 5, lora 5"
    )
    assert rows["model.MODALITY.spec"].flag == "--MODALITY-tower"
    assert rows["model.MODALITY.context_length"].flag == "--context-length"
    assert rows["loss.balance"].accepted == "fixed | schedule | uncertainty | gradnorm"
    assert rows["model.MODALITY.pool"].default.startswith('"mean"; scratch image "max"')
