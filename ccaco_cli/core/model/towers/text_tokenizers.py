"""Tokenizers of text towers, from open_clip and transformers, with one interface (``tower.TextTokenizer``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import open_clip
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, processors
from torch import Tensor

from ccaco_cli.core.model.towers.tower import TextIds, TokenSpans
from ccaco_cli.core.text_input import joined_punctuation, normal_form
from ccaco_cli.core.truncation import whole_end

CLEANING = {"_clean_lower": "clip", "_clean_whitespace": "whitespace", "_clean_canonicalize": "canonicalize"}
"""Function with which an open_clip tokenizer cleans texts -> entry of ``query.CLEAN`` that does the same."""


@dataclass(frozen=True)
class ClipTokens:
    """``TextTokenizer`` of one of open_clip's tokenizers.

    Attributes:
        trim: pad to the longest text of the list, not to the context length. Exact for causal towers, where later
            tokens have no effect on earlier ones.
    """

    tokenizer: Any
    context_length: int
    trim: bool = True

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        encode = self._encode_simple if isinstance(self.tokenizer, open_clip.SimpleTokenizer) else self._encode_hub
        ids, counts, cut = encode(list(texts))
        if shorter := _shorter_texts(self._spans, texts, cut, self.context_length):
            ids, counts, _ = encode([shorter.get(row, text) for row, text in enumerate(texts)])
        longest = int(counts.max()) if self.trim and len(texts) else ids.shape[1]
        mask = torch.arange(ids.shape[1]) < counts.unsqueeze(1)
        return {"ids": ids[:, :longest], "mask": mask[:, :longest], "cut": cut}

    def _encode_simple(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """n texts -> (ids [n, L], number of real tokens [n], whether the text was cut [n])."""
        # one token more than the context shows which texts are cut; the last token is the end of text in any case
        ids = self.tokenizer(texts, self.context_length + 1)
        end, last, ids = self.tokenizer.eot_token_id, ids[:, -1], ids[:, :-1]
        cut = last == end
        ids[cut, -1] = end
        # Padding is 0, and so is "!": the last end-of-text token shows where a caption ends, not the ids.
        return ids, ids.shape[1] - (ids == end).flip(1).int().argmax(1), cut

    def _encode_hub(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        hub_tokenizer, length = self.tokenizer.tokenizer, self.context_length
        padding = hub_tokenizer.pad_token_id
        ids = self.tokenizer(texts, length)
        counts = (ids != padding).sum(1)
        if padding == hub_tokenizer.eos_token_id:  # SigLIP: the first of these tokens is the end of the text
            counts = counts + 1
        cut = torch.zeros(len(texts), dtype=torch.bool)
        full = (ids[:, -2:] != padding).any(1).nonzero()[:, 0]
        if len(full):
            longer = self.tokenizer([texts[row] for row in full.tolist()], length + 1)
            cut[full] = (longer[:, :length] != ids[full]).any(1) | (longer[:, length] != padding)
        return ids, counts.clamp(1, length), cut

    def token_spans(self, text: str) -> TokenSpans:
        return self._spans(_whole_characters(self._spans, text, self.context_length), self.context_length)

    def _spans(self, text: str, max_tokens: int) -> TokenSpans:
        """``token_spans`` of a text that may end within a character."""
        source = self.tokenizer
        cleaned = source.clean_fn(text)
        if not isinstance(source, open_clip.SimpleTokenizer):
            return _hf_token_spans(source.tokenizer, cleaned, max_tokens)
        if source.reduction_fn is not None:  # it chooses some of the tokens
            return TokenSpans(cleaned, [])
        ids = source.encode(text)[: max_tokens - 2]
        matches = source.pat.finditer(cleaned)
        # the character of each byte: a token is a string of bytes, and may hold a part of a character
        places = [match.start() + i for match in matches for i, c in enumerate(match.group()) for _ in c.encode()]
        ends = np.cumsum([len(source.decoder[token].removesuffix("</w>")) for token in ids], dtype=int)
        starts = [0, *ends[:-1]]
        spans = [(places[start], places[end - 1] + 1) for start, end in zip(starts, ends, strict=False)]
        return TokenSpans(cleaned, [(position, *span) for position, span in enumerate(spans, start=1)])

    def text_ids(self) -> TextIds:
        if isinstance(self.tokenizer, open_clip.SimpleTokenizer):
            return TextIds(self.tokenizer.vocab_size, self.tokenizer.sot_token_id, self.tokenizer.eot_token_id)
        ids = _hf_text_ids(self.tokenizer.tokenizer)
        return replace(ids, end=None) if self.tokenizer.strip_sep_token else ids

    def decode(self, ids: Sequence[int]) -> str:
        if isinstance(self.tokenizer, open_clip.SimpleTokenizer):
            return joined_punctuation(self.tokenizer.decode(list(ids)))
        return _hf_decode(self.tokenizer.tokenizer, ids)

    def portable(self) -> tuple[str, dict[str, Any]] | None:
        source = self.tokenizer
        cleaning = CLEANING.get(getattr(getattr(source, "clean_fn", None), "__name__", ""))
        pad_to = 0 if self.trim else self.context_length
        if not isinstance(source, open_clip.SimpleTokenizer):
            if cleaning is None or not source.tokenizer.is_fast or source.strip_sep_token:
                return None
            settings = {"clean": cleaning, "pad_id": source.tokenizer.pad_token_id, "pad_to": pad_to}
            return _portable_json(source.tokenizer, self.context_length), settings
        if cleaning != "clip" or source.reduction_fn is not None:
            return None
        start, end = ((name, source.encoder[name]) for name in ("<start_of_text>", "<end_of_text>"))
        converted = tokenizers.Tokenizer(models.BPE(source.encoder, list(source.bpe_ranks), end_of_word_suffix="</w>"))
        split = pre_tokenizers.Split(tokenizers.Regex(source.pat.pattern), "removed", invert=True)
        converted.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        converted.add_special_tokens([start[0], end[0]])
        converted.post_processor = processors.TemplateProcessing(f"{start[0]} $A {end[0]}", special_tokens=[start, end])
        converted.enable_truncation(self.context_length)
        converted.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
        return converted.to_str(), {"clean": "clip", "pad_id": 0, "pad_to": pad_to}

    def with_context_length(self, count: int) -> ClipTokens:
        return replace(self, context_length=count)

    def __repr__(self) -> str:
        backend = getattr(self.tokenizer, "tokenizer", None)
        vocabulary = _vocabulary_hash(backend) if backend else _simple_vocabulary_hash(self.tokenizer)
        cleaning = getattr(getattr(self.tokenizer, "clean_fn", None), "__name__", "")
        strip = " strip_sep_token" if getattr(self.tokenizer, "strip_sep_token", False) else ""
        hub_settings = f" {cleaning}{strip}" if backend else ""
        name = f"{type(self.tokenizer).__name__}{hub_settings}"
        return f"ClipTokens({name} {vocabulary} {self.context_length} {self.trim})"


@dataclass(frozen=True)
class HfTokens:
    """``TextTokenizer`` of a transformers tokenizer."""

    tokenizer: Any
    context_length: int

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        texts = [normal_form(text) for text in texts]
        encoded = self._encode(texts)
        if encoded.encodings:
            cut = torch.tensor([bool(encoding.overflowing) for encoding in encoded.encodings])
        else:  # tokenizers written in Python do not report what they cut
            cut = torch.tensor([len(ids) > self.context_length for ids in self.tokenizer(texts)["input_ids"]])
        if shorter := _shorter_texts(self._spans, texts, cut, self.context_length):
            encoded = self._encode([shorter.get(row, text) for row, text in enumerate(texts)])
        return {"ids": encoded["input_ids"], "mask": encoded["attention_mask"].bool(), "cut": cut}

    def _encode(self, texts: list[str]) -> Any:
        return self.tokenizer(
            texts,
            padding="longest",
            truncation=True,
            max_length=self.context_length,
            return_attention_mask=True,
            return_tensors="pt",
        )

    def token_spans(self, text: str) -> TokenSpans:
        return self._spans(_whole_characters(self._spans, text, self.context_length), self.context_length)

    def _spans(self, text: str, max_tokens: int) -> TokenSpans:
        return _hf_token_spans(self.tokenizer, normal_form(text), max_tokens)

    def text_ids(self) -> TextIds:
        return _hf_text_ids(self.tokenizer)

    def decode(self, ids: Sequence[int]) -> str:
        return _hf_decode(self.tokenizer, ids)

    def portable(self) -> tuple[str, dict[str, Any]] | None:
        if not self.tokenizer.is_fast:
            return None
        return _portable_json(self.tokenizer, self.context_length), {
            "clean": "none",
            "pad_id": self.tokenizer.pad_token_id,
            "pad_to": 0,
        }

    def with_context_length(self, count: int) -> HfTokens:
        return replace(self, context_length=count)

    def __repr__(self) -> str:
        return f"HfTokens({_vocabulary_hash(self.tokenizer)} {self.context_length})"


Spans = Callable[[str, int], TokenSpans]
"""(text, maximum tokens) -> the characters of each token; the last token may end within a character."""


def _shorter_texts(spans: Spans, texts: Sequence[str], cut: Tensor, max_tokens: int) -> dict[int, str]:
    """Row -> its text without the character that the cut would split; only rows with such a character.

    Args:
        cut: [n] bool, True = the text has more tokens than ``max_tokens``.
    """
    rows = [row for row in cut.nonzero()[:, 0].tolist() if not texts[row].isascii()]
    shorter = {row: _whole_characters(spans, texts[row], max_tokens) for row in rows}
    return {row: text for row, text in shorter.items() if text != texts[row]}


def _whole_characters(spans: Spans, text: str, max_tokens: int) -> str:
    """A text that its tokenizer does not cut within a character (``truncation.whole_end``)."""
    end: int | None = None if text.isascii() else len(text)
    while end is not None:
        fitting, longer = spans(text, max_tokens), spans(text, max_tokens + 1).spans
        is_cut = 0 < len(fitting.spans) < len(longer)
        end = whole_end(fitting.text, fitting.spans[-1][2], longer[-1][1]) if is_cut else None
        text = text if end is None else fitting.text[:end]
    return text


def _hf_text_ids(tokenizer: Any) -> TextIds:
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    return TextIds(len(tokenizer), ids[0] if special[0] else None, ids[-1] if special[-1] else None)


def _hf_decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return joined_punctuation(tokenizer.decode(list(ids), skip_special_tokens=True))


def _portable_json(tokenizer: Any, context_length: int) -> str:
    """A fast transformers tokenizer as JSON that cuts texts and does not pad them."""
    converted = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    converted.no_padding()
    converted.enable_truncation(context_length)
    return str(converted.to_str())


def _vocabulary_hash(tokenizer: Any) -> str:
    """Hashes the whole definition of a transformers tokenizer (of a slow one, its vocabulary)."""
    definition = (
        tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    )
    return hashlib.sha256(definition.encode()).hexdigest()[:16]


def _simple_vocabulary_hash(tokenizer: open_clip.SimpleTokenizer) -> str:
    """Hashes the tokens of an open_clip tokenizer in their order, and the pattern that cuts words."""
    return hashlib.sha256("\n".join([tokenizer.pat.pattern, *tokenizer.encoder]).encode()).hexdigest()[:16]


def _hf_token_spans(tokenizer: Any, text: str, max_tokens: int) -> TokenSpans:
    """``TextTokenizer.token_spans`` of a transformers tokenizer; no spans for a slow one, which reports none."""
    if not tokenizer.is_fast:
        return TokenSpans(text, [])
    encoded = tokenizer(text, truncation=True, max_length=max_tokens).encodings[0]
    tokens = enumerate(zip(encoded.offsets, encoded.special_tokens_mask, strict=True))
    return TokenSpans(text, [(position, *offsets) for position, (offsets, special) in tokens if not special])
