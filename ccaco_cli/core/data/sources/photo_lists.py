"""Photos that the lists of a published data set name, each with its split and its captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ccaco_cli.core.data.caption_languages import LANGUAGES, language_runs
from ccaco_cli.core.data.sources.media_files import locate
from ccaco_cli.core.types import Media, PairRecord

FLICKR_FOLDERS = ("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images", "flickr30k_images")


@dataclass(frozen=True)
class ListedPhoto:
    """A listed photo.

    Attributes:
        file: its name.
        split: train, val or test.
        captions: in order.
        problem: why it cannot be used; "" = it can.
        languages: of each caption; () = they are not known.
    """

    file: str
    split: str
    captions: list[str]
    problem: str = ""
    languages: tuple[str, ...] = ()

    def record(self, media: Media) -> PairRecord:
        """The sample of this photo, whose bytes come from ``media``."""
        meta = {LANGUAGES: language_runs(self.languages)} if self.languages else {}
        return PairRecord(
            self.file, self.file, self.split, {"image": media}, self.captions, meta=meta, problem=self.problem
        )


def flickr_records(folder: Path, listed: Iterable[ListedPhoto], media_root: Path | None) -> Iterator[PairRecord]:
    """The samples of photos of Flickr8k or Flickr30k, sorted by name, so that all layouts give the same order.

    Args:
        folder: of the lists; the photos lie in it, or in one of ``FLICKR_FOLDERS`` there.
        media_root: another folder of the photos.
    """
    photos, other_photos = (
        next((place / name for name in FLICKR_FOLDERS if (place / name).is_dir()), place) if place else None
        for place in (folder, media_root)
    )
    for photo in sorted(listed, key=lambda photo: photo.file):
        yield photo.record(locate(photo.file, photos or folder, other_photos))


def first_file(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of these files in a folder or its subfolders (lists are distributed in a separate archive)."""
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    return next((place / name for name in names for place in places if (place / name).is_file()), None)
