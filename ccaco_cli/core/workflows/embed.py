"""``ccaco embed``: writes the embeddings of a split in clip-retrieval's layout, and builds a self-contained search
index.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccaco_cli.core import distributed, fault, lock, manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.loader import Column
from ccaco_cli.core.data.shards import PreparedData, Split
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.encoding.encode import EncodeOptions, encode, reduced_precision
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.datasets import prepared
from ccaco_cli.core.experiments.embed_request import EmbedRequest
from ccaco_cli.core.experiments.pretrained import open_model
from ccaco_cli.core.experiments.run_folder import refuse_other_modalities
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.modalities import MODALITIES, sides_of
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval import index as indexes
from ccaco_cli.core.retrieval import item_columns, token_store
from ccaco_cli.core.retrieval.complete import NewModel, complete
from ccaco_cli.core.retrieval.generations import IndexFolder, new_generation
from ccaco_cli.core.retrieval.item_columns import ColumnTypes
from ccaco_cli.core.retrieval.milvus import MilvusStore
from ccaco_cli.core.shell import quoted_path
from ccaco_cli.core.training.health_checks import NAN_EMBEDDINGS
from ccaco_cli.core.types import OnProgress, no_progress

ITEMS_AT_ONCE = 1024
"""Captions and thumbnails that are in memory at once when an index is written."""
EXPORT_SAMPLES = 64
"""Captions on which the exported query encoder is compared with the model."""


@dataclass(frozen=True, eq=False)
class _Job:
    """A request with everything it needs loaded."""

    request: EmbedRequest
    aligner: Aligner
    towers: Mapping[str, Tower]
    config: RunConfig
    run: Manifest
    data: PreparedData
    split: Split
    columns: Mapping[str, Column]

    @property
    def inputs(self) -> dict[str, Manifest]:
        return {"run": self.run, "dataset": self.data.manifest}

    @property
    def rows(self) -> dict[str, int]:
        return {modality: len(column.row) for modality, column in self.columns.items()}

    @cached_property
    def types(self) -> ColumnTypes:
        """The columns that the source has of its samples."""
        return item_columns.types_of(self.split)

    def token_format(self, modality: str) -> str:
        """How the index stores tokens; none without an index, or where a cross branch does not score the modality."""
        scored = self.config.loss.beta > 0 and modality in self.aligner.modalities
        return self.request.store_tokens if self.request.index is not None and scored else "none"

    @property
    def vector_store(self) -> MilvusStore | None:
        """The database that holds the vectors of the index; None = its folder does."""
        return _vector_store(self.request, self.run)

    def vector_folder(self, modality: str) -> Path:
        return self.request.out / f"{MODALITIES[modality].folder}_emb"


def embed(request: EmbedRequest, *, data_root: Path = Path("data"), on_progress: OnProgress = no_progress) -> Manifest:
    """Embeds both modalities of a split with the best model of a run, and builds an index if one is requested.

    Under a launcher the processes divide the encoding; the main process writes the shards and builds the index.

    Returns:
        The manifest of the index, or else of the embeddings.
    Raises:
        DataError: other modalities, other embeddings in ``out``, or an index that exists.
        ConfigError: no such index type, token format or precision.
    """
    request.check()
    with distributed.session(request.device, on_progress) as report_progress:
        aligner, towers, config, run = distributed.main_process_first(lambda: open_model(request.model, request.device))
        data = distributed.main_process_first(
            lambda: shards.open_any(prepared(request.dataset, data_root, report_progress), request.verify)
        )
        distributed.main_process_only(lambda: _check(request, run, data))
        if request.index and distributed.broadcast(float(distributed.main() and _is_current(request, run, data))):
            index = manifest.open(request.index, kind="index")
            distributed.main_process_only(lambda: _finish_database(request, run, index))
            return index
        split = data.split(request.split)
        with distributed.on_main_process(lambda: lock.hold(request.out, "folder of embeddings")):
            split_columns = distributed.main_process_first(
                lambda: columns(data, request.split, aligner, towers, config.model, report_progress)
            )
            return _embed(_Job(request, aligner, towers, config, run, data, split, split_columns), report_progress)


def _embed(job: _Job, report_progress: OnProgress) -> Manifest:
    finished = distributed.main_process_only(lambda: _finished_embeddings(job))
    if store := job.vector_store:
        distributed.main_process_only(lambda: store.check(job.columns, job.aligner.embedding_size))
    with new_generation(job.request.index if distributed.main() else None) as index_folder:
        with reduced_precision(job.aligner, job.request.dtype):
            for modality in job.columns:
                _encode_modality(job, modality, index_folder, report_progress)
        with distributed.main_process_continues():
            embeddings = finished or _write_manifest(job)
            return embeddings if index_folder is None else _build_index(job, index_folder)


def _check(request: EmbedRequest, run: Manifest, data: PreparedData) -> None:
    refuse_other_modalities(run, data, sides_of(run))
    if any(warning["kind"] == NAN_EMBEDDINGS for warning in run.facts.get("warnings", ())):
        raise _not_finite(request, run.config["optim"]["lr"])
    index = request.index
    if index is None or not index.exists():
        return
    if not manifest.exists(index):
        raise DataError("something else is there already", where=index, expected="a new name", next="another --index")
    old = manifest.open(index, kind="index")
    same_source = old.inputs["run"]["sha256"] == run.sha256 and old.facts.get("dataset") == data.manifest.facts["name"]
    if request.rebuild or (same_source and request.database is not None):
        return
    raise DataError(
        f"an index is there already, of the data set {old.facts.get('dataset')} by the model {old.facts['run']}",
        where=index,
        expected="a new name",
        next="another --index, or add --rebuild",
    )


def _vector_store(request: EmbedRequest, run: Manifest) -> MilvusStore | None:
    if request.database is None:
        return None
    return MilvusStore.of(request.database, run.facts["name"], indexes.model_identity(run), request.rebuild)


def _finish_database(request: EmbedRequest, run: Manifest, index: Manifest) -> None:
    """Deletes what a process that was killed at its end has left in the database."""
    if store := _vector_store(request, run):
        store.finish(index.path / index.facts["generation"], index.facts["rows"])


def _is_current(request: EmbedRequest, run: Manifest, data: PreparedData) -> bool:
    """Whether an index with its vectors in a database is what the request would make, so that nothing is to be done."""
    if request.rebuild or request.index is None or request.database is None or not manifest.exists(request.index):
        return False
    settings = {name: request.facts[name] for name in ("split", "precision")}
    settings |= {"store_grid": request.store_grid, "database": request.database.facts}
    return indexes.is_made_from(request.index, {"run": run, "dataset": data.manifest}, settings, request.store_tokens)


def _not_finite(request: EmbedRequest, lr: float) -> DataError:
    return DataError(
        "the embeddings of this run are not finite, so they cannot be searched",
        where=request.model,
        expected="a run whose training did not diverge",
        next=f"train again with a lower learning rate (--lr {lr / 10:g})",
    )


def _finished_embeddings(job: _Job) -> Manifest | None:
    """The manifest of these embeddings if they are finished; else records for which inputs the folder is.

    Raises:
        DataError: the folder holds embeddings of other inputs.
    """
    out = job.request.out
    inputs = manifest.json_text({name: source.sha256 for name, source in job.inputs.items()} | job.request.facts)
    inputs_file = out / ".inputs.json"
    manifest.sweep(out)
    filled = out.exists() and any(out.iterdir())  # a process that was killed early can leave an empty folder
    if filled and (not inputs_file.exists() or inputs_file.read_text("utf-8") != inputs):
        raise DataError(
            "other embeddings lie here",
            where=out,
            expected="a new folder",
            next=f"--out OTHER, or rm -r {quoted_path(out)}",
        )
    manifest.write_bytes(inputs_file, inputs.encode())
    return manifest.open(out, kind="embeddings") if manifest.exists(out) else None


def _encode_modality(job: _Job, modality: str, index_folder: IndexFolder | None, on_progress: OnProgress) -> None:
    """Encodes and writes the shards that are not there yet.

    When the index stores tokens, all items are encoded, and the tokens go to ``index_folder`` (None on all but the main
    process).
    """
    column, size = job.columns[modality], job.request.shard
    total = len(column.row)
    token_format = job.token_format(modality)
    with_tokens = token_format != "none"
    with (
        token_store.Writer(index_folder.temp / modality, token_format)
        if index_folder and with_tokens
        else nullcontext() as token_writer
    ):
        for number, first in enumerate(range(0, total, size)):
            items = np.arange(first, min(first + size, total))
            file = job.vector_folder(modality) / f"{job.vector_folder(modality).name}_{number}.npy"
            written = bool(distributed.broadcast(float(file.exists())))
            report_progress = partial(_report_shard_progress, on_progress, first, total, modality)
            if with_tokens or not written:
                encoded = encode(
                    job.aligner,
                    modality,
                    column,
                    items=items,
                    options=EncodeOptions(max_tokens=job.request.store_grid, across_processes=True),
                    local_tokens=with_tokens,
                    on_progress=report_progress,
                )
                if not written:
                    distributed.main_process_only(partial(_write_shard, job, modality, file, items, encoded.z))
                if token_writer is not None:
                    token_writer.add(encoded.local_tokens.tokens.numpy(), encoded.local_tokens.mask.numpy())
            report_progress(len(items))


def _report_shard_progress(on_progress: OnProgress, first: int, total: int, modality: str, done: int, *_: Any) -> None:
    """Reports progress within a shard as progress of the split."""
    on_progress(first + done, total, {"what": f"{modality} vectors"})


def _write_shard(job: _Job, modality: str, file: Path, items: Any, z: Tensor) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not torch.isfinite(z).all():
        raise _not_finite(job.request, job.config.optim.lr)
    fault.point("embed.before")
    name = "metadata" if modality != "text" else "text_metadata"
    number = file.stem.rpartition("_")[2]
    metadata, vector_bytes = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table(_items(job, modality, items, thumbnails=False)), metadata)
    manifest.write_bytes(job.request.out / name / f"{name}_{number}.parquet", metadata.getbuffer())
    np.save(vector_bytes, z.numpy().astype(np.float16))
    fault.point("embed.metadata")
    manifest.write_bytes(file, vector_bytes.getbuffer())
    fault.point("embed.vectors")


def _write_manifest(job: _Job) -> Manifest:
    """Completes a folder of embeddings."""
    out = job.request.out
    files = [
        manifest.file_entry(out, f) for f in sorted(out.rglob("*_*.*")) if f.is_file() and not f.name.startswith(".")
    ]
    facts = {
        **job.request.facts,
        "modalities": list(job.data.modalities),
        "protocol": job.data.manifest.facts["protocol"],
        "dim": job.aligner.embedding_size,
        "rows": job.rows,
    }
    fault.point("embed.shards")
    return manifest.write(out, "embeddings", facts=facts, inputs=job.inputs, config=asdict(job.config), files=files)


def _build_index(job: _Job, folder: IndexFolder) -> Manifest:
    """Builds an index whose tokens are written, or its next generation beside the old one, which open readers keep."""
    index = job.request.index
    assert index is not None
    z = {modality: _load_vectors(job.vector_folder(modality)) for modality in job.columns}
    storage: dict[str, Any] = {}
    for modality, column in job.columns.items():
        positions = np.arange(len(column.row))
        items = (
            _items(job, modality, positions[first : first + ITEMS_AT_ONCE], thumbnails=True)
            for first in range(0, len(positions), ITEMS_AT_ONCE)
        )
        storage[modality] = indexes.write_side(
            folder.temp / modality,
            z[modality],
            items,
            store=job.token_format(modality),
            kind=job.request.index_type if job.vector_store is None else "flat",
            queries=next((z[m] for m in job.columns if m != modality), None),
        )
        fault.point("index.side")
    if store := job.vector_store:
        for modality, built in store.move(folder.temp, z, job.request.index_type).items():
            side = folder.temp / modality
            storage[modality] = indexes.storage_facts(side, built, job.token_format(modality), job.rows[modality])
    captions = list(job.split.captions[:EXPORT_SAMPLES]) if "text" in job.columns else []
    model = NewModel(
        job.aligner,
        job.towers,
        job.config,
        job.run,
        precision=job.request.dtype_name,
        store_grid=job.request.store_grid,
        matcher=any(job.token_format(modality) != "none" for modality in job.columns),
        captions=captions,
    ).put(folder)
    fault.point("index.model")
    facts = {"split": job.split.name, "rows": job.rows, "storage": storage}
    return complete(index, folder, model, facts, job.data.manifest, job.vector_store)


def _load_vectors(folder: Path) -> Any:
    """[n, E] float16: the vectors of all shards, in order."""
    files = sorted(folder.glob("*.npy"), key=lambda f: int(f.stem.rsplit("_", 1)[1]))
    return np.concatenate([np.load(file, allow_pickle=False) for file in files])


def _items(job: _Job, modality: str, items: Any, *, thumbnails: bool) -> dict[str, Any]:
    """Column name -> values: what is stored of items beside their vectors."""
    split = job.split
    rows = job.columns[modality].row[items]
    captions, start = split.captions, split.caption_start
    columns: dict[str, Any] = {"id": [split.ids[r] for r in rows], "group": [int(split.group[r]) for r in rows]}
    import pyarrow as pa

    distinct, at = np.unique(rows, return_inverse=True)
    facts = job.types.arrays(item_columns.row_facts(split, distinct))
    columns |= {name: values.take(pa.array(at)) for name, values in facts.items()}
    if modality == "text":
        return columns | {"text": [captions[i] for i in items]}
    # the text of an item without captions is the name of its class
    columns["text"] = [
        captions[start[r] : start[r + 1]] or [split.labels[label] for label in split.label[[r]] if label >= 0]
        for r in rows
    ]
    if thumbnails and MODALITIES[modality].picture:
        columns["thumbnail"] = [indexes.thumbnail(modality, data) for data in split.media(modality, rows)]
    return columns
