"""One caption a line, ``KEY#KIND#NUMBER CAPTION``: how Li et al. publish COCO-CN, Flickr8k-CN and Flickr30k-CN.

A tab or a blank ends the first part. COCO-CN has no KIND; elsewhere it is enc (English), zhc (written in Chinese), zhm
(translated by people) or zhb (by a machine). Layouts as in li-xirong/flickr8kcn and li-xirong/coco-cn on GitHub.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ccaco_cli.core.data.caption_languages import evaluation_facts
from ccaco_cli.core.data.sources.fields import FieldReader
from ccaco_cli.core.data.sources.lists import REPEATED, missing_part, read_lines, repeated, revision_of
from ccaco_cli.core.data.sources.media_files import layout_error
from ccaco_cli.core.data.sources.photo_lists import ListedPhoto, first_file
from ccaco_cli.core.data.sources.source import SourceData
from ccaco_cli.core.types import PairRecord

SPLITS = ("train", "val", "test")
OTHER_FORMAT = "a line in another format"
_LINE = re.compile(r"(?P<key>[^\s#]+)(?:#[a-z]\w*)?#(?P<number>\d{1,9})\s+(?P<caption>\S.*)", re.ASCII)


@dataclass(frozen=True)
class CaptionLines:
    """The captions of some files.

    Attributes:
        captions: file name of each photo -> its captions, in the order of their numbers.
        damaged: name of each line in another format -> the photo that it seems to name.
    """

    captions: dict[str, list[str]] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CaptionList:
    """The photos of a published list, with captions in one language or several.

    Attributes:
        name: of the source.
        published: split -> number of photos of the whole list.
        splits: split -> file names of the photos.
        lines: language -> captions.
        files: that were read.
    """

    name: str
    published: Mapping[str, int]
    splits: Mapping[str, list[str]]
    lines: Mapping[str, CaptionLines]
    files: list[Path]

    def photos(self) -> list[ListedPhoto]:
        """The photos of all splits, and the damaged lines that belong to no listed photo: each is a reject."""
        names = [(name, split) for split, listed in self.splits.items() for name in listed]
        twice, known = repeated(name for name, _ in names), {name for name, _ in names}
        damaged = [entry for lines in self.lines.values() for entry in lines.damaged.items()]
        photos = [ListedPhoto(line, "train", [], OTHER_FORMAT) for line, name in damaged if name not in known]
        unreadable = {name for _, name in damaged}
        for name, split in names:
            fields = FieldReader(REPEATED if name in twice else OTHER_FORMAT if name in unreadable else "")
            captions = [
                (language, text)
                for language, lines in self.lines.items()
                for line in lines.captions.get(name, ())
                for text in fields.captions(line) or [""]
            ]
            texts, languages = [text for _, text in captions], tuple(language for language, _ in captions)
            photos.append(ListedPhoto(name, split, texts, fields.problem, languages))
        return photos

    def data(self, records: Callable[[list[ListedPhoto]], Iterator[PairRecord]], licence: str) -> SourceData:
        """The source that these lists are, with the samples that ``records`` makes of the photos."""
        photos = self.photos()
        sizes = {split: len(names) for split, names in self.splits.items()}
        listed = {name for names in self.splits.values() for name in names}
        captioned = {name for lines in self.lines.values() for name in lines.captions}
        return SourceData(
            records=records(photos),
            protocol=f"{self.name}: the published train, val and test lists, all captions of a photo in "
            f"{' and '.join(self.lines)}{missing_part(sizes, self.published)}",
            licence=licence,
            revision=revision_of(*self.files),
            text_files=self.files,
            facts={"unlisted": len(captioned - listed), **evaluation_facts(tuple(self.lines))},
            counts=Counter(photo.split for photo in photos),
        )


def photo_name(key: str) -> str:
    """The file name of a photo that a list may name without its suffix."""
    return key if "." in key else f"{key}.jpg"


def read_caption_lines(files: Iterable[Path], clean: Callable[[str], str] = str.strip) -> CaptionLines:
    """Reads the captions of some files.

    Args:
        clean: a text of the file -> the caption.
    """
    lines = CaptionLines()
    for file in files:
        numbered: dict[str, list[tuple[int, str]]] = {}
        for number, line in enumerate(read_lines(file), 1):
            match = _LINE.fullmatch(line.strip())
            if match is None:
                key = re.split(r"[\s#]", line.strip(), maxsplit=1)[0]
                lines.damaged[f"{file.name}:{number}"] = photo_name(key)
            else:
                texts = numbered.setdefault(photo_name(match["key"]), [])
                texts.append((int(match["number"]), clean(match["caption"])))
        for name, texts in numbered.items():
            # a stable sort: captions that share a number keep their order
            lines.captions.setdefault(name, []).extend(text for _, text in sorted(texts, key=lambda entry: entry[0]))
    return lines


def read_splits(
    source: str, root: Path, names: Mapping[str, str], expects: str
) -> tuple[dict[str, list[str]], list[Path]]:
    """Reads the lists of the splits.

    Args:
        names: split -> name of its list, in ``root`` or a folder there.
    Returns:
        Split -> file names of its photos, and the lists.
    Raises:
        DataError: a list is missing.
    """
    lists = {split: first_file(root, (name,)) for split, name in names.items()}
    files = [file for file in lists.values() if file is not None]
    missing = [split for split, file in lists.items() if file is None]
    if missing:
        problem = f"no list of the {missing[0]} photos here" if files else f"no {source} here"
        raise layout_error(source, problem, root, expects)
    splits = {
        split: list(dict.fromkeys(photo_name(line.strip()) for line in read_lines(file)))
        for split, file in zip(lists, files, strict=True)
    }
    return splits, files
