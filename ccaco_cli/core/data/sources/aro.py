"""ARO, the parts on Visual Genome: does a crop choose the caption with its own relation, or with its own attributes?

Source: Yuksekgonul et al., ICLR 2023, arXiv:2210.01936; github.com/mertyg/vision-language-models-are-bows.

Layout: ``visual_genome_relation.json`` and ``visual_genome_attribution.json`` beside ``images/``, as the authors'
loaders download them. Each is a list of ``{image_path, bbox_x, bbox_y, bbox_w, bbox_h, true_caption, false_caption}``
with ``relation_name``, or ``attributes`` of two words. The image of a choice is the crop of its box, as in these
loaders.

The kinds of choices are the relations and the pairs of attributes; as in the loaders, a pair of attributes counts from
25 choices on. The loaders make the captions of COCO-Order and Flickr30k-Order when they run, with a random generator
and a part-of-speech tagger, and publish no file, so these two parts are not read. The means of this data set are over
all relations; the paper's mean leaves out those that its evaluation notebook lists as symmetric.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ccaco_cli.core.data.checks import clean_caption, decode_image, read_media
from ccaco_cli.core.data.sources.fields import text_from
from ccaco_cli.core.data.sources.lists import decode_text, parse_strictly, revision_of
from ccaco_cli.core.data.sources.media_files import layout_error, locate
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

PARTS = ("relation", "attribution")
MIN_CHOICES = {"relation": 1, "attribution": 25}
"""Choices that a kind needs at least; kinds with fewer are left out."""
_EXPECTS = "visual_genome_relation.json and visual_genome_attribution.json beside images/"
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


@dataclass(frozen=True)
class _Choice:
    """One choice: a kind such as ``relation/on``, a crop, and two captions."""

    kind: str
    image: str
    box: tuple[int, int, int, int]
    true_caption: str
    false_caption: str


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    files = {} if root is None else {part: root / f"visual_genome_{part}.json" for part in PARTS}
    files = {part: file for part, file in files.items() if file.is_file()}
    if root is None or not files:
        raise layout_error("aro", "no ARO files here", root, _EXPECTS)
    choices: list[_Choice] = []
    counts, left_out = {}, {}
    for part, file in files.items():
        read = _choices(file, part)
        sizes = Counter(choice.kind for choice in read)
        frequent = [choice for choice in read if sizes[choice.kind] >= MIN_CHOICES[part]]
        counts[part], left_out[part] = len(frequent), len(read) - len(frequent)
        choices += frequent
    if not choices:
        raise DataError("no kind has enough choices", where=root, expected=f"{MIN_CHOICES} choices of a kind")
    crops: dict[tuple[str, tuple[int, int, int, int]], list[_Choice]] = {}
    for choice in choices:
        crops.setdefault((choice.image, choice.box), []).append(choice)
    images = root / "images" if (root / "images").is_dir() else root
    lacking = "".join(f"; without {part}" for part in PARTS if part not in files)
    return SourceData(
        records=_records(crops, images, root, options.media_root),
        protocol=f"aro: {len(choices):,} choices between two captions of a crop, ties and NaN are wrong{lacking}",
        licence="items MIT; photos of Visual Genome CC BY 4.0",
        revision=revision_of(*files.values()),
        text_files=tuple(files.values()),
        facts={"items": counts, "left_out": left_out, "evaluation": "choices"},
        counts={"test": len(crops)},
    )


def _choices(file: Path, part: str) -> list[_Choice]:
    choices: list[_Choice] = []
    try:
        rows = parse_strictly(decode_text(file.read_bytes()))
        if not isinstance(rows, list):
            raise ValueError("no list")
        for row in rows:
            choices.append(_choice(row, part))
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"not a file of ARO choices ({error})",
            where=f"{file}, item {len(choices) + 1}",
            expected="[{image_path, bbox_x, bbox_y, bbox_w, bbox_h, true_caption, false_caption, ...}]",
        ) from None
    return choices


def _choice(row: dict[str, Any], part: str) -> _Choice:
    image = text_from(row["image_path"], "image_path")
    true, false = (clean_caption(text_from(row[name], name)) for name in ("true_caption", "false_caption"))
    x, y, width, height = (_integer(row[name], name) for name in _BOX)
    names = [row["relation_name"]] if part == "relation" else list(row["attributes"])[:2]
    words = [re.sub(r"\W+", "_", clean_caption(text_from(name, "kind"))) for name in names]
    if not (image and true and false and all(words)):
        raise ValueError("an item lacks its image, its kind or a caption")
    if width < 1 or height < 1:
        raise ValueError("an empty box")
    return _Choice(f"{part}/{'_'.join(words)}", image, (x, y, x + width, y + height), true, false)


def _integer(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > 1 << 20:
        raise ValueError(f"{name} is no number of pixels")
    return int(value)


def _records(
    crops: dict[tuple[str, tuple[int, int, int, int]], list[_Choice]], images: Path, root: Path, media_root: Path | None
) -> Iterator[PairRecord]:
    folders = tuple(os.path.realpath(folder) for folder in (root, media_root) if folder is not None)
    for (image, box), choices in crops.items():
        id = f"{image}#{','.join(map(str, box))}"
        crop: Callable[[], bytes] = partial(_crop, locate(image, images, media_root), box, folders)
        yield PairRecord(
            id,
            id,
            "test",
            {"image": crop},
            list(dict.fromkeys(choice.true_caption for choice in choices)),
            meta={"choices": [[choice.kind, choice.true_caption, choice.false_caption] for choice in choices]},
        )


def _crop(path: Path, box: tuple[int, int, int, int], folders: tuple[str, ...]) -> bytes:
    """The crop of an image as a PNG, so that no pixel changes. Raises DataError: as ``read_media``."""
    data = io.BytesIO()
    decode_image(read_media(path, folders)).crop(box).save(data, "PNG", compress_level=1)
    return data.getvalue()


SOURCE = Source("aro", ("image", "text"), _EXPECTS, _read)
