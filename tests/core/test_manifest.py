from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import ManifestError
from tests.manifests import edited


def write_folder(root: Path, text: str = "hello", **more: Any) -> manifest.Manifest:
    (root / "part").mkdir(parents=True)
    (root / "part/a.txt").write_text(text)
    files = [manifest.file_entry(root, root / "part/a.txt", rows=3)]
    return manifest.write(root, "dataset", facts={"name": "x"}, files=files, **more)


def edit(root: Path, **changes: Any) -> None:
    with edited(root) as body:
        body |= changes


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "d", config={"limit": 3})
    child = manifest.write(tmp_path / "d2", "run", facts={}, inputs={"dataset": data})
    opened = manifest.open(tmp_path / "d", kind="dataset", verify="full")
    assert opened == data
    assert opened.files == [{"name": "part/a.txt", "sha256": opened.files[0]["sha256"], "bytes": 5, "rows": 3}]
    assert (opened.facts, opened.config) == ({"name": "x"}, {"limit": 3})
    assert child.inputs == {"dataset": {"path": str(tmp_path / "d"), "sha256": data.sha256}}
    assert opened.made_by["libraries"]["torch"]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=ANYTHING)
def test_any_fact_is_read_back_and_any_change_of_it_is_seen(value: Any) -> None:
    with TemporaryDirectory() as folder:
        written = manifest.write(Path(folder), "dataset", facts={"name": "x", "value": value})
        opened = manifest.open(Path(folder), kind="dataset", verify="full")
        assert opened.facts["value"] == value and opened.sha256 == written.sha256
        file = Path(folder) / manifest.NAME
        file.write_text(json.dumps(json.loads(file.read_text()) | {"facts": {"name": "x", "value": [value]}}))
        with pytest.raises(ManifestError, match="this manifest was altered"):
            manifest.open(Path(folder), kind="dataset")


def test_identity_is_the_content_and_not_the_place_or_time(tmp_path: Path) -> None:
    first, second = write_folder(tmp_path / "a"), write_folder(tmp_path / "b")
    edit(tmp_path / "b", made_at="2001-01-01T00:00:00+00:00", made_by={})
    assert manifest.open(tmp_path / "b", kind="dataset").sha256 == first.sha256 == second.sha256
    assert write_folder(tmp_path / "c", text="hullo").sha256 != first.sha256
    assert write_folder(tmp_path / "e", config={"limit": 1}).sha256 != first.sha256


def test_nothing_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no index here.*next: ccaco embed"):
        manifest.open(tmp_path / "gone", kind="index")
    with pytest.raises(ManifestError, match="incomplete or foreign"):
        manifest.open(tmp_path, kind="run")


def test_another_kind_schema_or_garbage_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "d")
    with pytest.raises(ManifestError, match=r"this is a dataset.*expected a run"):
        manifest.open(tmp_path / "d", kind="run")
    for away, message in ((1, "newer.*pip install"), (-1, "older.*ccaco prepare")):
        edit(tmp_path / "d", schema=manifest.SCHEMA + away)
        with pytest.raises(ManifestError, match=message):
            manifest.open(tmp_path / "d", kind="dataset")
    for text in ("{", "[]", "{}", '{"kind": "dataset"}'):
        (tmp_path / "d" / manifest.NAME).write_text(text)
        with pytest.raises(ManifestError, match="unreadable"):
            manifest.open(tmp_path / "d", kind="dataset")


def test_altered_files_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "d")
    file = tmp_path / "d/part/a.txt"
    file.write_text("jello")
    manifest.open(tmp_path / "d", kind="dataset")  # the size is the same, so only a full check sees it
    with pytest.raises(ManifestError, match=r"altered.*a\.txt"):
        manifest.open(tmp_path / "d", kind="dataset", verify="full")
    file.write_text("hell")
    with pytest.raises(ManifestError, match=r"altered.*a\.txt"):
        manifest.open(tmp_path / "d", kind="dataset")
    file.unlink()
    with pytest.raises(ManifestError, match=r"missing.*a\.txt"):
        manifest.open(tmp_path / "d", kind="dataset")


def test_any_flipped_bit_of_the_manifest_is_seen(tmp_path: Path) -> None:
    file = write_folder(tmp_path / "d").path / manifest.NAME
    content = file.read_bytes()
    for bit in range(0, 8 * len(content), 37):
        data = bytearray(content)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bytes(data))
        try:
            same = json.loads(data) == json.loads(content)  # what means the same may pass
        except ValueError:
            same = False
        if not same:
            with pytest.raises(ManifestError, match=r"manifest\.json|newer|older|this is a"):
                manifest.open(tmp_path / "d", kind="dataset")


@pytest.mark.parametrize("name", ["../a.txt", "/etc/hostname", "part/../../a.txt"])
def test_files_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "d")
    (tmp_path / "a.txt").write_text("x")
    edit(tmp_path / "d", files=[{"name": name, "bytes": 1, "sha256": "0"}])
    with pytest.raises(ManifestError, match="outside"):
        manifest.open(tmp_path / "d", kind="dataset")


def test_absurd_manifests_are_one_line(tmp_path: Path) -> None:
    file = write_folder(tmp_path / "d").path / manifest.NAME
    for text in ("[" * 100_000, '{"a":' * 50_000, json.dumps({"kind": "dataset", "files": [{"name": 1}]}), "9" * 5000):
        file.write_text(text)
        with pytest.raises(ManifestError, match="unreadable manifest"):
            manifest.open(tmp_path / "d", kind="dataset")
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        manifest.read_json(file, 10)


@pytest.mark.parametrize(
    ("word", "visible"),
    [
        ("https://me:secret@host/x", "https://me:***@host/x"),
        ("--token=hf_abcdefghijklmnopqrst", "--token=***"),
        ("ghp_0123456789abcdefghij", "***"),
        ("loss.beta=0.5", "loss.beta=0.5"),
        ("data/half_hf_set", "data/half_hf_set"),
    ],
)
def test_secrets_of_the_command_line_are_not_kept(word: str, visible: str) -> None:
    assert manifest.without_secrets(word) == visible


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new/x.json"
    manifest.write_bytes(file, b"old")

    def fail(self: Path, target: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        manifest.write_bytes(file, b"new")
    assert [p.name for p in file.parent.iterdir()] == ["x.json"]
    assert file.read_bytes() == b"old"


def test_a_command_line_with_a_file_name_that_is_not_utf8_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["ccaco", "--config", "caf\udce9.toml"])
    manifest.write(tmp_path, "run", facts={})
    made_by = json.loads((tmp_path / manifest.NAME).read_text("utf-8"))["made_by"]
    assert made_by["argv"] == ["ccaco", "--config", "caf\\udce9.toml"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    manifest.write_json(tmp_path / "x.json", {"a": [math.nan, 1.5, (math.inf, -math.inf)], "b": {"ä": Path("p")}})
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {"a": [None, 1.5, [None, None]], "b": {"ä": "p"}}
    assert "ä" in (tmp_path / "x.json").read_text("utf-8")
