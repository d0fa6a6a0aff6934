"""Every command, option and ``--set`` key in README, guides, help texts and next steps of errors exists."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from ccaco_cli.app import app
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override, parse_setting
from ccaco_cli.core.errors import ConfigError

ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def command_lines(text: str) -> Iterator[str]:
    """Every ``ccaco ...`` line of a text: in fences, after ``$`` or a pipe, in back-ticks; joins continued lines."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        for part in re.split(r"\||&&|;|`", line.split(" #")[0]):
            if match := re.match(r"\s*(?:\$ )?(?:uvx? |uv run |python -m )?(ccaco(?:_cli)? .*)", part):
                yield match.group(1).strip()


def check_command(line: str) -> None:
    """Fails when the line names a command, option or setting that does not exist."""
    try:
        words = shlex.split(line)[1:]
    except ValueError:
        pytest.fail(f"cannot be typed into a shell: {line}")
    if not words or not re.fullmatch(r"[a-z]+|-.*", words[0]):
        return  # a sentence about ccaco, not a command
    name, arguments = words[0], words[1:]
    if name.startswith("-"):
        assert name in ("--help", "-h", "--version", "--install-completion", "--show-completion"), line
        return
    assert name in COMMANDS, f"no such command: {line}"
    options = {
        option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help", "-h"}
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if word.startswith("--") or re.fullmatch(r"-[a-z]", word):
            assert word.split("=")[0] in options, f"no option {word}: {line}"
        if word == "--set" and "=" in following and not following.startswith("KEY"):
            key, value = parse_setting(following)
            placeholder = re.search(r"^[A-Z]+$|\$", str(value))  # of a person or the shell
            try:
                override(RunConfig(), {key: object() if placeholder else value})
            except ConfigError as error:
                assert placeholder and "does not fit" in str(error), f"{error}: {line}"


def texts() -> Iterator[tuple[str, str]]:
    for path in [
        *sorted(ROOT.glob("*.md")),
        *sorted(ROOT.glob(".github/*.md")),
        *sorted(ROOT.glob("examples/**/*.md")),
        *sorted(ROOT.glob("examples/**/*.sh")),
    ]:
        yield path.relative_to(ROOT).as_posix(), path.read_text("utf-8")
    for name, command in COMMANDS.items():
        yield f"ccaco {name} --help", inspect.cleandoc(command.help)


@pytest.mark.parametrize(("where", "text"), list(texts()), ids=lambda x: x if len(x) < 60 and "\n" not in x else "")
def test_every_documented_command_exists(where: str, text: str) -> None:
    for line in command_lines(text):
        check_command(line)


def test_the_readme_is_there_and_shows_every_command() -> None:
    lines = command_lines((ROOT / "README.md").read_text("utf-8"))
    documented = {line.split()[1] for line in lines if len(line.split()) > 1}
    assert set(COMMANDS) <= documented


def test_every_help_has_two_examples_that_can_be_typed() -> None:
    for name, command in COMMANDS.items():
        examples = list(command_lines(command.help))
        assert len(examples) >= 2, name
        assert all(line.split()[1] == name for line in examples)


def test_the_next_steps_of_errors_exist() -> None:
    lines = []
    for path in sorted((ROOT / "ccaco_cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and re.match(r"ccaco [a-z]+( |$)", node.value)
            ):
                lines.append(node.value.replace("'", "").replace('"', ""))
            elif isinstance(node, ast.JoinedStr):
                text = "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)
                lines += [
                    line.replace('"', "")
                    for line in re.findall(r"ccaco (?:prepare|train|ablate|embed|retrieve|report) [^,;(]*", text)
                ]
    assert len(lines) > 10
    for line in lines:
        check_command(line)


@pytest.mark.parametrize(
    "line",
    [
        "ccaco trian",
        "ccaco train --betta 1",
        "ccaco train --set loss.bta=1",
        "ccaco train --set loss.beta=-1",
        "ccaco retrieve 'x",
    ],
)
def test_this_test_can_fail(line: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_command(line)
