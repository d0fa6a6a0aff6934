from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PYTHON = f"{sys.executable} -m ccaco_cli"


def _shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=REPOSITORY, check=False)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-"])
@pytest.mark.parametrize(("arguments", "code"), [("prepare --list", 0), ("--version", 0), ("report missing-run", 2)])
def test_closed_streams_change_no_exit_code(arguments: str, code: int, closed: str) -> None:
    done = _shell(f"{PYTHON} {arguments} {closed}")
    assert done.returncode == code
    assert "Traceback" not in done.stdout + done.stderr


def test_a_reader_that_ends_early_is_no_error() -> None:
    done = _shell(f"{PYTHON} prepare --list | head -n 1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "name,modalities,expects\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_results_that_cannot_be_written_are_an_error() -> None:
    done = _shell(f"{PYTHON} prepare --list >/dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("ccaco: No space left on device") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("query", [rb"caf\xe9", rb"\xff\xfea", rb"a \x80 cat"])
def test_arguments_that_are_not_utf8_are_refused(query: bytes) -> None:
    done = _shell(f"{PYTHON} retrieve $'{query.decode()}' --index missing.idx")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "not UTF-8" in done.stderr and "argument 2" in done.stderr and "byte" in done.stderr
