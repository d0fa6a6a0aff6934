"""Flickr8k and Flickr30k: ``*.token.txt`` with split lists, or Karpathy's json; both give the same records.

From the captions of the photos that are not trained on, ``flickr8k-roles`` and ``flickr30k-roles`` make choices between
a caption and the same caption with exchanged roles.

Source: Hodosh, Young & Hockenmaier, JAIR 47 (2013); Young et al., TACL 2 (2014); splits of arXiv:1412.2306.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ccaco_cli.core.data.bigrams import BigramModel
from ccaco_cli.core.data.role_exchange import role_choices
from ccaco_cli.core.data.sources.fields import FieldReader
from ccaco_cli.core.data.sources.lists import (
    REPEATED,
    karpathy_images,
    missing_part,
    read_lines,
    repeated,
    revision_of,
)
from ccaco_cli.core.data.sources.media_files import layout_error
from ccaco_cli.core.data.sources.photo_lists import ListedPhoto, first_file, flickr_records
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError

LICENCE = "captions: cite the paper; photos: non-commercial research and education (Flickr terms)"
_EXPECTS = "dataset_{0}.json, or {1} with its split lists, beside the folder of photos (or one of these files itself)"
_TOKENS = {
    "flickr8k": ("Flickr8k.token.txt", "Flickr8k.token"),
    "flickr30k": ("results_20130124.token", "flickr30k.token.txt"),
}
_PUBLISHED = {
    "flickr8k": {"train": 6_000, "val": 1_000, "test": 1_000},
    "flickr30k": {"train": 29_000, "val": 1_014, "test": 1_000},
}  # photos
_LISTS = {
    "train": ("Flickr_8k.trainImages.txt", "train.txt", "flickr30k_train.txt"),
    "val": ("Flickr_8k.devImages.txt", "val.txt", "flickr30k_val.txt"),
    "test": ("Flickr_8k.testImages.txt", "test.txt", "flickr30k_test.txt"),
}


@dataclass(frozen=True)
class _Listing:
    """What a folder lists.

    Attributes:
        folder: the photos lie in it.
        photos: of all splits.
        files: that were read.
        unlisted: photos with captions that no split holds.
    """

    folder: Path
    photos: list[ListedPhoto]
    files: list[Path]
    unlisted: int

    def lacking(self, name: str) -> str:
        """Says in a protocol which published photos are not listed."""
        return missing_part(Counter(photo.split for photo in self.photos), _PUBLISHED[name])


def _open(name: str, root: Path | None) -> _Listing:
    """Raises DataError: not a layout of this data set."""
    expects = _EXPECTS.format(name, _TOKENS[name][0])
    if root is None or not root.exists():
        raise layout_error(name, f"no {name} here", root, expects)
    folder = root if root.is_dir() else root.parent
    json_file = root if root.suffix == ".json" else None
    if root.is_dir():
        json_file = first_file(root, (f"dataset_{name}.json",))
    if json_file is not None:
        return _Listing(folder, _karpathy(json_file), [json_file], 0)
    tokens = root if root.is_file() else first_file(root, _TOKENS[name]) or _only_tokens(root)
    if tokens is None:
        raise layout_error(name, f"no {name} list in this folder", root, expects)
    photos, lists, unlisted = _token_layout(folder, tokens, name)
    return _Listing(folder, photos, [tokens, *lists], unlisted)


def _read(name: str, root: Path | None, options: SourceOptions) -> SourceData:
    listing = _open(name, root)
    return SourceData(
        records=flickr_records(listing.folder, listing.photos, options.media_root),
        protocol=f"{name}: the published train, val and test lists, all captions of a photo{listing.lacking(name)}",
        licence=LICENCE,
        revision=revision_of(*listing.files),
        text_files=listing.files,
        facts={"unlisted": listing.unlisted},
        counts=Counter(photo.split for photo in listing.photos),
    )


def _read_roles(name: str, root: Path | None, options: SourceOptions) -> SourceData:
    """The photos of val and test of which a caption has exchangeable agents, all in test, with these choices."""
    listing = _open(name, root)
    bigrams = BigramModel(text for photo in listing.photos if photo.split == "train" for text in photo.captions)
    choices = {
        photo.file: role_choices(photo.captions, bigrams)
        for photo in listing.photos
        if photo.split != "train" and not photo.problem
    }
    photos = [replace(photo, split="test") for photo in listing.photos if choices.get(photo.file)]
    kinds = Counter(choice[0] for of_photo in choices.values() for choice in of_photo)
    if not photos:
        raise DataError(
            "no caption of val or test has two agents that can be exchanged",
            where=root,
            expected='captions such as "a man pushes a boy"',
        )
    records = flickr_records(listing.folder, photos, options.media_root)
    return SourceData(
        records=(replace(record, meta={"choices": choices[record.id]}) for record in records),
        protocol=f"{name}-roles: {kinds.total()} choices between a caption of val or test and the same caption with "
        f"exchanged roles, ties and NaN are wrong{listing.lacking(name)}",
        licence=LICENCE,
        revision=revision_of(*listing.files),
        text_files=listing.files,
        facts={"items": dict(sorted(kinds.items())), "evaluation": "choices"},
        counts={"test": len(photos)},
    )


def _karpathy(file: Path) -> list[ListedPhoto]:
    images = karpathy_images(file)
    twice = repeated(str(image["filename"]) for image in images)
    photos = []
    for image in images:
        fields, name = FieldReader(REPEATED if str(image["filename"]) in twice else ""), str(image["filename"])
        split, captions = fields.text(image["split"], "split"), fields.captions(image["sentences"])
        photos.append(ListedPhoto(name, split, captions, fields.problem))
    return photos


def _token_layout(folder: Path, tokens: Path, name: str) -> tuple[list[ListedPhoto], list[Path], int]:
    captions: dict[str, list[tuple[int, str]]] = {}
    for number, line in enumerate(read_lines(tokens), 1):
        key, tab, text = line.partition("\t")
        file, _, index = key.strip().partition("#")
        if not tab or not index.isdigit():
            raise DataError("a line in another format", where=f"{tokens}:{number}", expected="PHOTO.jpg#0<TAB>caption")
        captions.setdefault(file, []).append((int(index), text))
    splits_of: dict[str, list[str]] = {}
    lists = []
    for split, names in _LISTS.items():
        path = first_file(folder, names)
        if path is None:
            raise DataError(
                f"no list of the {split} photos",
                where=folder,
                expected=" or ".join(names),
                next=f"add dataset_{name}.json instead",
            )
        lists.append(path)
        # Flickr30k's lists name photos without their suffix
        for file in dict.fromkeys(map(str.strip, read_lines(path))):
            splits_of.setdefault(file if "." in file else f"{file}.jpg", []).append(split)
    listed = []
    for file, splits in splits_of.items():
        fields = FieldReader(REPEATED if len(splits) > 1 else "")
        # a listed photo without a caption stays, so that it is counted and listed among the rejects
        texts = [text for _, line in sorted(captions.get(file, [])) for text in fields.captions(line) or [""]]
        listed += [ListedPhoto(file, split, texts, fields.problem) for split in splits]
    return listed, lists, len(captions.keys() - splits_of.keys())


def _only_tokens(folder: Path) -> Path | None:
    """The only token file of a folder, whatever its name; lemmas are no captions."""
    paths = [
        path for pattern in ("*.token", "*.token.txt") for path in folder.glob(pattern) if ".lemma." not in path.name
    ]
    return paths[0] if len(paths) == 1 else None


def _source(name: str, read: Callable[[str, Path | None, SourceOptions], SourceData], suffix: str = "") -> Source:
    expects = _EXPECTS.format(name, _TOKENS[name][0])
    return Source(name + suffix, ("image", "text"), expects, partial(read, name))


SOURCE = _source("flickr8k", _read)
FLICKR30K_SOURCE = _source("flickr30k", _read)
ROLES_SOURCE = _source("flickr8k", _read_roles, "-roles")
FLICKR30K_ROLES_SOURCE = _source("flickr30k", _read_roles, "-roles")
