"""Completes an index whose sides are written: its model, its manifest, and its place in the folder of the index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccaco_cli.core import fault, manifest
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.retrieval import generations
from ccaco_cli.core.retrieval import index as indexes
from ccaco_cli.core.retrieval.generations import IndexFolder

if TYPE_CHECKING:
    from ccaco_cli.core.config import RunConfig
    from ccaco_cli.core.model.aligner import Aligner
    from ccaco_cli.core.model.towers.tower import Tower
    from ccaco_cli.core.retrieval.milvus import MilvusStore

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
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class NewModel:
    """A model that was opened for an index.

    Attributes:
        run: manifest of the run, or description of a pretrained model.
        precision: name of the dtype in which the items were encoded.
        store_grid: as in ``StorageSettings``.
        matcher: whether the cross branch reorders hits.
        captions: on which the exported query side is compared with the model.
    """

    aligner: Aligner
    towers: Mapping[str, Tower]
    config: RunConfig
    run: Manifest
    precision: str
    store_grid: int
    matcher: bool
    captions: Sequence[str] = ()

    def put(self, folder: IndexFolder) -> IndexModel:
        """Writes the model and the query side into the folder of a generation."""
        from ccaco_cli.core.retrieval.export import export
        from ccaco_cli.core.retrieval.export_describer import export_describer

        aligner = self.aligner.to("cpu")
        indexes.save_model(folder.temp / MODEL, aligner, self.towers, self.config)
        query = folder.temp / indexes.QUERY
        exported = export(query, aligner, self.towers, self.captions, matcher=self.matcher)
        if aligner.decoder is not None and exported["exported"]:
            how = (self.captions, self.store_grid)
            exported["decoder"] = export_describer(query, aligner, self.towers, *how, matcher=self.matcher)
        scored = [key for key in ("calibration", "word_threshold") if key in self.run.facts]
        facts = {key: self.run.facts[key] for key in ("modalities", "weight", "headline", *scored)} | {
            "run": self.run.facts["name"],
            MODEL: indexes.model_identity(self.run),
            "scale": float(aligner.logit_scale().detach()),
            "dim": aligner.embedding_size,
            "query": exported,
            "store_grid": self.store_grid,
            "precision": self.precision,
            "has_grid": bool(self.towers[self.run.facts["modalities"][0]].grid),
        }
        return IndexModel(facts, asdict(self.config), {"run": self.run})


def complete(
    index: Path,
    folder: IndexFolder,
    model: IndexModel,
    facts: Mapping[str, Any],
    dataset: Manifest | None = None,
    database: MilvusStore | None = None,
) -> Manifest:
    """Makes a generation whose sides and model are written the current one: its manifest is the last file.

    Args:
        index: the folder that it belongs to; its lock is held.
        facts: rows, storage ... beside those of the model.
        dataset: that the items come from; None = none.
        database: holds the vectors; rows of earlier generations are deleted from it.
    Returns:
        The manifest of the index.
    """
    folder.temp.rename(folder.root / folder.name)
    fault.point("index.generation")
    files = [
        model.files.get(path.relative_to(folder.root).as_posix()) or manifest.file_entry(folder.root, path)
        for path in sorted((folder.root / folder.name).rglob("*"))
        if path.is_file()
    ]
    all_facts = {**model.facts, **facts, "generation": folder.name}
    inputs = dict(model.inputs)
    if dataset is not None:
        all_facts |= {"dataset": dataset.facts["name"], "protocol": dataset.facts["protocol"]}
        inputs["dataset"] = dataset
    if database is not None:
        all_facts["database"] = database.address.facts
    manifest.write(folder.root, "index", facts=all_facts, inputs=inputs, config=model.config, files=files)
    fault.point("index.manifest")
    if folder.new:
        folder.root.rename(index)
    generations.sweep(index, folder.name)
    if database is not None:
        database.finish(index / folder.name, all_facts["rows"])
    fault.point("index.renamed")
    return manifest.open(index, kind="index")
