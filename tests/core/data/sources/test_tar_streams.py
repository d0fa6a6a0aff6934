"""Tar shards behind addresses and commands, against the same shards as files."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources import tar_streams
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.data.sources.webdataset import SOURCE
from ccaco_cli.core.errors import DataError
from tests.core.data.sources.test_webdataset import data_of, sample, shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of three samples; the second is compressed."""
    shard(tmp_path / "s" / "00000.tar", [part for n in range(3) for part in sample(n)])
    shard(tmp_path / "s" / "00001.tar", [part for n in range(3, 6) for part in sample(n)], "w:gz")
    return tmp_path / "s"


class _Handler(SimpleHTTPRequestHandler):
    refuse = 0

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        if type(self).refuse:
            type(self).refuse -= 1
            self.send_error(503)
        elif "short" in self.path:
            data = (Path(self.directory) / "00000.tar").read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: 512 * int(self.path.rpartition("=")[2])])  # "=3": ends between two members
        else:
            super().do_GET()


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(tar_streams, "_RETRY_SECONDS", 0.01)
    _Handler.refuse = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def rows(address: str = "", root: Path | None = None) -> list[tuple[str, str, list[str], bytes]]:
    records = SOURCE.read(root, SourceOptions(address=address)).records
    return [(r.id, r.split, list(r.captions), data_of(r) if r.media else b"") for r in records]


def test_every_kind_of_address_gives_the_records_of_the_files(folder: Path, server: str) -> None:
    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    wanted = rows(root=folder)
    assert len(wanted) == 6
    both = "{00000..00001}.tar"
    for address in (
        f"memory://bucket/{both}",
        "memory://bucket/*.tar",
        f"file://{folder}/{both}",
        f"file://{folder}/*.tar",
        f"{server}/{both}",
        f"{server}/00000.tar?X-Amz-Signature=secret".replace("00000", "{00000,00001}"),
        f"pipe:cat {folder}/{both}",
        f"pipe:cat '{folder}/{both}' | cat",
    ):
        assert rows(address) == wanted, address


