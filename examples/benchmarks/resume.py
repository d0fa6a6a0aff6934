"""A run that is killed in the middle and resumed, against one that was not: figures of both."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record

from ccaco_cli.core import manifest

options = record.arguments(__doc__, images=2000, epochs=3)
images, epochs = (40, 2) if options.quick else (options.images, options.epochs)
with tempfile.TemporaryDirectory() as place:
    root = Path(place)
    program = [sys.executable, "-m", "ccaco_cli"]
    prepare = [*program, "prepare", "scenes", "--limit", str(images), "--out", str(root / "scenes")]
    subprocess.run(prepare, check=True, capture_output=True)
    train = [*program, "train", "--dataset", str(root / "scenes"), "--logs", str(root), "--device", options.device]
    train += ["--epochs", str(epochs), "--batch-size", "16" if options.quick else "128"]

    def trained(name: str, *more: str) -> dict[str, float]:
        subprocess.run([*train, "--name", name, *more], check=True, capture_output=True)
        stages = manifest.open(root / name, kind="run").facts["metrics"]
        return {f"{stage}.{key}": value for stage, metrics in stages.items() for key, value in metrics.items()}

    uninterrupted = trained("uninterrupted")
    process = subprocess.Popen([*train, "--name", "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((root / "killed/checkpoints").glob("[0-9]*/state.pt")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    killed = process.wait() != 0
    resumed = trained("killed", "--resume", "latest") if killed else uninterrupted
    logs = [(root / name / "metrics.jsonl").read_text("utf-8").splitlines() for name in ("uninterrupted", "killed")]
    losses = [[entry["total"] for entry in map(json.loads, log) if "total" in entry] for log in logs]
metric_difference = max(abs(uninterrupted[name] - value) for name, value in resumed.items())
loss_difference = max((abs(a - b) for a, b in zip(*losses, strict=True)), default=0.0)
facts = [
    f"killed after the first checkpoint: {'yes' if killed else 'NO, it was faster'}",
    f"{len(losses[0])} steps, in both; largest difference of a loss {loss_difference:.1e}, "
    f"of a figure {metric_difference:.1e}",
]
record.finish("Killed and resumed", [], options, facts=facts)
