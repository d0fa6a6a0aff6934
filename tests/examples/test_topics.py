"""Benchmarks whose peers need no extra run from start to end, at small sizes: what they call of ours is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def quick(topic: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, str(ROOT / f"examples/benchmarks/{topic}.py"), "--quick", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("topic", ["infonce", "every_pair"])
def test_a_topic_prints_its_table(topic: str, tmp_path: Path) -> None:
    assert "| what | ours | peer |" in quick(topic, folder=tmp_path)


def test_every_storage_of_tokens_is_listed_with_its_bytes_and_recalls(run: Path, data_root: Path) -> None:
    output = quick(
        "tokens", "--run", str(run), "--dataset", str(data_root / "scenes"), "--grids", "0,4", folder=data_root
    )
    lines = [line for line in output.splitlines() if ", grid " in line]
    assert [line.split(",")[0] for line in lines] == ["- float16", "- int8"] * 2
    assert all("text_to_image_R@1" in line for line in lines)
