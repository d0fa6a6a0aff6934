"""Mutates every file format that ccaco reads, and counts how each damaged file ends.

A file may be accepted, or refused in one clear line. The contents of the odd inputs of ``fuzz_sources`` are known: in
an accepted one, every row and picture is a sample or a reject. Anything else (another exception, a hang, a crash of the
process) is an error, and is printed with the seed that reproduces it. ``fuzz_formats`` lists the formats.

    python examples/benchmarks/fuzz.py --inputs 10000
    python examples/benchmarks/fuzz.py --inputs 1 --first SEED --only FORMAT      # reproduce one error
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import select
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from ccaco_cli.core.errors import CcacoError

if __package__:
    from examples.benchmarks.fuzz_formats import Format, formats
else:  # run as a script
    from fuzz_formats import Format, formats  # type: ignore[no-redef]

SECONDS = 10
CHUNK = 100
ENDINGS = {"a": "accepted", "r": "refused", "t": "traceback", "h": "hang", "c": "crash"}
NASTY = (
    b"\x00",
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b'"',
    b"\n",
    b"../../x",
    b"[" * 3000,
    b"\xed\xa0\x80",
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four edits: bits, bytes, cuts, repeats, swaps, nasty values, numbers and words of a text."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        to = min(len(out), at + rng.choice((1, 2, 4, 8, 64, 1024)))
        kind = rng.randrange(8)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at:to] = rng.randbytes(to - at)
        elif kind == 2:
            del out[at:to]
        elif kind == 3:
            out[at:at] = rng.choice(NASTY)
        elif kind == 4:
            out[at:to] = rng.choice(NASTY)
        elif kind == 5:
            out[at:at] = out[rng.randrange(len(out) + 1) :][: to - at]
        elif kind == 6:
            del out[at:]
        else:
            digits = [i for i, byte in enumerate(out) if 48 <= byte <= 57]
            if digits:
                out[rng.choice(digits)] = rng.choice(b"0123456789-.")
    return bytes(out)


def attempt(file_format: Format, original: bytes, file: Path, folder: Path, seed: int) -> tuple[str, str]:
    """One damaged file: (ending, message)."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("hang")

    file.unlink()  # a new file: the last one may still be mapped
    verify = file_format.write(file, random.Random(seed)) if file_format.write else None
    if verify is None:
        file.write_bytes(mutate(original, random.Random(seed)))
    if file_format.seal:
        file_format.seal(folder)
    signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # CPU time: on a busy machine nothing hangs
    try:
        result = file_format.read(folder)
        if verify is not None:
            verify(result)
        return "a", ""
    except CcacoError as error:
        message = str(error)
        return (
            ("r", message)
            if message and "\n" not in message and len(message) < 2000
            else ("t", f"not one clear line: {message[:300]!r}")
        )
    except TimeoutError as error:
        return ("h" if str(error) == "hang" else "t"), traceback.format_exc(limit=-3)
    except BaseException:
        return "t", traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _run_chunk(name: str, file_format: Format, seeds: range, pipe: int) -> None:
    """Runs in its own process, because a reader written in C may crash."""
    with tempfile.TemporaryDirectory() as place, os.fdopen(pipe, "w") as out:
        folder = Path(place)
        file = file_format.make(folder)
        other_files = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        original = file.read_bytes()
        file_format.read(folder)  # the undamaged file is accepted; lazy imports happen now
        for seed in seeds:
            ending, message = attempt(file_format, original, file, folder, seed)
            out.write(json.dumps([seed, ending, message]) + "\n")
            out.flush()
            for path, data in other_files.items():
                if path != file and path.name == "manifest.json":
                    path.write_bytes(data)


def run(
    inputs: int, first: int = 0, only: str | None = None, report_line: Callable[[str], None] = print
) -> Counter[str]:
    """Tries damaged files of all formats; returns the number of each ending."""
    selected = {name: file_format for name, file_format in formats().items() if only in (None, name)}
    for name in (
        "data.shards",
        "data.sources",
        "retrieval.index",
        "training.checkpoint",
        "training.parallel",
        "workflows.report",
    ):
        importlib.import_module(f"ccaco_cli.core.{name}")  # once, not in each process
    counts: Counter[str] = Counter()
    share = -(-inputs // len(selected))
    for name, file_format in selected.items():
        seeds, end = first, first + min(share, inputs - sum(counts.values()))
        format_counts: Counter[str] = Counter()
        while seeds < end:
            until = min(end, seeds + CHUNK)
            for seed, ending, message in _run_in_process(name, file_format, range(seeds, until)):
                format_counts[ENDINGS[ending]] += 1
                seeds = seed + 1
                if ending in "thc":
                    report_line(f"{ENDINGS[ending]}: {name}, seed {seed}\n{message}")
        counts += format_counts
        report_line(f"{name}: " + ", ".join(f"{word} {count}" for word, count in sorted(format_counts.items())))
    return counts


def _run_in_process(name: str, file_format: Format, seeds: range) -> list[tuple[int, str, str]]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            _run_chunk(name, file_format, seeds, writer)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(writer)
    text, stuck = b"", False
    while select.select([reader], [], [], 6 * SECONDS)[0]:  # code in C does not react to the alarm
        if not (chunk := os.read(reader, 1 << 16)):
            break
        text += chunk
    else:
        stuck = True
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    results = [tuple(json.loads(line)) for line in text.decode().splitlines(keepends=True) if line.endswith("\n")]
    if len(results) < len(seeds):
        results.append((seeds[len(results)], "h" if stuck else "c", f"the process ended with status {status}"))
    return results


def last_line(counts: Counter[str]) -> str:
    """The result in one line."""
    tried = sum(counts.values())
    return (
        f"inputs {tried}, clear refusals {counts['refused']}, accepted {counts['accepted']}, "
        f"tracebacks {counts['traceback']}, hangs {counts['hang']}, crashes {counts['crash']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first input of every format")
    parser.add_argument("--only", choices=sorted(formats()))
    options = parser.parse_args()
    counts = run(options.inputs, options.first, options.only)
    print(last_line(counts))
    sys.exit(bool(counts["traceback"] + counts["hang"] + counts["crash"]))


if __name__ == "__main__":
    main()
