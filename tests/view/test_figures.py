from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.retrieval.search import Hit
from ccaco_cli.core.types import PairRecord
from ccaco_cli.view.figures import contact_sheet, preview


def hit(rank: int, colour: str = "red", text: object = "a cat", picture: bool = True) -> Hit:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(out, "PNG")
    item = {"id": str(rank), "text": text} | ({"thumbnail": out.getvalue()} if picture else {})
    return Hit(rank, rank, 0.5, 0.5, None, item)


def red(path: Path) -> int:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int(((pixels[..., 0] > 200) & (pixels[..., 1] < 60)).sum())


def test_one_tile_an_answer_and_five_a_row(tmp_path: Path) -> None:
    contact_sheet(tmp_path / "new/one.png", [("a query", [hit(1)])])
    contact_sheet(tmp_path / "seven.png", [("a query", [hit(i + 1) for i in range(7)])])
    assert red(tmp_path / "seven.png") == pytest.approx(7 * red(tmp_path / "new/one.png"), rel=0.1)
    sizes = []
    for name in ("new/one.png", "seven.png"):
        with Image.open(tmp_path / name) as image:
            sizes.append(image.size)
    assert sizes[1][1] == 2 * sizes[0][1]


def test_captions_are_plain_text_and_may_be_missing(tmp_path: Path) -> None:
    odd = [
        hit(1, text=r"costs $5 and $\foo$"),
        hit(2, text=[]),
        hit(3, text=None),
        hit(4, text=["one", "two"]),
        hit(5, picture=False),
    ]
    contact_sheet(tmp_path / "x.svg", [(r"$\query$", odd), ("no answers", [])])
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")


def test_other_suffixes_are_refused_and_nothing_is_written_for_nothing(tmp_path: Path) -> None:
    for name in ("x.txt", "x"):
        with pytest.raises(DataError, match=r"\.png"):
            contact_sheet(tmp_path / name, [("q", [hit(1)])])
    contact_sheet(tmp_path / "x.png", [])
    assert not list(tmp_path.iterdir())


def test_a_preview_shows_five_samples_of_every_split(tmp_path: Path) -> None:
    picture = hit(1).item["thumbnail"]
    splits = {"train": 40, "val": 5, "test": 3}
    captions = ["a $dollar^ caption " * 20] * 9
    places = [(split, i) for split, count in splits.items() for i in range(count)]
    rows = [PairRecord(f"{split}/{i}", f"{split}{i}", split, {"image": picture}, captions) for split, i in places]
    shards.write(
        rows, tmp_path / "d", shards.DatasetInfo(name="d", modalities=("image", "text")), shards.WriteOptions(workers=0)
    )
    preview(tmp_path / "new" / "look.png", shards.open(tmp_path / "d"))
    contact_sheet(tmp_path / "one.png", [("a query", [hit(1)])])
    assert 13 * 0.8 < red(tmp_path / "new" / "look.png") / red(tmp_path / "one.png") < 13 * 1.5
    with pytest.raises(DataError, match="no such kind of picture"):
        preview(tmp_path / "look.txt", shards.open(tmp_path / "d"))
