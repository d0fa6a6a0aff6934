"""The data sets that ``ccaco prepare`` knows.

A new one is a module with a ``Source``, and one entry in ``LOCATIONS``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from ccaco_cli.core.data.sources.source import Source

LOCATIONS = {
    "scenes": "scenes.SOURCE",
    "scenes-styles": "scenes.STYLES_SOURCE",
    "coco": "coco.SOURCE",
    "coco-cn": "coco_cn.SOURCE",
    "vqa": "vqa.SOURCE",
    "flickr8k": "flickr8k.SOURCE",
    "flickr30k": "flickr8k.FLICKR30K_SOURCE",
    "flickr8k-roles": "flickr8k.ROLES_SOURCE",
    "flickr30k-roles": "flickr8k.FLICKR30K_ROLES_SOURCE",
    "flickr8k-cn": "flickr8k_cn.SOURCE",
    "flickr30k-cn": "flickr30k_cn.SOURCE",
    "chinese-clip": "chinese_clip.SOURCE",
    "emoji-styles": "emoji.SOURCE",
    "bounces": "bounces.SOURCE",
    "shapes": "shapes.SOURCE",
    "pairs": "pairs.SOURCE",
    "kinetics-sounds": "kinetics_sounds.SOURCE",
    "audiofolder": "audiofolder.SOURCE",
    "imagefolder": "imagefolder.SOURCE",
    "media": "media.SOURCE",
    "table": "table.SOURCE",
    "webdataset": "webdataset.SOURCE",
    "hub": "hub.SOURCE",
    "sugarcrepe": "sugarcrepe.SOURCE",
    "winoground": "winoground.SOURCE",
    "aro": "aro.SOURCE",
    "crossmodal-3600": "crossmodal_3600.SOURCE",
}
"""Name on the command line -> module and variable of the ``Source``."""


class _Lazy(Mapping[str, Source]):
    """Imports a source at its first use, so that listing the names costs nothing."""

    def __getitem__(self, name: str) -> Source:
        module, _, attribute = LOCATIONS[name].partition(".")
        source: Source = getattr(import_module(f"{__name__}.{module}"), attribute)
        return source

    def __iter__(self) -> Iterator[str]:
        return iter(LOCATIONS)

    def __len__(self) -> int:
        return len(LOCATIONS)

    def __contains__(self, name: object) -> bool:
        return name in LOCATIONS


SOURCES: Mapping[str, Source] = _Lazy()
