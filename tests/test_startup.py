"""Help must be instant: nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "pandas", "datasets", "numpy", "matplotlib", "transformers", "open_clip", "faiss", "pyarrow", "scipy")
COMMANDS = ("prepare", "train", "ablate", "embed", "retrieve", "report")


@pytest.mark.parametrize("arguments", [["--help"], *([c, "--help"] for c in COMMANDS)], ids=lambda a: a[0])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from ccaco_cli.app import main\n"
        f"sys.argv = ['ccaco', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    if arguments != ["--help"]:
        assert done.stdout.count("ccaco " + arguments[0]) >= 2, "two examples"
