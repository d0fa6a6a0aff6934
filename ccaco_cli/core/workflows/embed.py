"""``ccaco embed``: a split as shards of vectors in clip-retrieval's layout, and as a self-contained index."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.loader import Column
from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.retrieval import index as indexes
from ccaco_cli.core.retrieval.columns import columns
from ccaco_cli.core.retrieval.embed import encode
from ccaco_cli.core.types import Encoded, OnProgress, silent
from ccaco_cli.core.workflows.prepare import prepared
from ccaco_cli.core.workflows.train import load_run, refuse_other_modalities

SHARD = 8192
SHORT = {"image": "img"}
"""clip-retrieval's names of modality folders where they differ from ours."""


def embed(
    run: Path,
    dataset: str,
    *,
    split: str = "test",
    out: Path,
    index: Path | None = None,
    device: str = "auto",
    data_root: Path = Path("data"),
    shard: int = SHARD,
    on_progress: OnProgress = silent,
) -> Manifest:
    """Embeds both modalities of a split with the best model of a run.

    out      embeddings folder: ``img_emb/img_emb_0.npy``, ``text_emb/text_emb_0.npy``, ``audio_emb/...`` (float16 [n, E], unit norm),
             ``metadata/metadata_0.parquet`` (one row a picture), ``text_metadata/...`` (one row a caption); finished shards are kept
    index    also build the index here
    Returns  manifest of the index, or else of the embeddings
    """
    aligner, towers, config, found = load_run(run, device)
    data = shards.open(prepared(dataset, data_root, on_progress))
    refuse_other_modalities(found, data)
    if index is not None and index.exists():
        raise DataError(
            "an index is there already" if manifest.exists(index) else "something else is there already",
            where=index,
            expected="a new name",
            next=f"rm -r {index}, or another --index",
        )
    inputs = {"run": found, "dataset": data.manifest}
    part = data.split(split)
    sides = columns(data, split, aligner, towers, config.model, on_progress)
    local = index is not None and config.loss.beta > 0
    if not _complete(out, inputs, split, shard):
        for modality, column in sides.items():
            _write_shards(out, modality, part, column, lambda m, c, i: encode(aligner, m, c, items=i), shard, on_progress)
        files = [manifest.file_entry(out, f) for f in sorted(out.rglob("*_*.*")) if f.is_file() and not f.name.startswith(".")]
        facts = {
            "modalities": list(data.modalities),
            "split": split,
            "protocol": data.manifest.facts["protocol"],
            "dim": config.model.width,
            "rows": {m: len(c.row) for m, c in sides.items()},
        }
        result = manifest.write(out, "embeddings", facts=facts, inputs=inputs, config=asdict(config), files=files)
    else:
        result = manifest.open(out, kind="embeddings")
    if index is None:
        return result
    temp = index.with_name(f".{index.name}.tmp")
    shutil.rmtree(temp, ignore_errors=True)
    for modality, column in sides.items():
        name = SHORT.get(modality, modality)
        z = np.concatenate([np.load(f, allow_pickle=False) for f in _shards(out / f"{name}_emb")])
        tokens: Encoded | None = encode(aligner, modality, column, local=True, on_progress=on_progress) if local else None
        indexes.write_side(temp / modality, z, tokens, _items(part, modality, column, np.arange(len(column.row)), thumbnails=True))
    indexes.save_model(temp / "model", aligner, towers, config)
    indexes.complete(temp, found, data.manifest, split, {m: len(c.row) for m, c in sides.items()}, config)
    temp.rename(index)
    return manifest.open(index, kind="index")


def _complete(out: Path, inputs: Mapping[str, Manifest], split: str, shard: int) -> bool:
    """Whether these embeddings are there already; refuses a folder with other ones, and notes whose the unfinished ones are."""
    mine = {name: m.sha256 for name, m in inputs.items()} | {"split": split, "shard": shard}
    note = out / ".inputs.json"
    if out.exists() and (not note.exists() or note.read_text("utf-8") != manifest.json_text(mine)):
        raise DataError("other embeddings lie here", where=out, expected="a new folder", next=f"--out OTHER, or rm -r {out}")
    manifest.write_bytes(note, manifest.json_text(mine).encode())
    return manifest.exists(out)


def _write_shards(out: Path, modality: str, part: Split, column: Column, encode_items: Any, size: int, on_progress: OnProgress) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name, total = SHORT.get(modality, modality), len(column.row)
    metadata = "metadata" if modality != "text" else "text_metadata"
    for number, first in enumerate(range(0, total, size)):
        items = np.arange(first, min(first + size, total))
        vectors = out / f"{name}_emb" / f"{name}_emb_{number}.npy"
        if not vectors.exists():
            table, rows = io.BytesIO(), io.BytesIO()
            pq.write_table(pa.table(_items(part, modality, column, items, thumbnails=False)), rows)
            manifest.write_bytes(out / metadata / f"{metadata}_{number}.parquet", rows.getvalue())
            np.save(table, encode_items(modality, column, items).z.numpy().astype(np.float16))
            manifest.write_bytes(vectors, table.getvalue())
        on_progress(int(items[-1]) + 1, total, {"what": f"{modality} vectors"})


def _items(part: Split, modality: str, column: Column, items: Any, *, thumbnails: bool) -> dict[str, list[Any]]:
    rows = column.row[items]
    captions = list(part.captions)
    found: dict[str, list[Any]] = {"id": [part.ids[r] for r in rows], "group": [int(part.group[r]) for r in rows]}
    if modality == "text":
        return found | {"text": [captions[i] for i in items]}
    start = part.caption_start
    # what has no caption goes by the name of its class
    found["text"] = [captions[start[r] : start[r + 1]] or [part.labels[label] for label in part.label[[r]] if label >= 0] for r in rows]
    if thumbnails:
        found["thumbnail"] = [indexes.thumbnail(modality, data) for data in part.media(modality, rows)]
    return found


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"), key=lambda f: int(f.stem.rsplit("_", 1)[1]))
