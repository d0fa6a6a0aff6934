from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core import lock, manifest
from ccaco_cli.core.errors import CcacoError, ConfigError, DataError
from ccaco_cli.core.library import encoder, hashing, parts
from ccaco_cli.core.library.request import MediaRequest
from ccaco_cli.core.library.update import MediaResult, embed_folder
from ccaco_cli.core.retrieval import export
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import SearchOptions, ask, encode_query, search
from tests.manifests import edited
from tests.pretrained_models import hf_folder
from tests.processes import launch
from tests.recordings import sound, tone

ROOT = Path(__file__).parents[3]


def picture(path: Path, seed: int, size: int = 40) -> Path:
    """A PNG of random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks).resize((size, size + 8), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures at two levels, an exact duplicate, and files that are no pictures."""
    folder = tmp_path / "photos"
    for number in range(12):
        picture(folder / ("" if number < 6 else "trip/day 1") / f"p{number}.png", number)
    shutil.copyfile(folder / "p3.png", folder / "trip/copy.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.png").write_bytes(b"x")
    return folder


@pytest.fixture(autouse=True)
def _without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """The export takes longer than all else together, and has its own tests."""
    monkeypatch.setattr(export, "export", lambda *arguments, **settings: {"exported": False, "why": "not tried here"})


