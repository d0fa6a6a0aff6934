from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import CcacoError, DataError, ManifestError
from ccaco_cli.core.retrieval.index import Index, IndexSide, thumbnail, write_side
from ccaco_cli.core.retrieval.search import encode_query, search
from ccaco_cli.core.types import Encoded

FILES = [
    "image/items.arrow",
    "image/tokens.npy",
    "image/vectors.faiss",
    "text/items.arrow",
    "text/vectors.faiss",
    "model/model.safetensors",
    "model/config.toml",
]


def test_a_side_gives_back_what_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4, 6)).astype(np.float32)
    given = z.copy()
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False], [True, True, False]])
    tokens = Encoded(torch.from_numpy(rng.normal(size=(4, 3, 5)).astype(np.float16)), mask, torch.zeros(4, 0), torch.zeros(4, 0))
    write_side(tmp_path, z, tokens, {"id": list("abcd"), "text": [["x", "y"], [], ["z"], ["w"]]})
    assert (z == given).all(), "the caller's vectors stay as they are"
    side = IndexSide(tmp_path)
    assert side.has_tokens
    stored = side.vectors.reconstruct_n(0, 4)
    assert np.allclose(stored, z / np.linalg.norm(z, axis=1, keepdims=True), atol=1e-6)
    assert side.item(2) == {"id": "c", "text": ["z"]}
    found = side.encoded([3, 1])
    assert torch.equal(found.mask, mask[[3, 1]])
    assert torch.equal(found.tokens[found.mask], tokens.tokens[[3, 1]][mask[[3, 1]]])
    write_side(tmp_path / "plain", z.astype(np.float16), None, {"id": list("abcd")})
    assert not IndexSide(tmp_path / "plain").has_tokens


def answers(path: Path) -> list[Any]:
    opened = Index(path)
    picture = Image.open(io.BytesIO(opened.sides["image"].item(3)["thumbnail"]))
    both = search(opened, "text", encode_query(opened, "text", ["a red cat", "a dog"]), 6)
    return [*both, *search(opened, "image", encode_query(opened, "image", [picture]), 6)]


def test_it_needs_nothing_but_itself(run: Path, data_root: Path, index: Path, tmp_path: Path) -> None:
    wanted = answers(index)
    moved = tmp_path / "other/place.idx"
    shutil.copytree(index, moved)
    hidden = [folder.rename(folder.with_name("hidden")) for folder in (run, data_root / "scenes")]
    hidden.append(index.rename(index.with_name("hidden.idx")))
    try:
        assert answers(moved) == wanted
    finally:
        for folder, name in zip(hidden, (run, data_root / "scenes", index), strict=True):
            folder.rename(name)


def test_facts(index: Path) -> None:
    opened = Index(index)
    assert opened.modalities == ("image", "text")
    assert opened.manifest.facts["rows"] == {"image": 25, "text": 125}
    assert opened.manifest.facts["split"] == "test"
    assert opened.manifest.facts["protocol"].startswith("scenes: ")
    assert opened.other("text") == "image"
    assert opened.other("image") == "text"
    with pytest.raises(DataError, match="no audio"):
        opened.other("audio")
    item = opened.sides["text"].item(7)
    picture = opened.sides["image"].item(1)
    assert item["text"] == picture["text"][2]
    assert item["id"] == picture["id"]
    assert Image.open(io.BytesIO(picture["thumbnail"])).size == (32, 32)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flipped", "shorter", "gone"])
def test_an_altered_file_is_refused_by_name(index: Path, tmp_path: Path, name: str, how: str) -> None:
    copy = tmp_path / "x.idx"
    shutil.copytree(index, copy, copy_function=shutil.copy if how == "flipped" else _link)
    file = copy / name
    data = bytearray(file.read_bytes())
    file.unlink()
    if how != "gone":
        data[len(data) // 2] ^= 1
        file.write_bytes(data[: None if how == "flipped" else -1])
    with pytest.raises(ManifestError, match=name):
        Index(copy)


def _link(source: str, target: str) -> str:
    Path(target).hardlink_to(source)
    return target


def test_what_is_no_index_is_refused(run: Path, tmp_path: Path) -> None:
    for path, words in ((run, "this is a run"), (tmp_path, "not a index|not an index|foreign"), (tmp_path / "gone", "ccaco embed")):
        with pytest.raises(CcacoError, match=words):
            Index(path)


def test_every_file_is_in_the_manifest(index: Path) -> None:
    listed = {entry["name"] for entry in json.loads((index / manifest.NAME).read_text())["files"]}
    assert listed | {manifest.NAME} == {p.relative_to(index).as_posix() for p in index.rglob("*") if p.is_file()}
    assert set(FILES) <= listed


def test_thumbnails() -> None:
    out = io.BytesIO()
    Image.new("RGB", (600, 300), "red").save(out, "PNG")
    small = Image.open(io.BytesIO(thumbnail("image", out.getvalue())))
    assert (small.size, small.format) == ((224, 112), "JPEG")
