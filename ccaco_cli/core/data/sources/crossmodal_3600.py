"""Crossmodal-3600: 3,600 photos with captions in 36 languages, two or so by people in each.

Source: Thapliyal et al., EMNLP 2022, arXiv:2205.12522; google.github.io/crossmodal-3600.

Layout: ``captions.jsonl`` (of ``captions.zip``) with one object per line, ``{"image/key": NAME, "image/locale": ...,
LANGUAGE: {"caption": [...], ...}, ...}``; and the unpacked ``images.tgz`` beside it: ``images/NAME.jpg``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ccaco_cli.core.data.caption_languages import LANGUAGES, captions_by_language, chosen_languages
from ccaco_cli.core.data.checks import clean_caption
from ccaco_cli.core.data.sources.fields import captions_from, text_from
from ccaco_cli.core.data.sources.lists import read_json_lines, repeated, revision_of
from ccaco_cli.core.data.sources.media_files import layout_error, locate
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

PHOTOS = 3600
_EXPECTS = "captions.jsonl beside images/*.jpg, as google.github.io/crossmodal-3600 has them"


@dataclass(frozen=True)
class _CaptionedPhoto:
    """A photo with its captions by language."""

    key: str
    locale: str
    captions: Mapping[str, list[str]]


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    folders = [] if root is None else [root, root / "captions"]
    file = next((folder / "captions.jsonl" for folder in folders if (folder / "captions.jsonl").is_file()), None)
    if root is None or file is None:
        raise layout_error("crossmodal-3600", "no captions.jsonl here", root, _EXPECTS)
    photos = [_photo(entry, f"{file}, photo {number}") for number, entry in enumerate(read_json_lines(file), 1)]
    twice = repeated(photo.key for photo in photos)
    if twice or not photos:
        raise DataError(f"two photos with key {min(twice)}" if twice else "this file has no photos", where=file)
    photos = _in_languages(photos, options.languages, file)
    captions = Counter(dict.fromkeys(sorted({name for photo in photos for name in photo.captions}), 0))
    for photo in photos:
        captions.update({name: len(texts) for name, texts in photo.captions.items()})
    images = root / "images" if (root / "images").is_dir() else root
    part = "" if len(photos) == PHOTOS else f"; a part: {len(photos):,} of {PHOTOS:,} photos"
    return SourceData(
        records=_records(photos, images, options.media_root),
        protocol=f"crossmodal-3600: all photos with the captions of one language, {_over(list(captions))}{part}",
        licence="captions CC BY 4.0; photos of Open Images CC BY 2.0",
        revision=revision_of(file),
        text_files=(file,),
        facts={"captions": dict(captions), "evaluation": LANGUAGES},
        counts={"test": len(photos)},
    )


def _over(languages: list[str]) -> str:
    return f"mean over {len(languages)} languages" if len(languages) > 1 else languages[0]


def _in_languages(photos: list[_CaptionedPhoto], wanted: tuple[str, ...], file: Path) -> list[_CaptionedPhoto]:
    """The photos with their captions in these languages, without photos that have none; () = in all.

    Raises DataError: a language that no photo has.
    """
    codes = chosen_languages(wanted, sorted({name for photo in photos for name in photo.captions}), file)
    chosen = [
        replace(photo, captions={code: texts for code, texts in photo.captions.items() if code in codes})
        for photo in photos
    ]
    return [photo for photo in chosen if photo.captions]


def _photo(entry: Mapping[str, Any], where: str) -> _CaptionedPhoto:
    """Raises DataError: no key, or no captions in the place where they should be."""
    try:
        key, locale = (text_from(entry.get(f"image/{name}"), f"image/{name}") for name in ("key", "locale"))
        captions = {}
        for language, field in entry.items():
            if isinstance(field, Mapping) and "caption" in field:
                texts = [clean_caption(text) for text in captions_from(field["caption"])]
                captions[language] = [text for text in texts if text]
    except DataError as error:
        raise DataError(error.what, where=where, expected=_EXPECTS) from None
    if not key or not any(captions.values()):
        raise DataError(
            "a photo lacks its captions" if key else "a photo lacks its key",
            where=where,
            expected='{"image/key": NAME, LANGUAGE: {"caption": [...]}, ...}',
        )
    return _CaptionedPhoto(key, locale, {language: texts for language, texts in captions.items() if texts})


def _records(photos: list[_CaptionedPhoto], images: Path, media_root: Path | None) -> Iterator[PairRecord]:
    for photo in photos:
        captions, languages = captions_by_language(photo.captions)
        yield PairRecord(
            photo.key,
            photo.key,
            "test",
            {"image": locate(f"{photo.key}.jpg", images, media_root)},
            captions,
            meta={"locale": photo.locale, **languages},
        )


SOURCE = Source("crossmodal-3600", ("image", "text"), _EXPECTS, _read)
