"""Filtering noisy training pairs: finding exchanged captions by cosine alone and by both stages, and what training on
raw, filtered and clean pairs gives.

A share of the training captions is exchanged among pictures. The model that filters is trained on these noisy pairs; it
never sees the clean ones. Only its calibration uses the validation split, which is clean.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import record
from sklearn.metrics import average_precision_score

from ccaco_cli.core import config_io, manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import DatasetInfo, PairData, WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.evaluation.calibration import Calibration
from ccaco_cli.core.experiments.pair_filter import PairFilter
from ccaco_cli.core.experiments.pair_scores import Pair, PairModel, open_pair_model
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.retrieval.rerank import COSINE, TWO_STAGE, Scorer
from ccaco_cli.core.types import PairRecord
from ccaco_cli.core.workflows.train import train

CLEAN, RAW, FILTERED = "clean", "raw", "filtered"
TINY = {"model.image.size": 64, "optim.batch_size": 64, "device": "cpu"}


def exchange(data: PairData, share: float, seed: int) -> tuple[list[str], np.ndarray]:
    """The captions of ``train``, a share of them moved to pictures of another group.

    Returns:
        The captions in the order of the split, and [captions] bool: which were exchanged.
    """
    split = data.split("train")
    group = split.group[split.caption_row]
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(split.captions))[: round(share * len(split.captions))]
    # in a random order of the groups, each caption moves on by as many places as the largest group has captions
    order = chosen[np.argsort(rng.permutation(group.max() + 1)[group[chosen]], kind="stable")]
    moved = np.roll(order, np.bincount(group[chosen]).max())
    captions = np.array(split.captions, object)
    captions[order] = captions[moved]
    exchanged = np.zeros(len(captions), bool)
    exchanged[order] = group[order] != group[moved]
    return captions.tolist(), exchanged


def records(data: PairData, captions: Sequence[str]) -> Iterator[PairRecord]:
    """The records of a prepared data set, with other captions in ``train``."""
    for name in data.splits:
        split = data.split(name)
        texts = list(captions) if name == "train" else split.captions
        for row in range(len(split)):
            yield PairRecord(
                id=split.ids[row],
                group=f"g{split.group[row]}",
                split=name,
                media={m: split.media(m, [row])[0] for m in data.modalities if m != "text"},
                captions=texts[split.caption_start[row] : split.caption_start[row + 1]],
            )


def write(data: PairData, captions: Sequence[str], out: Path, pair_filter: PairFilter | None = None) -> PairData:
    """A data set with these captions in ``train``, filtered or not."""
    info = DatasetInfo(out.name, data.modalities, facts={"protocol": data.manifest.facts["protocol"]})
    shards.write(records(data, captions), out, info, WriteOptions(workers=0, duplicates=False, pair_filter=pair_filter))
    return shards.open(out)


def fit(root: Path, name: str, dataset: str, settings: dict[str, Any], base: dict[str, Any]) -> manifest.Manifest:
    """Trains a run."""
    return train(TrainRequest(dataset, base=base, explicit=settings), root / "runs" / name, data_root=root)


@dataclass(frozen=True)
class Detection:
    """How well exchanged captions are found.

    Attributes:
        precision, recall: of the pairs below the threshold, 0..1.
        average_precision: over all thresholds, 0..1; chance is the share of exchanged captions.
    """

    score: str
    precision: float
    recall: float
    average_precision: float
    pairs: int

    def __str__(self) -> str:
        numbers = f"precision {100 * self.precision:.1f} %, recall {100 * self.recall:.1f} %"
        average = f"average precision {100 * self.average_precision:.1f} %"
        return f"exchanged captions by {self.score}: {numbers}, {average} ({self.pairs:,} pairs)"


def detect(model: PairModel, data: PairData, captions: Sequence[str], exchanged: np.ndarray, keep: float) -> Detection:
    """Finds exchanged captions as the pairs whose probability is below ``keep``."""
    split = data.split("train")
    media = next(m for m in data.modalities if m != "text")
    pairs = (
        Pair(split.media(media, [int(row)])[0], text) for row, text in zip(split.caption_row, captions, strict=True)
    )
    probability = np.array([score.probability for score in model.score(pairs)], float)
    below = probability < keep
    return Detection(
        model.scorer.kind,
        float(exchanged[below].mean()) if below.any() else float("nan"),
        float(below[exchanged].mean()),
        float(average_precision_score(exchanged, -probability)),
        len(captions),
    )


def measure(root: Path, options: argparse.Namespace, seed: int) -> tuple[list[Detection], dict[str, float]]:
    """One seed: how well exchanged captions are found, and R-sum on test by the pairs of the training."""
    clean = shards.open(root / CLEAN)
    captions, exchanged = exchange(clean, options.share, seed)
    write(clean, captions, root / f"{RAW}-{seed}")
    base = config_io.load(Path(options.config)) if options.config else {}
    batch = int(base.get("optim.batch_size", TINY["optim.batch_size"]))
    steps = 10 if options.quick else max(1, options.epochs * len(clean.split("train")) // batch)
    settings = ({} if options.config else TINY) | {"optim.steps": steps, "seed": seed, "device": options.device}
    raw = fit(root, f"{RAW}-{seed}", f"{RAW}-{seed}", settings, base)
    model = open_pair_model(root / "runs" / f"{RAW}-{seed}", options.device)
    by_cosine = replace(
        model,
        scorer=Scorer.of(COSINE),
        calibration=Calibration.from_dict(raw.facts["calibration"][COSINE]),
    )
    both = model if model.scorer.kind == TWO_STAGE else by_cosine  # weight 0 was best on validation
    detections = [detect(m, clean, captions, exchanged, options.keep_above) for m in (by_cosine, both)]
    chosen = PairFilter(both, options.keep_above, 0.5)
    write(clean, captions, root / f"{FILTERED}-{seed}", chosen)
    runs = {RAW: raw}
    for name, dataset in ((FILTERED, f"{FILTERED}-{seed}"), (CLEAN, CLEAN)):
        runs[name] = fit(root, f"{name}-{seed}", dataset, settings, base)
    sums = {name: float(run.facts["metrics"][f"test.{run.facts['headline']}"]["R-sum"]) for name, run in runs.items()}
    return detections, sums


def main() -> None:
    """Measures and writes the table."""
    options = record.arguments(
        __doc__ or "", flickr8k="", config="", share=0.2, keep_above=0.5, epochs=10, seeds=3, limit=0
    )
    if options.quick:
        options.seeds = 1
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        limit = 100 if options.quick else options.limit or None
        name, source = ("flickr8k", Path(options.flickr8k)) if options.flickr8k else ("scenes", None)
        shrink = WriteOptions(image_size=224, workers=0 if options.quick else None)
        settings = SourceOptions(limit=limit, size=64)
        prepare(name, source_path=source, out=root / "source", options=settings, write=shrink)
        published = shards.open(root / "source")
        write(published, published.split("train").captions, root / CLEAN)  # as the others: without families of twins
        measured = [measure(root, options, seed) for seed in range(options.seeds)]
    facts = [f"seed {seed}: {detection}" for seed, (detections, _) in enumerate(measured) for detection in detections]
    for trained_on in (RAW, FILTERED, CLEAN):
        sums = [r_sums[trained_on] for _, r_sums in measured]
        listed = ", ".join(f"{value:.1f}" for value in sums)
        facts.append(f"R-sum on test, trained on {trained_on} pairs: {statistics.mean(sums):.1f} (seeds: {listed})")
    note = (
        f"\n{100 * options.share:.0f} % of the training captions of {name} were exchanged; the same number of steps "
        "for all three. The model that filters was trained on the noisy pairs, and calibrated on validation, which is "
        "clean."
    )
    record.finish("Noisy training pairs", [], options, note, facts)


if __name__ == "__main__":
    main()
