"""The language of each caption of a sample: ``PairRecord.meta["languages"]``, runs in the order of the captions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ccaco_cli.core.errors import DataError

LANGUAGES = "languages"
"""Key in ``PairRecord.meta``: [[code, number of captions], ...]."""
PARALLEL = "parallel_captions"
"""Key in ``PairRecord.meta``: true where caption k of every language says the same."""
_CODE = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8})*")


def language_code(text: str) -> str:
    """A code of BCP 47 (RFC 5646) as it is usually written: en, zh, zh-Hans, pt-BR.

    Raises DataError: a text in another form, such as a name of a language.
    """
    code = text.strip().replace("_", "-")
    if not _CODE.fullmatch(code):
        raise DataError(
            "language is not a code such as en", where=text, expected="a code of BCP 47, such as zh or pt-BR"
        )
    language, *subtags = code.lower().split("-")
    cases = {2: str.upper, 4: str.title}  # of regions and scripts
    return "-".join([language, *(cases.get(len(tag), str.lower)(tag) for tag in subtags)])


def language_runs(codes: Iterable[str]) -> list[list[Any]]:
    """The value of ``meta[LANGUAGES]`` for captions in these languages."""
    return [[code, sum(1 for _ in run)] for code, run in groupby(codes)]


def language_of_each(runs: Iterable[Sequence[Any]]) -> list[str]:
    """The language of each caption: the inverse of ``language_runs``."""
    return [code for code, count in runs for _ in range(count)]


def captions_by_language(captions: Mapping[str, Sequence[str]]) -> tuple[list[str], dict[str, Any]]:
    """The captions of one sample, language by language, and the entry of ``meta`` that says which is which."""
    codes = [code for code, texts in captions.items() for _ in texts]
    return [text for texts in captions.values() for text in texts], {LANGUAGES: language_runs(codes)}


def chosen_languages(wanted: Sequence[str], available: Sequence[str], where: Path) -> tuple[str, ...]:
    """The languages to load: those of ``--language`` (``SourceOptions.languages``), all where it is empty.

    Raises DataError: a language that the data set does not have.
    """
    unknown = [code for code in wanted if code not in available]
    if unknown:
        raise DataError(
            f"no captions in {unknown[0]} here",
            where=where,
            expected=f"--language {' or '.join(available)}" if available else "captions with a language",
        )
    return tuple(code for code in available if not wanted or code in wanted)


def evaluation_facts(languages: Sequence[str]) -> dict[str, str]:
    """For ``SourceData.facts``: captions in several languages are ranked language by language."""
    return {"evaluation": LANGUAGES} if len(languages) > 1 else {}
