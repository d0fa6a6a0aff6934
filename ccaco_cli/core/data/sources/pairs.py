"""Precomputed embeddings of other models: row i of one ``.npy`` file belongs to row i of another, or to a caption."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core.data.arrays import NUMBERS, encode
from ccaco_cli.core.data.sources.lists import HASH_SPLITS, decode_text, hash_split, revision_of
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

Array = np.ndarray[Any, Any]
_EXPECTS = "two .npy files, [N, W] each, as --a and --b, or one and --captions FILE; optional --ids and --groups"
_NEXT = "ccaco prepare pairs --a PATH --b PATH"
_AXES = (2, 3)
"""[N, W]: N samples of one vector; [N, M, W]: N samples of M vectors."""


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is not None:
        raise DataError("pairs reads --a and --b", where=f"--source {root}", expected=_EXPECTS, next=_NEXT)
    files = {name: path.resolve() for name, path in options.inputs.items()}
    if "a" not in files or not files.keys() & {"b", "captions"}:
        raise DataError("two sides are needed", where="--a and --b", expected=_EXPECTS, next=_NEXT)
    sides = {"array": files["a"], **({"array2": files["b"]} if "b" in files else {})}
    flags = dict(zip(sides, ("--a", "--b"), strict=False))
    counts = {f"{flags[name]} {path}": len(_open(path, flags[name])) for name, path in sides.items()}
    texts = {name: _lines(files[name], f"--{name}") for name in ("captions", "ids", "groups") if name in files}
    counts |= {f"--{name} {files[name]}": len(lines) for name, lines in texts.items()}
    if len(set(counts.values())) > 1:
        where = ", ".join(f"{name}: {count:,}" for name, count in counts.items())
        raise DataError("files of different length", where=where, expected="one row or line for each sample in all")
    return SourceData(
        records=_records(sides, texts, next(iter(counts.values()))),
        protocol="pairs: embeddings row by row (split: 80/10/10 by hash of the group)",
        revision=revision_of(*files.values()),
        splits=HASH_SPLITS,
        text_files=[files[name] for name in texts if files[name].suffix != ".npy"],
        modalities=tuple(sides) if "b" in files else ("array", "text"),
    )


def _records(sides: Mapping[str, Path], texts: Mapping[Any, Sequence[str]], count: int) -> Iterator[PairRecord]:
    for row in range(count):
        id = texts["ids"][row] if "ids" in texts else f"{row:08d}"
        group = texts["groups"][row] if "groups" in texts else id
        yield PairRecord(
            id=id,
            group=group,
            split=hash_split(group),
            media={modality: partial(_row, path, row) for modality, path in sides.items()},
            captions=[texts["captions"][row]] if "captions" in texts else (),
        )


@lru_cache(maxsize=4)
def _open(path: Path, flag: str = "") -> Array:
    """A ``.npy`` file by memory map. Raises DataError: it is none, or holds no rows of numbers."""
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError("no such file", where=f"{flag} {path}", expected="a .npy file that exists") from None
    except Exception as error:  # numpy evaluates the header as a literal, which fails in many ways
        reason = " ".join(str(error).split())[:100]
        raise DataError(
            f"cannot read this array file ({reason})", where=f"{flag} {path}", expected="a .npy file of numbers, [N, W]"
        ) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in NUMBERS or array.ndim not in _AXES:
        content = f"shape {list(array.shape)}, {array.dtype}" if isinstance(array, np.ndarray) else "an archive"
        raise DataError(
            "an array of another kind", where=f"{flag} {path}: {content}", expected="numbers, [N, W] or [N, M, W]"
        )
    return array


def _row(path: Path, row: int) -> bytes:
    """The bytes of one sample: rows that float32 cannot hold stay as they are, and the check rejects them."""
    with np.errstate(over="ignore"):
        return encode(_open(path)[row])


def _lines(path: Path, flag: str) -> Sequence[str]:
    """One text a row: the lines of a text file, or the values of a ``.npy`` file [N] of texts or integers."""
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
            if values.ndim != 1 or values.dtype.kind not in "iuU":
                raise ValueError(f"shape {list(values.shape)}, {values.dtype}")
            return [str(value) for value in values.tolist()]
        lines = re.split(r"\r\n|\r|\n", decode_text(path.read_bytes()))
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:100]
        raise DataError(
            f"cannot read this list ({reason})", where=f"{flag} {path}", expected="one line for each sample"
        ) from None
    return lines[:-1] if lines and not lines[-1] else lines


SOURCE = Source("pairs", ("array", "array2"), _EXPECTS, _read, resolves_path=True)
