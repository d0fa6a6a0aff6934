"""SugarCrepe: photos of COCO val2017, each with a correct caption and a hard negative to choose from.

Source: Hsieh et al., NeurIPS 2023, arXiv:2306.14610; the seven json files of github.com/RAIVNLab/sugar-crepe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ccaco_cli.core.data.checks import clean_caption
from ccaco_cli.core.data.sources.fields import text_from
from ccaco_cli.core.data.sources.lists import decode_text, parse_strictly, revision_of
from ccaco_cli.core.data.sources.media_files import layout_error, locate
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

TYPES = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")
_EXPECTS = (
    f"{', '.join(f'{name}.json' for name in TYPES)} (there or in sugar_crepe/ or data/) beside COCO's val2017/ photos"
)
_FIELDS = ("filename", "caption", "negative_caption")
_Items = dict[str, list[tuple[str, str, str]]]  # photo -> (type, caption, negative caption)


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    places = [] if root is None else [root, root / "sugar_crepe", root / "sugar-crepe" / "data", root / "data"]
    here = next((place for place in places if (place / f"{TYPES[0]}.json").is_file()), None)
    if root is None or here is None:
        raise layout_error("sugarcrepe", "no SugarCrepe items here", root, _EXPECTS)
    files = {name: here / f"{name}.json" for name in TYPES}
    items: _Items = {}
    counts = {}
    for name, file in files.items():
        rows = _items(file)
        counts[name] = len(rows)
        for photo, caption, negative in rows:
            items.setdefault(photo, []).append((name, caption, negative))
    return SourceData(
        records=_records(_photo_folder(root), options.media_root and _photo_folder(options.media_root), items),
        protocol=f"sugarcrepe: {sum(counts.values())} choices between a caption and a hard negative, ties and NaN "
        "are wrong",
        licence="items MIT; photos as of COCO val2017",
        revision=revision_of(*files.values()),
        text_files=tuple(files.values()),
        facts={"items": counts, "evaluation": "choices"},
        counts={"test": len(items)},
    )


def _items(file: Path) -> list[tuple[str, str, str]]:
    try:
        body = parse_strictly(decode_text(file.read_bytes()))
        rows = body.values() if isinstance(body, Mapping) else body
        items = []
        for number, row in enumerate(rows):
            photo, caption, negative = (text_from(row[name], name) for name in _FIELDS)
            if not (photo and clean_caption(caption) and clean_caption(negative)):
                raise ValueError(f"item {number} lacks a caption or a photo")  # a choice needs both captions
            items.append((photo, clean_caption(caption), clean_caption(negative)))
        return items
    except FileNotFoundError:
        raise DataError("one of the seven files is missing", where=file, expected=_EXPECTS) from None
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"not a file of SugarCrepe items ({error})", where=file, expected="N: {filename, caption, negative_caption}"
        ) from None


def _photo_folder(root: Path) -> Path:
    return next((place for place in (root / "val2017", root / "images" / "val2017") if place.is_dir()), root)


def _records(photos: Path, other_photos: Path | None, items: _Items) -> Iterator[PairRecord]:
    for photo, choices in sorted(items.items()):
        captions = list(dict.fromkeys(caption for _, caption, _ in choices))
        yield PairRecord(
            photo,
            photo,
            "test",
            {"image": locate(photo, photos, other_photos)},
            captions,
            meta={"choices": [list(choice) for choice in choices]},
        )


SOURCE = Source("sugarcrepe", ("image", "text"), _EXPECTS, _read)
