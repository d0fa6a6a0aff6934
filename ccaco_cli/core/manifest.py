"""Artefacts on disk: folders whose ``manifest.json`` is written last, so that its presence means "complete"."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from ccaco_cli import __version__
from ccaco_cli.core import fault
from ccaco_cli.core.errors import ConfigError, ManifestError
from ccaco_cli.core.escape import printable

NAME = "manifest.json"
SCHEMA = 2
HOW_TO_MAKE = {
    "dataset": "ccaco prepare NAME --source PATH",
    "run": "ccaco train --dataset NAME",
    "embeddings": "ccaco embed --run RUN --dataset NAME",
    "index": "ccaco embed --run RUN --dataset NAME --index NAME.idx",
    "ablation": "ccaco ablate --dataset NAME",
}
QUICK, FULL = VERIFY = ("quick", "full")
MAX_JSON = 1 << 28
"""Maximum size in bytes of a manifest or result file."""
_SECRET = re.compile(r"(?P<head>://[^/:@\s]*:)[^@\s]+(?P<tail>@)|\b(?:hf|ghp|gho|sk)[_-]\w{16,}")
_LIBRARIES = ("torch", "open_clip_torch", "transformers", "datasets", "numpy", "faiss-cpu")


@dataclass(frozen=True)
class Manifest:
    """The description of an artefact.

    Attributes:
        path: folder of the artefact.
        kind: dataset | run | embeddings | index | ablation.
        facts: facts of this kind (counts, protocol, modalities ...).
        inputs: name -> {"path", "sha256"} of the manifests that it was made from.
        config: settings that it was made with.
        files: [{"name", "sha256", "bytes", ...}].
        made_by, made_at: program and time.
    """

    path: Path
    kind: str
    facts: dict[str, Any]
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    made_by: dict[str, Any] = field(default_factory=dict)
    made_at: str = ""

    @property
    def sha256(self) -> str:
        """Hash of the content: kind, config, facts, inputs and files, but not time, place and program."""
        body = [self.kind, self.config, self.facts, {k: v["sha256"] for k, v in self.inputs.items()}, self.files]
        return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hash of a file's bytes, read in blocks."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def file_entry(root: Path, path: Path, **more: Any) -> dict[str, Any]:
    """An entry of a manifest's ``files``."""
    return {"name": path.relative_to(root).as_posix(), "sha256": sha256(path), "bytes": path.stat().st_size, **more}


