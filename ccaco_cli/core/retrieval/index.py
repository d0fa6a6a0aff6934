"""The index of a split: vectors, tokens, items and the model itself in one folder, so that a query needs nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from ccaco_cli.core import config as configs
from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.checks import decode_image
from ccaco_cli.core.data.clips import Clip
from ccaco_cli.core.data.loader import CachedColumn
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.training import checkpoint
from ccaco_cli.core.types import Encoded

THUMBNAIL = 224


def save_model(folder: Path, aligner: Aligner, towers: Mapping[str, Tower], config: RunConfig) -> None:
    """Everything that encodes and matches a query: config, all weights (locked towers too), tokenizer files."""
    model = config.model
    for modality, tower in towers.items():
        spec = tower.save_assets(folder / f"tower-{modality}").replace(str(folder), "{model}")
        center = "off" if aligner.sides[modality].center is None else "on"
        sides: dict[str, Any] = {modality: replace(model.tower(modality), spec=spec, center=center)}
        model = replace(model, **sides)
    manifest.write_bytes(folder / "config.toml", configs.to_toml(replace(config, model=model)).encode())
    checkpoint.save_weights(folder / checkpoint.WEIGHTS, aligner, everything=True)


def load_model(folder: Path, modalities: tuple[str, str]) -> tuple[Aligner, dict[str, Tower], RunConfig]:
    """What ``save_model`` wrote, from wherever the folder lies now."""
    settings = configs.load(folder / "config.toml")
    for modality in modalities:
        settings[f"model.{modality}.spec"] = settings[f"model.{modality}.spec"].replace("{model}", str(folder))
    config = configs.override(RunConfig(), settings)
    aligner, towers = aligners.build(config.model, config.loss, modalities)
    checkpoint.load_weights(folder / checkpoint.WEIGHTS, aligner, everything=True)
    return aligner.eval(), towers, config


def write_side(folder: Path, z: Any, tokens: Encoded | None, items: Mapping[str, Sequence[Any]]) -> None:
    """One modality of an index.

    z       [n, E] float16 or float32, unit norm
    tokens  Encoded with tokens for the cross branch, or None
    items   column name -> n values (id, group, text ...); ``thumbnail`` holds JPEG bytes
    """
    import faiss

    folder.mkdir(parents=True, exist_ok=True)
    vectors = np.array(z, np.float32, order="C")
    faiss.normalize_L2(vectors)  # float16 shards are unit norm to three digits only
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(folder / "vectors.faiss"))
    with pa.OSFile(str(folder / "items.arrow"), "wb") as sink:
        table = pa.table({k: pa.array(v) for k, v in items.items()})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1024)
    if tokens is not None:
        counts = tokens.mask.sum(1).numpy()
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]))
        np.save(folder / "tokens.npy", tokens.tokens[tokens.mask].numpy().astype(np.float16))
        np.save(folder / "pooled.npy", np.zeros((len(counts), 0), np.float16))


class IndexSide:
    """One modality of an opened index; vectors, tokens and items stay on disk until asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def vectors(self) -> Any:
        import faiss

        return faiss.read_index(str(self.folder / "vectors.faiss"), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)

    @cached_property
    def items(self) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(str(self.folder / "items.arrow"))).read_all()

    @cached_property
    def _tokens(self) -> CachedColumn:
        rows = np.arange(len(self.items))
        return CachedColumn(self.folder, rows, rows)

    @property
    def has_tokens(self) -> bool:
        return (self.folder / "tokens.npy").exists()

    def encoded(self, rows: Any) -> Encoded:
        """Tokens of some rows for the cross branch: Encoded, z empty."""
        found = self._tokens.inputs(np.asarray(rows))
        nothing = torch.zeros(len(rows), 0)
        return Encoded(found.tokens, found.mask, nothing, nothing)

    def item(self, row: int) -> dict[str, Any]:
        """Everything that is known of one row."""
        found: dict[str, Any] = self.items.slice(row, 1).to_pylist()[0]
        return found


class Index:
    """An opened index. Raises ManifestError when the folder is none, or was altered."""

    def __init__(self, path: Path):
        self.manifest = manifest.open(path, kind="index", verify=True)
        first, second = self.manifest.facts["modalities"]
        self.modalities: tuple[str, str] = (first, second)
        self.sides = {m: IndexSide(path / m) for m in self.modalities}
        self.weight = float(self.manifest.facts["weight"])
        self.headline = str(self.manifest.facts["headline"])

    @cached_property
    def model(self) -> tuple[Aligner, dict[str, Tower], RunConfig]:
        with torch.inference_mode(False):  # whoever asks first may be in that mode, and explanations need gradients later
            return load_model(self.manifest.path / "model", self.modalities)

    def other(self, modality: str) -> str:
        """The modality that a query of this one finds. Raises DataError for one that the index does not hold."""
        if modality not in self.modalities:
            raise DataError(
                f"this index holds no {modality}", where=self.manifest.path, expected=f"a query by {' or '.join(self.modalities)}"
            )
        return self.modalities[1 - self.modalities.index(modality)]


POSTERS: Mapping[str, Callable[[bytes], Image.Image]] = {
    "image": decode_image,
    "video": lambda data: Clip(data).poster(),
    "audio": lambda data: Clip(data).waves(THUMBNAIL),
}
"""Modality -> what people are shown of its bytes."""


def thumbnail(modality: str, data: bytes) -> bytes:
    """A picture, a frame of a film or the outline of a sound, as JPEG of at most 224 pixels a side (small ones keep their size)."""
    image = POSTERS[modality](data)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def complete(folder: Path, run: Manifest, dataset: Manifest, split: str, counts: Mapping[str, int], config: RunConfig) -> Manifest:
    """Writes the manifest of an index whose sides and model lie in ``folder``."""
    files = [manifest.file_entry(folder, f) for f in sorted(folder.rglob("*")) if f.is_file()]
    facts = {k: run.facts[k] for k in ("modalities", "weight", "headline")} | {"split": split, "rows": dict(counts)}
    facts |= {"dataset": dataset.facts["name"], "protocol": dataset.facts["protocol"], "run": run.facts["name"]}
    return manifest.write(folder, "index", facts=facts, inputs={"run": run, "dataset": dataset}, config=asdict(config), files=files)
