"""Compares the recalls of CLIP_benchmark with those of ``ccaco report``, on an exported open_clip model and Flickr8k.

CLIP_benchmark's own code loads the model, reads the photos and captions, and computes the recalls
(``clip_benchmark.metrics.zeroshot_retrieval``, package clip-benchmark 1.6.2). Its annotation file is written from
Flickr8k.token.txt and the official list of test photos. ``ccaco`` scores the same weights on its prepared data set.

usage: CCACO_REAL_DATA=FOLDER python examples/clip_benchmark_retrieval.py EXPORTED [DATA]
FOLDER holds flickr8k. EXPORTED is what ``ccaco embed --model MODEL --export open_clip --out EXPORTED`` wrote.
DATA is the folder of prepared data sets (default: data). The exit code is 1 where a recall differs by more than 1e-4.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch
from clip_benchmark.datasets.builder import image_captions_collate_fn
from clip_benchmark.datasets.flickr import Flickr
from clip_benchmark.metrics import zeroshot_retrieval
from clip_benchmark.models.open_clip import load_open_clip

from ccaco_cli.core import manifest
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.experiments.cross_dataset import ScoreOptions, score_on
from ccaco_cli.core.scoring import results

CLOSE = 1e-4
RECALLS = (1, 5, 10)
NAMES = {"image_retrieval": "text_to_image", "text_retrieval": "image_to_text"}
"""Name of a direction in CLIP_benchmark -> in ccaco."""


def write_annotations(flickr8k: Path, file: Path) -> None:
    """Writes captions of the test photos as CLIP_benchmark reads them: a header, then ``photo.jpg,caption``."""
    photos = set((flickr8k / "Flickr_8k.testImages.txt").read_text("utf-8").split())
    lines = ["image,caption"]
    for line in (flickr8k / "Flickr8k.token.txt").read_text("utf-8").splitlines():
        name, _, caption = line.partition("\t")
        if (photo := name.partition("#")[0]) in photos:
            lines.append(f"{photo},{caption.strip()}")
    file.write_text("\n".join(lines) + "\n", "utf-8")


def clip_benchmark_recalls(exported: Path, flickr8k: Path, batch: int = 50) -> dict[str, float]:
    """The recalls that CLIP_benchmark computes, by the names of ccaco."""
    model, preprocess, tokenizer = load_open_clip(f"local-dir:{exported}", pretrained=None)
    with tempfile.TemporaryDirectory() as folder:
        write_annotations(flickr8k, Path(folder) / "test.csv")
        photos = Flickr(str(flickr8k / "Images"), str(Path(folder) / "test.csv"), transform=preprocess)
    loader = torch.utils.data.DataLoader(photos, batch_size=batch, collate_fn=image_captions_collate_fn)
    metrics = zeroshot_retrieval.evaluate(
        model.eval(), loader, tokenizer, "cpu", amp=False, recall_k_list=list(RECALLS)
    )
    return {
        f"{name}_R@{k}": float(metrics[f"{direction}_recall@{k}"]) for direction, name in NAMES.items() for k in RECALLS
    }


def ccaco_recalls(exported: Path, flickr8k: Path, data_root: Path) -> dict[str, float]:
    """The recalls that ``ccaco report --model open_clip:EXPORTED --on flickr8k`` prints."""
    if not manifest.exists(data_root / "flickr8k"):
        prepare(
            "flickr8k",
            source_path=flickr8k,
            out=data_root / "flickr8k",
            options=SourceOptions(),
            write=WriteOptions(workers=0),
        )
    (file,) = score_on([f"open_clip:{exported}"], "flickr8k", ScoreOptions("test", device="cpu"), data_root=data_root)
    metrics = results.load_result(results.find_runs([file])[0], "test").metrics
    return {f"{name}_R@{k}": float(metrics[f"{name}_R@{k}"] or 0.0) for name in NAMES.values() for k in RECALLS}


def main() -> int:
    """Prints both side by side; returns the exit code."""
    exported, data_root = (Path(word) for word in (*sys.argv[1:], "data")[:2])
    flickr8k = Path(os.environ["CCACO_REAL_DATA"]) / "flickr8k"
    benchmark, ours = clip_benchmark_recalls(exported, flickr8k), ccaco_recalls(exported, flickr8k, data_root)
    print(f"{'recall':20s} {'CLIP_benchmark':>14s} {'ccaco':>9s}")
    for name, value in benchmark.items():
        print(f"{name:20s} {value:14.4f} {ours[name]:9.4f}")
    difference = max(abs(ours[name] - value) for name, value in benchmark.items())
    print(f"largest difference: {difference:.1g}")
    return int(difference > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
