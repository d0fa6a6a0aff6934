from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli import __version__
from ccaco_cli.core.scoring import results


def test_version_and_help(ccaco: Callable[..., Any]) -> None:
    assert ccaco("--version").out == f"{__version__}\n"
    for arguments in (("-h",), ("--help",), ()):
        done = ccaco(*arguments)
        assert all(
            name in done.out + done.err for name in ("prepare", "train", "ablate", "embed", "retrieve", "report")
        )


@pytest.mark.parametrize(
    ("words", "completions"),
    [("ccaco tr", {"train"}), ("ccaco re", {"retrieve", "report"}), ("ccaco train --lock-", {"--lock-image"})],
)
def test_the_shell_completes_commands_and_options(words: str, completions: set[str]) -> None:
    position = str(len(words.split()) - 1)
    completing = {"_CCACO_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": position}
    done = subprocess.run(
        [sys.executable, "-c", "from ccaco_cli.app import app; app(prog_name='ccaco')"],
        capture_output=True,
        text=True,
        env=os.environ | completing,
        check=True,
    )
    assert completions <= set(done.stdout.split()), done.stderr
    assert all(word.startswith(words.split()[-1]) for word in done.stdout.split())


def test_an_interruption_ends_with_130(ccaco: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "find_runs", interrupted)
    done = ccaco("report", "x")
    assert (done.code, done.out) == (130, "")
    assert done.err == "ccaco: interrupted; the same command goes on where it can\n"


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.npy"), "x.npy"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "while reading or writing"),
        (OSError("4096 requested and 1024 written"), "while reading or writing"),  # as NumPy says it
        (OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space"), "while reading or writing"),
    ],
)
def test_a_full_disk_is_one_line(
    ccaco: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: OSError, where: str
) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr(results, "find_runs", full)
    done = ccaco("report", "x")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"ccaco: No space left on device: {where}; expected free disk space; next: repeat the command, "
        "finished parts are kept\n"
    )


def test_a_bug_is_not_hidden(ccaco: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*arguments: Any, **more: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(results, "find_runs", buggy)
    with pytest.raises(ZeroDivisionError):
        ccaco("report", "x")


def test_the_script_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ccaco_cli", "report", str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ccaco: no finished run here: {tmp_path / 'gone'}; expected ")
    assert done.stderr.endswith("; next: ccaco train --dataset scenes\n")
    assert done.stderr.count("\n") == 1
