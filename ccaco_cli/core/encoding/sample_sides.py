"""Reads listed samples in threads, each distinct one once; what cannot be read is a problem and no error."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccaco_cli.core.data.checks import lenient, read_media
from ccaco_cli.core.errors import DataError


@dataclass(frozen=True, eq=False)
class SampleSide:
    """The samples of one modality in a batch of pairs, as its tower takes them.

    Attributes:
        samples: the distinct ones that could be read.
        places: for each pair, the place of its sample; -1 = it could not be read.
        problems: for each pair, why; "" = it could.
    """

    samples: list[Any]
    places: list[int]
    problems: list[str]


def read_side(read: Callable[[Any], tuple[Any, str]], samples: Sequence[Any], threads: int) -> SampleSide:
    """Reads the samples of a batch.

    Args:
        read: sample -> (what the tower takes, "") or (None, why it cannot be read).
    """
    distinct: dict[Hashable, Any] = {_key(sample): sample for sample in samples}
    with lenient(), ThreadPoolExecutor(threads) as pool:
        results = dict(zip(distinct, pool.map(read, distinct.values()), strict=True))
    readable = [key for key, (_, problem) in results.items() if not problem]
    places = {key: place for place, key in enumerate(readable)}
    keys = [_key(sample) for sample in samples]
    return SampleSide(
        [results[key][0] for key in readable],
        [places.get(key, -1) for key in keys],
        [results[key][1] for key in keys],
    )


def read_file(
    modality: str, preprocess: Callable[[bytes], Any], media: Any, folders: tuple[str, ...] = ()
) -> tuple[Any, str]:
    """(What ``preprocess`` makes of the bytes of a file, "") or (None, why it cannot be read).

    Args:
        media: where the bytes come from (``types.Media``).
        folders: real paths of the folders that files may lie in; () = anywhere.
    """
    try:
        return preprocess(read_media(media, folders)), ""
    except DataError as error:
        return None, error.what
    except Exception:  # libraries raise many kinds of exceptions for a broken file
        return None, f"broken {modality}"


def _key(sample: Any) -> Hashable:
    """Equal for samples that are read once: the same text or path, or the same object."""
    return sample if isinstance(sample, str | Path) else id(sample)
