"""COCO-CN: 20,341 photos of COCO 2014 with captions that were written in Chinese; with ``--language en,zh`` also the
English captions of COCO's ``annotations/captions_{train,val}2014.json``.

The sentences that were translated (five for each photo of the test split) are not read.

Source: Li et al., arXiv:1805.08661. Layout: ``coco-cn-version1805v1.1``, as described in github.com/li-xirong/coco-cn
and read by its ``verify_data.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ccaco_cli.core.data.caption_languages import chosen_languages
from ccaco_cli.core.data.sources.caption_lines import SPLITS, CaptionLines, CaptionList, read_caption_lines, read_splits
from ccaco_cli.core.data.sources.coco import LICENCE, captions_of_coco, coco_photo
from ccaco_cli.core.data.sources.media_files import layout_error, locate
from ccaco_cli.core.data.sources.photo_lists import ListedPhoto, first_file
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.types import PairRecord

_NAME = "coco-cn"
_EXPECTS = (
    "imageid.human-written-caption.txt with coco-cn_train.txt, coco-cn_val.txt and coco-cn_test.txt, beside COCO's "
    "train2014/ and val2014/"
)
_CHINESE = "imageid.human-written-caption.txt"
_PHOTOS = {"train": 18_341, "val": 1_000, "test": 1_000}


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is None or not root.is_dir():
        raise layout_error(_NAME, f"no {_NAME} here", root, _EXPECTS)
    splits, files = read_splits(_NAME, root, {split: f"coco-cn_{split}.txt" for split in SPLITS}, _EXPECTS)
    chinese = first_file(root, (_CHINESE,))
    if chinese is None:
        raise layout_error(_NAME, f"no {_CHINESE} here", root, _EXPECTS)
    languages = chosen_languages(options.languages or ("zh",), ("zh", "en"), root)
    lines: dict[str, CaptionLines] = {}
    if "zh" in languages:
        lines["zh"] = read_caption_lines([chinese])
        files.append(chinese)
    if "en" in languages:
        english = [
            locate(f"annotations/captions_{part}2014.json", root, options.media_root) for part in ("train", "val")
        ]
        missing = [file for file in english if not file.is_file()]
        if missing:
            raise layout_error(_NAME, "no English captions here", missing[0], "COCO's annotations/, or --image-root")
        listed = {name for names in splits.values() for name in names}
        lines["en"] = _english(english, listed)
        files += english
    listing = CaptionList(_NAME, _PHOTOS, splits, lines, files)
    return listing.data(partial(_records, root, options.media_root), LICENCE)


def _english(files: list[Path], listed: set[str]) -> CaptionLines:
    """The captions of COCO of the listed photos."""
    lines = CaptionLines()
    for file in files:
        for name, texts, problem in captions_of_coco(file).values():
            if name in listed:
                lines.captions[name] = texts
                lines.damaged.update({f"{file.name}:{name}": name} if problem else {})
    return lines


def _records(root: Path, media_root: Path | None, photos: list[ListedPhoto]) -> Iterator[PairRecord]:
    for photo in photos:
        folder, _, number = photo.file.removesuffix(".jpg").removeprefix("COCO_").partition("_")
        place = {"filepath": folder if number else "", "filename": photo.file}
        yield photo.record(
            coco_photo(root, place | ({"cocoid": int(number)} if number.isdecimal() else {}), media_root)
        )


SOURCE = Source(_NAME, ("image", "text"), _EXPECTS, _read)
