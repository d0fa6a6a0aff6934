from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.lists import hash_split
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.data.sources.tar_members import NO_MEMBER, SEVERAL
from ccaco_cli.core.data.sources.webdataset import SOURCE, expand_braces
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 7), (number % 256, number // 256, 5)).save(out, "PNG")
    return out.getvalue()


def shard(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(number: int, **overrides: Any) -> list[tuple[str, bytes]]:
    """As img2dataset writes it."""
    key, text = f"{number:09d}", f"caption {number}"
    body = {"caption": text, "url": f"http://x/{number}.jpg", "key": key, "width": 9} | overrides
    return [(f"{key}.jpg", picture(number)), (f"{key}.json", json.dumps(body).encode()), (f"{key}.txt", text.encode())]


def read(path: Path | str) -> list[PairRecord]:
    return list(SOURCE.read(Path(path), SourceOptions()).records)


def data_of(record: PairRecord) -> bytes:
    media = record.media["image"]
    assert callable(media) or isinstance(media, bytes)
    return media() if callable(media) else media


def test_shards_of_img2dataset(tmp_path: Path) -> None:
    for number in range(2):
        shard(tmp_path / f"{number:05d}.tar", sample(10 * number) + sample(10 * number + 1))
    data = SOURCE.read(tmp_path, SourceOptions())
    rows = list(data.records)
    assert [r.id for r in rows] == ["00000/000000000", "00000/000000001", "00001/000000010", "00001/000000011"]
    assert [list(r.captions) for r in rows[:2]] == [["caption 0"], ["caption 1"]]
    assert [data_of(r) for r in rows] == [picture(n) for n in (0, 1, 10, 11)]
    assert rows[3].meta == {"url": "http://x/11.jpg", "key": "000000011"} and rows[3].split == hash_split(rows[3].id)
    assert data.facts == {"shards": 2} and data.revision.startswith("2 shards, 00000.tar to 00001.tar")
    assert (
        [r.id for r in read(tmp_path / "{00000..00001}.tar")]
        == [r.id for r in read(tmp_path / "*.tar")]
        == [r.id for r in rows]
    )
    assert [r.id for r in read(tmp_path / "00001.tar")] == [r.id for r in rows[2:]]


def test_captions_come_from_txt_or_json_and_splits_from_names(tmp_path: Path) -> None:
    image = ("a.b.c.jpg", picture(1))  # a key ends at the first dot of the name
    for name in ("train-0.tar", "val/0.tar"):
        shard(
            tmp_path / name,
            [
                image,
                ("a.json", b'{"caption": ["one", "two"]}'),
                ("x/b.PNG", picture(2)),
                ("x/b.txt", b"caf\xe9"),
                ("c.txt", b"t"),
            ],
        )
    rows = {r.id: r for r in read(tmp_path)}
    assert {id: (r.split, list(r.captions), len(r.media)) for id, r in rows.items()} == {
        "train-0/a": ("train", ["one", "two"], 1),
        "train-0/x/b": ("train", ["caf\u00e9"], 1),
        "train-0/c": ("train", ["t"], 0),
        "val/0/a": ("val", ["one", "two"], 1),
        "val/0/x/b": ("val", ["caf\u00e9"], 1),
        "val/0/c": ("val", ["t"], 0),
    }
    for number, text in enumerate((b"{no json", b"[1]", b"[" * 100_000)):
        assert [r.captions for r in read(shard(tmp_path / "y" / f"{number}.tar", [image, ("a.json", text)]))] == [[]]


def test_a_limit_reads_no_more_than_it_needs(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "val-0"):
        shard(tmp_path / "s" / f"{name}.tar", [part for n in range(5) for part in sample(n)])
    (tmp_path / "s" / "val-1.tar").write_bytes(b"never looked at")
    (tmp_path / "s" / "train-2.tar").symlink_to(tmp_path / "s" / "train-0.tar")
    progress: list[int] = []
    options = SourceOptions(limit=3)
    data = prepare(
        "webdataset",
        source_path=tmp_path / "s",
        out=tmp_path / "d",
        options=options,
        on_progress=lambda d, t, f: progress.append(d),
        write=WriteOptions(workers=0),
    )
    assert {name: counts["samples"] for name, counts in data.facts["splits"].items()} == {
        "train": 3,
        "val": 3,
    } and progress[-1] == 6
    assert data.facts["protocol"].endswith("; at most 3 samples a split")
    assert len(list(SOURCE.read(tmp_path / "s", options).records)) < 12


def test_compressed_shards_are_read_in_sequence(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar.gz", sample(0) + sample(1), "w:gz")
    assert [data_of(r) for r in read(path)] == [picture(0), picture(1)]


def test_damage_is_counted_and_named(tmp_path: Path) -> None:
    all_samples = shard(tmp_path / "s" / "00000.tar", [part for n in range(40) for part in sample(n)])
    cut = all_samples.with_name("00001.tar")
    cut.write_bytes(all_samples.read_bytes()[: all_samples.stat().st_size // 2 + 700])
    all_samples.with_name("00002.tar").write_bytes(b"no tar at all" * 100)
    data = prepare(
        "webdataset", source_path=tmp_path / "s", out=tmp_path / "d", write=WriteOptions(workers=0, max_rejects=0.5)
    )
    listed = (tmp_path / "d" / "rejects.csv").read_text()
    assert (
        data.facts["rejects"]["broken archive"] == 2
        and "(the rest of 00001.tar)" in listed
        and "(the rest of 00002.tar)" in listed
    )
    read_of_cut = sum(
        id.startswith("00001/")
        for name in shards.open(tmp_path / "d").splits
        for id in shards.open(tmp_path / "d").split(name).ids
    )
    assert 15 <= read_of_cut < 25 and sum(s["samples"] for s in data.facts["splits"].values()) == 40 + read_of_cut


def test_a_pool_reads_the_tar_where_the_pictures_lie(tmp_path: Path) -> None:
    shard(tmp_path / "s" / "0.tar", [part for n in range(70) for part in sample(n)])
    alone, pooled = (
        prepare("webdataset", source_path=tmp_path / "s", out=tmp_path / f"d{n}", write=WriteOptions(workers=n))
        for n in (0, 2)
    )
    assert alone.sha256 == pooled.sha256 and sum(s["samples"] for s in alone.facts["splits"].values()) == 70


def test_braces() -> None:
    assert expand_braces("a{08..10}b") == ["a08b", "a09b", "a10b"]
    assert expand_braces("{x,y}/{1..2}.tar") == ["x/1.tar", "y/1.tar", "x/2.tar", "y/2.tar"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    for bad in ("{1..2", "{a}", "{0..99999999999}"):
        with pytest.raises(DataError, match="invalid pattern"):
            expand_braces(bad)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    shard(tmp_path / "00000.tar", sample(0))
    with pytest.raises(DataError, match=r"a shard of this pattern is missing: .*00001.tar"):
        read(tmp_path / "{00000..00002}.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no tar shards here.*next: ccaco prepare --list"):
        read(tmp_path / "empty")
    with pytest.raises(DataError, match="no tar shards here"):
        prepare("webdataset", out=tmp_path / "d")


def outcome(folder: Path) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Of a prepared folder of shards: sample -> captions, and the reasons of the rejects. All members are counted."""
    out = folder.with_name(f"{folder.name}-prepared")
    prepared = prepare("webdataset", source_path=folder, out=out, write=WriteOptions(workers=0, max_rejects=0.99))
    captions: dict[str, list[str]] = {}
    data = shards.open(out)
    for split in map(data.split, data.splits):
        for row, text in zip(split.caption_row, split.captions, strict=True):
            captions.setdefault(split.ids[row], []).append(text)
    return captions, prepared.facts["rejects"]


def test_keys_with_dots_stay_apart(tmp_path: Path) -> None:
    parts = [((f"photo v1.{n}.jpg", picture(n)), (f"photo v1.{n}.txt", b"%d" % n)) for n in range(3)]
    shard(tmp_path / "s" / "0.tar", [member for pair in parts for member in pair])
    captions, rejects = outcome(tmp_path / "s")
    assert captions == {f"0/photo v1.{n}": [str(n)] for n in range(3)} and not rejects


@pytest.mark.parametrize(
    ("members", "samples", "rejects"),
    [
        (["a.jpg", "a.txt", "a.jpg", "a.txt", "b.jpg", "b.txt"], ["0/b"], {SEVERAL: 2}),
        (["a.jpg", "a.png", "a.txt", "b.jpg", "b.txt"], ["0/b"], {SEVERAL: 2}),
        (["a.jpg", "a.txt", "b.jpg", "b.txt", "a.jpg", "a.txt"], ["0/a", "0/b", "0/a#2"], {}),
        (["st.a.jpg", "st.b.txt", "b.jpg", "b.txt"], ["0/b"], {"no caption": 1, "no image": 1}),
        (["a.heic", "a.txt", "b.jpg", "b.txt", "readme.md"], ["0/b"], {"no image": 1, NO_MEMBER: 1}),
        ([".a.jpg", "__MACOSX/._a.jpg", "a.jpg", "a.txt"], ["0/a"], {}),
    ],
)
def test_every_member_is_counted(
    tmp_path: Path, members: list[str], samples: list[str], rejects: dict[str, int]
) -> None:
    contents = [(name, b"text" if name.endswith("txt") else picture(n)) for n, name in enumerate(members)]
    shard(tmp_path / "s" / "0.tar", contents)
    captions, reasons = outcome(tmp_path / "s")
    assert sorted(captions) == sorted(samples) and reasons == rejects


def test_shards_of_one_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    for folder in "xy":
        shard(tmp_path / "s" / folder / "0.tar", sample(0))
    assert sorted(outcome(tmp_path / "s")[0]) == ["x/0.tar/000000000", "y/0.tar/000000000"]


@pytest.mark.parametrize("place", [".", "test", "inside"])
def test_a_line_is_a_caption_in_retrieval_sets_of_clip_benchmark(tmp_path: Path, place: str) -> None:
    members = [("0.jpg", picture(0)), ("0.txt", b"a dog\ntwo dogs\n\nthree"), ("1.jpg", picture(1)), ("1.txt", b"one")]
    if place == "inside":
        members.insert(0, ("dataset_type.txt", b"retrieval\n"))
    shard(tmp_path / "s" / "test" / "0.tar", members)
    if place != "inside":
        (tmp_path / "s" / place / "dataset_type.txt").write_text("retrieval")
        (tmp_path / "s" / "test" / "nshards.txt").write_text("1")
    captions, rejects = outcome(tmp_path / "s")
    assert captions == {"test/0/0": ["a dog", "two dogs", "three"], "test/0/1": ["one"]} and not rejects
    (tmp_path / "s" / "dataset_type.txt").write_text("classification")
    shard(tmp_path / "t" / "0.tar", members[-4:])
    assert outcome(tmp_path / "t")[0]["0/0"] == ["a dog two dogs three"], "elsewhere a text is one caption"


@pytest.mark.parametrize(
    ("body", "captions", "rejects"),
    [
        ('{"caption": NaN}', [], {"no caption": 1}),
        ('{"caption": "nan"}', [], {"no caption": 1}),
        ('{"caption": null}', [], {"no caption": 1}),
        ('{"key": "x"}', [], {"no caption": 1}),
        ('{"caption": {"raw": "a dog", "tokens": ["a", "dog"]}}', ["a dog"], {}),
        ('{"sentences": [{"raw": "a dog"}, {"raw": "two"}]}', ["a dog", "two"], {}),
        ('{"caption": "[\\"a dog\\", \\"two\\"]"}', ["a dog", "two"], {}),
        ('{"caption": {"id": 3}}', [], {"caption is an object without a known key": 1}),
        ('{"caption": "a", "caption": "b"}', [], {"unreadable json": 1}),
        ("{", [], {"unreadable json": 1}),
        ('{"caption": "' + "x" * (1 << 20) + '"}', [], {"file too large": 1}),
    ],
)
def test_captions_of_a_json(tmp_path: Path, body: str, captions: list[str], rejects: dict[str, int]) -> None:
    members = [("a.jpg", picture(0)), ("a.json", body.encode()), ("b.jpg", picture(1)), ("b.txt", b"b")]
    shard(tmp_path / "s" / "0.tar", members)
    texts, reasons = outcome(tmp_path / "s")
    assert texts.pop("0/b") == ["b"] and reasons == rejects
    assert texts == ({"0/a": captions} if captions else {})
