"""The published layouts of Winoground, ARO and Crossmodal-3600, in small generated copies."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources import SOURCES
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError
from tests.suites import ARO_BOXES, aro_folder, crossmodal_folder, winoground_folder

OPTIONS = SourceOptions()
HERE = WriteOptions(workers=0)


@pytest.mark.parametrize("folder", ["data", "."])
def test_a_winoground_example_is_two_records(tmp_path: Path, folder: str) -> None:
    data = SOURCES["winoground"].read(winoground_folder(tmp_path / "w", folder=folder), OPTIONS)
    first, second = list(data.records)[:2]
    assert (first.id, first.captions, first.meta) == ("0/0", ["red 0"], {"example": "0", "tag": "Object"})
    assert (second.id, second.captions, second.family) == ("0/1", ["blue 0"], first.family)
    assert str(second.media["image"]).endswith("images/ex_0_img_1.png")
    assert data.protocol.endswith("a part: 3 of 400") and data.facts == {"examples": 3, "evaluation": "choices"}


def test_an_aro_choice_has_its_crop(tmp_path: Path) -> None:
    root = aro_folder(tmp_path / "aro")
    prepare("aro", source_path=root, out=tmp_path / "out", write=HERE)
    data = shards.open(tmp_path / "out")
    split = data.split("test")
    assert data.manifest.facts["source"]["items"] == {"relation": 4, "attribution": 25}
    assert data.manifest.facts["source"]["left_out"] == {"relation": 0, "attribution": 1}
    row = split.ids.index("0.png#4,2,20,18")
    stored = np.asarray(Image.open(io.BytesIO(split.media("image", [row])[0])))
    whole_image = np.asarray(Image.open(root / "images" / "0.png"))
    assert (stored == whole_image[2:18, 4:20]).all()
    choices = split.meta(row)["choices"]
    assert ["relation/to_the_left_of", "0 is left", "0 is right"] in choices
    assert {kind for r in range(len(split)) for kind, *_ in split.meta(r)["choices"]} == {
        "relation/to_the_left_of",
        "relation/on",
        "attribution/red_old",
    }
    assert len(split) == len(ARO_BOXES)


def test_captions_of_all_languages_are_at_one_photo(tmp_path: Path) -> None:
    root = crossmodal_folder(tmp_path / "xm")
    prepare("crossmodal-3600", source_path=root, out=tmp_path / "out", write=HERE)
    split = shards.open(tmp_path / "out").split("test")
    assert split.meta(0)["languages"] == [["de", 1], ["en", 2]] and split.meta(0)["locale"] == "de"
    assert split.captions[:3] == ["hund 0", "a dog 0", "the dog 0"] and len(split) == 6
    facts = shards.open(tmp_path / "out").manifest.facts
    assert facts["source"] == {"captions": {"de": 6, "en": 12}, "evaluation": "languages"}


def test_chosen_languages_of_crossmodal(tmp_path: Path) -> None:
    root = crossmodal_folder(tmp_path / "xm")
    _lines("captions.jsonl", lambda entry: entry.pop("en") and None)(root)  # of the second photo
    data = SOURCES["crossmodal-3600"].read(root, SourceOptions(languages=("en",)))
    records = list(data.records)
    assert [record.id for record in records] == ["0", "2", "3", "4", "5"] and data.counts == {"test": 5}
    assert records[0].captions == ["a dog 0", "the dog 0"] and records[0].meta["languages"] == [["en", 2]]
    assert data.facts["captions"] == {"en": 10} and "captions of one language, en; a part" in data.protocol
    with pytest.raises(DataError, match=r"no captions in fr here.*--language de or en"):
        SOURCES["crossmodal-3600"].read(root, SourceOptions(languages=("fr",)))


def _lines(file: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        entries = [json.loads(line) for line in (root / file).read_text("utf-8").splitlines()]
        changed = change(entries[1])
        entries[1] = changed if isinstance(changed, dict) else entries[1]
        (root / file).write_text("\n".join(map(json.dumps, entries)), "utf-8")

    return edit


def _items(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        file = root / "visual_genome_relation.json"
        items = json.loads(file.read_text("utf-8"))
        change(items[1])
        file.write_text(json.dumps(items), "utf-8")

    return edit


def _write(file: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / file).write_text(text, "utf-8") and None


@pytest.mark.parametrize(
    ("suite", "edit", "message"),
    [
        ("winoground", lambda root: (root / "data" / "examples.jsonl").unlink(), "no Winoground examples here"),
        ("winoground", _write("data/examples.jsonl", ""), "no examples"),
        ("winoground", _write("data/examples.jsonl", '{"id": 1}\n{'), "examples.jsonl"),
        ("winoground", _write("data/examples.jsonl", "[1]\n"), "no JSON object.*line 1"),
        ("winoground", _lines("data/examples.jsonl", lambda e: e.pop("caption_1")), "lacks caption_1.*example 2"),
        ("winoground", _lines("data/examples.jsonl", lambda e: e.update(id=0)), "two examples with id 0"),
        ("winoground", _lines("data/examples.jsonl", lambda e: e.update(image_0=["a", "b"])), "several values"),
        ("aro", lambda root: [file.unlink() for file in root.glob("*.json")], "no ARO files here"),
        ("aro", _write("visual_genome_relation.json", "{}"), "no list"),
        ("aro", _write("visual_genome_relation.json", "["), "not a file of ARO choices"),
        ("aro", _items(lambda item: item.update(bbox_w=0)), "empty box.*item 2"),
        ("aro", _items(lambda item: item.update(bbox_x="4")), "no number of pixels.*item 2"),
        ("aro", _items(lambda item: item.update(bbox_x=float("nan"))), "not a file of ARO choices"),
        ("aro", _items(lambda item: item.update(false_caption="")), "lacks its image.*item 2"),
        ("aro", _items(lambda item: item.pop("relation_name")), "relation_name.*item 2"),
        ("crossmodal-3600", lambda root: (root / "captions.jsonl").unlink(), "no captions.jsonl here"),
        ("crossmodal-3600", _write("captions.jsonl", "\n"), "no photos"),
        ("crossmodal-3600", _write("captions.jsonl", '{"a": }'), "line 1"),
        ("crossmodal-3600", _lines("captions.jsonl", lambda e: e.pop("image/key")), "lacks its key.*photo 2"),
        ("crossmodal-3600", _lines("captions.jsonl", lambda e: {"image/key": "x"}), "lacks its captions.*photo 2"),
        ("crossmodal-3600", _lines("captions.jsonl", lambda e: e.update({"image/key": "0"})), "two photos with key 0"),
    ],
)
def test_bad_files_are_refused(suite: str, edit: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    make = {"winoground": winoground_folder, "aro": aro_folder, "crossmodal-3600": crossmodal_folder}[suite]
    root = make(tmp_path / "s")
    edit(root)
    with pytest.raises(DataError, match=message):
        SOURCES[suite].read(root, OPTIONS)


def test_an_image_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    root = aro_folder(tmp_path / "aro")
    Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    _items(lambda item: item.update(image_path="../../secret.png"))(root)
    prepare("aro", source_path=root, out=tmp_path / "out", write=WriteOptions(workers=0, max_rejects=0.5))
    rejects = (tmp_path / "out" / "rejects.csv").read_text()
    assert "secret.png" in rejects and "outside" in rejects
