"""What the README's section on safety promises."""

from __future__ import annotations

import ast
import csv
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core.escape import cell, printable
from ccaco_cli.view import tables

PACKAGE = Path(__file__).parents[1] / "ccaco_cli"
NEEDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
FORBIDDEN = ("eval", "exec", "pickle.load", "pickle.loads", "os.system", "yaml.load", "joblib.load", "torch.hub.load")


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(n.func), n) for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_in_the_package_runs_what_a_file_says(path: Path) -> None:
    for name, call in calls(path):
        keywords = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
        assert name not in FORBIDDEN, f"{path}:{call.lineno} {name}"
        assert not name.endswith(("extractall", "all_gather_object", "broadcast_object_list")), (
            f"{path}:{call.lineno} {name}"
        )
        assert keywords.get("trust_remote_code") in (None, False), f"{path}:{call.lineno}"
        assert keywords.get("shell") in (None, False), f"{path}:{call.lineno}"
        if name in NEEDS:
            key, value = NEEDS[name]
            assert keywords.get(key) is value, f"{path}:{call.lineno} {name} without {key}={value}"


def test_no_network_unless_a_hub_name_is_requested(
    ccaco: Callable[..., Any], index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError(f"network: {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    small = [
        "--set",
        "model.width=16",
        "--set",
        "model.image.size=32",
        "--set",
        "optim.steps=1",
        "--batch-size",
        4,
        "--device",
        "cpu",
    ]
    assert (
        ccaco("prepare", "scenes", "--limit", 9, "--image-size", 32, "--out", tmp_path / "d", "--workers", 0).code == 0
    )
    assert ccaco("train", "--dataset", tmp_path / "d", *small, "--logs", tmp_path, "--name", "r").code == 0
    assert ccaco("retrieve", "a red cat", "--index", index).code == 0


HOSTILE = "\x1b[2J\x1b]0;owned\x07 \x9b31m =1+1 \u202egpj.exe"


@pytest.mark.parametrize("format", tables.FORMATS)
def test_captions_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str], format: str) -> None:
    tables.show(
        [{"id": "a", "text": [HOSTILE, "b"]}, {"id": HOSTILE, "text": "c"}], ("id", "text"), format, title=HOSTILE
    )
    shown = capsys.readouterr().out
    assert not any((ord(letter) < 32 and letter != "\n") or 127 <= ord(letter) < 160 for letter in shown)
    if format == "json":
        assert json.loads(shown)[1]["id"] == HOSTILE, "JSON keeps what was there"


def test_errors_cannot_either(ccaco: Callable[..., Any]) -> None:
    done = ccaco("retrieve", "x", "--index", "no\x1b[31m.idx")
    assert done.code == 2
    assert "\x1b" not in done.err and "no\\x1b[31m.idx" in done.err


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0"])
def test_spreadsheets_find_no_formula(text: str, tmp_path: Path) -> None:
    assert cell(text) == "'" + text
    from ccaco_cli.core.data.dataset_stats import csv_bytes

    row = list(
        csv.reader(
            csv_bytes(["id", "split", "reason", "where"], [[text, "train", "missing file", text]])
            .decode()
            .splitlines(keepends=True)
        )
    )[1]
    assert not row[0].startswith(("=", "+", "-", "@", "\t", "\r"))


def test_ordinary_text_is_left_alone() -> None:
    for text in ("a dog", "-cross", "naïve café 猫", "tab\tand\nline"):
        assert printable(text) == cell(text) == text