def test_names_of_streams_give_splits_and_ids(folder: Path) -> None:
    memory, data = fsspec.filesystem("memory"), (folder / "00000.tar").read_bytes()
    for name in ("train/0.tar", "val/0.tar"):
        memory.pipe(f"/named/{name}", data)
    got = rows("memory://named/{train,val}/0.tar")
    assert [(r[0], r[1]) for r in got[::3]] == [("train/0/000000000", "train"), ("val/0/000000000", "val")]
    got = rows(f"pipe:cd {folder} && cat $(echo 0000)0.t*")
    assert got[0][0].endswith("/000000000") and len(got) == 3, "a command that names no tar file"


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("{server}/none.tar", "404"),
        ("{server}/short?blocks=5", "ended after 2,560 of"),  # in the middle of a member
        ("{server}/short?blocks=2", "ended after 1,024 of"),  # between two members, where a tar could end
        ("{server}/short?blocks=0", "ended after 0 of"),
        ("http://127.0.0.1:9/0.tar", "refused"),
        ("memory://none/0.tar", "FileNotFoundError"),
        ("memory://none/*.tar", "no shard matches"),
        ("file:///nowhere/0.tar", "FileNotFoundError"),
        ("gopher://host/0.tar", "unknown kind"),
        ("pipe:cat /nowhere/0.tar", "exit code 1: cat: /nowhere/0.tar: No such file"),
        ("pipe:head -c 2048 {folder}/00000.tar; exit 7", "exit code 7"),
        ("pipe:head -c 1024 {folder}/00000.tar; kill -9 $$", "exit code -9"),
        ("pipe:cat /nowhere/0.tar | head -c 2048", "exit code 1"),
        ("pipe:true", "it is empty"),
        ("pipe:no-such-command-at-all", "exit code 127"),
    ],
)  # fmt: skip
def test_a_transport_that_fails_is_one_line(folder: Path, server: str, address: str, problem: str) -> None:
    with pytest.raises(DataError) as error:
        rows(address.format(server=server, folder=folder))
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_a_broken_shard_behind_an_address_is_a_reject_as_in_a_file(folder: Path, server: str) -> None:
    data, packed = ((folder / name).read_bytes() for name in ("00000.tar", "00001.tar"))
    for name, content in {
        "header.tar": data[:3072] + b"\xff" * 512 + data[3584:],  # tarfile alone would take this for the end
        "half-a-header.tar": data[:3300],
        "half-a-member.tar": data[:5000],
        "packed.tar": packed[: len(packed) // 2],
    }.items():
        (folder / name).write_bytes(content)
        local = list(SOURCE.read(folder / name, SourceOptions()).records)
        assert "the rest of" in local[-1].id, name
        for address in (f"{server}/{name}", f"pipe:cat {folder}/{name}", f"file://{folder}/{name}"):
            records = list(SOURCE.read(None, SourceOptions(address=address)).records)
            assert [r.id for r in records] == [r.id for r in local], address


def test_a_busy_server_gets_a_second_request_and_a_missing_file_does_not(server: str) -> None:
    _Handler.refuse = tar_streams.ATTEMPTS - 1
    assert len(rows(f"{server}/00000.tar")) == 3
    _Handler.refuse = tar_streams.ATTEMPTS
    with pytest.raises(DataError, match="503"):
        rows(f"{server}/00000.tar")
    _Handler.refuse = 0


def test_a_missing_package_of_a_protocol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(DataError, match="pip install s3fs"):
        rows("s3://bucket/0.tar")


def test_an_interrupted_prepare_keeps_finished_parts_and_goes_on(folder: Path, server: str, tmp_path: Path) -> None:
    options = SourceOptions(address=f"{server}/{{00000..00001}}.tar?signature=first")
    write = WriteOptions(workers=0, rows_per_shard=1)
    undisturbed = prepare("webdataset", out=tmp_path / "undisturbed", options=options, write=write)
    second = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").unlink()
    with pytest.raises(DataError, match="404"):
        prepare("webdataset", out=tmp_path / "d", options=options, write=write)
    assert not (tmp_path / "d").exists()
    (folder / "00001.tar").write_bytes(second)
    resumed: list[bool] = []
    options = SourceOptions(address=f"{server}/{{00000..00001}}.tar?signature=second")
    data = prepare(
        "webdataset",
        out=tmp_path / "d",
        options=options,
        write=write,
        on_progress=lambda d, t, f: resumed.append(bool(f.get("resumed"))),
    )
    assert sum(resumed) == 3, "the samples of the first shard"
    assert [f["sha256"] for f in data.files] == [f["sha256"] for f in undisturbed.files]
    text = (tmp_path / "d" / "manifest.json").read_text()
    assert "signature" not in text and f"{server}/{{00000..00001}}.tar" in text
    assert shards.open(tmp_path / "d").manifest.facts["splits"] == undisturbed.facts["splits"]


def test_a_limit_ends_the_command(tmp_path: Path) -> None:
    shard(tmp_path / "train.tar", [part for n in range(200) for part in sample(n)])  # more than a pipe holds
    mark = tmp_path / "ended"
    command = f"trap 'touch {mark}; exit 1' TERM; cat {tmp_path}/train.tar; sleep 60"
    records = SOURCE.read(None, SourceOptions(address=f"pipe:{command}", limit=2)).records
    start = time.monotonic()
    assert len(list(records)) == 2
    assert time.monotonic() - start < 20 and mark.exists()


def test_only_sources_of_tar_shards_take_addresses(tmp_path: Path) -> None:
    for name in ("table", "coco", "imagefolder", "scenes"):
        with pytest.raises(DataError, match=r"not addresses or commands.*prepare webdataset"):
            prepare(name, out=tmp_path / "d", options=SourceOptions(address="https://user:secret@host/x.csv"))
    for text, expected in {"s3://b/0.tar": True, "pipe:cat x": True, "a/0.tar": False, "C:\\x.tar": False}.items():
        assert tar_streams.is_address(text) is expected
    assert "secret" not in tar_streams.public("https://user:secret@host/x.tar?token=secret")
