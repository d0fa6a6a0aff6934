"""Artefacts on disk: a folder whose ``manifest.json`` is written last and atomically, so its presence means complete."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ccaco_cli import __version__
from ccaco_cli.core.errors import ManifestError

NAME = "manifest.json"
SCHEMA = 1
HOW_TO_MAKE = {
    "dataset": "ccaco prepare NAME --source PATH",
    "run": "ccaco train --dataset NAME",
    "embeddings": "ccaco embed --run RUN --dataset NAME",
    "index": "ccaco embed --run RUN --dataset NAME --index NAME.idx",
    "ablation": "ccaco ablate --dataset NAME",
}
_LIBRARIES = ("torch", "open_clip_torch", "transformers", "datasets", "numpy", "faiss-cpu")


@dataclass(frozen=True)
class Manifest:
    """What an artefact says of itself.

    path    the artefact's folder
    kind    dataset | run | embeddings | index | ablation
    facts   what this kind adds (counts, protocol, modalities ...)
    inputs  name -> {"path", "sha256"} of the manifests it was made from
    files   [{"name", "sha256", "bytes", ...}]
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
        """Identity of the content: hash of kind, config, facts, inputs and files, not of when, where or by whom it was made."""
        body = [self.kind, self.config, self.facts, {k: v["sha256"] for k, v in self.inputs.items()}, self.files]
        return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hash of a file's bytes, read in blocks."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def file_entry(root: Path, path: Path, **more: Any) -> dict[str, Any]:
    """One row of a manifest's ``files``."""
    return {"name": path.relative_to(root).as_posix(), "sha256": sha256(path), "bytes": path.stat().st_size, **more}


def input_of(artefact: Manifest) -> dict[str, str]:
    """How another artefact names this one among its inputs."""
    return {"path": str(artefact.path), "sha256": artefact.sha256}


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file so that it is either whole or absent: temp file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temp.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)


def json_text(value: Any) -> str:
    """JSON as our artefacts hold it: keys in the order given; NaN and infinity become null (JSON has none)."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Atomic ``json_text``."""
    write_bytes(path, json_text(value).encode())


def write(
    root: Path,
    kind: str,
    *,
    facts: Mapping[str, Any],
    inputs: Mapping[str, Manifest] | None = None,
    config: Mapping[str, Any] | None = None,
    files: Iterable[Mapping[str, Any]] = (),
    device: str = "cpu",
) -> Manifest:
    """Completes an artefact: its manifest, written last."""
    body = {
        "kind": kind,
        "schema": SCHEMA,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": {
            "ccaco": __version__,
            "argv": sys.argv,
            "python": platform.python_version(),
            "libraries": _versions(),
            "device": device,
        },
        "inputs": {name: input_of(m) for name, m in (inputs or {}).items()},
        "config": dict(config or {}),
        "facts": dict(facts),
        "files": [dict(f) for f in files],
    }
    write_json(root / NAME, body)
    return open(root, kind=kind)


def exists(path: Path) -> bool:
    """True when a complete artefact lies at ``path``."""
    return (path / NAME).is_file()


def open(path: Path, *, kind: str, verify: bool = False) -> Manifest:
    """Reads and checks a manifest.

    verify  also hash every file that it lists (slow on large artefacts); sizes are always compared
    Raises  ManifestError: nothing there, incomplete, another kind, a newer schema, or an altered file
    """
    path = Path(path)
    make = HOW_TO_MAKE.get(kind)
    if not exists(path):
        what = f"no {kind} here" if not path.exists() else f"incomplete or foreign folder, not a {kind}"
        raise ManifestError(what, where=path, expected=f"a folder with {NAME}", next=make)
    try:
        body = json.loads((path / NAME).read_text("utf-8"))
        found = Manifest(
            path=path,
            **{k: body[k] for k in ("kind", "facts", "inputs", "config", "files", "made_by", "made_at")},
        )
        schema = int(body["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"unreadable manifest ({error})", where=path / NAME, expected=f"a {kind}", next=make) from None
    if found.kind != kind:
        raise ManifestError(f"this is a {found.kind}", where=path, expected=f"a {kind}", next=make)
    if schema > SCHEMA:
        raise ManifestError(
            f"made by a newer ccaco (schema {schema})", where=path, expected=f"schema {SCHEMA}", next="pip install -U ccaco"
        )
    for entry in found.files:
        file = path / entry["name"]
        if not file.is_file():
            raise ManifestError("a file of this artefact is missing", where=file, expected=f"{entry['bytes']} bytes", next=make)
        if file.stat().st_size != entry["bytes"] or (verify and sha256(file) != entry["sha256"]):
            raise ManifestError("a file of this artefact was altered", where=file, expected=f"sha256 {entry['sha256'][:12]}", next=make)
    return found


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
