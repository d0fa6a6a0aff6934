"""The index that is served: the newest generation, and the one before it for pages that still show its items."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from ccaco_cli.core import manifest, runtime
from ccaco_cli.core.retrieval.index import Index, IndexSide
from ccaco_cli.core.retrieval.search import SearchOptions, ask
from ccaco_cli.view.serve import columns
from ccaco_cli.view.serve.problems import HttpError
from ccaco_cli.view.streams import write_message

LOOK_SECONDS = 0.5
"""Seconds after which the manifest is looked at again."""
WARM_UP = "a dog"


class OpenIndex:
    """One opened generation.

    Attributes:
        version: names its content in the addresses of items, so that they never show those of another generation.
        stamp: of the manifest when it was opened.
    """

    def __init__(self, index: Index, stamp: tuple[int, int] | None):
        self.index, self.stamp = index, stamp
        self.version = index.manifest.sha256[:16]
        self._columns: dict[tuple[str, ...], list[dict[str, Any]]] = {}

    def warm_up(self) -> None:
        """Loads what a query needs, so that a damaged index is refused now and the first query is not slow."""
        for modality, side in self.index.sides.items():
            self.columns((modality,))
            side.check(self.index.embedding_size)
        if self.index.exported is None:
            runtime.limit_threads()
        if "text" in self.index.queries:
            ask(self.index, "text", [WARM_UP], SearchOptions(k=1))
        else:
            _ = self.index.model

    def side(self, modality: str) -> IndexSide:
        """The stored items of a modality. Raises HttpError: 404."""
        if modality not in self.index.sides:
            raise HttpError(
                404,
                "this index holds no items of this modality",
                where=modality[:40],
                expected=" | ".join(self.index.sides),
            )
        return self.index.sides[modality]

    def item(self, modality: str, row: int) -> dict[str, Any]:
        """All columns of an item. Raises HttpError: 404."""
        side = self.side(modality)
        if not 0 <= row < len(side.items):
            raise HttpError(404, "no such item", where=f"{modality} {row}", expected=f"0 to {len(side.items) - 1}")
        return side.item(row)

    def columns(self, modalities: tuple[str, ...]) -> list[dict[str, Any]]:
        """The typed columns of some sides together (``columns.describe``)."""
        if modalities not in self._columns:
            self._columns[modalities] = columns.describe([self.side(modality).items for modality in modalities])
        return self._columns[modalities]

    @cached_property
    def explains(self) -> bool:
        """Whether heat maps can be drawn: a cross branch, patches on a grid, and tokens are there."""
        index = self.index
        has_cross_branch = float(index.manifest.config["loss"]["beta"]) > 0
        has_grid = bool(index.manifest.facts.get("has_grid", True))  # an older index does not say it
        scored = [side for modality, side in index.sides.items() if modality in index.modalities]
        return has_cross_branch and has_grid and bool(scored) and all(side.has_tokens for side in scored)


class ServedIndex:
    """The index that is served; follows it when it is rebuilt or updated.

    Args:
        folder: of its manifest.
        opening: opens the index.
    Raises:
        CcacoError: the index cannot be opened.
    """

    def __init__(self, folder: Path, opening: Callable[[], Index]):
        self._folder, self._opening = folder, opening
        self._lock = threading.Lock()
        self._reopening = False
        self._next_look = 0.0
        self._refused: tuple[int, int] | None = None
        self._versions = [self._open()]

    def current(self) -> OpenIndex:
        """The newest generation that is open. A newer one is opened in a thread of its own, and answers later."""
        now = time.monotonic()
        with self._lock:
            newest = self._versions[-1]
            if self._reopening or now < self._next_look:
                return newest
            self._next_look = now + LOOK_SECONDS
            stamp = _stamp(self._folder)
            if stamp in (newest.stamp, self._refused, None):
                return newest
            self._reopening = True
        threading.Thread(target=self._reopen, args=[stamp], name="reopen", daemon=True).start()
        return newest

    def of_version(self, version: str) -> OpenIndex:
        """The generation that an address names. Raises HttpError: 410, it is no longer open."""
        self.current()
        with self._lock:
            for opened in self._versions:
                if opened.version == version:
                    return opened
        raise HttpError(
            410,
            "the index has changed since this answer",
            where=version[:40],
            expected="a new search",
            next="search again",
        )

    def _open(self) -> OpenIndex:
        stamp = _stamp(self._folder)  # before, so that a change while it is opened is noticed
        opened = OpenIndex(self._opening(), stamp)
        opened.warm_up()
        return opened

    def _reopen(self, stamp: tuple[int, int]) -> None:
        """Replaces the newest generation; running requests finish on theirs. A damaged one is not tried again."""
        try:
            opened = self._open()
        except Exception as error:  # a damaged index can fail in many ways, and the old one still answers
            write_message(f"ccaco: the new index cannot be opened, so the page shows the old one ({error})")
            with self._lock:
                self._refused, self._reopening = stamp, False
            return
        with self._lock:
            self._versions = [self._versions[-1], opened] if opened.version != self._versions[-1].version else [opened]
            self._refused, self._reopening = None, False


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Identity of the manifest on disk; None while there is none."""
    try:
        status = (folder / manifest.NAME).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
