"""COCO captions: the official json files with their photo folders, or Karpathy's split of them.

Source: cocodataset.org; arXiv:1504.00325; splits of arXiv:1412.2306.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ccaco_cli.core.data.sources.fields import FieldReader
from ccaco_cli.core.data.sources.lists import (
    REPEATED,
    hash_fraction,
    karpathy_images,
    missing_part,
    read_json,
    repeated,
    revision_of,
)
from ccaco_cli.core.data.sources.media_files import layout_error, locate
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

LICENCE = "annotations CC BY 4.0; each photo has its own Flickr licence (named in the annotations)"
_EXPECTS = (
    "annotations/captions_train2017.json and captions_val2017.json (or 2014) beside train2017/ and "
    "val2017/; or dataset_coco.json there"
)
_KARPATHY = {"train": 113_287, "val": 5_000, "test": 5_000}  # photos
_OFFICIAL = {"2017": {"train": 118_287, "val": 5_000}, "2014": {"train": 82_783, "val": 40_504}}
_KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is None or not root.is_dir():
        raise layout_error("coco", "no COCO folder here", root, _EXPECTS)
    karpathy = next(
        (p for p in (root / "dataset_coco.json", root / "annotations" / "dataset_coco.json") if p.is_file()), None
    )
    if karpathy is not None:
        return _karpathy(root, karpathy, options.media_root)
    for year in ("2017", "2014"):
        files = {part: root / "annotations" / f"captions_{part}{year}.json" for part in ("train", "val")}
        files = {part: file for part, file in files.items() if file.is_file()}
        if files:
            return _official(root, year, files, options.media_root)
    raise layout_error("coco", "no COCO captions in this folder", root, _EXPECTS)


def _karpathy(root: Path, file: Path, media_root: Path | None) -> SourceData:
    images = karpathy_images(file)
    twice = repeated(_karpathy_id(image) for image in images)
    unknown = {str(i["split"]) for i in images} - _KARPATHY_SPLITS.keys()
    if unknown:
        raise DataError(f"unknown split {sorted(unknown)[0]!r}", where=file, expected=", ".join(_KARPATHY_SPLITS))

    def records() -> Iterator[PairRecord]:
        for image in images:
            fields, id = FieldReader(), _karpathy_id(image)
            split, captions = _KARPATHY_SPLITS[str(image["split"])], fields.captions(image["sentences"])
            if id in twice:
                fields.refuse(REPEATED)
            captions = captions if split == "train" else captions[:5]
            photo = coco_photo(root, image, media_root)
            yield PairRecord(id, id, split, {"image": photo}, captions, problem=fields.problem)

    counts = Counter(_KARPATHY_SPLITS[str(i["split"])] for i in images)
    rule = "train+restval -> train; captions: all in train, the first five in val and test"
    return SourceData(
        records=records(),
        protocol=f"coco-karpathy ({rule}){missing_part(counts, _KARPATHY)}",
        licence=LICENCE,
        revision=revision_of(file),
        text_files=(file,),
        counts=counts,
    )


def _karpathy_id(image: dict[str, Any]) -> str:
    return f"{image.get('filepath', '')}/{image['filename']}"


def coco_photo(root: Path, image: dict[str, Any], media_root: Path | None) -> Path:
    """Path of a photo in Karpathy's list: in its 2014 folder, or under its 2017 name if only those photos are there."""
    path = locate(f"{image.get('filepath', '')}/{image['filename']}".lstrip("/"), root, media_root)
    # the name can have any length: then os.path.isfile is False, but Path.is_file raises
    if os.path.isfile(path) or not isinstance(image.get("cocoid"), int):
        return path
    names = (f"{folder}/{image['cocoid']:012d}.jpg" for folder in ("train2017", "val2017"))
    renamed = (locate(name, root, media_root) for name in names)
    return next((p for p in renamed if os.path.isfile(p)), path)


def _official(root: Path, year: str, files: dict[str, Path], media_root: Path | None) -> SourceData:
    parts = {part: captions_of_coco(file) for part, file in files.items()}
    train = sorted((hash_fraction(str(key)), key) for key in parts.get("train", {}))
    held_out = {key for _, key in train[: max(1, len(train) // 10)]}

    def split_of(part: str, key: int) -> str:
        return "test" if part == "val" else "val" if key in held_out else "train"

    def records() -> Iterator[PairRecord]:
        for part, images in parts.items():
            twice = repeated(name for name, _, _ in images.values())
            for key, (name, captions, problem) in images.items():
                id = f"{part}{year}/{name}"
                photo = locate(id, root, media_root)
                problem = REPEATED if name in twice else problem
                yield PairRecord(id, id, split_of(part, key), {"image": photo}, captions, problem=problem)

    rule = f"train{year} -> train, less a tenth, by hash of the image id -> val; val{year} -> test; all captions"
    suffix = missing_part({name: len(images) for name, images in parts.items()}, _OFFICIAL[year])
    return SourceData(
        records=records(),
        protocol=f"coco-official-{year} ({rule}){suffix}",
        licence=LICENCE,
        revision=revision_of(*files.values()),
        text_files=tuple(files.values()),
        counts=Counter(split_of(part, key) for part, images in parts.items() for key in images),
    )


def captions_of_coco(file: Path) -> dict[int, tuple[str, list[str], str]]:
    """Image id -> (file name, captions in the file's order, problem of a caption or "").

    Raises DataError: other content, or two images with one id, whose captions cannot be told apart.
    """
    body = read_json(file, "images", "annotations")
    try:
        names: dict[int, str] = {image["id"]: str(image["file_name"]) for image in body["images"]}
        captions: dict[int, list[str]] = {key: [] for key in names}
        fields = {key: FieldReader() for key in names}
        for annotation in body["annotations"]:
            key = annotation["image_id"]
            captions[key] += fields[key].captions(annotation["caption"]) or [""]
        if len(names) < len(body["images"]):
            raise KeyError("two images with one id")
    except (KeyError, TypeError) as error:
        raise DataError(
            f"not a COCO captions file ({error})",
            where=file,
            expected="images[].{id, file_name}, annotations[].caption",
        ) from None
    return {key: (name, captions[key], fields[key].problem) for key, name in names.items()}


SOURCE = Source("coco", ("image", "text"), _EXPECTS, _read)
