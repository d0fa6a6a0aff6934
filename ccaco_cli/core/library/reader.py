"""Reads media files for an index: content hash, the sample as the tower takes it, thumbnail and facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image
from torch import Tensor

from ccaco_cli.core import runtime
from ccaco_cli.core.data.checks import lenient
from ccaco_cli.core.data.media_facts import media_facts
from ccaco_cli.core.encoding.samples import decoded
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.library.hashing import FileState, hashed
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval.index import THUMBNAIL, thumbnail, thumbnail_jpeg


@dataclass(frozen=True, eq=False, slots=True)
class ReadFile:
    """A file that was read.

    Attributes:
        state: name, size, time and hash.
        sample: what the tower takes; None = its content is known already, or cannot be decoded.
        thumbnail: JPEG bytes; empty = the modality cannot be shown.
        facts: of ``media_facts``.
    """

    state: FileState
    sample: Tensor | None = None
    thumbnail: bytes = b""
    facts: Mapping[str, Any] = field(default_factory=dict)


class MediaReader:
    """Reads files below a folder, and decodes each content once.

    Args:
        root: folder.
        tower: whose preprocessing the samples get, as queries do.
        known: hashes of contents that need not be decoded.
    """

    def __init__(self, root: Path, tower: Tower, known: Iterable[str]):
        self.root, self.tower = root, tower
        self._known, self._lock = set(known), Lock()

    def read(self, paths: Sequence[str]) -> list[ReadFile]:
        """Reads files in several threads. A file that cannot be read or decoded has a problem; none is raised."""
        with lenient(), ThreadPoolExecutor(runtime.decoding_threads()) as pool:
            return list(pool.map(self._read, paths))

    def _read(self, path: str) -> ReadFile:
        state, data = hashed(self.root, path)
        if state.problem:
            return ReadFile(state)
        digest = state.sha256
        with self._lock:
            if digest in self._known:
                return ReadFile(state)
            self._known.add(digest)
        modality, preprocess = self.tower.modality, self.tower.preprocess
        try:
            media = decoded(modality, data, preprocess)
            sample = preprocess(media)
            return ReadFile(state, sample, _thumbnail(modality, data, media), media_facts(modality, data))
        except DataError as error:
            problem, where = error.what, str(error.where or "")
        except Exception as error:  # libraries raise many kinds of exceptions for a broken file
            problem, where = f"broken {modality}", f"{type(error).__name__}: {error}"
        return ReadFile(replace(state, problem=problem, where=where))


def _thumbnail(modality: str, data: bytes, media: Any) -> bytes:
    """The thumbnail; from the decoded sample where that is a picture of sufficient size, so that it is decoded once."""
    if isinstance(media, Image.Image) and max(media.size) >= THUMBNAIL:
        return thumbnail_jpeg(media.copy())
    return thumbnail(modality, data)
