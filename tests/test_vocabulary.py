"""The vocabulary and the size limits of the package, checked by reading the syntax tree.

Names are those of the field (the banned names are listed below), one class has one name, and nothing in the repository
refers to a document outside it.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ccaco_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = sorted(path for folder in ("tests", "examples") for path in (ROOT / folder).rglob("*.py"))
"""Tests and examples, which use the same vocabulary."""


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VAGUE = words(
    """
    found told given asked own made said kept look looked claim mine its theirs took went one ones every_one another
    most many few rest what whole sick learns seen spoken tell of_step as_seen goes_on judge judges starved
    """
)
"""Names that do not say what the value is."""

RENAMED = words(
    """
    Asked Looked Judge Claim Fitter
    together apart in_turn largest lie way brought think own_project led_by
    """
)
"""Names that have a standard term now, so that they do not come back."""

VAGUE_PARTS = words("found told asked said looked took went mine theirs spoken")
"""Words that make a compound name vague, too: ``shards_found`` says no more than ``shards``."""

MODULE_NAMES = words(
    """
    look claim cells choices negatives evidence transfer tally fit sound film vision depth narrow moments packing
    utils helpers common misc manager
    """
)
"""Modules that have another name now, and names that say nothing about what a module does."""

ALLOWED = {("ccaco_cli/core/errors.py", "what")}
"""The errors keep their four fields: what happened, where, what was expected, what to do next."""
PARAMETERS, LINES, NESTING = 7, 400, 4
OUTSIDE = re.compile(r"\b(?:DESIGN|SCIENCE)\b|\bshared/(?!data\b)|(?<!benchmarks/)\bRESEARCH\b")
"""Documents that a reader of this repository does not have, or does not find without a path."""


def assigned(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every variable, parameter, assigned attribute, function, class and import alias."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.alias(asname=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)):
                yield node.lineno, name


def is_banned(name: str) -> bool:
    bare = name.strip("_")
    return bare in VAGUE | RENAMED or bool(VAGUE_PARTS & set(bare.split("_")))


def banned_names(source: str, module: str) -> list[str]:
    tree = ast.parse(source)
    return [
        f"{module}:{line} {name}"
        for line, name in sorted(set(assigned(tree)))
        if is_banned(name) and (module, name) not in ALLOWED
    ]


def long_signatures(source: str, module: str) -> list[str]:
    problems = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > PARAMETERS:
                problems.append(f"{module}:{node.lineno} {node.name} has {count} parameters")
    return problems


def deep_nesting(source: str, module: str) -> list[str]:
    """Functions in which more than four blocks (if, for, while, with, try, match) stand inside each other."""
    blocks = ast.If | ast.For | ast.While | ast.With | ast.Try | ast.Match

    def depth(node: ast.AST) -> int:
        below = 0
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue  # counted by itself
            # "elif" is an If in the else branch of an If: it does not go one level deeper
            is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
            below = max(below, depth(child) + (isinstance(child, blocks) and not is_elif))
        return below

    return [
        f"{module}:{node.lineno} {node.name} is nested {depth(node)} deep"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and depth(node) > NESTING
    ]


def module_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def per_module(check, modules: list[Path]) -> list[str]:  # type: ignore[no-untyped-def]
    return [problem for path in modules for problem in check(path.read_text("utf-8"), module_name(path))]


def repository_files() -> Iterator[Path]:
    """Text files that belong to the repository: not the caches, builds and results that lie beside them."""
    folders = (PACKAGE, ROOT / "tests", ROOT / "examples", ROOT / ".github", ROOT / ".ci")
    files = [*ROOT.glob("*"), *(path for folder in folders for path in folder.rglob("*"))]
    for path in sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts):
        if path.suffix in (".py", ".md", ".toml", ".sh", ".yml", ".yaml", ".j2", ".html", ".cfg", "") and path != Path(
            __file__
        ):
            yield path


def test_names_are_the_terms_of_the_field() -> None:
    assert not per_module(banned_names, [*MODULES, *PROGRAMS])


def test_modules_are_named_after_what_they_do() -> None:
    assert not [module_name(path) for path in MODULES if path.stem in MODULE_NAMES]


def test_one_class_has_one_name() -> None:
    classes = Counter(
        node.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert not [name for name, count in classes.items() if count > 1]


def test_functions_take_at_most_seven_parameters() -> None:
    # a Typer command has one parameter for each of its options
    modules = [path for path in MODULES if path.parent != PACKAGE / "commands"]
    assert not per_module(long_signatures, modules)


def test_blocks_are_nested_at_most_four_deep() -> None:
    assert not per_module(deep_nesting, MODULES)


def test_modules_have_at_most_400_lines() -> None:
    lengths = {module_name(path): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert not {module: lines for module, lines in lengths.items() if lines > LINES}


def test_nothing_refers_to_a_document_outside_the_repository() -> None:
    problems = []
    for path in repository_files():
        if ROOT / "examples/benchmarks" in path.parents or path.name in ("README.md", "CHANGELOG.md"):
            pattern = re.compile(r"\b(?:DESIGN|SCIENCE)\b|\bshared/(?!data\b)")  # RESEARCH.md lies beside these
        else:
            pattern = OUTSIDE
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if pattern.search(line):
                problems.append(f"{path.relative_to(ROOT)}:{number} {line.strip()[:80]}")
    assert not problems


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "def step(asked): ...",
        "def goes_on(): ...",
        "class Asked: ...",
        "self.kept = 1",
        "for told in range(3): ...",
        "import numpy as theirs",
        "[x for _found in y]",
        "with open(path) as shards_found: ...",
        "try: ...\nexcept E as said: ...",
        "match x:\n    case [*rest]: ...",
        "if (own := f()): ...",
    ],
)
def test_a_banned_name_is_noticed(source: str) -> None:
    assert banned_names(source, "core/module.py")


def test_good_names_pass() -> None:
    assert not banned_names("shards = 1\nfoundation = 2\nlookup = 3\nclass TrainRequest: ...", "core/module.py")
    assert not banned_names("f(found=1)\nx.told\nprint(asked)", "core/module.py")  # only what this code itself names


def test_a_long_signature_is_noticed() -> None:
    assert not long_signatures("def f(self, a, b, c, d, e, *, g, h): ...", "m.py")
    assert long_signatures("def f(self, a, b, c, d, e, *, g, h, i): ...", "m.py")


def test_deep_nesting_is_noticed() -> None:
    def nest(levels: int) -> str:
        return "def f():\n" + "".join(f"{'    ' * (i + 1)}if x:\n" for i in range(levels)) + "    " * (levels + 1) + "y"

    assert not deep_nesting(nest(4), "m.py")
    assert deep_nesting(nest(5), "m.py")
    chain = "def f():\n    if a: ...\n" + "".join(f"    elif b{i}: ...\n" for i in range(9))
    assert not deep_nesting(chain, "m.py")


@pytest.mark.parametrize(
    "line", ["as DESIGN section 2 says", "SCIENCE.md, finding 3", "see shared/plan.md", "RESEARCH lead 14"]
)
def test_a_document_outside_is_noticed(line: str) -> None:
    assert OUTSIDE.search(line)
    assert not OUTSIDE.search("examples/benchmarks/RESEARCH.md, lead 14; ../shared/data; designed")
