"""The layout of Chinese-CLIP: ``SPLIT_texts.jsonl`` and ``SPLIT_imgs.tsv``, as MUGE and Flickr30K-CN are distributed.

A line of the texts is ``{"text_id": 8428, "text": ..., "image_ids": [1076345, 517602]}``; a line of the images is an
id, a tab and the file in base64. Images that share a text are one group. Without ``SPLIT_imgs.tsv``, the images are
files ID.jpg.

Source: Yang et al., arXiv:2211.01335. Layout: README and ``cn_clip/preprocess`` of github.com/OFA-Sys/Chinese-CLIP.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ccaco_cli.core.data.caption_languages import LANGUAGES, language_runs
from ccaco_cli.core.data.sources.caption_lines import OTHER_FORMAT
from ccaco_cli.core.data.sources.fields import text_from
from ccaco_cli.core.data.sources.lists import (
    REPEATED,
    SPLIT_NAMES,
    missing_part,
    parse_strictly,
    read_lines,
    repeated,
    revision_of,
)
from ccaco_cli.core.data.sources.media_files import layout_error, locate
from ccaco_cli.core.data.sources.photo_lists import FLICKR_FOLDERS
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import Media, PairRecord

_NAME = "chinese-clip"
_SPLITS = ("train", "valid", "test")
_EXPECTS = "{train,valid,test}_texts.jsonl beside {train,valid,test}_imgs.tsv, or beside the images ID.jpg"
_FIELDS = '{"text_id": NUMBER, "text": TEXT, "image_ids": [ID, ...]}'


@dataclass
class _Texts:
    """The texts of a split.

    Attributes:
        captions: image -> its captions.
        group: image -> first image of its group.
        damaged: names of lines in another format.
        without_image: number of texts of no image (of a hidden test).
    """

    captions: dict[str, list[str]] = field(default_factory=dict)
    group: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    without_image: int = 0

    def add(self, text: str, images: list[str]) -> None:
        """Adds a text of some images."""
        first = self.first(images[0])
        for image in images:
            self.captions.setdefault(image, []).append(text)
            self.group[self.first(image)] = first

    def first(self, image: str) -> str:
        """The image that stands for the group of this one."""
        while (parent := self.group.setdefault(image, image)) != image:
            image = parent
        return image


def has_texts(root: Path) -> bool:
    """Whether a folder has this layout."""
    return any((root / f"{split}_texts.jsonl").is_file() for split in _SPLITS)


def read(
    root: Path,
    options: SourceOptions,
    *,
    name: str = _NAME,
    language: str = "",
    published: Mapping[str, int] | None = None,
) -> SourceData:
    """Reads a folder of this layout.

    Args:
        name: of the data set.
        language: of all captions; "" = not known.
        published: split -> number of images of the whole data set.
    Raises:
        DataError: no texts.
    """
    files = {split: root / f"{split}_texts.jsonl" for split in _SPLITS}
    texts = {split: _texts(file) for split, file in files.items() if file.is_file()}
    sizes = {SPLIT_NAMES[split]: len(part.captions) for split, part in texts.items()}
    text_files = [file for file in files.values() if file.is_file()]
    without_image = sum(part.without_image for part in texts.values())
    return SourceData(
        records=_records(root, texts, options.media_root, language),
        protocol=f"{name}: the published splits, all captions of an image; images that share a text are one group"
        f"{missing_part(sizes, published or {})}",
        licence="captions and images: terms of the data set",
        revision=revision_of(*text_files),
        text_files=text_files,
        facts={"texts_without_image": without_image} if without_image else {},
        counts={SPLIT_NAMES[split]: len(part.captions) + len(part.damaged) for split, part in texts.items()},
    )


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is None or not root.is_dir() or not has_texts(root):
        raise layout_error(_NAME, "no texts of Chinese-CLIP here", root, _EXPECTS)
    return read(root, options)


def _texts(file: Path) -> _Texts:
    texts = _Texts()
    for number, line in enumerate(read_lines(file), 1):
        try:
            text, images = _entry(parse_strictly(line))
        except (ValueError, DataError):
            texts.damaged.append(f"{file.name}:{number}")
            continue
        if images:
            texts.add(text, images)
        else:
            texts.without_image += 1
    return texts


def _entry(entry: Any) -> tuple[str, list[str]]:
    """Text and images of a line. Raises DataError: other content."""
    if not isinstance(entry, dict) or not isinstance(entry.get("image_ids"), list):
        raise DataError(OTHER_FORMAT, expected=_FIELDS)
    images = list(dict.fromkeys(text_from(image, "image_ids") for image in entry["image_ids"]))
    if "" in images:
        raise DataError(OTHER_FORMAT, expected=_FIELDS)
    return text_from(entry.get("text"), "text"), images


def _records(root: Path, texts: Mapping[str, _Texts], media_root: Path | None, language: str) -> Iterator[PairRecord]:
    twice = repeated(image for part in texts.values() for image in part.captions)
    folder = next((root / name for name in FLICKR_FOLDERS if (root / name).is_dir()), root)
    for split, part in texts.items():
        stored = _stored_images(root / f"{split}_imgs.tsv")
        for line in part.damaged:
            yield PairRecord(line, line, SPLIT_NAMES[split], {}, problem=OTHER_FORMAT)
        for image, captions in part.captions.items():
            media: Media = stored[image] if image in stored else locate(f"{image}.jpg", folder, media_root)
            yield PairRecord(
                image,
                part.first(image),
                SPLIT_NAMES[split],
                {"image": media},
                captions,
                meta={LANGUAGES: language_runs([language] * len(captions))} if language else {},
                problem=REPEATED if image in twice else "",
            )


def _stored_images(file: Path) -> dict[str, Media]:
    """The images of a file, by id; they are read when they are needed. {} = there is no such file."""
    images: dict[str, Media] = {}
    if file.is_file():
        with file.open("rb") as lines:
            start = 0
            for line in lines:
                id, tab, _ = line[:1024].partition(b"\t")
                if tab:
                    begin = start + len(id) + 1
                    images[id.decode("utf-8", "replace").strip()] = partial(
                        _decoded, file, begin, len(line) - len(id) - 1
                    )
                start += len(line)
    return images


def _decoded(file: Path, start: int, length: int) -> bytes:
    with file.open("rb") as stored:
        stored.seek(start)
        return base64.b64decode(stored.read(length).strip(), validate=True)


SOURCE = Source(_NAME, ("image", "text"), _EXPECTS, _read)
