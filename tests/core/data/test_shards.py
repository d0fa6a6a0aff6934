from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import filelock
import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

PAIR = ("image", "text")


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def records(n: int = 50, bad: tuple[int, ...] = ()) -> Iterator[PairRecord]:
    for i in range(n):
        image = b"broken" if i in bad else partial(picture, i)
        yield PairRecord(
            f"id{i}", f"g{i // 2}", "test" if i % 5 == 4 else "train", {"image": image}, [f"caption  {i}", "b"]
        )


def write(out: Path, source: Any, **more: Any) -> manifest.Manifest:
    info = shards.DatasetInfo("toy", PAIR, **{key: more.pop(key) for key in ("facts", "root") if key in more})
    progress = {key: more.pop(key) for key in ("total", "on_progress") if key in more}
    options: dict[str, Any] = {"workers": 0, "rows_per_shard": 8, "max_rejects": 0.05}
    return shards.write(source, out, info, shards.WriteOptions(**options | more), **progress)


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_counts_files_and_rows(tmp_path: Path) -> None:
    progress: list[tuple[int, int | None, int]] = []
    dataset = write(
        tmp_path / "d",
        records(bad=(3,)),
        facts={"protocol": "p"},
        total=50,
        on_progress=lambda d, t, f: progress.append((d, t, f["rejects"])),
    )
    assert dataset.facts["protocol"] == "p" and dataset.facts["modalities"] == ["image", "text"]
    in_train = {i // 2 for i in range(50) if i % 5 != 4 and i != 3}
    assert dataset.facts["splits"] == {
        "train": {"samples": 39, "groups": len(in_train), "captions": 78, "rejects": 1},
        "test": {"samples": 10, "groups": 10, "captions": 20, "rejects": 0},
    }
    assert dataset.facts["rejects"] == {"not a picture": 1}
    assert dataset.facts["captions"] == {"cleaned": 49, "dropped": 0}
    sizes = {"width": {"min": 8, "mean": 8.0, "max": 8}, "height": {"min": 6, "mean": 6.0, "max": 6}}
    groups = [sum(i // 2 == g for i in range(50) if i % 5 != 4 and i != 3) for g in in_train]
    assert dataset.facts["inspection"]["train"] == {
        "captions_per_group": {"min": 2, "mean": round(2 * sum(groups) / len(groups), 3), "max": 4},
        "words": {"min": 1, "mean": 1.5, "max": 2},
        **sizes,
        "rejects": {"not a picture": 1},
    }
    assert dataset.facts["inspection"]["test"]["rejects"] == {}
    assert dataset.facts["leakage"] == 0
    assert progress[-1] == (50, 50, 1) and [d for d, _, _ in progress] == list(range(1, 51))
    names = [f"train-{i:05d}.arrow" for i in range(5)] + [f"test-{i:05d}.arrow" for i in range(2)] + ["rejects.csv"]
    assert [(f["name"], f["rows"]) for f in dataset.files] == list(zip(names, [7, 8, 8, 8, 8, 8, 2, 1], strict=True))
    assert leftovers(tmp_path / "d") == {*names, "manifest.json"} and leftovers(tmp_path) == {"d"}
    assert (tmp_path / "d" / "rejects.csv").read_text() == "id,split,reason,where\nid3,train,not a picture,\n"
    manifest.open(tmp_path / "d", kind="dataset", verify="full")


def test_huggingface_datasets_reads_a_shard_by_memory_map(tmp_path: Path) -> None:
    write(tmp_path / "d", records())
    shard = datasets.Dataset.from_file(str(tmp_path / "d" / "train-00000.arrow"))
    assert shard.column_names == ["id", "group", "domain", "label", "family", "captions", "meta", "image"]
    assert shard[1]["id"] == "id1" and shard[1]["image"] == picture(1) and shard[1]["captions"] == ["caption 1", "b"]
    assert shard.cache_files[0]["filename"].endswith("train-00000.arrow")


def test_a_pool_gives_the_same_data_set(tmp_path: Path) -> None:
    alone = write(tmp_path / "a", records(90, bad=(7,)))
    pooled = write(tmp_path / "b", records(90, bad=(7,)), workers=2)
    assert alone.sha256 == pooled.sha256 and alone.files == pooled.files


def test_kill_and_again_gives_the_same_data_set_and_redoes_no_finished_shard(tmp_path: Path) -> None:
    undisturbed = write(tmp_path / "a", records(60, bad=(1, 30)))
    script = tmp_path / "again.py"
    script.write_text(f"""
import importlib.util, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("helpers", {__file__!r})
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)

def slow():
    for record in helpers.records(60, bad=(1, 30)):
        if record.id == "id40":
            time.sleep(60)
        yield record

if __name__ == "__main__":
    helpers.write(Path({str(tmp_path / "b")!r}), slow(), workers=0)
""")
    running = subprocess.Popen(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    )
    partial_folder = tmp_path / ".b.partial"
    waited = time.monotonic() + 60
    while not (partial_folder / "train-00003.json").exists() and time.monotonic() < waited and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert (partial_folder / "train-00003.json").exists() and not (tmp_path / "b").exists()
    finished = [path.with_suffix(".arrow") for path in partial_folder.glob("*-*.json")]
    modified = {path.name: path.stat().st_mtime_ns for path in finished}

    decoded: list[str] = []

    def watched() -> Iterator[PairRecord]:
        for record in records(60, bad=(1, 30)):
            media = record.media["image"]
            yield PairRecord(
                **{f: getattr(record, f) for f in ("id", "group", "split", "captions")},
                media={"image": noting(decoded, record.id, media)},
            )

    again = write(tmp_path / "b", watched())
    assert again.sha256 == undisturbed.sha256 and again.files == undisturbed.files and again.facts == undisturbed.facts
    assert len(modified) >= 4 and all(
        (tmp_path / "b" / name).stat().st_mtime_ns == when for name, when in modified.items()
    )
    assert "id0" not in decoded and "id59" in decoded
    assert leftovers(tmp_path) == {"a", "b", "again.py"}


def noting(decoded: list[str], id: str, media: Any) -> Any:
    def read() -> bytes:
        decoded.append(id)
        return media if isinstance(media, bytes) else media()

    return read


def interrupted(out: Path, source: Any, at: int, **more: Any) -> Path:
    def stop(done: int, total: int | None, facts: Any) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(out, source, on_progress=stop, **more)
    return out.with_name(f".{out.name}.partial")


def test_a_source_that_changed_meanwhile_is_reported(tmp_path: Path) -> None:
    folder = interrupted(tmp_path / "d", records(), 40)
    changed = (PairRecord(r.id, r.group, r.split, r.media, ["other words"]) for r in records())
    with pytest.raises(DataError, match="source changed since the interrupted run"):
        write(tmp_path / "d", changed)
    with pytest.raises(DataError, match="source changed since the interrupted run"):
        write(tmp_path / "d", records(5))
    assert folder.is_dir() and not (tmp_path / "d").exists()


def test_another_plan_begins_anew(tmp_path: Path) -> None:
    fresh = write(tmp_path / "a", records(), image_size=4)
    folder = interrupted(tmp_path / "d", records(), 40)
    assert (folder / "train-00000.json").exists()
    assert write(tmp_path / "d", records(), image_size=4).sha256 == fresh.sha256
    assert fresh.facts["inspection"]["test"]["height"]["max"] == 4


def test_refuses_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    write(tmp_path / "d", records())
    before = (tmp_path / "d" / "manifest.json").read_bytes()
    with pytest.raises(DataError, match=r"a data set is there already.*--out OTHER"):
        write(tmp_path / "d", records(3))
    assert (tmp_path / "d" / "manifest.json").read_bytes() == before
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "mine.txt").touch()
    with pytest.raises(DataError, match="something else is there already"):
        write(tmp_path / "f", records())


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        filelock.FileLock(tmp_path / ".d.lock"),
        pytest.raises(DataError, match="another process is writing this data set"),
    ):
        write(tmp_path / "d", records())
    write(tmp_path / "d", records())


def test_too_many_rejects_stop_and_the_mended_source_is_read_again(tmp_path: Path) -> None:
    bad = (1, 2, 3)
    with pytest.raises(
        DataError, match=r"3 of 50 samples rejected \(not a picture 3\).*at most 5.00%.*--max-rejects 0.06"
    ) as error:
        write(tmp_path / "d", records(bad=bad))
    with Path(str(error.value.where)).open() as f:
        assert [row["id"] for row in csv.DictReader(f)] == ["id1", "id2", "id3"]
    assert not (tmp_path / "d").exists()
    assert write(tmp_path / "d", records()).facts["rejects"] == {}
    assert write(tmp_path / "e", records(bad=bad), max_rejects=0.06).facts["splits"]["train"]["rejects"] == 3
    with pytest.raises(DataError, match=r"3 of 50 samples rejected.*at most 1.00%"):
        shards.write(
            records(bad=bad),
            tmp_path / "strict",
            shards.DatasetInfo(name="toy", modalities=PAIR),
            shards.WriteOptions(workers=0),
        )
    with pytest.raises(DataError, match="no records"):
        write(tmp_path / "none", iter(()))
    with pytest.raises(DataError, match="2 of 2 samples rejected"):
        write(tmp_path / "all", records(2, bad=(0, 1)), max_rejects=1.0)


def test_a_run_beyond_hope_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "EARLY_STOP_REJECTS", 4)
    read: list[str] = []

    def watched() -> Iterator[PairRecord]:
        for record in records(50, bad=tuple(range(20, 50))):
            read.append(record.id)
            yield record

    folder = interrupted(tmp_path / "d", watched(), 20)  # what was finished before is kept and counted
    read.clear()
    with pytest.raises(DataError, match=r"5 of 25 samples rejected \(not a picture 5\)") as error:
        write(tmp_path / "d", watched(), total=50)
    assert read[-1] == "id24" and str(error.value.where) == str(folder / "rejects.csv")
    read.clear()
    with pytest.raises(DataError, match="30 of 50 samples rejected"):  # without a total nobody can know
        write(tmp_path / "d", watched())