@pytest.fixture
def make(run: Path, tmp_path: Path, photos: Path) -> Callable[..., MediaResult]:
    """``make(**fields)``: embeds the photos into me.idx, with fields of ``MediaRequest`` replaced."""

    def embed(**fields: Any) -> MediaResult:
        settings = {"source": photos, "model": run, "device": "cpu", "precision": "fp32"} | fields
        return embed_folder(MediaRequest(**({"index": tmp_path / "me.idx"} | settings)))

    return embed


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of samples of each call of the encoder."""
    counts: list[int] = []
    encode = encoder.encode

    def counted(aligner: Any, modality: str, column: Any, **settings: Any) -> Any:
        counts.append(len(column.row))
        return encode(aligner, modality, column, **settings)

    monkeypatch.setattr(encoder, "encode", counted)
    return counts


def rows(index: Path) -> dict[str, tuple[Any, ...]]:
    """id -> bytes of the vector and of the tokens, and all columns of the item."""
    side = next(iter(Index(index, "full").sides.values()))
    result = {}
    for row in range(len(side.items)):
        first, last = side.tokens.offsets[row : row + 2] if side.has_tokens else (0, 0)
        tokens = side.tokens.tokens[first:last].tobytes() if side.has_tokens else b""
        scales = side.tokens.scales[first:last].tobytes() if side.has_tokens and side.tokens.scales is not None else b""
        item = side.item(row)
        result[item["id"]] = (side.vectors.rows[row].tobytes(), tokens, scales, item)  # type: ignore[attr-defined]
    return result


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*")}


def beside(index: Path) -> list[str]:
    """Names beside an index that belong to it."""
    return sorted(p.name for p in index.parent.iterdir() if "me.idx" in p.name)


def test_a_folder_becomes_an_index_of_one_side(make: Any, photos: Path, tmp_path: Path, encoded: list[int]) -> None:
    result = make()
    assert result.written and result.counts == {"new": 13, "changed": 0, "moved": 0, "unchanged": 0, "removed": 0}
    assert [(reject.path, reject.reason) for reject in result.rejects] == [("broken.jpg", "not a picture")]
    assert sum(encoded) == 12, "an exact duplicate is encoded once"
    index = Index(tmp_path / "me.idx", "full")
    assert (index.modalities, list(index.sides)) == (("image", "text"), ["image"])
    side = index.sides["image"]
    items = side.items.to_pydict()
    assert items["id"] == [
        *(f"p{n}.png" for n in range(6)),
        "trip/copy.png",
        *(f"trip/day 1/{name}" for name in ("p10.png", "p11.png", "p6.png", "p7.png", "p8.png", "p9.png")),
    ]
    assert items["path"][0] == str(photos / "p0.png") and Path(items["path"][12]).read_bytes()
    assert items["folder"][5:8] == ["/", "/trip/", "/trip/day 1/"]
    assert items["width"] == [40] * 13 and items["height"] == [48] * 13
    assert items["size"][0] == (photos / "p0.png").stat().st_size
    modified = (photos / "p0.png").stat().st_mtime
    assert items["modified"][0] == datetime.fromtimestamp(int(modified), UTC).replace(tzinfo=None)
    assert items["year"][0] == items["modified"][0].year
    assert items["group"][3] == items["group"][6] != items["group"][4]
    assert "taken" not in items and "camera" not in items, "null everywhere"
    vectors = side.vectors.rows  # type: ignore[attr-defined]
    assert vectors[3].tobytes() == vectors[6].tobytes() and (vectors[3] != vectors[4]).any()
    rejects = (index.folder / "image/rejects.csv").read_text().splitlines()
    assert rejects == ["path,reason,where", "broken.jpg,not a picture,"]
    query = encode_query(index, "image", [photos / "p0.png", photos / "trip/day 1/p6.png"])
    assert np.array_equal(query.z.numpy().argmax(1), query.z.numpy().argmax(1))
    assert np.abs(query.z.numpy() - vectors[[0, 9]]).max() < 1e-6, "items are encoded as queries are"
    hits = search(index, "image", query, SearchOptions(k=3))
    assert [hit[0].item["id"] for hit in hits] == ["p0.png", "trip/day 1/p6.png"]
    (answers,) = ask(index, "text", ["a red ball"], SearchOptions(k=20))
    assert len(answers) == 13 and answers[0].match is not None, "the cross branch reranks"
    assert beside(tmp_path / "me.idx") == ["me.idx"], "no parts, locks or temporary files stay"


def test_an_update_encodes_what_is_new_and_keeps_the_other_rows_to_the_byte(
    make: Any, photos: Path, tmp_path: Path, encoded: list[int]
) -> None:
    make()
    before, reader = rows(tmp_path / "me.idx"), Index(tmp_path / "me.idx")
    encoded.clear()
    picture(photos / "a new one.png", 100)
    picture(photos / "trip/new.png", 101)
    shutil.copyfile(photos / "p5.png", photos / "z copy.png")  # of an item that stays
    picture(photos / "p1.png", 102)  # other content
    (photos / "p2.png").rename(photos / "trip/renamed.png")
    (photos / "trip/day 1").rename(photos / "trip/day 2")
    (photos / "p0.png").unlink()
    os.utime(photos / "p3.png", (1e9, 1e9))  # the same content
    (photos / "broken.jpg").unlink()
    (photos / "broken2.jpg").write_bytes(b"another")
    result = make()
    assert result.counts == {"new": 3, "changed": 1, "moved": 7, "unchanged": 4, "removed": 1}
    assert sum(encoded) == 3
    assert [reject.path for reject in result.rejects] == ["broken2.jpg"]
    after = rows(tmp_path / "me.idx")
    assert len(after) == 15 and "p0.png" not in after
    moved = {"p2.png": "trip/renamed.png"} | {f"trip/day 1/p{n}.png": f"trip/day 2/p{n}.png" for n in range(6, 12)}
    for name in before.keys() - {"p0.png", "p1.png"}:
        *arrays, item = before[name]
        *same, item_after = after[moved.get(name, name)]
        assert same == arrays, name
        changes = {"id", "path", "folder"} if name in moved else {"modified", "year"} if name == "p3.png" else set()
        assert {k: v for k, v in item.items() if k not in changes} == {
            k: v for k, v in item_after.items() if k not in changes
        }
    assert after["p1.png"][0] != before["p1.png"][0]
    assert after["z copy.png"][0] == after["p5.png"][0]
    assert [hit.item["id"] for hit in ask(reader, "text", ["x"], SearchOptions(k=20))[0]], "a reader is not disturbed"
    del reader
    fresh = make(index=tmp_path / "fresh.idx")
    assert list(rows(tmp_path / "me.idx")) == list(rows(tmp_path / "fresh.idx")), "rows in the order of a new index"
    assert fresh.counts["new"] == 15


def test_nothing_to_do_writes_nothing_and_loads_no_model(
    make: Any, photos: Path, tmp_path: Path, run: Path, encoded: list[int]
) -> None:
    (photos / "empty.png").touch()
    make()
    before = snapshot(tmp_path / "me.idx")
    encoded.clear()
    result = make()
    assert (result.written, result.counts["unchanged"], len(result.rejects), encoded) == (False, 13, 2, [])
    code = (
        "import sys\nfrom ccaco_cli.app import main\n"
        f"sys.argv = ['ccaco', 'embed', '--run', {str(run)!r}, '--images', {str(photos)!r}, '--precision', 'fp32', "
        f"'--index', {str(tmp_path / 'me.idx')!r}]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "print('HEAVY', [m for m in ('torch', 'faiss', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "HEAVY []" in done.stdout, done.stderr
    assert "13 image: nothing has changed" in done.stderr
    assert snapshot(tmp_path / "me.idx") == before
    (photos / "trip").rename(photos / "journey")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "HEAVY []" in done.stdout, "moved files are hashed, not encoded"
    assert "7 moved, 6 unchanged" in done.stderr


def test_removed_items_stay_out_until_they_change(make: Any, photos: Path, tmp_path: Path) -> None:
    make()
    before = rows(tmp_path / "me.idx")
    remove = [str(photos / "p0.png"), "p1.png", "trip/day 1/"]
    result = make(remove=remove, source=None, model=None)
    assert result.counts == {"new": 0, "changed": 0, "moved": 0, "unchanged": 5, "removed": 8}
    assert len(result.rejects) == 1, "the broken file is still listed"
    remaining = rows(tmp_path / "me.idx")
    assert remaining == {name: before[name] for name in ("p2.png", "p3.png", "p4.png", "p5.png", "trip/copy.png")}
    again = make()
    assert (again.written, again.counts["unchanged"]) == (False, 5)
    (photos / "p0.png").rename(photos / "trip/moved.png")
    os.utime(photos / "p1.png", (1e9, 1e9))
    assert make().counts["unchanged"] == 5, "moved or touched, a removed file stays out"
    assert make().written is False
    picture(photos / "p1.png", 200)
    result = make()
    assert (result.counts["new"], result.counts["unchanged"]) == (1, 5), "another content is an item"
    assert "p1.png" in rows(tmp_path / "me.idx")
    data = (photos / "p2.png").read_bytes()
    (photos / "p2.png").unlink()  # removed while it is not there, it stays out when it is back
    assert make(remove=["p2.png"]).counts["removed"] == 1
    (photos / "p2.png").write_bytes(data)
    assert make().counts["new"] == 0
    assert make(rebuild=True).counts["new"] == 13, "built anew, the index forgets what was removed"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("p99.png", "did you mean p9.png"),
        ("elsewhere/p4.png", "did you mean p4.png"),
        ("/etc/p4.png", "did you mean p4.png"),
        ("trip/day", "no such item"),
        ("broken.jpg", "no such item"),
        ("", "no such item"),
    ],
)
def test_what_is_no_item_cannot_be_removed(make: Any, tmp_path: Path, name: str, words: str) -> None:
    make(source=tmp_path / "photos", store_tokens="none")
    before = snapshot(tmp_path / "me.idx")
    with pytest.raises(DataError, match=words.replace("9", ".")):
        make(remove=["p3.png", name], source=None, model=None)
    with pytest.raises(DataError, match="no item would be left"):
        make(remove=[*(f"p{n}.png" for n in range(6)), "trip"], source=None, model=None)
    assert {k: v for k, v in snapshot(tmp_path / "me.idx").items() if not k.endswith("me.idx")} == {
        k: v for k, v in before.items() if not k.endswith("me.idx")
    }


def test_another_model_or_other_settings_are_refused_by_name(
    make: Any, photos: Path, tmp_path: Path, run: Path, index: Path
) -> None:
    make()
    before = manifest.open(tmp_path / "me.idx", kind="index").sha256
    picture(photos / "new.png", 300)
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    for fields, words in (
        ({"store_tokens": "int8"}, "--store-tokens float16.*not --store-tokens int8"),
        ({"store_grid": 2}, "--store-grid 0.*not --store-grid 2"),
        ({"precision": "bf16"}, "--precision fp32.*not --precision bf16"),
        ({"source": other}, f"--images {photos}.*not --images {other}"),
        ({"model": f"open_clip:{tmp_path / 'gone'}"}, "gone"),
        ({"index": index}, "made from a data set"),
        ({"index": photos}, "something else is there"),
    ):
        with pytest.raises(CcacoError, match=words) as caught:
            make(**fields)
        assert "--rebuild" in str(caught.value) or not {"store_tokens", "store_grid", "source"} & fields.keys()
    copied = shutil.copytree(run, tmp_path / "run2")
    with pytest.raises(DataError, match=r"made by the model first .*--rebuild"):
        with edited(copied) as body:
            body["facts"]["weight"] = 0.123
        make(model=copied)
    with pytest.raises(DataError, match="cannot encode audio"):
        make(index=tmp_path / "a.idx", modality="audio", source=sounds(tmp_path))
    with pytest.raises(ConfigError, match="needs a model"):
        make(index=tmp_path / "b.idx", model=None)
    assert manifest.open(tmp_path / "me.idx", kind="index").sha256 == before
    link = tmp_path / "same-run"
    link.symlink_to(run)
    assert make(model=link).counts["new"] == 1, "the same model under another name"
    assert not make().written
    picture(photos / "newer.png", 301)
    assert make(model=None).counts["new"] == 1, "the model in the index encodes what is new"
    result = make(store_tokens="int8", rebuild=True)
    assert result.counts["new"] == 15
    assert result.index.facts["storage"]["image"]["tokens"]["store"] == "int8"
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".idx")] == ["me.idx"]


def rename(photos: Path, tmp_path: Path) -> Path:
    return photos.rename(tmp_path / "pictures")


def mount_elsewhere(photos: Path, tmp_path: Path) -> Path:
    """The files are copied to another disk without their times, and the mount point is empty."""
    folder = tmp_path / "disk/pictures"
    shutil.copytree(photos, folder, copy_function=shutil.copyfile)
    shutil.rmtree(photos)
    photos.mkdir()
    return folder


def put_into_another(photos: Path, tmp_path: Path) -> Path:
    """The folder above is indexed now, so the names below it are others too."""
    (tmp_path / "all").mkdir()
    photos.rename(tmp_path / "all/mine")
    return tmp_path / "all"


@pytest.mark.parametrize("move", [rename, mount_elsewhere, put_into_another])
def test_a_folder_that_was_moved_keeps_its_vectors(
    move: Any, make: Any, photos: Path, tmp_path: Path, encoded: list[int]
) -> None:
    make()
    assert make(remove=["p5.png"]).counts["removed"] == 1
    before = rows(tmp_path / "me.idx")
    encoded.clear()
    folder = move(photos, tmp_path)
    (folder / "notes.md").write_text("x")
    prefix = "mine/" if folder.name == "all" else ""
    result = make(source=folder)
    assert encoded == [] and result.moved_from == str(photos)
    assert result.counts["moved" if prefix else "unchanged"] == 12 and result.counts["removed"] == 0
    after = rows(tmp_path / "me.idx")
    assert list(after) == [prefix + name for name in before], "what was removed stays out"
    for name, (*arrays, item) in before.items():
        *same, moved = after[prefix + name]
        assert same == arrays and Path(moved["path"]).read_bytes(), name
        assert moved["path"] == str(folder / (prefix + name)) != item["path"]
    assert not make(source=folder).written
    picture(folder / "new.png", 900)
    assert make(source=folder).counts["new"] == 1 and sum(encoded) == 1


def test_another_folder_is_not_a_moved_one(make: Any, photos: Path, tmp_path: Path, encoded: list[int]) -> None:
    make(store_tokens="none")
    before = snapshot(tmp_path / "me.idx")
    shutil.copytree(photos, tmp_path / "copy")
    for number in range(20):
        picture(tmp_path / f"other/p{number}.png", 500 + number, size=41)
    encoded.clear()
    with pytest.raises(ConfigError, match=f"--images {photos}: .*expected the same, not --images .*copy; .*--rebuild"):
        make(source=tmp_path / "copy", store_tokens="none")
    shutil.rmtree(photos)
    with pytest.raises(ConfigError, match="where no such files are now, and most files of this folder are others"):
        make(source=tmp_path / "other", store_tokens="none")
    assert encoded == []
    assert {k: v for k, v in snapshot(tmp_path / "me.idx").items() if not k.endswith("me.idx")} == {
        k: v for k, v in before.items() if not k.endswith("me.idx")
    }
    assert make(source=tmp_path / "copy", store_tokens="none").moved_from == str(photos)


def sounds(root: Path) -> Path:
    folder = root / "sounds"
    folder.mkdir(exist_ok=True)
    for number in range(4):
        (folder / f"{number}.wav").write_bytes(sound(tone(0.3 + 0.1 * number, 16_000, 300.0 + 200 * number), 16_000))
    return folder


def test_the_model_in_the_index_encodes_as_the_run_does(make: Any, photos: Path, tmp_path: Path) -> None:
    make()
    picture(photos / "new.png", 300)
    make(model=None)
    make(index=tmp_path / "fresh.idx")
    updated, fresh = rows(tmp_path / "me.idx")["new.png"], rows(tmp_path / "fresh.idx")["new.png"]
    assert np.allclose(*(np.frombuffer(row[0], np.float32) for row in (updated, fresh)), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("flat", {"store_tokens": "int8"}), ("hnsw", {"store_tokens": "none"}), ("flat", {"store_grid": 1})],
)
def test_every_way_to_store_survives_an_update(
    make: Any, photos: Path, tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    make(index_type=kind, **fields)
    before = rows_of_vectors(tmp_path / "me.idx")
    picture(photos / "p4b.png", 400)
    result = make(index_type=kind, **fields)
    assert result.index.facts["storage"]["image"]["vectors"]["type"] == kind
    after = rows_of_vectors(tmp_path / "me.idx")
    assert {name: after[name] for name in before} == before
    opened = Index(tmp_path / "me.idx", "full")
    if opened.sides["image"].has_tokens:
        fresh = make(index=tmp_path / "fresh.idx", index_type=kind, **fields)
        tokens, same = (Index(m.path).sides["image"].tokens for m in (result.index, fresh.index))
        assert np.array_equal(tokens.offsets, same.offsets)
        assert np.allclose(tokens.tokens.astype(float), same.tokens.astype(float), atol=1.01)
    assert ask(opened, "text", ["a red cat"], SearchOptions(k=3))[0]
    changed = make(index_type="flat" if kind == "hnsw" else "ivf", **fields)
    assert changed.written, "another type of index needs no encoding"
    assert rows_of_vectors(tmp_path / "me.idx") == after


def rows_of_vectors(index: Path) -> dict[str, bytes]:
    side = Index(index, "full").sides["image"]
    vectors = np.load(side.folder / "vectors.npy")
    return {name: row.tobytes() for name, row in zip(side.items["id"].to_pylist(), vectors, strict=True)}


def test_odd_files_are_rejected_with_a_reason_and_stop_nothing(
    make: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = picture(tmp_path / "outside.png", 500)
    (photos / "link.png").symlink_to(outside)
    (photos / "inside.png").symlink_to(photos / "p0.png")
    (photos / "trip/loop").symlink_to(photos)
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    os.mkfifo(photos / "pipe.png")
    Path(os.fsdecode(bytes(photos) + b"/caf\xe9.png")).write_bytes((photos / "p0.png").read_bytes())
    (photos / "cut.png").write_bytes((photos / "p1.png").read_bytes()[:60])
    (photos / "empty.png").touch()
    (photos / "new\nline.png").write_bytes((photos / "p2.png").read_bytes())
    (photos / "raw.heic").write_bytes(b"x")
    result = make(store_tokens="none")
    reasons = {reject.path.encode("utf-8", "replace").decode(): reject.reason for reject in result.rejects}
    assert reasons == {
        "broken.jpg": "not a picture",
        "link.png": "outside the source folder",
        "trip/loop": "linked folder that is read under another name",
        "gone.png": "unreadable file (No such file or directory)",
        "pipe.png": "not a file",
        "caf?.png": "name is not UTF-8",
        "cut.png": "broken picture",
        "empty.png": "empty file",
        "raw.heic": "no decoder for this kind of file",
    }
    items = rows(tmp_path / "me.idx")
    assert {"inside.png", "new\nline.png"} < items.keys() and len(items) == 15
    rejects = (result.index.path / "generation-1/image/rejects.csv").read_text("utf-8")
    assert "caf\\udce9.png,name is not UTF-8," in rejects
    assert not make(store_tokens="none").written


def test_a_file_that_changes_while_it_is_read_is_read_again_and_then_rejected_this_time(
    make: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    before = rows(tmp_path / "me.idx")
    picture(photos / "p1.png", 600)
    picture(photos / "once.png", 601)
    picture(photos / "always.png", 602)
    reads: dict[str, int] = {}
    fstat = os.fstat

    def changing(number: int) -> Any:
        status = fstat(number)
        name = Path(os.readlink(f"/proc/self/fd/{number}")).name
        reads[name] = reads.get(name, 0) + 1
        if name in ("p1.png", "always.png") or (name == "once.png" and reads[name] == 2):
            os.utime(photos / name, ns=(0, 10**18 + reads[name]))
            return fstat(number)
        return status

    with monkeypatch.context() as patch:
        patch.setattr(hashing.os, "fstat", changing)
        result = make()
    assert {(reject.path, reject.reason) for reject in result.rejects} == {
        ("broken.jpg", "not a picture"),
        ("p1.png", hashing.CHANGING),
        ("always.png", hashing.CHANGING),
    }
    after = rows(tmp_path / "me.idx")
    assert "once.png" in after and "always.png" not in after
    assert after["p1.png"] == before["p1.png"], "what is stored stays until the file can be read"
    result = make()
    assert (result.counts["new"], result.counts["changed"]) == (1, 1)


def test_files_below_a_folder_that_cannot_be_read_now_stay(
    make: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    before = rows(tmp_path / "me.idx")
    scandir = os.scandir

    def refused(path: Any) -> Any:
        if str(path).endswith("day 1"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        result = make()
        assert result.counts["unchanged"] == 13 and "trip/day 1" in {reject.path for reject in result.rejects}
        assert rows(tmp_path / "me.idx") == before
        shutil.copyfile(photos / "trip/day 1/p7.png", photos / "another.png")
        result = make()
        assert (result.counts["new"], result.counts["moved"], result.counts["removed"]) == (1, 0, 0)
    assert make().counts["removed"] == 0


@pytest.mark.parametrize("kind", ["empty", "texts", "missing", "file"])
def test_a_folder_without_media_is_refused_and_empties_no_index(
    make: Any, photos: Path, tmp_path: Path, kind: str
) -> None:
    make(store_tokens="none")
    before = rows(tmp_path / "me.idx")
    shutil.rmtree(photos)  # as a disk that is not mounted
    if kind == "file":
        photos.write_text("x")
    elif kind != "missing":
        photos.mkdir()
        (photos / "a.txt").write_text("x") if kind == "texts" else None
    words = "no image files in this folder" if kind in ("empty", "texts") else "no such folder"
    for index in ("me.idx", "new.idx"):
        with pytest.raises(DataError, match=words):
            make(index=tmp_path / index, store_tokens="none")
    assert rows(tmp_path / "me.idx") == before
    assert not (tmp_path / "new.idx").exists()


def test_a_folder_in_which_nothing_can_be_read_leaves_nothing(make: Any, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"none of 1 files can be an item; the first: a.png: not a picture"):
        make(index=tmp_path / "bad.idx", source=tmp_path / "bad")
    assert not (tmp_path / "bad.idx").exists()


def test_one_process_writes(make: Any, tmp_path: Path) -> None:
    make(store_tokens="none")
    with lock.hold(tmp_path / "me.idx", "index"), pytest.raises(DataError, match="another process is writing"):
        make(store_tokens="none")


def test_what_was_encoded_before_an_interruption_is_not_encoded_again(
    make: Any, tmp_path: Path, photos: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk while the index is written, then while a part is written."""
    monkeypatch.setattr(encoder, "BATCH_SIZE", {"cpu": 4, "cuda": 4})
    monkeypatch.setattr(parts, "PART_FILES", 4)

    def full(*arguments: Any, **settings: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("ccaco_cli.core.library.side_rows.write_vectors", full)
        make()
    assert not (tmp_path / "me.idx").exists()
    assert sum(encoded) == 12
    assert len(list((tmp_path / ".me.idx.parts").glob("*/*/part-*"))) == 4
    broken = next((tmp_path / ".me.idx.parts").glob("*/*/part-2-0/vectors.npy"))
    broken.write_bytes(broken.read_bytes()[:-8])  # as a power cut leaves it
    encoded.clear()
    picture(photos / "p0.png", 700)  # changed meanwhile
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("ccaco_cli.core.retrieval.token_store.Writer.add", full)
        make()
    assert len(list((tmp_path / ".me.idx.parts").glob("*/*/*"))) == 3, "nothing half-written"
    encoded.clear()
    assert make().counts["new"] == 13
    assert sum(encoded) == 3 + 1, "the broken part, and the changed file"
    assert beside(tmp_path / "me.idx") == ["me.idx"]
    fresh = make(index=tmp_path / "fresh.idx")
    same = rows(fresh.index.path)
    for name, (vector, *_) in rows(tmp_path / "me.idx").items():
        assert np.allclose(np.frombuffer(vector, np.float32), np.frombuffer(same[name][0], np.float32), atol=1e-6)


def embed_in_processes(run: Path, photos: Path, index: Path) -> None:
    export.export = lambda *arguments, **settings: {"exported": False, "why": "not tried here"}  # type: ignore[assignment]
    encoder.BATCH_SIZE = {"cpu": 4, "cuda": 4}
    embed_folder(MediaRequest(index, photos, model=run, device="cpu", precision="fp32"))


def test_two_processes_divide_the_files(
    make: Any, run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launch(2, embed_in_processes, run, photos, tmp_path / "two.idx") == [0, 0]
    make()
    two, single = rows(tmp_path / "two.idx"), rows(tmp_path / "me.idx")
    assert list(two) == list(single)
    for name in single:
        assert two[name][3] == single[name][3]
        assert np.allclose(*(np.frombuffer(part[name][0], np.float32) for part in (two, single)), atol=1e-6)
    picture(photos / "new.png", 800)
    assert launch(2, embed_in_processes, run, photos, tmp_path / "two.idx") == [0, 0]
    after = rows(tmp_path / "two.idx")
    assert {name: after[name] for name in two} == two and len(after) == len(two) + 1
    assert launch(2, embed_in_processes, run, photos, tmp_path / "two.idx") == [0, 0]
    assert manifest.open(tmp_path / "two.idx", kind="index").facts["generation"] == "generation-2"


def test_sounds(tmp_path: Path) -> None:
    folder, spec = sounds(tmp_path), f"hf:{hf_folder(tmp_path / 'clap', 'clap')}"
    (folder / "deaf.wav").write_bytes(b"RIFF")
    request = MediaRequest(tmp_path / "s.idx", folder, "audio", spec, device="cpu", precision="fp32")
    result = embed_folder(request)
    assert (result.counts["new"], [reject.path for reject in result.rejects]) == (4, ["deaf.wav"])
    index = Index(tmp_path / "s.idx", "full")
    assert index.sides["audio"].items["duration"].to_pylist() == pytest.approx([0.3, 0.4, 0.5, 0.6], abs=0.01)
    query = encode_query(index, "audio", [folder / "2.wav"])
    assert search(index, "audio", query, SearchOptions(k=1))[0][0].item["id"] == "2.wav"
    (folder / "5.wav").write_bytes(sound(tone(1.0, 16_000, 900.0), 16_000))
    assert embed_folder(request).counts == {"new": 1, "changed": 0, "moved": 0, "unchanged": 4, "removed": 0}
