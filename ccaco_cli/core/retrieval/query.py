"""The query side of an index without the library that trained it: exported graphs, a tokenizer, numpy. Nothing here imports torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core import runtime

Array = np.ndarray[Any, Any]
SETTINGS, TOKENIZER, ENCODER, MATCHER = "query.json", "tokenizer.json", "encoder.onnx", "matcher.onnx"
ENCODER_INPUTS, ENCODER_OUTPUTS = ("ids", "mask"), ("z", "tokens")
MATCHER_INPUTS = ("tokens_a", "mask_a", "tokens_b", "mask_b")
PAIRS_AT_ONCE = 2048


@dataclass(frozen=True)
class Query:
    """Encoded queries, as numpy arrays: z [n, E] float32, unit norm; tokens [n, L, D] float32; mask [n, L] bool."""

    z: Array
    tokens: Array
    mask: Array

    def __getitem__(self, rows: Any) -> Query:
        return Query(self.z[rows], self.tokens[rows], self.mask[rows])


def _clip(text: str) -> str:
    """open_clip's cleaning (``tokenizer._clean_lower``); its slow half changes nothing in printable ASCII without entities."""
    if "&" in text or not (text.isascii() and text.isprintable()):
        import html

        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


CLEAN: dict[str, Callable[[str], str]] = {"clip": _clip, "none": lambda text: text}
"""What happens to a text before its tokenizer, by name."""


class Exported:
    """The query side that lies in a folder (``export.export`` wrote it); each part is loaded when first needed.

    modality  of the queries that it encodes
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text("utf-8"))
        self.modality: str = self.settings["modality"]

    @property
    def has_matcher(self) -> bool:
        return (self.folder / MATCHER).exists()

    def encode(self, texts: Sequence[str]) -> Query:
        """Texts -> Query, one batch, padded to its longest (or to the length that the tower was trained to see)."""
        clean, length = CLEAN[self.settings["clean"]], self.settings["pad_to"]
        found = [one.ids for one in self._tokenizer.encode_batch([clean(text) for text in texts])]
        longest = max(length, *map(len, found))
        mask = np.arange(longest) < np.array([len(ids) for ids in found])[:, None]
        ids = np.full(mask.shape, self.settings["pad_id"], np.int64)
        ids[mask] = np.concatenate(found)
        z, tokens = self._encoder.run(list(ENCODER_OUTPUTS), dict(zip(ENCODER_INPUTS, (ids, mask), strict=True)))
        return Query(z, tokens.astype(np.float16).astype(np.float32), mask)  # rounded as the tokens of items are

    def match(self, tokens_a: Array, mask_a: Array, tokens_b: Array, mask_b: Array) -> Array:
        """Match logits of row i of a with row i of b: tokens [M, N, D] float32, as ``Aligner.local`` prepares them; mask [M, N] -> [M]."""
        given = dict(zip(MATCHER_INPUTS, (tokens_a, mask_a, tokens_b, mask_b), strict=True))
        parts = [slice(first, first + PAIRS_AT_ONCE) for first in range(0, len(tokens_a), PAIRS_AT_ONCE)]
        return np.concatenate(
            [self._matcher.run(None, {name: array[part] for name, array in given.items()})[0] for part in parts]
        )

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return Tokenizer.from_file(str(self.folder / TOKENIZER))

    @cached_property
    def _encoder(self) -> Any:
        return session(self.folder / ENCODER)

    @cached_property
    def _matcher(self) -> Any:
        return session(self.folder / MATCHER)


def session(path: Path) -> Any:
    """An ONNX graph, ready to run on the CPU. Weights beside it are memory-mapped and used where they lie: no rewriting, no copies."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.thread_count()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
