"""The data sets that ``ccaco prepare`` knows: one file each, and one entry here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from ccaco_cli.core.data.sources.source import Source

_WHERE = {
    "scenes": "scenes.SOURCE",
    "scenes-styles": "scenes.STYLES_SOURCE",
    "coco": "coco.SOURCE",
    "flickr8k": "flickr8k.SOURCE",
    "flickr30k": "flickr8k.FLICKR30K_SOURCE",
    "emoji-styles": "emoji.SOURCE",
    "bounces": "bounces.SOURCE",
    "kinetics-sounds": "kinetics_sounds.SOURCE",
    "audiofolder": "audiofolder.SOURCE",
    "imagefolder": "imagefolder.SOURCE",
    "table": "table.SOURCE",
    "webdataset": "webdataset.SOURCE",
    "hub": "hub.SOURCE",
    "sugarcrepe": "sugarcrepe.SOURCE",
}


class _Lazy(Mapping[str, Source]):
    """Imports a source only when it is asked for, so that naming them all costs nothing."""

    def __getitem__(self, name: str) -> Source:
        module, _, attribute = _WHERE[name].partition(".")
        source: Source = getattr(import_module(f"{__name__}.{module}"), attribute)
        return source

    def __iter__(self) -> Iterator[str]:
        return iter(_WHERE)

    def __len__(self) -> int:
        return len(_WHERE)

    def __contains__(self, name: object) -> bool:
        return name in _WHERE


SOURCES: Mapping[str, Source] = _Lazy()
