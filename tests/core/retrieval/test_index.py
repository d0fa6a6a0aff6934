from __future__ import annotations

import gc
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import CcacoError, DataError, ManifestError
from ccaco_cli.core.retrieval.generations import begin, sweep
from ccaco_cli.core.retrieval.index import Index, IndexSide, thumbnail, write_side
from ccaco_cli.core.retrieval.search import SearchOptions, encode_query, search
from ccaco_cli.core.retrieval.token_store import Writer
from tests.processes import CONTEXT

FILES = [
    "generation-1/image/items.arrow",
    "generation-1/image/tokens.npy",
    "generation-1/image/vectors.npy",
    "generation-1/text/items.arrow",
    "generation-1/text/vectors.npy",
    "generation-1/query/encoder.onnx.data",
    "generation-1/model/model.safetensors",
    "generation-1/model/config.toml",
]


def test_a_side_gives_back_what_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4, 6)).astype(np.float32)
    values = z.copy()
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False], [True, True, False]])
    tokens = torch.from_numpy(rng.normal(size=(4, 3, 5)).astype(np.float16))
    with Writer(tmp_path, "float16") as writer:
        writer.add(tokens.numpy(), mask.numpy())
    parts = [{"id": list("ab"), "text": [["x", "y"], []]}, {"id": list("cd"), "text": [["z"], ["w"]]}]
    write_side(tmp_path, z, parts, store="float16")
    assert (z == values).all(), "the caller's vectors stay as they are"
    side = IndexSide(tmp_path)
    assert side.has_tokens
    stored = side.vectors.rows  # type: ignore[attr-defined]
    assert np.allclose(stored, z / np.linalg.norm(z, axis=1, keepdims=True), atol=1e-6)
    assert side.item(2) == {"id": "c", "text": ["z"]}
    stored_tokens = side.local_tokens([3, 1])
    assert torch.equal(stored_tokens.mask, mask[[3, 1]])
    assert torch.equal(stored_tokens.tokens[stored_tokens.mask].half(), tokens[[3, 1]][mask[[3, 1]]])
    facts = write_side(
        tmp_path / "plain",
        z.astype(np.float16),
        [{"id": list("a"), "text": [[]]}, {"id": list("bcd"), "text": [["x"]] * 3}],
    )
    assert facts["tokens"] == {"store": "none", "bytes_per_item": 0.0}
    plain = IndexSide(tmp_path / "plain")
    assert not plain.has_tokens
    assert [plain.item(row)["text"] for row in (0, 3)] == [[], ["x"]]


def answers(path: Path) -> list[Any]:
    opened = Index(path)
    picture = Image.open(io.BytesIO(opened.sides["image"].item(3)["thumbnail"]))
    both = search(opened, "text", encode_query(opened, "text", ["a red cat", "a dog"]), SearchOptions(6))
    return [*both, *search(opened, "image", encode_query(opened, "image", [picture]), SearchOptions(6))]


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
    assert opened.targets("text") == ("image",)
    assert opened.targets("image") == ("text",)
    assert opened.targets("image", "image") == ("image",)
    with pytest.raises(DataError, match="cannot encode audio"):
        opened.targets("audio")
    with pytest.raises(DataError, match=r"no items of the modality 'audio'.*one of image, text"):
        opened.targets("image", "audio")
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
        Index(copy, "full" if how == "flipped" else "quick")


def _link(source: str, target: str) -> str:
    Path(target).hardlink_to(source)
    return target


def test_what_is_no_index_is_refused(run: Path, tmp_path: Path) -> None:
    for path, words in (
        (run, "this is a run"),
        (tmp_path, "not a index|not an index|foreign"),
        (tmp_path / "gone", "ccaco embed"),
    ):
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


def build(root: Path, mark: int) -> None:
    """One more generation of an index without a model, in which every part carries the mark."""
    temp, name = begin(root)
    rows = 5 + mark % 3
    for modality in ("image", "text"):
        with Writer(temp / modality, "float16") as writer:
            writer.add(np.full((rows, 2, 4), mark, np.float16), np.ones((rows, 2), bool))
        write_side(
            temp / modality, np.eye(rows, 8), [{"id": [str(mark)] * rows, "text": ["t"] * rows}], store="float16"
        )
    temp.rename(root / name)
    facts = {"modalities": ["image", "text"], "weight": 0.0, "headline": "cosine", "generation": name, "mark": mark}
    facts |= {"rows": {"image": rows, "text": rows}, "dim": 8}
    manifest.write(
        root,
        "index",
        facts=facts,
        files=[manifest.file_entry(root, f) for f in sorted((root / name).rglob("*")) if f.is_file()],
    )
    sweep(root, name)


def check(opened: Index) -> int:
    mark = int(opened.manifest.facts["mark"])
    for side in opened.sides.values():
        side.check(8)
        assert side.item(0)["id"] == str(mark)
        assert (side.local_tokens([0, 4]).tokens == mark).all()
    return mark


def test_a_reader_keeps_the_generation_that_it_opened(tmp_path: Path) -> None:
    root = tmp_path / "x.idx"
    build(root, 1)
    old = Index(root)
    for mark in (2, 3):
        build(root, mark)
    assert check(old) == 1, "nothing of it was read before it was replaced"
    assert check(Index(root)) == 3
    del old
    gc.collect()
    build(root, 4)
    gc.collect()
    assert sorted(p.name for p in root.iterdir()) == ["generation-4", manifest.NAME]


def read_while_it_is_rebuilt(root: Path, done: Path) -> None:
    generations, rounds = set(), 0
    while not done.exists() or not rounds:
        generations.add(check(Index(root, "full")))
        rounds += 1
    (done.parent / f"seen-{os.getpid()}").write_text(f"{rounds} {len(generations)}")


def test_readers_see_the_old_or_the_new_index_whole(tmp_path: Path) -> None:
    root, done = tmp_path / "x.idx", tmp_path / "done"
    build(root, 0)
    readers = [CONTEXT.Process(target=read_while_it_is_rebuilt, args=(root, done)) for _ in range(2)]
    for reader in readers:
        reader.start()
    for mark in range(1, 12):
        build(root, mark)
    done.touch()
    for reader in readers:
        reader.join(60)
    assert [reader.exitcode for reader in readers] == [0, 0]
    assert len(list(tmp_path.glob("seen-*"))) == 2


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "x.idx"
    build(root, 1)
    side = Index(root).sides["text"]
    with pytest.raises(ManifestError, match=r"vectors of shape \[6, 8\].*expected \[6, 16\].*--rebuild"):
        side.check(16)
    with pytest.raises(ManifestError, match="do not belong"):
        IndexSide(side.folder, 7).check(8)
