"""A vocabulary for captions in every script, of the size of CLIP's; it is computed, not learned, so that no file
travels with a run."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache

import open_clip
import regex

SMALL_SCRIPTS = (
    (
        0xA1,
        0x10FF,
    ),  # Latin, Greek, Cyrillic, Hebrew, Arabic, scripts of India, Thai, Lao, Tibetan, Burmese, Georgian
    (0x1780, 0x17FF),  # Khmer
    (0x1E00, 0x1FFF),  # Vietnamese, Greek with accents
    (0x200C, 0x2044),  # joiners of letters and emoji, punctuation
    (0x20A0, 0x20BF),  # currencies
    (0x2600, 0x27BF),  # symbols
    (0x3001, 0x30FF),  # Japanese syllables, punctuation of Chinese
    (0xFE0F, 0xFE0F),  # shows the character before it as an emoji
    (0x1F1E6, 0x1F6FF),  # emoji
    (0x1F900, 0x1F9FF),
)
"""First and last code point of the blocks of which every character is a token."""
LARGE_SCRIPTS = (("gb2312", 0xB0, 0xF7), ("big5", 0xA4, 0xC6), ("shift_jis", 0x88, 0x98), ("euc_kr", 0xB0, 0xC8))
"""Encodings of Chinese, Japanese and Korean, with the first bytes of their frequent characters, 12,000 in all."""
WITHOUT_BLANKS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
JOINERS = "\u200c\u200d"
"""Within a word they choose the form of letters, for example in Persian and Hindi."""
WORD_END = "</w>"


@cache
def multilingual_tokenizer() -> open_clip.SimpleTokenizer:
    """CLIP's tokenizer with other byte pairs: each character in use is one token, in place of CLIP's rarest words.

    CLIP's vocabulary (arXiv:2103.00020) was learned from English, and cuts a Chinese character into two or three
    tokens. Here the byte pairs that join the bytes of a character come first, and CLIP's pairs of whole characters
    follow in their order, as many as fit. Characters of scripts without blanks are words of their own; in other scripts
    a vowel sign belongs to its word.
    """
    tokenizer = open_clip.SimpleTokenizer()
    special = [tokenizer.decoder[number] for number in tokenizer.all_special_ids]
    single = list(tokenizer.byte_encoder.values())
    single += [byte + WORD_END for byte in single]
    merges = list(dict.fromkeys(_character_merges(tokenizer.byte_encoder)))
    known = {token for token in single if token.isascii()} | {"".join(pair) for pair in merges}
    for pair in tokenizer.bpe_ranks:  # a pair stands behind those that its tokens are made of
        if known.issuperset(pair):
            merges.append(pair)
            known.add("".join(pair))
    merges = merges[: tokenizer.vocab_size - len(single) - len(special)]
    vocabulary = [*single, *map("".join, merges), *special]
    tokenizer.encoder = {token: number for number, token in enumerate(vocabulary)}
    tokenizer.decoder = dict(enumerate(vocabulary))
    tokenizer.bpe_ranks = {pair: rank for rank, pair in enumerate(merges)}
    letters = rf"(?:(?!{WITHOUT_BLANKS})[\p{{L}}\p{{M}}{JOINERS}])+"
    tokenizer.pat = regex.compile(
        rf"{'|'.join(special)}|'s|'t|'re|'ve|'m|'ll|'d|{WITHOUT_BLANKS}|{letters}|\p{{N}}|[^\s\p{{L}}\p{{M}}\p{{N}}]+",
        regex.IGNORECASE,
    )
    return tokenizer


def _character_merges(byte_encoder: dict[int, str]) -> Iterator[tuple[str, str]]:
    """The pairs that join the bytes of each character, within a word and, where it can stand there, at its end."""
    alone = regex.compile(WITHOUT_BLANKS)
    for character in _characters():
        first, *between, last = (byte_encoder[byte] for byte in character.encode())
        for byte in between:
            yield first, byte
            first += byte
        yield first, last + WORD_END
        if not alone.match(character):
            yield first, last


def _characters() -> Iterable[str]:
    for first, last in SMALL_SCRIPTS:
        yield from (c for c in map(chr, range(first, last + 1)) if unicodedata.category(c) != "Cn")
    for encoding, first, last in LARGE_SCRIPTS:
        codes = (bytes([high, low]) for high in range(first, last + 1) for low in range(0x40, 0xFF))
        yield from (c for c in (code.decode(encoding, "ignore") for code in codes) if len(c) == 1 and c > "\u3400")
