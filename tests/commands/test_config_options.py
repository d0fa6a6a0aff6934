"""Every setting that declares a flag has it, and what the flags of a command line set."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from ccaco_cli.app import app
from ccaco_cli.commands.config_options import ConfigSettings, config_flags, config_options
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.errors import CcacoError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.settings import config_keys

FLAGS = {
    *("--alpha", "--beta", "--balance", "--attention"),
    *("--image-tower", "--text-tower", "--audio-tower", "--video-tower"),
    *("--lock-image", "--lock-text", "--lock-audio", "--lock-video"),
    *("--image-size", "--tile", "--context-length", "--cache-tokens"),
    *("--source-domains", "--target-domain", "--domain-weight", "--domain-sides"),
    *("--epochs", "--batch-size", "--lr", "--wd", "--warmup", "--precision"),
    *("--device", "--workers", "--config", "--set"),
}
TRAIN_ONLY = {"--domain-loss", "--seed", "--parallel", "--gather-with-grad", "--no-gather-with-grad", "--local-loss"}
ALSO_TRAIN = {"--accum-freq", "--grad-checkpointing", "--torchcompile"}
HEADINGS = ("Data", "Model", "Losses", "Optimisation", "Domains", "Processes", "Run", "Output", "Other")
CONFIG_FLAGS = {flag.name for flag in config_flags()}
"""Names of the options whose range the config declares."""


def flags_of(command: str) -> set[str]:
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    return {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)}


def collected(*arguments: object) -> ConfigSettings:
    """What a command gets for a command line."""
    received: list[ConfigSettings] = []
    app = typer.Typer()

    @app.command()
    @config_options()
    def command(settings: ConfigSettings) -> None:
        received.append(settings)

    app([str(argument) for argument in arguments], standalone_mode=False)
    return received[0]


def test_every_flag_that_the_config_declares_is_an_option_of_train() -> None:
    declared = {key.flag for key in config_keys(RunConfig) if key.flag}
    assert len(declared) > 30
    assert declared <= flags_of("train")


def test_train_and_ablate_have_the_flags_that_people_know() -> None:
    assert set(FLAGS) | set(TRAIN_ONLY) | {"--accum-freq", "--grad-checkpointing", "--torchcompile"} <= flags_of(
        "train"
    )
    assert set(FLAGS) <= flags_of("ablate")
    assert not set(TRAIN_ONLY) & flags_of("ablate"), "arms decide about the loss, an ablation has its own seeds"


def test_every_flag_sets_its_key() -> None:
    values: dict[Any, tuple[str, object]] = {str: ("cpu", "cpu"), int: ("1", 1), float: ("0.5", 0.5)}
    for key in config_keys(RunConfig):
        if not key.flag or key.setting.custom_flag:
            continue
        kind = type(key.default)
        if kind is bool:
            arguments, value = [key.flag if not key.default else f"--no-{key.flag[2:]}"], not key.default
        else:
            text, value = values[kind]
            arguments = [key.flag, text]
        assert collected(*arguments).explicit[key.key] == value, key.flag


def test_set_overrides_flags_and_absent_flags_set_nothing(tmp_path: Path) -> None:
    assert collected() == ConfigSettings({}, {})
    settings = collected(
        "--beta", 0.5, "--seed", 3, "--cache-tokens", 9, "--set", "loss.beta=0.25", "--set", "optim.wd=1"
    )
    assert settings.explicit == {"loss.beta": 0.25, "seed": 3, "optim.wd": 1} | {
        f"model.{modality}.cache_tokens": 9 for modality in MODALITIES
    }
    override(RunConfig(), settings.explicit)
    (tmp_path / "c.toml").write_text("[loss]\nbeta = 0.125\n")
    assert collected("--config", tmp_path / "c.toml") == ConfigSettings({"loss.beta": 0.125}, {})


def test_image_sizes_and_tiles() -> None:
    assert collected("--image-size", 96).explicit == {"model.image.size": 96, "model.image.tiles": ""}
    settings = collected("--image-size", "4096x2048", "--tile", 512)
    assert settings.explicit == {"model.image.size": 512, "model.image.tiles": "8x4"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image-size", "large"], ["--image-size large", "HEIGHTxWIDTH"]),
        (["--image-size", "1x2x3"], ["HEIGHTxWIDTH"]),
        (["--image-size", "64x32"], ["add --tile"]),
        (["--image-size", "64x32", "--tile", "24"], ["divisor"]),
        (["--tile", "24"], ["HEIGHTxWIDTH"]),
        (["--lr", "nan"], ["nan", "optim.lr (--lr)", "above 0"]),
        (["--lr", "inf"], ["inf", "optim.lr (--lr)", "above 0"]),
        (["--alpha", "nan"], ["nan", "loss.alpha (--alpha)", "0 to 1000000"]),
        (["--beta", "-1"], ["-1.0", "loss.beta (--beta)", "0 to 1000000"]),
        (["--seed", "-1"], ["-1", "seed (--seed)", "0 to "]),
        (["--epochs", "0"], ["0", "optim.epochs (--epochs)", "1 to 1000000"]),
        (["--batch-size", "0"], ["0", "optim.batch_size (--batch-size)", "1 to 1000000"]),
        (["--accum-freq", "0"], ["0", "optim.accum_freq (--accum-freq)", "1 to 1000000"]),
        (["--workers", "-2"], ["-2", "workers (--workers)", "-1 to 1024"]),
        (["--context-length", "-5"], ["-5", "model.text.context_length (--context-length)", "0 to 1000000"]),
        (["--set", "optim.warmup=-1"], ["-1", "optim.warmup (--warmup)", "0 to 1000000000"]),
        (["--set", "model.image.input_dropout=nan"], ["nan", "model.image.input_dropout", "0 to 1"]),
        (["--set", "seed=x"], ["'x'", "seed (--seed)", "a whole number"]),
    ],
)
def test_a_value_that_does_not_fit_is_one_line_and_leaves_nothing(
    ccaco: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["train"], ["ablate"] if arguments[0] != "--seed" else ["train"]):
        done = ccaco(*command, *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
        assert done.err.startswith("ccaco: ")
        assert all(word in done.err for word in words), done.err
        assert not list(tmp_path.iterdir()), "not even the generated data set was prepared"


COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = [
    (command, parameter)
    for command, details in COMMANDS.items()
    for parameter in details.params
    if parameter.param_type_name == "option"
    if command not in ("train", "ablate") or parameter.name not in CONFIG_FLAGS
]
NUMBER_OPTIONS = [item for item in OPTIONS if item[1].type_descriptor.annotation in (int, float)]
FRACTION_OPTIONS = [item for item in OPTIONS if re.fullmatch(r"[\d.]+%?", str(item[1].default))]
FRACTION_OPTIONS = [item for item in FRACTION_OPTIONS if item not in NUMBER_OPTIONS]
DIGITS = "9" * 400
LONG = "9" * 5000  # Python converts whole numbers of at most 4300 digits


def refusal(command: str, flag: str, value: object) -> str:
    """How a command refuses a value of an option; without the start of the whole script, which takes longer."""
    arguments = ["scenes"] if command == "prepare" else []
    with pytest.raises((typer.BadParameter, CcacoError)) as refused:
        COMMANDS[command].main([*arguments, flag, str(value)], standalone_mode=False)
    error = refused.value
    return str(error) if isinstance(error, CcacoError) else error.format_message()


def test_all_numbers_of_the_commands_are_tested() -> None:
    known = {(command, parameter.opts[0]) for command, parameter in (*NUMBER_OPTIONS, *FRACTION_OPTIONS)}
    prepare = ("--limit", "--image-size", "--fold", "--seed", "--workers", "--val", "--test", "--max-rejects")
    assert known >= {("prepare", flag) for flag in prepare}
    assert known >= {("retrieve", "-k"), ("retrieve", "--rerank"), ("embed", "--store-grid")}
    assert known >= {("ablate", "--seeds"), ("ablate", "--jobs"), ("ablate", "--ensemble"), ("train", "--keep")}
    assert known >= {("train", "--save-every-minutes"), ("train", "--tile"), ("ablate", "--tile")}


@pytest.mark.parametrize(("command", "parameter"), NUMBER_OPTIONS, ids=lambda value: getattr(value, "name", value))
def test_every_number_outside_the_config_has_a_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, parameter: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    low, high = parameter.min, parameter.max
    assert None not in (low, high), "both limits are declared"
    outside = ["nan", "inf", "-inf", "", "text", "-1", DIGITS, LONG, low - 1, high + 1, *(["0"] if low > 0 else [])]
    for value in outside:
        assert f"Invalid value for '{parameter.opts[0]}'" in refusal(command, parameter.opts[0], value), value
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("command", "parameter"), FRACTION_OPTIONS, ids=lambda value: getattr(value, "name", value))
def test_every_fraction_has_a_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, parameter: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("nan", "inf", "-inf", "", "text", "-1", "-1%", "1.5", "101%", DIGITS, LONG, f"{LONG}%"):
        message = refusal(command, parameter.opts[0], value)
        assert parameter.opts[0] in message and "\n" not in message, value
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train", "ablate"])
@pytest.mark.parametrize("key", [key for key in config_keys(RunConfig) if key.flag], ids=lambda key: key.flag)
def test_every_number_of_the_config_is_checked_as_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, key: Any
) -> None:
    if isinstance(key.default, bool | str) or key.flag not in flags_of(command):
        return
    monkeypatch.chdir(tmp_path)
    low, high = key.setting.min, key.setting.max
    outside = ["nan", "-inf", "", "text", DIGITS, LONG, f"{DIGITS}x{DIGITS}"]
    outside += [] if low is None else [low - 1]
    outside += [] if high is None else [2 * high + 1]
    for value in outside:
        assert key.flag in refusal(command, key.flag, value), value
    assert not list(tmp_path.iterdir())


def test_help_is_grouped(ccaco: Callable[..., Any]) -> None:
    lines = ccaco("train", "--help").out.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [f"{name}:" for name in HEADINGS]
    assert any("[default: (by towers)]" in " ".join(lines[i : i + 2]) for i, line in enumerate(lines) if "--lr" in line)
