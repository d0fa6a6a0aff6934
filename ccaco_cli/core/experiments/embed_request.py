"""What the user requests of ``ccaco embed`` for a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccaco_cli.core import manifest
from ccaco_cli.core.retrieval.storage_settings import StorageSettings

SHARD_SIZE = 8192
"""Items of a shard of vectors: this many are in memory at once."""


@dataclass(frozen=True)
class EmbedRequest(StorageSettings):
    """What to embed, and how the index stores it; ``StorageSettings`` describes the other attributes.

    Attributes:
        model: folder of a finished run, whose best checkpoint embeds, or SPEC of a pretrained dual encoder.
        dataset: name or folder of a prepared data set.
        out: folder of the embeddings: ``img_emb/img_emb_0.npy``, ``text_emb/text_emb_0.npy`` ... (float16 [n, E], unit
            norm), ``metadata/metadata_0.parquet`` (one row per image), ``text_metadata/...`` (one row per caption).
            Finished shards are kept.
        index: also build an index here; None = no index. A text query on it imports no torch.
        shard: items of a shard of vectors.
        verify: quick | full: whether every file of the data set is hashed first.
    """

    model: str | Path
    dataset: str
    out: Path
    split: str = "test"
    index: Path | None = None
    shard: int = SHARD_SIZE
    verify: str = manifest.QUICK

    @property
    def facts(self) -> dict[str, Any]:
        """The settings that decide which embeddings are written."""
        return {"split": self.split, "shard": self.shard, "precision": self.dtype_name}
