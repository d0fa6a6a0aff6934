from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.data.sources.sugarcrepe import SOURCE, TYPES
from ccaco_cli.core.errors import DataError

OPTIONS = SourceOptions()


def lay_out(root: Path, folder: str = "sugar_crepe") -> None:
    (root / folder).mkdir(parents=True)
    (root / "val2017").mkdir()
    for number, name in enumerate(TYPES):
        items = {
            str(number + 3 * i): {"filename": f"{i}.jpg", "caption": f" true  {i}\n", "negative_caption": f"{name} {i}"}
            for i in range(2)
        }
        (root / folder / f"{name}.json").write_text(json.dumps(items))


@pytest.mark.parametrize("folder", ["sugar_crepe", "data", "."])
def test_a_record_is_a_photo_with_its_choices(tmp_path: Path, folder: str) -> None:
    lay_out(tmp_path / "s", folder)
    data = SOURCE.read(tmp_path / "s", OPTIONS)
    rows = list(data.records)
    assert [(r.id, r.split, list(r.captions), r.media["image"]) for r in rows] == [
        (f"{i}.jpg", "test", [f"true {i}"], tmp_path / "s" / "val2017" / f"{i}.jpg") for i in range(2)
    ]
    assert rows[1].meta == {"choices": [[name, "true 1", f"{name} 1"] for name in TYPES]}
    assert data.counts == {"test": 2} and data.facts == {"items": dict.fromkeys(TYPES, 2), "evaluation": "choices"}
    assert data.protocol.startswith("sugarcrepe: 14 choices")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no SugarCrepe items here.*replace_obj.json.*next: ccaco prepare --list"):
        SOURCE.read(tmp_path, OPTIONS)
    lay_out(tmp_path / "s")
    (tmp_path / "s" / "sugar_crepe" / "swap_att.json").unlink()
    with pytest.raises(DataError, match=r"one of the seven files is missing.*swap_att.json"):
        SOURCE.read(tmp_path / "s", OPTIONS)
    for text in ("[1]", "{", '{"0": {"filename": "a"}}', "3"):
        (tmp_path / "s" / "sugar_crepe" / "swap_att.json").write_text(text)
        with pytest.raises(DataError, match="not a file of SugarCrepe items"):
            SOURCE.read(tmp_path / "s", OPTIONS)


@pytest.mark.skipif("CCACO_REAL_DATA" not in os.environ, reason="CCACO_REAL_DATA is not set: no real photos to read")
def test_real_items() -> None:
    data = SOURCE.read(Path(os.environ["CCACO_REAL_DATA"]) / "tiny_coco", OPTIONS)
    counts = {
        "add_att": 32,
        "add_obj": 94,
        "replace_att": 41,
        "replace_obj": 76,
        "replace_rel": 55,
        "swap_att": 6,
        "swap_obj": 1,
    }
    assert data.facts["items"] == counts and sum(len(r.meta["choices"]) for r in data.records) == 305


@pytest.mark.parametrize("caption", [None, float("nan"), "nan", "", ["a", "b"], {"raw": "a"}])
def test_a_choice_without_both_captions_is_refused(tmp_path: Path, caption: object) -> None:
    lay_out(tmp_path / "s")
    item = {"filename": "0.jpg", "caption": "a", "negative_caption": caption}
    (tmp_path / "s" / "sugar_crepe" / "swap_att.json").write_text(json.dumps({"0": item}))
    with pytest.raises(DataError, match=r"not a file of SugarCrepe items.*swap_att.json"):
        SOURCE.read(tmp_path / "s", OPTIONS)
    (tmp_path / "s" / "sugar_crepe" / "swap_att.json").write_text('{"0": 1, "0": 2}')
    with pytest.raises(DataError, match="repeated key '0'"):
        SOURCE.read(tmp_path / "s", OPTIONS)
