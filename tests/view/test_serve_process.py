"""``ccaco retrieve --serve`` as a process: where it listens, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'ccaco[serve]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'ccaco[serve]'")

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.view.serve.address import Address, check_token, listen, parse_address

ADDRESS = re.compile(r"at (http://\S+)")


@contextmanager
def process(index: Path, *arguments: str, address: str = "0") -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """(process, address, all lines that it printed) of a running server."""
    command = [sys.executable, "-m", "ccaco_cli", "retrieve", "--serve", address, "--index", str(index), *arguments]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert started.stderr is not None
        lines = []
        for line in started.stderr:
            lines.append(line)
            if "stop with Ctrl-C" in line:
                break
        match = ADDRESS.search(lines[0])
        assert match, lines
        yield started, match[1], "".join(lines)
    finally:
        started.kill()
        started.communicate()


def get(url: str, headers: dict[str, str] | None = None) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=60) as answer:
        return json.loads(answer.read())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_server_answers_and_ends_with_the_code_of_the_signal(index: Path, number: int, code: int) -> None:
    with process(index) as (server, url, _):
        assert get(f"{url}api/search?text=a+cat&k=3")["hits"][0]["rank"] == 1
        answers: list[Any] = []
        running = threading.Thread(target=lambda: answers.append(get(f"{url}api/search?text=a+dog&k=200")))
        running.start()
        running.join(0.02)
        server.send_signal(number)
        out, err = server.communicate(timeout=30)
        running.join(30)
    assert server.returncode == code and out == ""
    assert err.splitlines()[-1] == "ccaco: interrupted; the page is no longer served", err
    assert "Traceback" not in err
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1].strip("/"))), timeout=2)


def test_an_index_can_be_rebuilt_after_its_server_was_killed(index: Path, tmp_path: Path) -> None:
    """The lock of the generation belongs to the process."""
    import fcntl

    copy = tmp_path / "copy.idx"  # other tests of this process may read the index itself
    shutil.copytree(index, copy)
    generation = next(copy.glob("generation-*"))
    number = os.open(generation, os.O_RDONLY)
    try:
        with process(copy) as (server, _, _):
            with pytest.raises(BlockingIOError):
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            server.kill()
            server.wait(30)
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(number)


def test_another_host_prints_its_token_once(photo_index: Path) -> None:
    with process(photo_index, address="0.0.0.0:0") as (server, url, lines):
        page, _, token = url.partition("?token=")
        assert page.startswith("http://127.0.0.1:") and len(token) > 30
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(f"{page}api/index")
        assert get(f"{page}api/index", {"Authorization": f"Bearer {token}"})["items"] == {"image": 16}
        server.terminate()
        _, err = server.communicate(timeout=30)
    assert token not in err and lines.count(token) == 1 and "other machines reach this page, unencrypted" in lines


def test_a_taken_port_is_refused(ccaco: Callable[..., Any], index: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = ccaco("retrieve", "--serve", taken.getsockname()[1], "--index", index)
    assert done.code == 2 and done.out == "" and len(done.err.splitlines()) == 1
    assert "this port is taken" in done.err and "--serve 0" in done.err


@pytest.mark.parametrize(
    "address",
    [
        "",
        "abc",
        ":8000",
        "8000:",
        "99999",
        "-1",
        "1.2.3.4:",
        "127.0.0.1:80x",
        "http://127.0.0.1:8000",
        "::1:8000",
        "a b:1",
    ],
)
def test_a_bad_address_is_refused(ccaco: Callable[..., Any], index: Path, address: str) -> None:
    done = ccaco("retrieve", f"--serve={address}", "--index", index)
    assert done.code == 2 and len(done.err.splitlines()) == 1 and "[HOST:]PORT" in done.err


@pytest.mark.parametrize("address", ["no-such-host.invalid:0", "192.0.2.1:0"])
def test_a_host_that_is_not_this_machine_is_refused(ccaco: Callable[..., Any], index: Path, address: str) -> None:
    done = ccaco("retrieve", "--serve", address, "--index", index)
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert "no such host" in done.err or "does not have this address" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a cat", "--serve", "0"], "a page and one search at the same time"),
        (["--image", "x.jpg", "--serve", "0"], "a page and one search at the same time"),
        (["--save", "x.png", "--serve", "0"], "a page and one search at the same time"),
        (["--serve-originals"], "belongs to --serve"),
        (["a cat", "--token", "0123456789abcdef"], "belongs to --serve"),
        (["--serve", "0", "--token", "short"], "this token cannot protect the page"),
        (["--serve", "0", "--token", "has a space in the middle"], "this token cannot protect the page"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    ccaco: Callable[..., Any], index: Path, arguments: list[str], words: str
) -> None:
    done = ccaco("retrieve", *arguments, "--index", index)
    assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1


def test_no_index_is_refused(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    done = ccaco("retrieve", "--serve", "0", "--index", tmp_path / "none.idx")
    assert done.code == 2 and "no index here" in done.err and len(done.err.splitlines()) == 1


def test_without_the_extra_it_is_named(ccaco: Callable[..., Any], index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("uvicorn", "starlette"):
        for name in [*sys.modules]:
            if name.startswith(("ccaco_cli.view.serve", f"{library}.")) or name == library:
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, library, None)
        done = ccaco("retrieve", "--serve", "0", "--index", index)
        assert done.code == 2 and "pip install 'ccaco[serve]'" in done.err and len(done.err.splitlines()) == 1
        monkeypatch.undo()


# ---- addresses and tokens


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("8000", ("127.0.0.1", 8000)),
        ("localhost:0", ("localhost", 0)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:8000", ("::1", 8000)),
        ("photos.example:65535", ("photos.example", 65535)),
    ],
)
def test_addresses(text: str, parsed: tuple[str, int]) -> None:
    assert parse_address(text) == parsed


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("0", True), ("localhost:0", True), ("127.0.0.2:0", True), ("0.0.0.0:0", False), ("[::]:0", False)],
)
def test_only_the_loopback_address_needs_no_token(text: str, loopback: bool) -> None:
    try:
        listener, address = listen(text)
    except ConfigError:
        pytest.skip("this machine has no such address")
    listener.close()
    assert address.loopback == loopback and address.port > 0
    assert bool(check_token(None, address)) != loopback
    assert check_token("x" * 16, address) == "x" * 16


def test_tokens_are_random_and_long() -> None:
    address = Address("0.0.0.0", 1, loopback=False)
    tokens = {check_token(None, address) for _ in range(50)}
    assert len(tokens) == 50 and min(map(len, tokens)) >= 40
    for bad in ("", "x" * 15, "x" * 257, "x" * 16 + "\n", "ü" * 20, "x" * 10 + " " + "y" * 10):
        with pytest.raises(ConfigError, match="cannot protect"):
            check_token(bad, address)


def test_a_port_is_free_again_at_once(index: Path) -> None:
    first, address = listen("0")
    client = socket.create_connection(("127.0.0.1", address.port))
    accepted, _ = first.accept()
    accepted.close()
    first.close()
    client.close()
    time.sleep(0.05)
    second, _ = listen(str(address.port))
    second.close()
