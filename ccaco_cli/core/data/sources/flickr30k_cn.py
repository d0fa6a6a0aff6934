"""Flickr30k-CN: the photos of Flickr30k with Chinese captions: train and val by machine translation, test by people.

Three layouts: the release, one folder a split with ``ImageSets`` and segmented captions in ``TextData``; one file a
split, ``flickr30k_cn_test.txt`` (as InternVL and R2D2 have it); and that of Chinese-CLIP.

Source: Lan, Li & Dong, ACM MM 2017, arXiv:1708.04390. Layouts: li-xirong/cross-lingual-cap, OpenGVLab/InternVL,
IDEA-CCNL/Fengshenbang-LM and OFA-Sys/Chinese-CLIP on GitHub.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from ccaco_cli.core.data.caption_languages import chosen_languages
from ccaco_cli.core.data.sources import chinese_clip
from ccaco_cli.core.data.sources.caption_lines import (
    SPLITS,
    CaptionLines,
    CaptionList,
    photo_name,
    read_caption_lines,
)
from ccaco_cli.core.data.sources.flickr8k import LICENCE
from ccaco_cli.core.data.sources.lists import read_lines
from ccaco_cli.core.data.sources.media_files import layout_error
from ccaco_cli.core.data.sources.photo_lists import flickr_records
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions

_NAME = "flickr30k-cn"
_EXPECTS = (
    "flickr30kzhbbosontrain/, flickr30kzhbbosonval/ and flickr30kzhmbosontest/, each with ImageSets/ and TextData/; "
    "or flickr30k_cn_{train,val,test}.txt; or {train,valid,test}_texts.jsonl; beside the folder of photos"
)
_PHOTOS = {"train": 29_783, "val": 1_000, "test": 1_000}
_PART_OF_SPEECH = re.compile(r":[A-Za-z]+\d*$")
"""What the segmenter adds to a word of the translated test captions, as in ``man:n``."""
_BLANK = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])")
"""A blank that is not between two Latin words."""


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is None or not root.is_dir():
        raise layout_error(_NAME, f"no {_NAME} here", root, _EXPECTS)
    chosen_languages(options.languages, ("zh",), root)
    if chinese_clip.has_texts(root):
        return chinese_clip.read(root, options, name=_NAME, language="zh", published=_PHOTOS)
    listing = _released(root) or _one_file_a_split(root)
    if listing is None:
        raise layout_error(_NAME, f"no {_NAME} here", root, _EXPECTS)
    return listing.data(partial(flickr_records, root, media_root=options.media_root), LICENCE)


def _released(root: Path) -> CaptionList | None:
    """The folders of the release, of which the one with translations by people comes first; None = there are none."""
    lists: dict[str, Path] = {}
    for split in SPLITS:
        pattern = f"flickr30kzh?boson{split}/ImageSets/flickr30kzh?boson{split}.txt"
        paths = sorted([*root.glob(pattern), *root.glob(f"*/{pattern}")], key=lambda path: path.name)
        if paths:
            lists[split] = paths[-1]  # zhm comes after zhb
    texts = {split: path.parent.parent / "TextData" / f"seg.{path.stem}.caption.txt" for split, path in lists.items()}
    if not lists:
        return None
    missing = [path for path in texts.values() if not path.is_file()]
    if missing:
        raise layout_error(_NAME, f"no {missing[0].name} here", missing[0].parent, _EXPECTS)
    splits = {split: _names(read_lines(path)) for split, path in lists.items()}
    lines = read_caption_lines(texts.values(), joined_words)
    return CaptionList(_NAME, _PHOTOS, splits, {"zh": lines}, [*lists.values(), *texts.values()])


def _one_file_a_split(root: Path) -> CaptionList | None:
    """A file for each split, whose photos are those that have captions; None = there is none."""
    files = {
        split: sorted([*root.glob(f"flickr30k_cn*_{split}.txt"), *root.glob(f"*/flickr30k_cn*_{split}.txt")])[:1]
        for split in SPLITS
    }
    parts = {split: read_caption_lines(paths) for split, paths in files.items() if paths}
    if not parts:
        return None
    lines = CaptionLines()
    for part in parts.values():
        lines.damaged.update(part.damaged)
        for name, texts in part.captions.items():
            lines.captions.setdefault(name, []).extend(texts)
    splits = {split: list(part.captions) for split, part in parts.items()}
    return CaptionList(_NAME, _PHOTOS, splits, {"zh": lines}, [path for paths in files.values() for path in paths])


def _names(lines: list[str]) -> list[str]:
    return list(dict.fromkeys(photo_name(line.strip()) for line in lines))


def joined_words(text: str) -> str:
    """The caption of which a line has the words: without blanks between Chinese words, and without parts of speech."""
    words = [_PART_OF_SPEECH.sub("", word) for word in text.split()]
    return _BLANK.sub("", " ".join(filter(None, words)))


SOURCE = Source(_NAME, ("image", "text"), _EXPECTS, _read)
