"""Writes a generation of an index of media files: rows of the last generation and of new parts, and the model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ccaco_cli.core import fault, manifest
from ccaco_cli.core.library import items, side_rows, states
from ccaco_cli.core.library.states import Update
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.retrieval import index as indexes
from ccaco_cli.core.retrieval import vector_duplicates, vectors
from ccaco_cli.core.retrieval.complete import MODEL, IndexModel, complete
from ccaco_cli.core.retrieval.generations import IndexFolder, next_generation

if TYPE_CHECKING:
    from ccaco_cli.core.retrieval.milvus import MilvusStore


class ModelSource(Protocol):
    """Where the model of a generation comes from."""

    def put(self, folder: IndexFolder) -> IndexModel:
        """Puts the model and the query side into the folder of a generation."""
        ...


@dataclass(frozen=True, eq=False)
class StoredModel:
    """The model of the last generation, whose files are linked into the new one."""

    old: Manifest

    def put(self, folder: IndexFolder) -> IndexModel:
        entries = _link_folders(self.old, (MODEL, indexes.QUERY), folder)
        return IndexModel(self.old.facts, self.old.config, self.old.inputs, entries)


def _link_folders(old: Manifest, names: Sequence[str], folder: IndexFolder) -> dict[str, Mapping[str, Any]]:
    """Links folders of the last generation into a new one; returns the entries of their files, by name."""
    entries: dict[str, Mapping[str, Any]] = {}
    for entry in old.files:
        below = entry["name"].removeprefix(f"{old.facts['generation']}/")
        if below.partition("/")[0] in names:
            _link(folder.root / entry["name"], folder.temp / below)
            name = f"{folder.name}/{below}"
            entries[name] = {**entry, "name": name}
    return entries


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name; copies it where the file system cannot. Neither file is ever changed in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_duplicates(side: Path, update: Update, last: Path | None) -> dict[str, Any]:
    """Writes ``duplicates.csv``: only rows that are new, or were in a group before, are compared with all.

    Returns:
        For the manifest: {"groups", "threshold"}, or {"skipped": why}.
    """
    z = np.load(side / vectors.VECTORS, mmap_mode="r", allow_pickle=False)
    listed = vector_duplicates.listed_ids(last) if last is not None else None
    rows = np.arange(len(z))
    if listed is not None:  # the first source is the last generation
        ids = update.picks.sources[0].items["id"].to_pylist()
        stored = np.array([name in listed for name in ids], bool)
        is_kept = update.picks.source == 0
        rows = np.flatnonzero(~is_kept | stored[np.where(is_kept, update.picks.row, 0)])
    groups = vector_duplicates.near_duplicates(z, rows)
    if isinstance(groups, str):
        return {"skipped": groups}
    text = vector_duplicates.csv_text(groups, update.files.paths)
    manifest.write_bytes(side / vector_duplicates.FILE, text.encode())
    fault.point("media.duplicates")
    return {"groups": len(groups), "threshold": vector_duplicates.THRESHOLD}


def write(
    index: Path,
    update: Update,
    model: ModelSource,
    settings: Mapping[str, Any],
    store: str,
    old: Manifest | None = None,
    database: MilvusStore | None = None,
) -> Manifest:
    """Writes the next generation of an index whose lock is held; readers keep the one that they have opened.

    Items of other modalities stay as they are.

    Args:
        update: items, and where their rows come from.
        model: a new model, or the one of the last generation.
        settings: what is stored under ``FOLDERS`` for their modality.
        store: how tokens are stored.
        old: manifest of the last generation, whose rows of this modality, if any, are the first source of ``update``;
            None = there is none.
        database: receives the vectors; None = they stay in the index.
    Returns:
        The manifest of the index.
    """
    modality, source = settings["modality"], Path(settings["source"])
    before: Mapping[str, Any] = {} if old is None else old.facts
    others = [name for name in before.get(indexes.FOLDERS, ()) if name != modality]
    last = index / before["generation"] / modality if modality in before.get("rows", ()) else None
    with next_generation(index) as folder:
        side = folder.temp / modality
        side.mkdir()
        side_rows.write_vectors(side, update.picks)
        side_rows.write_tokens(side, update.picks, store)
        items.write_items(side, source, update.files, update.picks)
        duplicates = _write_duplicates(side, update, last)
        build = vectors.build if database is None else database.upload
        built = build(side, settings["index_type"])
        states.write_states(side, update)
        fault.point("media.side")
        described = model.put(folder)
        fault.point("media.model")
        if old is not None:
            described = replace(described, files={**described.files, **_link_folders(old, others, folder)})
        count = len(update.picks)
        new = {
            "rows": count,
            "storage": indexes.storage_facts(side, built, store, count),
            "duplicates": duplicates,
            indexes.FOLDERS: dict(settings),
        }
        facts = {name: {other: before[name][other] for other in others} | {modality: new[name]} for name in new}
        return complete(index, folder, described, facts, database=database)
