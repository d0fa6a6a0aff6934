"""Captions of a split by the decoder and by retrieval, stored for each sample, so that tables need no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.caption_languages import LANGUAGES
from ccaco_cli.core.errors import DataError

if TYPE_CHECKING:  # tables of stored captions load no torch
    from torch import Tensor

    from ccaco_cli.core.data.loader import Column
    from ccaco_cli.core.data.shards import PairData, Split
    from ccaco_cli.core.model.aligner import Aligner
    from ccaco_cli.core.model.towers.tower import Tower

STAGE = "captions"
"""Stage of a result file that holds captions: ``results/SPLIT.captions.json``."""
BATCH = 128
GREEDY = 1
"""The beam of captions that were stored before ``eval.beam`` was there."""
REFERENCES = 5
"""Captions of a sample that its caption is compared with, at most."""


@dataclass(frozen=True)
class CaptionedSample:
    """One sample with its captions.

    Attributes:
        id: of the sample.
        caption: of the decoder.
        nearest: the training caption with the largest cosine to the sample: retrieval, without a decoder.
        references: its captions in the data set, the first five.
        things: objects in a generated scene; None for other data.
        caption_true, nearest_true: whether all that the caption says is true of a generated scene (False: also if it
            is no sentence of its grammar); None for other data.
    """

    id: str
    caption: str
    nearest: str
    references: tuple[str, ...]
    things: int | None = None
    caption_true: bool | None = None
    nearest_true: bool | None = None


def caption_split(
    aligner: Aligner,
    towers: Mapping[str, Tower],
    split: Split,
    column: Column,
    train: Split,
    train_texts: Column,
    beam: int,
) -> list[CaptionedSample]:
    """Writes the captions of a split.

    Args:
        aligner: with a decoder.
        column: the samples of the split, of ``Aligner.described``.
        train, train_texts: the training split and its captions.
        beam: captions that are followed at a time; 1 = greedy.
    """
    from ccaco_cli.core.encoding.drafts import write_drafts
    from ccaco_cli.core.encoding.encode import encode
    from ccaco_cli.core.model.generation import GenerationOptions

    tokenizer = towers["text"].tokenizer
    assert tokenizer is not None
    rows = np.arange(len(split))
    written: list[str] = []
    for start in range(0, len(rows), BATCH):
        drafts = write_drafts(aligner, column, rows[start : start + BATCH], GenerationOptions(beam=beam))
        written += [tokenizer.decode(of_sample[0].ids) for of_sample in drafts]
    nearest = _nearest(encode(aligner, aligner.described, column).z, encode(aligner, "text", train_texts).z)
    samples = []
    for row, (caption, number) in enumerate(zip(written, nearest, strict=True)):
        references = tuple(split.captions[split.caption_start[row] : split.caption_start[row + 1]][:REFERENCES])
        nearest_text = str(train.captions[number])
        things, *is_true = _truth(split.meta(row), (caption, nearest_text))
        samples.append(CaptionedSample(split.ids[row], caption, nearest_text, references, things, *is_true))
    return samples


def _nearest(z: Tensor, texts: Tensor) -> list[int]:
    """Number of the text of largest cosine for each row of z."""
    parts: Any = z.split(BATCH)  # type: ignore[no-untyped-call]
    return [int(n) for part in parts for n in (part @ texts.T).argmax(1)]


def _truth(meta: Mapping[str, Any], texts: Sequence[str]) -> tuple[int | None, bool | None, bool | None]:
    """(number of things, whether each of both texts is true) of a generated scene with English captions.

    Returns:
        All None for other samples, and for scenes in other languages, whose sentences the parser cannot read.
    """
    english = all(code == "en" for code, _ in meta.get(LANGUAGES, ()))
    if not english or not {"facts", "relation", "place"} <= meta.keys():
        return None, None, None
    from ccaco_cli.core.data.scene_parser import parse

    parsed = [parse(text) for text in texts]
    caption_true, nearest_true = (claims is not None and claims.true_of(meta) for claims in parsed)
    return len(meta["facts"]), caption_true, nearest_true


def evaluated_beam(config: Mapping[str, Any]) -> int:
    """The beam of captions of a run as it is evaluated; ``config`` is that of its manifest, or of an older one."""
    return int(config["eval"].get("beam", RunConfig().eval.beam))


def store_captions(
    folder: Path, data: PairData, config: RunConfig, split: str, samples: Sequence[CaptionedSample]
) -> Path:
    """Writes ``SPLIT.captions.json`` into the folder of the results of a run; returns the file."""
    body = {
        "split": split,
        "stage": STAGE,
        "arm": config.arm,
        "seed": config.seed,
        "dataset": data.name,
        "data": data.manifest.sha256,
        "beam": config.eval.beam,
        "samples": [asdict(sample) for sample in samples],
    }
    file = folder / f"{split}.{STAGE}.json"
    manifest.write_json(file, body)
    return file


@dataclass(frozen=True)
class StoredCaptions:
    """The captions of a split.

    Attributes:
        samples: in the order of the split.
        beam: as in ``caption_split``.
    """

    samples: list[CaptionedSample]
    beam: int


def load_captions(run: Path, split: str) -> StoredCaptions:
    """The stored captions of a run.

    Raises:
        DataError: there are none, or the file is damaged.
    """
    file = run / "results" / f"{split}.{STAGE}.json"
    if not file.is_file():
        raise DataError(
            f"this run has no captions of {split}",
            where=run,
            expected="a run that was trained with --gamma above 0",
            next="ccaco train --dataset NAME --gamma 1",
        )
    try:
        body = manifest.read_json(file)
        samples = [
            CaptionedSample(**{**sample, "references": tuple(sample["references"])}) for sample in body["samples"]
        ]
        return StoredCaptions(samples, int(body.get("beam", GREEDY)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"unreadable captions ({error})", where=file, expected="what ccaco train wrote") from None
