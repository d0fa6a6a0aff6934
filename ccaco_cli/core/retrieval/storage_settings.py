"""How an index is encoded and stored: settings of every command that builds one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ccaco_cli.core import runtime
from ccaco_cli.core.retrieval import token_store, vectors
from ccaco_cli.core.retrieval.address import DatabaseAddress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """How an index is encoded and stored.

    Attributes:
        database: holds the vectors of the index, whose folder is then a companion; the same command again inserts only
            what is new. None = the folder holds them.
        rebuild: replace an index that exists; processes that have opened it keep the old one.
        index_type: how vectors are searched: an entry of ``vectors.KINDS``, or auto (by size).
        store_tokens: how tokens for the cross branch are stored: float16 | int8 | none.
        store_grid: patch tokens of an image are average-pooled to at most this number; 0 = all.
        precision: of the towers: auto (bf16 where the device is faster with it) | fp32 | bf16 | fp16.
    """

    database: DatabaseAddress | None = None
    rebuild: bool = False
    index_type: str = "auto"
    store_tokens: str = "float16"
    store_grid: int = 0
    precision: str = "auto"
    device: str = "auto"

    def check(self) -> None:
        """Raises ConfigError: no such index type, token format or precision. Imports no torch where all are known."""
        vectors.check(self.index_type)
        token_store.check(self.store_tokens)
        if self.precision not in runtime.ENCODING_PRECISIONS:
            runtime.encoding_dtype(self.precision, None)  # raises the error

    @property
    def dtype(self) -> torch.dtype:
        """In which the towers compute."""
        dtype: torch.dtype = runtime.encoding_dtype(self.precision, runtime.device(self.device))
        return dtype

    @property
    def dtype_name(self) -> str:
        """Name of ``dtype``, as a manifest stores it."""
        return str(self.dtype).removeprefix("torch.")
