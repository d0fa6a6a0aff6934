from __future__ import annotations

from pathlib import Path

import pytest

from ccaco_cli.core.data.sources.imagefolder import SOURCE
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_classes_domains_and_splits(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/sketch/polar_bear/2.JPG",
        "train/sketch/polar_bear/1.png",
        "Validation/photo/dog/3.jpeg",
        "test/cat/4.webp",
    )
    touch(tmp_path, "test/cat/notes.txt", "test/cat/.hidden.jpg", ".git/x/5.jpg", "loose.jpg")
    rows = {r.id: r for r in SOURCE.read(tmp_path, SourceOptions(template="{}!")).records}
    assert list(rows) == [
        "loose.jpg",
        "Validation/photo/dog/3.jpeg",
        "test/cat/4.webp",
        "train/sketch/polar_bear/1.png",
        "train/sketch/polar_bear/2.JPG",
    ]
    bear = rows["train/sketch/polar_bear/2.JPG"]
    assert (bear.split, bear.domain, bear.label, bear.group, bear.captions) == (
        "train",
        "sketch",
        "polar bear",
        "polar bear",
        ["polar bear!"],
    )
    assert bear.media["image"] == tmp_path / "train/sketch/polar_bear/2.JPG"
    assert (rows["Validation/photo/dog/3.jpeg"].split, rows["test/cat/4.webp"].domain) == ("val", "")
    assert rows["loose.jpg"].captions == []  # no class: counted among the rejects, not lost


def test_without_split_folders_the_path_decides(tmp_path: Path) -> None:
    touch(tmp_path, *(f"dog/{i}.jpg" for i in range(400)))
    rows = list(SOURCE.read(tmp_path, SourceOptions()).records)
    share = {s: sum(r.split == s for r in rows) / 400 for s in ("train", "val", "test")}
    assert 0.73 < share["train"] < 0.87 and 0.05 < share["val"] < 0.16 and 0.05 < share["test"] < 0.16
    (tmp_path / "dog" / "0.jpg").unlink()
    assert {r.id: r.split for r in SOURCE.read(tmp_path, SourceOptions()).records}.items() <= {
        r.id: r.split for r in rows
    }.items()
    assert rows[0].captions == ["a photo of a dog"]


def test_a_linked_folder_is_named_not_walked(tmp_path: Path) -> None:
    touch(tmp_path, "away/1.jpg", "root/dog/2.jpg")
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "away")
    assert [r.id for r in SOURCE.read(tmp_path / "root", SourceOptions()).records] == ["cat", "dog/2.jpg"]


def test_refusals(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(DataError, match="no class folder"):
        SOURCE.read(tmp_path, SourceOptions())
    with pytest.raises(DataError, match="no folder here"):
        SOURCE.read(tmp_path / "a.jpg", SourceOptions())
    with pytest.raises(DataError, match=r"has no \{\} for the class name"):
        SOURCE.read(tmp_path, SourceOptions(template="a photo"))


def test_a_domain_without_classes_is_pictures_alone(tmp_path: Path) -> None:
    touch(tmp_path, "photo/dog/1.jpg", "sketch/2.jpg", "train/sketch/3.jpg", "sketch/dog/4.jpg")
    rows = {r.id: r for r in SOURCE.read(tmp_path, SourceOptions(unpaired=("sketch",))).records}
    for id in ("sketch/2.jpg", "train/sketch/3.jpg"):
        assert (rows[id].domain, rows[id].label, rows[id].captions, rows[id].group) == ("sketch", "", (), id)
    assert rows["train/sketch/3.jpg"].split == "train"
    assert (rows["sketch/dog/4.jpg"].domain, rows["sketch/dog/4.jpg"].label) == ("sketch", "dog"), (
        "what has a class keeps it"
    )
    assert rows["photo/dog/1.jpg"].label == "dog"


@pytest.mark.parametrize("name", ["skecth", "empty", "cat"])
def test_an_unpaired_domain_without_pictures_is_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "photo/cat/1.png", "train/sketch/2.png", "empty/notes.txt")
    assert len(list(SOURCE.read(tmp_path, SourceOptions(unpaired=("sketch",))).records)) == 2
    with pytest.raises(DataError, match="no pictures of this domain"):
        SOURCE.read(tmp_path, SourceOptions(unpaired=("sketch", name)))
