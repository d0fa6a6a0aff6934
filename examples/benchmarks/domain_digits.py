"""Known effect of domain-adversarial training: scikit-learn's digits, and the same digits on noise.

usage: python examples/benchmarks/domain_digits.py [FOLDER] [SEEDS]
  FOLDER (default: digits) receives images, data set and runs; the same command continues after an interruption.
  SEEDS (default: 3).

Each digit is in one split, in both domains. A label predictor is trained on the plain digits. Of the noisy digits,
training sees only the images; their background has any brightness, and on a bright background the digit is inverted
(as in MNIST-M, arXiv:1505.07818). Prints the accuracy on the noisy test digits with its 95 % interval, compared
with the classifier without adaptation, and the accuracy on plain digits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ccaco_cli.core import manifest
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.experiments import arms
from ccaco_cli.core.experiments.grid import AblationRequest
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.reporting import report_tables
from ccaco_cli.core.workflows.ablate import ablate
from ccaco_cli.view import progress, results

SIDE = 32
SETTINGS = {
    "domain.target": "noisy",
    "model.image.size": SIDE,
    "model.width": 64,
    "optim.batch_size": 64,
    "optim.epochs": 60,
    "optim.lr": 1e-3,
    "device": "cpu",
}


def pictures(seed: int = 0) -> Iterator[tuple[str, Image.Image]]:
    """Yields (path, image). Plain is white on black; noisy is |background - plain|, with random brightness and uniform
    noise."""
    digits = load_digits()
    rows = np.arange(len(digits.target))
    train, held_out = train_test_split(rows, test_size=0.3, random_state=seed, stratify=digits.target)
    val, test = train_test_split(held_out, test_size=2 / 3, random_state=seed, stratify=digits.target[held_out])
    rng = np.random.default_rng(seed)
    for split, chosen in (("train", train), ("val", val), ("test", test)):
        for row in chosen:
            small = Image.fromarray((digits.images[row] / 16 * 255).astype(np.uint8))
            plain = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(float)
            background = np.clip(255 * rng.uniform() + rng.uniform(-50, 50, plain.shape), 0, 255)
            noisy = np.abs(background - plain)
            for domain, array in (("plain", plain), ("noisy", noisy)):
                yield f"{split}/{domain}/{digits.target[row]}/{row}.png", Image.fromarray(array.astype(np.uint8))


def main(folder: Path, seeds: int) -> None:
    data = folder / "data"
    if not manifest.exists(data / "digits"):
        for name, picture in pictures():
            path = folder / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        prepare("imagefolder", source_path=folder / "pictures", out=data / "digits", write=WriteOptions(workers=0))
    with progress.bar("digits") as report_progress:
        ablation = ablate(
            AblationRequest(
                TrainRequest("digits", explicit=SETTINGS),
                arms.expand("classifiers"),
                seeds,
                metric="class_accuracy",
                reference="classifier",
            ),
            folder / "runs",
            jobs=2,
            data_root=data,
            on_progress=report_progress,
        )
    results.show(ablation.table, "table", f"{folder}: noisy digits")
    about = report_tables.ReportRequest([folder / "runs"], metric="class_accuracy", reference="classifier")
    results.show(report_tables.table(about, "domains"), "table", f"{folder}: across domains")
    for cell, error in ablation.failures.items():
        progress.note(f"failed: {cell}: {error}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(Path(arguments[0] if arguments else "digits"), int(arguments[1]) if len(arguments) > 1 else 3)
