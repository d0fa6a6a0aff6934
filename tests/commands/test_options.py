from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ccaco_cli.commands import options
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.shell import command_line, quoted_path
from ccaco_cli.view.tables import FORMATS


def test_formats() -> None:
    assert tuple(options.Format) == FORMATS


def test_commands_of_next_steps_are_quoted_for_the_shell() -> None:
    assert command_line("report", Path("runs/first")) == "ccaco report runs/first"
    line = command_line("embed", "--run", Path("my  runs/a'b"), *options.data_option(Path("my data")))
    assert shlex.split(line) == ["ccaco", "embed", "--run", "my  runs/a'b", "--data", "my data"]
    assert options.data_option(Path("data")) == ()
    assert command_line("report", "--stages", Path("-first")) == "ccaco report --stages ./-first", "not an option -f"
    assert quoted_path("-a  b") == "'./-a  b'"


def test_columns() -> None:
    assert options.parse_column_mapping(["caption=text", "image=a=b"], "--column") == {
        "caption": "text",
        "image": "a=b",
    }
    assert options.parse_column_mapping(None, "--column") == {}
    for text in ("caption", "=text", "caption="):
        with pytest.raises(ConfigError, match=r"--column.*OURS=THEIRS"):
            options.parse_column_mapping([text], "--column")


def test_fractions() -> None:
    assert [options.parse_fraction(text, "--x") for text in ("1%", "0.5", "100%", "0")] == [0.01, 0.5, 1.0, 0.0]
    for text in ("2", "-1%", "nan", "half", "1%%", "101%"):
        with pytest.raises(ConfigError, match="cannot read --x"):
            options.parse_fraction(text, "--x")
