"""COCO captions: the official json files with their photo folders, or Karpathy's split of them.

Source: cocodataset.org; arXiv:1504.00325; splits of arXiv:1412.2306.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ccaco_cli.core.data.sources.lists import (
    captions_of,
    hash_fraction,
    karpathy_images,
    missing_part,
    read_json,
    revision_of,
)
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

_LICENCE = "annotations CC BY 4.0; each photo has its own Flickr licence (named in the annotations)"
_EXPECTS = (
    "annotations/captions_train2017.json and captions_val2017.json (or 2014) beside train2017/ and "
    "val2017/; or dataset_coco.json there"
)
_KARPATHY = {"train": 113_287, "val": 5_000, "test": 5_000}  # photos
_OFFICIAL = {"2017": {"train": 118_287, "val": 5_000}, "2014": {"train": 82_783, "val": 40_504}}
_KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is None or not root.is_dir():
        raise DataError("no COCO folder here", where=root, expected=_EXPECTS, next="ccaco prepare coco --source PATH")
    karpathy = next(
        (p for p in (root / "dataset_coco.json", root / "annotations" / "dataset_coco.json") if p.is_file()), None
    )
    if karpathy is not None:
        return _karpathy(root, karpathy)
    for year in ("2017", "2014"):
        files = {part: root / "annotations" / f"captions_{part}{year}.json" for part in ("train", "val")}
        files = {part: file for part, file in files.items() if file.is_file()}
        if files:
            return _official(root, year, files)
    raise DataError(
        "no COCO captions in this folder", where=root, expected=_EXPECTS, next="ccaco prepare coco --source PATH"
    )


def _karpathy(root: Path, file: Path) -> SourceData:
    images = karpathy_images(file)
    unknown = {str(i["split"]) for i in images} - _KARPATHY_SPLITS.keys()
    if unknown:
        raise DataError(f"unknown split {sorted(unknown)[0]!r}", where=file, expected=", ".join(_KARPATHY_SPLITS))

    def records() -> Iterator[PairRecord]:
        for image in images:
            split, captions = _KARPATHY_SPLITS[image["split"]], captions_of(image)
            photo = _photo(root, image)
            id = f"{image.get('filepath', '')}/{image['filename']}"
            yield PairRecord(id, id, split, {"image": photo}, captions if split == "train" else captions[:5])

    counts = Counter(_KARPATHY_SPLITS[i["split"]] for i in images)
    rule = "train+restval -> train; captions: all in train, the first five in val and test"
    return SourceData(
        records=records(),
        protocol=f"coco-karpathy ({rule}){missing_part(counts, _KARPATHY)}",
        licence=_LICENCE,
        revision=revision_of(file),
        counts=counts,
    )


def _photo(root: Path, image: dict[str, Any]) -> Path:
    """Path of a photo in Karpathy's list: in its 2014 folder, or under its 2017 name if only those photos are there."""
    path = (
        root / str(image.get("filepath", "")) / str(image["filename"])
    )  # the name can have any length: then os.path.isfile is False, but Path.is_file raises
    if os.path.isfile(path) or not isinstance(image.get("cocoid"), int):
        return path
    renamed = (root / folder / f"{image['cocoid']:012d}.jpg" for folder in ("train2017", "val2017"))
    return next((p for p in renamed if os.path.isfile(p)), path)


def _official(root: Path, year: str, files: dict[str, Path]) -> SourceData:
    parts = {part: _captioned(file) for part, file in files.items()}
    train = sorted((hash_fraction(str(key)), key) for key in parts.get("train", {}))
    held_out = {key for _, key in train[: max(1, len(train) // 10)]}

    def split_of(part: str, key: int) -> str:
        return "test" if part == "val" else "val" if key in held_out else "train"

    def records() -> Iterator[PairRecord]:
        for part, images in parts.items():
            for key, (name, captions) in images.items():
                id = f"{part}{year}/{name}"
                yield PairRecord(id, id, split_of(part, key), {"image": root / f"{part}{year}" / name}, captions)

    rule = f"train{year} -> train, less a tenth, by hash of the image id -> val; val{year} -> test; all captions"
    suffix = missing_part({name: len(images) for name, images in parts.items()}, _OFFICIAL[year])
    return SourceData(
        records=records(),
        protocol=f"coco-official-{year} ({rule}){suffix}",
        licence=_LICENCE,
        revision=revision_of(*files.values()),
        counts=Counter(split_of(part, key) for part, images in parts.items() for key in images),
    )


def _captioned(file: Path) -> dict[int, tuple[str, list[str]]]:
    """Image id -> (file name, captions in the file's order)."""
    body = read_json(file, "images", "annotations")
    try:
        images: dict[int, tuple[str, list[str]]] = {image["id"]: (image["file_name"], []) for image in body["images"]}
        for annotation in body["annotations"]:
            images[annotation["image_id"]][1].append(str(annotation["caption"] or ""))
    except (KeyError, TypeError) as error:
        raise DataError(
            f"not a COCO captions file ({error})",
            where=file,
            expected="images[].{id, file_name}, annotations[].caption",
        ) from None
    return images


SOURCE = Source("coco", ("image", "text"), _EXPECTS, _read)