def test_a_split_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    odd = (PairRecord(r.id, r.group, "../../x" if r.id == "id3" else r.split, r.media, r.captions) for r in records())
    manifest = write(tmp_path / "deep" / "d", odd)
    assert (
        manifest.facts["rejects"] == {"bad split name": 1}
        and leftovers(tmp_path) == {"deep"}
        and leftovers(tmp_path / "deep") == {"d"}
    )
    assert sum(s["samples"] for s in manifest.facts["splits"].values()) == 49


def test_twins_and_leakage(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two samples have the same id: id7"):
        write(tmp_path / "t", [*records(10), *list(records(10))[7:8]])
    with pytest.raises(DataError, match="two samples have the same id: id8"):  # in two splits
        write(tmp_path / "t", [*records(10), PairRecord("id8", "g", "test", {"image": picture(99)}, ["a"])])
    # id0 again in val (leaks); id1 again in train (does not)
    same = [
        PairRecord("x", "x", "test", {"image": picture(0)}, ["a"]),
        PairRecord("y", "y", "train", {"image": picture(1)}, ["a"]),
        PairRecord("z", "z", "val", {"image": picture(0)}, ["a"]),
    ]
    manifest = write(tmp_path / "d", [*records(20), *same])
    sha1 = hashlib.sha1(picture(0)).hexdigest()
    assert manifest.facts["leakage"] == 1 and {"name": "leakage.csv", "rows": 3}.items() <= manifest.files[-1].items()
    assert (
        tmp_path / "d" / "leakage.csv"
    ).read_text() == f"sha1,split,id\n{sha1},test,x\n{sha1},train,id0\n{sha1},val,z\n"


def test_shards_also_close_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 3 * len(picture(0)))
    files = write(tmp_path / "d", records(20)).files
    assert max(f["rows"] for f in files if f["name"].endswith(".arrow")) <= 4 and len(files) > 5


def test_memory_does_not_grow_with_the_number_of_records(tmp_path: Path) -> None:
    data = picture(0) + bytes(20_000)  # trailing bytes are no fault of a PNG

    def peak(n: int) -> int:
        source = (PairRecord(str(i), str(i), "train", {"image": lambda: data[:-1] + b"x"}, ["a"]) for i in range(n))
        tracemalloc.start()
        write(tmp_path / str(n), source, rows_per_shard=32)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(32)
    small, large = peak(64), peak(640)
    assert small > 32 * 20_000 and large < small + 3_000_000  # 640 samples are 12.8 MB


def test_manifest_holds_no_path_of_this_machine(tmp_path: Path) -> None:
    root = (tmp_path / "source").resolve()
    root.mkdir()
    (root / "a.png").write_bytes(picture(0))
    source = [PairRecord(n, n, "train", {"image": root / n}, ["a"]) for n in ("a.png", "gone.png")]
    manifest = write(tmp_path / "d", source, root=root, max_rejects=0.5)
    text = json.dumps([manifest.facts, manifest.files, manifest.config]) + (tmp_path / "d" / "rejects.csv").read_text()
    assert str(tmp_path) not in text and "gone.png,train,missing file,gone.png" in text
