"""What the user requests of ``ccaco embed`` for a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccaco_cli.core import manifest, runtime
from ccaco_cli.core.retrieval.address import DatabaseAddress

if TYPE_CHECKING:
    import torch

SHARD_SIZE = 8192
"""Items of a shard of vectors: this many are in memory at once."""


@dataclass(frozen=True)
class EmbedRequest:
    """What to embed, and how the index stores it.

    Attributes:
        model: folder of a finished run, whose best checkpoint embeds, or SPEC of a pretrained dual encoder.
        dataset: name or folder of a prepared data set.
        out: folder of the embeddings: ``img_emb/img_emb_0.npy``, ``text_emb/text_emb_0.npy`` ... (float16 [n, E], unit
            norm), ``metadata/metadata_0.parquet`` (one row per image), ``text_metadata/...`` (one row per caption).
            Finished shards are kept.
        index: also build an index here; None = no index. A text query on it imports no torch.
        database: holds the vectors of the index, whose folder is then a companion; the same command again inserts only
            what is new. None = the folder holds them.
        rebuild: replace an index that exists; processes that have opened it keep the old one.
        index_type: how vectors are searched: an entry of ``vectors.KINDS``, or auto (by size).
        store_tokens: how tokens for the cross branch are stored: float16 | int8 | none.
        store_grid: patch tokens of an image are average-pooled to at most this number; 0 = all.
        precision: of the towers: auto (bf16 where the device is faster with it) | fp32 | bf16 | fp16.
        shard: items of a shard of vectors.
        verify: quick | full: whether every file of the data set is hashed first.
    """

    model: str | Path
    dataset: str
    out: Path
    split: str = "test"
    index: Path | None = None
    database: DatabaseAddress | None = None
    rebuild: bool = False
    index_type: str = "auto"
    store_tokens: str = "float16"
    store_grid: int = 0
    precision: str = "auto"
    device: str = "auto"
    shard: int = SHARD_SIZE
    verify: str = manifest.QUICK

    @property
    def dtype(self) -> torch.dtype:
        """In which the towers compute."""
        dtype: torch.dtype = runtime.encoding_dtype(self.precision, runtime.device(self.device))
        return dtype

    @property
    def facts(self) -> dict[str, Any]:
        """The settings that decide which embeddings are written."""
        return {"split": self.split, "shard": self.shard, "precision": str(self.dtype).removeprefix("torch.")}
