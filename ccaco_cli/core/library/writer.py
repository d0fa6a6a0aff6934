"""Writes a generation of an index of media files: rows of the last generation and of new parts, and the model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ccaco_cli.core import fault, manifest
from ccaco_cli.core.library import items, side_rows, states
from ccaco_cli.core.library.states import Update
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.retrieval import generations, vector_duplicates, vectors
from ccaco_cli.core.retrieval import index as indexes
from ccaco_cli.core.retrieval.generations import IndexFolder, next_generation

if TYPE_CHECKING:
    from ccaco_cli.core.config import RunConfig
    from ccaco_cli.core.model.aligner import Aligner
    from ccaco_cli.core.model.towers.tower import Tower
    from ccaco_cli.core.retrieval.milvus import MilvusStore

LIBRARY = "library"
"""Key in the manifest of an index of media files: their folder, their modality, and the settings of the command."""
MODEL = "model"
"""Folder of the model, and key of its identity in the manifest."""


@dataclass(frozen=True, eq=False)
class IndexModel:
    """The model of an index, and what its manifest says of it.

    Attributes:
        facts: modalities, weight, scale, dim, precision ...
        config: of the run.
        inputs: manifest of the run, or its entry in the inputs of the last generation.
        files: entries of the files whose hashes are known, by name.
    """

    facts: Mapping[str, Any]
    config: Mapping[str, Any]
    inputs: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]


class ModelSource(Protocol):
    """Where the model of a generation comes from."""

    def put(self, folder: IndexFolder) -> IndexModel:
        """Puts the model and the query side into the folder of a generation."""
        ...

    def last_generation(self, root: Path) -> Path | None:
        """The generation whose rows may be kept; None = there is none."""
        ...


@dataclass(frozen=True, eq=False)
class NewModel:
    """A model that was opened for this index.

    Attributes:
        run: manifest of the run, or description of a pretrained model.
        identity: identifies the model by its content.
        precision: in which the items were encoded.
        store_grid: as in ``EmbedRequest``.
        matcher: whether the cross branch reorders hits.
    """

    aligner: Aligner
    towers: Mapping[str, Tower]
    config: RunConfig
    run: Manifest
    identity: str
    precision: str
    store_grid: int
    matcher: bool

    def put(self, folder: IndexFolder) -> IndexModel:
        from ccaco_cli.core.retrieval.export import export

        aligner = self.aligner.to("cpu")
        indexes.save_model(folder.temp / MODEL, aligner, self.towers, self.config)
        exported = export(folder.temp / indexes.QUERY, aligner, self.towers, (), matcher=self.matcher)
        facts = {key: self.run.facts[key] for key in ("modalities", "weight", "headline")} | {
            "run": self.run.facts["name"],
            MODEL: self.identity,
            "scale": float(aligner.logit_scale().detach()),
            "dim": aligner.embedding_size,
            "query": exported,
            "store_grid": self.store_grid,
            "precision": self.precision,
        }
        return IndexModel(facts, asdict(self.config), {"run": self.run}, {})

    def last_generation(self, root: Path) -> Path | None:
        return None


@dataclass(frozen=True, eq=False)
class StoredModel:
    """The model of the last generation, whose files are linked into the new one."""

    old: Manifest

    def last_generation(self, root: Path) -> Path | None:
        return root / str(self.old.facts["generation"])

    def put(self, folder: IndexFolder) -> IndexModel:
        generation = self.old.facts["generation"]
        entries = {}
        for entry in self.old.files:
            below = entry["name"].removeprefix(f"{generation}/")
            if below.startswith((f"{MODEL}/", f"{indexes.QUERY}/")):
                _link(folder.root / entry["name"], folder.temp / below)
                name = f"{folder.name}/{below}"
                entries[name] = {**entry, "name": name}
        return IndexModel(self.old.facts, self.old.config, self.old.inputs, entries)


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name; copies it where the file system cannot. Neither file is ever changed in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_duplicates(temp: Path, side: Path, update: Update, last: Path | None) -> dict[str, Any]:
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
    manifest.write_bytes(temp / vector_duplicates.FILE, text.encode())
    fault.point("media.duplicates")
    return {"groups": len(groups), "threshold": vector_duplicates.THRESHOLD}


def write(
    index: Path,
    update: Update,
    model: ModelSource,
    settings: Mapping[str, Any],
    store: str,
    database: MilvusStore | None = None,
) -> Manifest:
    """Writes the next generation of an index whose lock is held; readers keep the one that they have opened.

    Args:
        update: items, and where their rows come from.
        model: a new model, or the one of the last generation.
        settings: what is stored under ``LIBRARY``.
        store: how tokens are stored.
        database: receives the vectors; None = they stay in the index.
    Returns:
        The manifest of the index.
    """
    modality, source = settings["modality"], Path(settings["source"])
    with next_generation(index) as folder:
        side = folder.temp / modality
        side.mkdir()
        side_rows.write_vectors(side, update.picks)
        side_rows.write_tokens(side, update.picks, store)
        items.write_items(side, source, update.files, update.picks)
        duplicates = _write_duplicates(folder.temp, side, update, model.last_generation(folder.root))
        build = vectors.build if database is None else database.upload
        built = build(side, settings["index_type"])
        states.write_states(folder.temp, update)
        fault.point("media.side")
        described = model.put(folder)
        fault.point("media.model")
        folder.temp.rename(folder.root / folder.name)
        fault.point("media.generation")
        count = len(update.picks)
        facts = {
            **described.facts,
            "rows": {modality: count},
            "generation": folder.name,
            "storage": {modality: indexes.storage_facts(folder.root / folder.name / modality, built, store, count)},
            "duplicates": duplicates,
            LIBRARY: dict(settings),
            **({"database": database.address.facts} if database else {}),
        }
        files = [
            described.files.get(path.relative_to(folder.root).as_posix()) or manifest.file_entry(folder.root, path)
            for path in sorted((folder.root / folder.name).rglob("*"))
            if path.is_file()
        ]
        inputs = dict(described.inputs)
        manifest.write(folder.root, "index", facts=facts, inputs=inputs, config=described.config, files=files)
        fault.point("media.manifest")
        if folder.new:
            folder.root.rename(index)
        generations.sweep(index, folder.name)
        if database is not None:
            database.finish(index / folder.name, [modality])
        fault.point("media.swept")
    return manifest.open(index, kind="index")
