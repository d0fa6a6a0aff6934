"""The layout of the package: which level may import which, checked by reading imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ccaco_cli"
LEVELS = {
    "workflows": 7,
    "reporting": 6,
    "export": 6,
    "library": 6,
    "experiments": 5,
    "scoring": 4,
    "training": 3,
    "retrieval": 3,
    "encoding": 2,
    "evaluation": 1,
    "model": 1,
    "losses": 1,
    "data": 1,
}
"""Package of ``core`` -> level.

A module imports modules of its own package and of lower levels; modules directly in ``core`` are level 0."""
COMMANDS = ("prepare", "train", "ablate", "embed", "retrieve", "report")
TERMINAL = ("typer", "rich", "matplotlib", "ccaco_cli.commands", "ccaco_cli.view", "ccaco_cli.app")
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            imported |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return imported


def package_of(parts: tuple[str, ...]) -> str:
    """core/model/towers/tiny.py -> model; core/config.py -> ''."""
    return parts[0] if parts[0] in LEVELS else ""


@pytest.mark.parametrize("path", [p for p in MODULES if "core" in p.parts], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_core_imports_downward_only(path: Path) -> None:
    here = package_of(path.relative_to(PACKAGE / "core").with_suffix("").parts)
    for name in imports(path):
        assert not name.startswith(TERMINAL), f"core imports the terminal: {name}"
        if not name.startswith("ccaco_cli.core."):
            continue
        there = package_of(tuple(name.split(".")[2:]))
        assert here == there or LEVELS.get(there, 0) < LEVELS.get(here, 0), (
            f"{here or 'level 0'} imports {there}: {name}"
        )


@pytest.mark.parametrize("path", [p for p in MODULES if "view" in p.parts], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_view_knows_no_commands(path: Path) -> None:
    assert not any(n.startswith(("ccaco_cli.commands", "ccaco_cli.app")) for n in imports(path))


def test_only_step_joins_model_and_losses() -> None:
    both = []
    for path in MODULES:
        names = imports(path)
        if any(n.startswith("ccaco_cli.core.model") for n in names) and any(
            n.startswith("ccaco_cli.core.losses") for n in names
        ):
            both.append(path.relative_to(PACKAGE).as_posix())
    # the loop asks losses only for the weights of the day, and its state holds the balance that learns them
    assert sorted(both) == ["core/training/loop.py", "core/training/state.py", "core/training/step.py"]


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if p.parent.name == "commands" and p.stem in COMMANDS],
    ids=lambda p: p.name,
)
def test_commands_are_thin(path: Path) -> None:
    functions = (n for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.FunctionDef))
    function = next(f for f in functions if f.name == path.stem)
    body = function.body[-1].end_lineno - function.body[1].lineno  # type: ignore[operator]
    assert body <= 60


def test_every_module_has_a_name_that_says_its_job() -> None:
    assert not [p for p in MODULES if p.stem in ("utils", "helpers", "common", "misc", "manager")]