def input_of(artefact: Manifest) -> dict[str, str]:
    """The entry of an artefact in the ``inputs`` of another."""
    return {"path": str(artefact.path), "sha256": artefact.sha256}


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing such that ``path`` is either complete or absent: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temp.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        fault.point("write.whole")
        temp.replace(path)
        fault.point("write.renamed")
        _sync(path.parent)
    except OSError as error:  # for a failed write, the system does not name the file
        if error.errno and not error.filename:
            error.filename = str(path)
        raise
    finally:
        temp.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes a file atomically (``writing``)."""
    with writing(path) as f:
        f.write(memoryview(data)[: len(data) // 2])
        fault.point("write.half")
        f.write(memoryview(data)[len(data) // 2 :])


def sweep(folder: Path) -> None:
    """Deletes the temporary files of a killed writer below a folder. The caller must hold the folder's lock."""
    for leftover in folder.rglob(".*.tmp"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Makes a rename survive a power cut, if the system can sync a folder."""
    if hasattr(os, "O_DIRECTORY"):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def json_text(value: Any) -> str:
    """JSON text of an artefact: keys keep their order; NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes ``json_text`` atomically."""
    write_bytes(path, json_text(value).encode())


def write(
    root: Path,
    kind: str,
    *,
    facts: Mapping[str, Any],
    inputs: Mapping[str, Manifest | Mapping[str, str]] | None = None,
    config: Mapping[str, Any] | None = None,
    files: Iterable[Mapping[str, Any]] = (),
    device: str = "cpu",
) -> Manifest:
    """Completes an artefact by writing its manifest. An input is an artefact, or its entry in another manifest."""
    body = {
        "kind": kind,
        "schema": SCHEMA,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": {
            "ccaco": __version__,
            "argv": [printable(without_secrets(word)) for word in sys.argv],
            "python": platform.python_version(),
            "libraries": _versions(),
            "device": device,
        },
        "inputs": {name: input_of(m) if isinstance(m, Manifest) else dict(m) for name, m in (inputs or {}).items()},
        "config": dict(config or {}),
        "facts": dict(facts),
        "files": [dict(f) for f in files],
    }
    body = json.loads(json_text(body))  # the seal is computed from what will be read
    write_json(root / NAME, body | {"seal": seal(body)})
    return open(root, kind=kind)


def without_secrets(text: str) -> str:
    """Replaces passwords in addresses and access tokens in a word of a command line."""
    return _SECRET.sub(lambda match: (match["head"] or "") + "***" + (match["tail"] or ""), text)


def exists(path: Path) -> bool:
    """True if there is a complete artefact at ``path``."""
    return (path / NAME).is_file()


def open(path: Path, *, kind: str, verify: str = QUICK) -> Manifest:
    """Reads a manifest and checks its hash and its files.

    Args:
        path: folder of the artefact.
        kind: expected kind.
        verify: quick: sizes of the files | full: also their hashes, which reads every byte.
    Raises:
        ManifestError: nothing there, incomplete, another kind, another schema, or a changed file (named).
    """
    if verify not in VERIFY:
        raise ConfigError("unknown check", where=f"--verify {verify}", expected=" | ".join(VERIFY))
    path = Path(path)
    make = HOW_TO_MAKE.get(kind)
    if not exists(path):
        problem = f"no {kind} here" if not path.exists() else f"incomplete or foreign folder, not a {kind}"
        raise ManifestError(problem, where=path, expected=f"a folder with {NAME}", next=make)
    try:
        body = read_json(path / NAME)
        result = Manifest(
            path=path,
            **{k: body[k] for k in ("kind", "facts", "inputs", "config", "files", "made_by", "made_at")},
        )
        schema = int(body["schema"])
        named = [(str(entry["name"]), int(entry["bytes"]), str(entry["sha256"])) for entry in result.files]
        shapes = all(isinstance(value, dict) for value in (result.facts, result.inputs, result.config, result.made_by))
        if not shapes or any("sha256" not in entry for entry in result.inputs.values()):
            raise ValueError("other content")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError) as error:
        raise ManifestError(
            f"unreadable manifest ({error})", where=path / NAME, expected=f"a {kind}", next=make
        ) from None
    if result.kind != kind:
        raise ManifestError(f"this is a {result.kind}", where=path, expected=f"a {kind}", next=make)
    if schema != SCHEMA:
        age, remedy = ("a newer", "pip install -U ccaco") if schema > SCHEMA else ("an older", make)
        raise ManifestError(
            f"made by {age} ccaco (schema {schema})", where=path, expected=f"schema {SCHEMA}", next=remedy
        )
    if body.get("seal") != seal(body):
        raise ManifestError(
            "this manifest was altered", where=path / NAME, expected=f"a {kind} as ccaco wrote it", next=make
        )
    for name, size, digest in named:
        file = path / name
        if not (path / name).resolve().is_relative_to(path.resolve()):
            raise ManifestError(
                "a file of this artefact lies outside it", where=name, expected=f"files in {path}", next=make
            )
        if not file.is_file():
            raise ManifestError("a file of this artefact is missing", where=file, expected=f"{size} bytes", next=make)
        if file.stat().st_size != size or (verify == FULL and sha256(file) != digest):
            raise ManifestError(
                "a file of this artefact was altered", where=file, expected=f"sha256 {digest[:12]}", next=make
            )
    return result


def seal(body: Mapping[str, Any]) -> str:
    """Hash of a complete manifest, which detects a changed bit."""
    text = json.dumps({k: v for k, v in body.items() if k != "seal"}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path, max_bytes: int = MAX_JSON) -> Any:
    """Reads a JSON file. Raises ValueError: larger than ``max_bytes``, not JSON, nested too deeply; OSError."""
    if path.stat().st_size > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    return parse_json(path.read_text("utf-8"))


def parse_json(text: str, **more: Any) -> Any:
    """``json.loads``. Raises ValueError: not JSON, or nested too deeply."""
    try:
        return json.loads(text, **more)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
