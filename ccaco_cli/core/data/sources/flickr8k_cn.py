"""Flickr8k-CN: the photos of Flickr8k with captions that were written in Chinese, and the English ones.

Source: Li, Lan, Dong & Liu, ICMR 2016. Layout: the folder ``data`` of github.com/li-xirong/flickr8kcn.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ccaco_cli.core.data.caption_languages import chosen_languages
from ccaco_cli.core.data.sources.caption_lines import SPLITS, CaptionList, read_caption_lines, read_splits
from ccaco_cli.core.data.sources.flickr8k import LICENCE
from ccaco_cli.core.data.sources.media_files import layout_error
from ccaco_cli.core.data.sources.photo_lists import first_file, flickr_records
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions

_NAME = "flickr8k-cn"
_EXPECTS = (
    "flickr8kzhc.caption.txt (and flickr8kenc.caption.txt) with flickr8ktrain.txt, flickr8kval.txt and "
    "flickr8ktest.txt, beside the folder of photos"
)
_CAPTIONS = {"zh": "flickr8kzhc.caption.txt", "en": "flickr8kenc.caption.txt"}
_PHOTOS = {"train": 6_000, "val": 1_000, "test": 1_000}


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is None or not root.is_dir():
        raise layout_error(_NAME, f"no {_NAME} here", root, _EXPECTS)
    splits, lists = read_splits(_NAME, root, {split: f"flickr8k{split}.txt" for split in SPLITS}, _EXPECTS)
    files = {code: file for code, name in _CAPTIONS.items() if (file := first_file(root, (name,)))}
    if not files:
        raise layout_error(_NAME, "no captions here", root, _EXPECTS)
    languages = chosen_languages(options.languages, tuple(files), root)
    lines = {code: read_caption_lines([files[code]]) for code in languages}
    listing = CaptionList(_NAME, _PHOTOS, splits, lines, [*lists, *(files[code] for code in languages)])
    return listing.data(partial(flickr_records, root, media_root=options.media_root), LICENCE)


SOURCE = Source(_NAME, ("image", "text"), _EXPECTS, _read)
