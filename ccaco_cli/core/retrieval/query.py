"""The query side of an index without torch: exported ONNX graphs, a tokenizer, numpy."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core import runtime
from ccaco_cli.core.text_input import joined_punctuation, normal_form
from ccaco_cli.core.truncation import whole_end

Array = np.ndarray[Any, Any]
SETTINGS, TOKENIZER, ENCODER, MATCHER = "query.json", "tokenizer.json", "encoder.onnx", "matcher.onnx"
ENCODER_INPUTS, ENCODER_OUTPUTS = ("ids", "mask"), ("z", "tokens")
MATCHER_INPUTS = ("tokens_a", "mask_a", "tokens_b", "mask_b")
PAIRS_AT_ONCE = 2048


@dataclass(frozen=True)
class Query:
    """Encoded queries.

    Attributes:
        z: [n, E] float32, unit norm.
        tokens: [n, L, D] float32, for the cross branch.
        mask: [n, L] bool, True = real token.
    """

    z: Array
    tokens: Array
    mask: Array

    def __getitem__(self, rows: Any) -> Query:
        return Query(self.z[rows], self.tokens[rows], self.mask[rows])


def _whitespace(text: str) -> str:
    """open_clip's basic cleaning, whose slow half does not change printable ASCII without entities."""
    if "&" in text or not (text.isascii() and text.isprintable()):
        import html

        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def _canonicalize(text: str) -> str:
    """open_clip's cleaning for SigLIP: without punctuation, in lower case."""
    text = _whitespace(text).replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.lower().split())


CLEAN: dict[str, Callable[[str], str]] = {
    "clip": lambda text: _whitespace(text).lower(),
    "whitespace": _whitespace,
    "canonicalize": _canonicalize,
    "none": normal_form,
}
"""Name -> what cleans a text before its tokenizer."""


def token_ids(tokenizer: Any, texts: Sequence[str], pad_id: int, pad_to: int) -> tuple[Array, Array]:
    """Tokenizes cleaned texts with a ``tokenizers.Tokenizer``, and cuts none within a character.

    Returns:
        (ids [n, L] int64, mask [n, L] bool, True = real token), padded to the longest text, and to ``pad_to`` tokens.
    """
    rows = [_whole_ids(tokenizer, text, enc) for text, enc in zip(texts, tokenizer.encode_batch(texts), strict=True)]
    mask = np.arange(max(pad_to, *map(len, rows))) < np.array([len(row) for row in rows])[:, None]
    ids = np.full(mask.shape, pad_id, np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask


def _whole_ids(tokenizer: Any, text: str, encoding: Any) -> list[int]:
    """The ids of a text; as long as its tokens end within a character, it is tokenized again without that."""
    end: int | None = len(text)
    while end is not None and encoding.overflowing and not text.isascii():
        fitting, cut = (_offsets(part) for part in (encoding, encoding.overflowing[0]))
        end = whole_end(text, fitting[-1][1], cut[0][0]) if fitting and cut else None
        if end is not None:
            text = text[:end]
            encoding = tokenizer.encode(text)
    return list(encoding.ids)


def _offsets(encoding: Any) -> list[tuple[int, int]]:
    """First character of each token, and the character after its last; without special tokens."""
    return [o for o, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not special]


class Exported:
    """The query side in a folder that ``export.export`` wrote. Each part is loaded when it is first needed.

    Attributes:
        modality: of the queries that it encodes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text("utf-8"))
        self.modality: str = self.settings["modality"]

    @property
    def has_matcher(self) -> bool:
        return (self.folder / MATCHER).exists()

    def encode(self, texts: Sequence[str]) -> Query:
        """Encodes texts as one batch, padded to its longest text (or to the length that the tower was trained with)."""
        ids, mask = self.token_ids(texts)
        z, tokens = self._encoder.run(list(ENCODER_OUTPUTS), dict(zip(ENCODER_INPUTS, (ids, mask), strict=True)))
        return Query(z, tokens.astype(np.float16).astype(np.float32), mask)  # rounded as the tokens of items are

    def token_ids(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """(ids [n, L] int64, mask [n, L] bool) of texts, as ``token_ids``."""
        clean, length = CLEAN[self.settings["clean"]], self.settings["pad_to"]
        return token_ids(self._tokenizer, [clean(text) for text in texts], self.settings["pad_id"], length)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return joined_punctuation(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def match(self, tokens_a: Array, mask_a: Array, tokens_b: Array, mask_b: Array) -> Array:
        """Match logits [M] of row i of a with row i of b.

        Args:
            tokens_a, tokens_b: [M, N, D] float32, as ``Aligner.local_tokens`` prepares them.
            mask_a, mask_b: [M, N] bool.
        """
        inputs = dict(zip(MATCHER_INPUTS, (tokens_a, mask_a, tokens_b, mask_b), strict=True))
        parts = [slice(first, first + PAIRS_AT_ONCE) for first in range(0, len(tokens_a), PAIRS_AT_ONCE)]
        return np.concatenate(
            [self._matcher.run(None, {name: array[part] for name, array in inputs.items()})[0] for part in parts]
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
    """Opens an ONNX graph for the CPU. Its weights stay memory-mapped: they are neither rewritten nor copied."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.thread_count()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
