"""The search page under load: a real server process and many clients at one time, with errors, times and memory."""

from __future__ import annotations

import http.client
import itertools
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import record
import search_index

from ccaco_cli.core.retrieval.index import Index

options = record.arguments(
    __doc__, rows=123287, tower="open_clip:ViT-B-32@none", tokens=16, queries=10_000, clients=50, index=""
)
queries = 200 if options.quick and options.queries == 10_000 else options.queries
WORDS = (
    ["small", "large", "red", "blue", "green", "old", "new", "wooden", "wet", "sleeping", "running", "quiet"],
    ["cat", "dog", "bird", "ball", "car", "tree", "house", "boat", "child", "horse", "cup", "chair"],
    [
        "on a mat",
        "near a river",
        "at night",
        "in the snow",
        "under a tree",
        "beside a wall",
        "in the rain",
        "on a table",
    ],
)


@dataclass(frozen=True)
class Load:
    """The answers to one kind of request.

    Attributes:
        seconds: of each request, from its first byte to the last of its answer.
        errors: answers that were not 200, and connections that failed.
        wall: seconds from the first request to the last answer.
    """

    seconds: Sequence[float]
    errors: Sequence[str]
    wall: float

    def percentile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def run(port: int, path: Callable[[int], str], requests: int) -> Load:
    """Sends requests from all clients, each over a connection of its own that stays open."""
    numbers, lock = itertools.count(), threading.Lock()
    seconds: list[float] = []
    errors: list[str] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                number = next(numbers)
            if number >= requests:
                connection.close()
                return
            begun = time.perf_counter()
            try:
                connection.request("GET", path(number))
                answer = connection.getresponse()
                body = answer.read()
                problem = "" if answer.status == 200 else f"{answer.status}: {body[:200]!r}"
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
                connection.close()
            seconds.append(time.perf_counter() - begun)
            if problem:
                errors.append(problem)

    threads = [threading.Thread(target=client) for _ in range(options.clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(seconds, errors, time.perf_counter() - begun)


def text(number: int) -> str:
    """The address of a search; each number has other words."""
    words = [part[number // size % len(part)] for part, size in zip(WORDS, (1, 12, 144), strict=True)]
    return f"/api/search?{urlencode({'text': f'a {words[0]} {words[1]} {words[2]}', 'k': 24})}"


def filtered(number: int) -> str:
    """A search with one of a few filters."""
    return f"{text(number)}&{urlencode({'where': f'year >= {2005 + number % 5}'})}"


def memory(process: int) -> float:
    """MiB of a process that are not mapped from files (Linux): pages of the vectors come and go."""
    status = Path(f"/proc/{process}/status").read_text()
    return sum(int(size) for size in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+)", status, re.M)) / 1024


def resident(process: int) -> float:
    """MiB of a process, pages of files included."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"^VmRSS:\s+(\d+)", status, re.M)[0]) / 1024


def measure(index: Path) -> tuple[list[record.Row], list[str]]:
    """Starts the server, and loads it."""
    command = [sys.executable, "-m", "ccaco_cli", "retrieve", "--serve", "0", "--index", str(index)]
    begun = time.perf_counter()
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    line = server.stderr.readline()
    start = time.perf_counter() - begun
    match = re.search(r":(\d+)/", line)
    if match is None:
        raise RuntimeError(line + server.stderr.read())
    port = int(match[1])
    try:
        version = Index(index).manifest.sha256[:16]
        rows = len(Index(index).sides["image"].items)
        kinds: dict[str, tuple[Callable[[int], str], int]] = {
            "text searches, 24 hits": (text, queries),
            "text searches with a filter": (filtered, queries // 5),
            "more like this": (lambda i: f"/api/items/{version}/image/{i * 7 % rows}/similar?k=24", queries // 5),
            "thumbnails": (lambda i: f"/api/items/{version}/image/{i * 7 % rows}/thumbnail", queries),
        }
        run(port, text, min(queries, 500))  # the libraries' own buffers grow at first
        before = memory(server.pid), resident(server.pid)
        loads: dict[str, Load] = {}
        middle: tuple[float, float] = (0.0, 0.0)
        for label, (path, requests) in kinds.items():
            loads[label] = run(port, path, requests)
            middle = middle if middle[0] else (memory(server.pid), resident(server.pid))
        after = memory(server.pid), resident(server.pid)
    finally:
        server.send_signal(signal.SIGINT)
        _, messages = server.communicate(timeout=60)
    table = [row(label, load) for label, load in loads.items()]
    errors = [error for load in loads.values() for error in load.errors]
    facts = [
        f"{options.clients} clients at one time, each with one connection; the clients ran on the same machine",
        f"errors: {len(errors)} of {sum(len(load.seconds) for load in loads.values()):,} {errors[:3] or ''}".rstrip(),
        f"memory without pages of files: {before[0]:.0f} MiB before, {middle[0]:.0f} MiB after {queries:,} text "
        f"searches, {after[0]:.0f} MiB at the end (with them {before[1]:.0f}, {middle[1]:.0f}, {after[1]:.0f} MiB)",
        f"from the command to the first address: {start:.1f} s; exit code after Ctrl-C: {server.returncode}",
        f"last message: {messages.strip().splitlines()[-1]}",
    ]
    return table, facts


def row(label: str, load: Load) -> record.Row:
    """Percentiles and rate of one kind of request."""
    median, slow = load.percentile(0.5), load.percentile(0.95)
    ours = (
        f"p50 {record.time_text(median)}, p95 {record.time_text(slow)}, p99 {record.time_text(load.percentile(0.99))}, "
        f"{len(load.seconds) / load.wall:,.0f} a second"
    )
    return record.Row(
        f"{label} ({len(load.seconds):,})", ours, "-", [], None, None, (statistics.mean(load.seconds), 0.0)
    )


def main() -> None:
    """Measures the given index, or a generated one."""
    if options.index:
        table, facts = measure(Path(options.index))
    else:
        rows, spec = (2000, "tiny") if options.quick else (options.rows, options.tower)
        with tempfile.TemporaryDirectory() as place:
            index = Path(place) / "b.idx"
            search_index.build(index, spec, rows, options.tokens)
            table, facts = measure(index)
        facts.insert(0, f"index: {spec}, {rows:,} vectors of {search_index.WIDTH}, 64 candidates reordered")
    record.finish("Search page under load", table, options, facts=facts)


main()
