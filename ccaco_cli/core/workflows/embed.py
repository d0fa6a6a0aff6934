"""``ccaco embed``: a split as shards of vectors in clip-retrieval's layout, and as a self-contained index."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ccaco_cli.core import distributed, fault, lock, manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.loader import Column
from ccaco_cli.core.data.shards import PairData, Split
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.encoding.encode import encode, reduced_precision
from ccaco_cli.core.encoding.token_cache import pooled_grid
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.datasets import prepared
from ccaco_cli.core.experiments.run_folder import load_run, refuse_other_modalities
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval import index as indexes
from ccaco_cli.core.retrieval import token_store, vectors
from ccaco_cli.core.retrieval.export import export
from ccaco_cli.core.types import EncodedSamples, OnProgress, no_progress

SHARD, ITEMS = 8192, 1024
"""Items of a shard of vectors, and of a part of an index's captions and thumbnails: what is in memory at once."""
"""clip-retrieval's names of modality folders where they differ from ours."""


def embed(
    run: Path,
    dataset: str,
    *,
    split: str = "test",
    out: Path,
    index: Path | None = None,
    index_type: str = "auto",
    store_tokens: str = "float16",
    store_grid: int = 0,
    precision: str = "auto",
    device: str = "auto",
    data_root: Path = Path("data"),
    shard: int = SHARD,
    rebuild: bool = False,
    verify: str = manifest.QUICK,
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Embeds both modalities of a split with the best model of a run.

    out      embeddings folder: ``img_emb/img_emb_0.npy``, ``text_emb/text_emb_0.npy``, ``audio_emb/...`` (float16 [n, E], unit norm),
             ``metadata/metadata_0.parquet`` (one row a picture), ``text_metadata/...`` (one row a caption); finished shards are kept
    index    also build the index here; the query side is exported into it, so that a text query imports no torch
    rebuild  replace an index that is there: who reads it goes on with the old one
    index_type    how its vectors are searched: an entry of ``vectors.KINDS``, or auto (by size)
    store_tokens  how its tokens for the cross branch are kept: float16 | int8 | none
    store_grid    most patch tokens kept of a picture (average-pooled), 0 = all that the model sees
    precision     what towers compute in: auto (bf16 where the device is faster at it) | fp32 | bf16 | fp16
    verify   quick | full: whether every file of run and data set is hashed first
    Returns  manifest of the index, or else of the embeddings

    Under a launcher the processes divide the work; the first one writes the shards and builds the index.
    """
    vectors.check(index_type)
    token_store.check(store_tokens)
    dtype = runtime.encoding_dtype(precision, runtime.device(device))
    made = {"split": split, "shard": shard, "precision": str(dtype).removeprefix("torch.")}
    with distributed.process_group(device):
        tell = on_progress if distributed.main() else no_progress
        aligner, towers, config, found = distributed.main_process_first(lambda: load_run(run, device, manifest.FULL))
        data = distributed.main_process_first(lambda: shards.open(prepared(dataset, data_root, tell), verify))
        distributed.main_process_only(lambda: _check(found, data, index, rebuild))
        part = data.split(split)
        with lock.held(out, "folder of embeddings") if distributed.main() else nullcontext():
            inputs = {"run": found, "dataset": data.manifest}
            sides = distributed.main_process_first(lambda: columns(data, split, aligner, towers, config.model, tell))
            local = index is not None and config.loss.beta > 0 and store_tokens != "none"
            there = distributed.main_process_only(lambda: _complete(out, inputs, made))
            with _begun(index) if index is not None and distributed.main() else nullcontext() as place:
                with reduced_precision(aligner, dtype):
                    for modality, column in sides.items():
                        grid = _grid(towers[modality], config, modality) if store_grid else None
                        look = partial(
                            encode,
                            aligner,
                            modality,
                            column,
                            grid=grid,
                            most=store_grid,
                            share=True,
                            local_tokens=local,
                        )
                        with (
                            token_store.Writer(place.temp / modality, store_tokens)
                            if place and local
                            else nullcontext() as kept
                        ):
                            _encode_shards(out, modality, part, column, look, local, kept, shard, tell)
                if not distributed.main():
                    raise distributed.ProcessEnded(0)
                result = there or _finish(out, data, config, sides, inputs, made)
                if index is None or place is None:
                    return result
                with distributed.single_process():
                    store = store_tokens if local else "none"
                    return _build(index, place, out, part, sides, (aligner, towers, config), inputs, store, index_type)


def _check(run: Manifest, data: PairData, index: Path | None, rebuild: bool) -> None:
    refuse_other_modalities(run, data)
    if index is None or not index.exists():
        return
    if not manifest.exists(index):
        raise DataError("something else is there already", where=index, expected="a new name", next="another --index")
    manifest.open(index, kind="index")
    if not rebuild:
        raise DataError(
            "an index is there already", where=index, expected="a new name", next="another --index, or add --rebuild"
        )


def _finish(
    out: Path,
    data: PairData,
    config: RunConfig,
    sides: Mapping[str, Column],
    inputs: Mapping[str, Manifest],
    made: Mapping[str, Any],
) -> Manifest:
    files = [
        manifest.file_entry(out, f) for f in sorted(out.rglob("*_*.*")) if f.is_file() and not f.name.startswith(".")
    ]
    facts = {
        **made,
        "modalities": list(data.modalities),
        "protocol": data.manifest.facts["protocol"],
        "dim": config.model.dim,
        "rows": {m: len(c.row) for m, c in sides.items()},
    }
    fault.point("embed.shards")
    return manifest.write(out, "embeddings", facts=facts, inputs=inputs, config=asdict(config), files=files)


@dataclass(frozen=True)
class _Place:
    """Where an index comes about: ``temp`` becomes ``root/name``, and a new ``root`` becomes the index."""

    root: Path
    temp: Path
    name: str
    new: bool


@contextmanager
def _begun(index: Path) -> Iterator[_Place]:
    """Holds an index for the time of a block; what the block did not finish is cleared."""
    with lock.held(index, "index"):
        new = not index.exists()
        root = index.with_name(f".{index.name}.tmp") if new else index
        if new:
            shutil.rmtree(root, ignore_errors=True)
        temp, name = indexes.begin(root)
        try:
            yield _Place(root, temp, name, new)
        finally:
            shutil.rmtree(root if new else temp, ignore_errors=True)


def _build(
    index: Path,
    place: _Place,
    out: Path,
    part: Split,
    sides: Mapping[str, Column],
    model: tuple[Aligner, Mapping[str, Tower], RunConfig],
    inputs: Mapping[str, Manifest],
    store: str,
    kind: str,
) -> Manifest:
    """An index whose tokens are written, or the next generation of one: beside the old, which readers keep until they end."""
    root, temp, name = place.root, place.temp, place.name
    z = {
        m: np.concatenate([np.load(f, allow_pickle=False) for f in _shards(out / f"{MODALITIES[m].folder}_emb")])
        for m in sides
    }
    storage: dict[str, Any] = {}
    for modality, column in sides.items():
        starts = range(0, len(column.row), ITEMS)
        items = (
            _items(part, modality, column, np.arange(len(column.row))[first : first + ITEMS], thumbnails=True)
            for first in starts
        )
        queries = z[next(m for m in sides if m != modality)]
        storage[modality] = indexes.write_side(
            temp / modality, z[modality], items, store=store, kind=kind, queries=queries
        )
        fault.point("index.side")
    indexes.save_model(temp / "model", *model)
    samples = list(part.captions[:64]) if "text" in sides else []
    aligner, towers, config = model
    exported = export(temp / indexes.QUERY, aligner.to("cpu"), towers, samples, matcher=store != "none")
    fault.point("index.model")
    temp.rename(root / name)
    fault.point("index.generation")
    rows = {m: len(c.row) for m, c in sides.items()}
    more = {"scale": float(aligner.logit_scale().detach()), "storage": storage, "query": exported}
    indexes.complete(root, name, inputs["run"], inputs["dataset"], part.name, rows, config, **more)
    fault.point("index.manifest")
    if place.new:
        root.rename(index)
    indexes.sweep(index, name)
    fault.point("index.renamed")
    return manifest.open(index, kind="index")


def _grid(tower: Tower, config: RunConfig, modality: str) -> tuple[int, int] | None:
    """The patch grid of a column's tokens: what a cache keeps of a locked tower's, the tower's own else."""
    settings = config.model.tower(modality)
    return pooled_grid(tower.grid, settings.cache_tokens) if tower.grid and settings.lock else tower.grid


def _complete(out: Path, inputs: Mapping[str, Manifest], made: Mapping[str, Any]) -> Manifest | None:
    """These embeddings, if they are there already; refuses a folder with other ones, and notes whose the unfinished ones are."""
    mine = {name: m.sha256 for name, m in inputs.items()} | dict(made)
    note = out / ".inputs.json"
    manifest.sweep(out)
    filled = out.exists() and any(out.iterdir())  # a folder without anything may be what a kill left before its note
    if filled and (not note.exists() or note.read_text("utf-8") != manifest.json_text(mine)):
        raise DataError(
            "other embeddings lie here", where=out, expected="a new folder", next=f"--out OTHER, or rm -r {out}"
        )
    manifest.write_bytes(note, manifest.json_text(mine).encode())
    return manifest.open(out, kind="embeddings") if manifest.exists(out) else None


def _encode_shards(
    out: Path,
    modality: str,
    part: Split,
    column: Column,
    look: Callable[..., EncodedSamples],
    local: bool,
    kept: token_store.Writer | None,
    size: int,
    on_progress: OnProgress,
) -> None:
    """Encodes what has no shard yet, and writes it; when tokens are wanted (``local``), everything, and ``kept`` takes its tokens."""
    name, total = f"{MODALITIES[modality].folder}_emb", len(column.row)
    for number, first in enumerate(range(0, total, size)):
        items = np.arange(first, min(first + size, total))
        vectors = out / name / f"{name}_{number}.npy"
        written = bool(distributed.broadcast(float(vectors.exists())))
        if local or not written:
            found = look(items=items, on_progress=partial(_told, on_progress, first, total, modality))
            if not written:
                distributed.main_process_only(partial(_write_shard, vectors, modality, part, column, items, found.z))
            if kept is not None:
                kept.add(found.local_tokens.tokens.numpy(), found.local_tokens.mask.numpy())
        _told(on_progress, first, total, modality, len(items))


def _told(on_progress: OnProgress, first: int, total: int, modality: str, done: int, *_: Any) -> None:
    """Progress within a shard as progress of the split."""
    on_progress(first + done, total, {"what": f"{modality} vectors"})


def _write_shard(vectors: Path, modality: str, part: Split, column: Column, items: Any, z: Tensor) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fault.point("embed.before")
    metadata = "metadata" if modality != "text" else "text_metadata"
    table, rows = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table(_items(part, modality, column, items, thumbnails=False)), rows)
    manifest.write_bytes(
        vectors.parents[1] / metadata / f"{metadata}_{vectors.stem.rpartition('_')[2]}.parquet", rows.getbuffer()
    )
    np.save(table, z.numpy().astype(np.float16))
    fault.point("embed.metadata")
    manifest.write_bytes(vectors, table.getbuffer())
    fault.point("embed.vectors")


def _items(part: Split, modality: str, column: Column, items: Any, *, thumbnails: bool) -> dict[str, list[Any]]:
    rows = column.row[items]
    captions = part.captions
    found: dict[str, list[Any]] = {"id": [part.ids[r] for r in rows], "group": [int(part.group[r]) for r in rows]}
    if modality == "text":
        return found | {"text": [captions[i] for i in items]}
    start = part.caption_start
    # what has no caption goes by the name of its class
    found["text"] = [
        captions[start[r] : start[r + 1]] or [part.labels[label] for label in part.label[[r]] if label >= 0]
        for r in rows
    ]
    if thumbnails and MODALITIES[modality].picture:
        found["thumbnail"] = [indexes.thumbnail(modality, data) for data in part.media(modality, rows)]
    return found


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"), key=lambda f: int(f.stem.rsplit("_", 1)[1]))
