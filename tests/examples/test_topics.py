"""Benchmarks whose peers need no extra run from start to end, at small sizes: what they call of ours is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


LONG = pytest.mark.skipif(
    not os.environ.get("CCACO_EVERY_TOPIC"), reason="takes half a minute; CCACO_EVERY_TOPIC=1 runs it"
)


def quick(topic: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, str(ROOT / f"examples/benchmarks/{topic}.py"), "--quick", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("topic", [pytest.param(topic, marks=LONG) for topic in ("infonce", "every_pair", "finetune")])
def test_a_topic_prints_its_table(topic: str, tmp_path: Path) -> None:
    more = ["--alone", "16384"] if topic == "infonce" else []
    assert "| what | ours | peer |" in quick(topic, *more, folder=tmp_path)


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        pytest.param("copies", "cached tokens of 24 texts: 0 incomplete", marks=LONG),
        pytest.param("equality", "differ by 0.0e+00", marks=LONG),
        pytest.param("resume", "killed after the first checkpoint: yes", marks=LONG),
        ("step_profile", "operations"),
        ("shortlists", "cross branch of 480 pairs"),
        ("evaluation", "largest difference of recalls: 0.00000"),
    ],
)
def test_the_checks_of_a_gpu_run_on_a_cpu(topic: str, words: str, tmp_path: Path) -> None:
    assert words in quick(topic, "--device", "cpu", folder=tmp_path)


def test_the_script_for_a_gpu_names_topics_that_exist() -> None:
    script = (ROOT / "examples/benchmarks/gpu.sh").read_text()
    topics = re.findall(r"^topic (\d+) (\w+)", script, flags=re.M)
    assert len(topics) == 10
    assert all((ROOT / f"examples/benchmarks/{topic}.py").exists() for _, topic in topics)


def test_the_script_for_a_gpu_ends_in_time_and_names_what_did_not_run(tmp_path: Path) -> None:
    python = tmp_path / "bin/python"  # every topic hangs
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexec sleep 100\n")
    python.chmod(0o755)
    (tmp_path / ".ccaco-bench").touch()  # everything is installed
    variables = {"VIRTUAL_ENV": str(tmp_path), "PATH": f"{python.parent}:{os.environ['PATH']}", "LIMIT": "1"}
    done = subprocess.run(
        ["bash", str(ROOT / "examples/benchmarks/gpu.sh"), "--device", "cpu", "--quick"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    failed = done.stderr.splitlines()[-1]
    assert failed.startswith("failed: copies equality (no time) resume (no time)")
    assert failed.count("(no time)") == 9


def test_every_storage_of_tokens_is_listed_with_its_bytes_and_recalls(run: Path, data_root: Path) -> None:
    output = quick(
        "tokens", "--run", str(run), "--dataset", str(data_root / "scenes"), "--grids", "0,4", folder=data_root
    )
    lines = [line for line in output.splitlines() if ", grid " in line]
    assert [line.split(",")[0] for line in lines] == ["- float16", "- int8"] * 2
    assert all("text_to_image_R@1" in line for line in lines)
