"""Winoground: two images and two captions of the same words in another order; each image has its own caption.

Source: Thrush et al., CVPR 2022, arXiv:2204.03162; huggingface.co/datasets/facebook/winoground (access on request).

Layout: ``data/examples.jsonl`` (or ``examples.jsonl``) with one object per line, ``{id, caption_0, image_0, caption_1,
image_1, tag, secondary_tag, num_main_preds, collapsed_tag}``, where ``image_0`` is a name such as ``ex_0_img_0``; and
the unpacked ``images.zip`` beside it: ``images/ex_0_img_0.png``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ccaco_cli.core.data.checks import clean_caption
from ccaco_cli.core.data.sources.fields import text_from
from ccaco_cli.core.data.sources.lists import read_json_lines, repeated, revision_of
from ccaco_cli.core.data.sources.media_files import layout_error, locate
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

EXAMPLES = 400
_EXPECTS = "data/examples.jsonl (or examples.jsonl) beside images/*.png, as facebook/winoground has them"
_FIELDS = ("id", "caption_0", "image_0", "caption_1", "image_1")


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    folders = [] if root is None else [root, root / "data"]
    folder = next((folder for folder in folders if (folder / "examples.jsonl").is_file()), None)
    if root is None or folder is None:
        raise layout_error("winoground", "no Winoground examples here", root, _EXPECTS)
    file = folder / "examples.jsonl"
    examples = _examples(file)
    images = next((path for path in (folder / "images", root / "images") if path.is_dir()), root)
    part = "" if len(examples) == EXAMPLES else f"; a part: {len(examples):,} of {EXAMPLES}"
    return SourceData(
        records=_records(examples, images, options.media_root),
        protocol=f"winoground: text, image and group score, ties and NaN are wrong{part}",
        licence="Meta Images Research License: research only, see the data set card",
        revision=revision_of(file),
        text_files=(file,),
        facts={"examples": len(examples), "evaluation": "choices"},
        counts={"test": 2 * len(examples)},
    )


def _examples(file: Path) -> list[dict[str, str]]:
    """The examples with clean captions. Raises DataError: a field is missing, or an id occurs twice."""
    examples = []
    for number, entry in enumerate(read_json_lines(file), 1):
        try:
            example = {name: clean_caption(text_from(entry.get(name), name)) for name in _FIELDS}
            example["tag"] = text_from(entry.get("collapsed_tag"), "collapsed_tag")
        except DataError as error:
            raise DataError(error.what, where=f"{file}, example {number}", expected=", ".join(_FIELDS)) from None
        if missing := [name for name in _FIELDS if not example[name]]:
            raise DataError(
                f"an example lacks {missing[0]}", where=f"{file}, example {number}", expected=", ".join(_FIELDS)
            )
        examples.append(example)
    twice = repeated(example["id"] for example in examples)
    if twice or not examples:
        raise DataError(f"two examples with id {min(twice)}" if twice else "this file has no examples", where=file)
    return examples


def _records(examples: list[dict[str, str]], images: Path, media_root: Path | None) -> Iterator[PairRecord]:
    for example in examples:
        for side in ("0", "1"):
            name = example[f"image_{side}"]
            name = name if Path(name).suffix else f"{name}.png"
            id = f"{example['id']}/{side}"
            yield PairRecord(
                id,
                id,
                "test",
                {"image": locate(name, images, media_root)},
                [example[f"caption_{side}"]],
                family=example["id"],
                meta={"example": example["id"], "tag": example["tag"]},
            )


SOURCE = Source("winoground", ("image", "text"), _EXPECTS, _read)
