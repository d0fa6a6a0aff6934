"""What an index of media files knows of its folder, and what an update changes.

Every file has a state: its size, time and content hash, and whether it is an item, a reject, or was removed by hand.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ccaco_cli.core import fault, manifest
from ccaco_cli.core.errors import DataError, ManifestError, nearest
from ccaco_cli.core.library.items import Files
from ccaco_cli.core.library.parts import FILE_COLUMNS, FILES, ReadFiles
from ccaco_cli.core.library.scan import Reject, Scan
from ccaco_cli.core.library.side_rows import Picks, SideRows

Array = np.ndarray[Any, Any]
ITEM, REJECTED, EXCLUDED = "item", "rejected", "excluded"
"""Statuses: an item of the index; a content that cannot be decoded; a file that was removed from the index by hand."""
REJECTS = "rejects.csv"


class State(NamedTuple):
    """What is stored of a file: the line of an item is its row; the other lines stand behind them."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    status: str = ITEM
    problem: str = ""
    where: str = ""


def read_states(side: Path) -> list[State]:
    """The states that a side of an index stores. Raises ManifestError: they cannot be read."""
    try:
        columns = pa.ipc.open_file(pa.memory_map(str(side / FILES))).read_all().to_pydict()
        return [State(*values) for values in zip(*(columns[name] for name in State._fields), strict=True)]
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ManifestError(
            f"unreadable states of the files ({str(error)[:80]})",
            where=side / FILES,
            next="the command that made the index, with --rebuild",
        ) from None


def write_states(side: Path, update: Update) -> None:
    """Writes the states of all files, and ``rejects.csv`` for people."""
    columns = list(zip(*update.states, strict=True)) or [()] * len(State._fields)
    types = (pa.string(), pa.int64(), pa.int64(), *[pa.string()] * 4)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    table = pa.table(arrays, names=list(State._fields))
    with pa.OSFile(str(side / FILES), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    fault.point("library.states")
    manifest.write_bytes(side / REJECTS, rejects_csv(update.rejects).encode())


def rejects_csv(rejects: Iterable[Reject]) -> str:
    """The text of ``rejects.csv``; bytes of a name that are not UTF-8 are written as escapes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Reject._fields)
    writer.writerows([_printable(text) for text in reject] for reject in rejects)
    return out.getvalue()


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, eq=False)
class Update:
    """The next state of an index.

    Attributes:
        states: of all files; those of the items first, in the order of the rows.
        picks: where the contents of the items come from.
        rejects: files that are no items.
        counts: number of items by what happened to them: new, changed, moved, unchanged, removed.
    """

    states: Sequence[State]
    picks: Picks
    rejects: Sequence[Reject]
    counts: Mapping[str, int]

    @property
    def files(self) -> Files:
        """The files of the items."""
        states = self.states[: len(self.picks)]
        size, mtime_ns = (np.array([state[column] for state in states], np.int64) for column in (1, 2))
        return Files([state.path for state in states], size, mtime_ns, [state.sha256 for state in states])


@dataclass(frozen=True, eq=False)
class MediaLibrary:
    """An index of media files as it is: its states and its rows. Empty for an index that is not there yet."""

    states: Sequence[State] = ()
    rows: SideRows | None = None
    by_path: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_path", {state.path: number for number, state in enumerate(self.states)})

    def stored_scan(self, side: Path) -> Scan:
        """A scan that gives every file as the side stores it, for a change that does not read the folder."""
        size, mtime_ns = (np.array([state[column] for state in self.states], np.int64) for column in (1, 2))
        with (side / REJECTS).open(encoding="utf-8", newline="") as file:
            rejects = [Reject(*line) for line in csv.reader(file)][1:]
        rejects = [reject for reject in rejects if reject.path not in self.by_path]
        return Scan([state.path for state in self.states], size, mtime_ns, rejects)

    def unread(self, scan: Scan, parts: Sequence[ReadFiles]) -> list[str]:
        """Files that must be read: new ones, and those whose size or time differs from what is stored."""
        read = {
            path: (size, mtime_ns)
            for part in parts
            for path, size, mtime_ns, sha256 in _columns(part, "path", "size", "mtime_ns", "sha256")
            if sha256
        }
        files = zip(scan.paths, scan.size.tolist(), scan.mtime_ns.tolist(), strict=True)
        return [
            path
            for path, size, mtime_ns in files
            if not self._unchanged(path, size, mtime_ns) and read.get(path) != (size, mtime_ns)
        ]

    def known_contents(self, parts: Sequence[ReadFiles]) -> set[str]:
        """Hashes of the contents that need not be decoded."""
        stored = {state.sha256 for state in self.states}
        return stored.union(*(part.rows.items["sha256"].to_pylist() for part in parts if part.rows is not None))

    def is_of(self, scan: Scan) -> bool:
        """Whether at least half of the files of a scan, or of the items, are the same by their last name and size."""
        items = {(posixpath.basename(state.path), state.size) for state in self.states if state.status == ITEM}
        files = {(posixpath.basename(path), size) for path, size in zip(scan.paths, scan.size.tolist(), strict=True)}
        return 2 * len(items & files) >= min(len(items), len(files))

    def resolve_names(self, names: Sequence[str], source: Path) -> set[str]:
        """The items that ``--remove`` names: by id, by path, or all below a folder.

        Raises:
            DataError: no such item; the nearest is named.
        """
        items = [state.path for state in self.states if state.status == ITEM]
        ids, resolved = set(items), set()
        for name in names:
            matches = {candidate for candidate in _candidates(name, source) if candidate in ids}
            if not matches:
                folders = tuple(f"{candidate}/" for candidate in _candidates(name, source) if candidate != ".")
                matches = {path for path in items if folders and path.startswith(folders)}
            if not matches:
                raise DataError(
                    "no such item in this index; nothing was removed",
                    where=f"--remove {name}",
                    expected="the path or the id of an item, or a folder of items",
                    next=_nearest_item(name, items),
                )
            resolved |= matches
        return resolved

    def _unchanged(self, path: str, size: int, mtime_ns: int) -> bool:
        number = self.by_path.get(path)
        return number is not None and self.states[number][1:3] == (size, mtime_ns)

    def update(self, scan: Scan, parts: Sequence[ReadFiles], removed: set[str]) -> Update:
        """What the index becomes: kept rows of this library, and rows of the parts.

        Args:
            scan: of the folder; files that are not in it are gone.
            parts: what was read since.
            removed: items that are taken out by hand.
        """
        return _Resolution(self, scan, parts, removed).update()


class _Resolution:
    """Decides for each file of a scan what it becomes."""

    def __init__(self, library: MediaLibrary, scan: Scan, parts: Sequence[ReadFiles], removed: set[str]):
        self.library, self.scan, self.parts, self.removed = library, scan, parts, removed
        states = library.states
        self.rows = {state.sha256: (0, row) for row, state in enumerate(states) if state.status == ITEM}
        self.problems = {s.sha256: (s.problem, s.where) for s in states if s.status == REJECTED}
        self.excluded = {state.sha256 for state in states if state.status == EXCLUDED}
        self.read: dict[str, State] = {}
        sources = [] if library.rows is None else [library.rows]
        first = 1
        for part in parts:
            for path, size, mtime_ns, sha256, problem, where in _columns(part, *FILE_COLUMNS):
                self.read[path] = State(path, size, mtime_ns, sha256, REJECTED if problem else ITEM, problem, where)
                if problem and sha256:
                    self.problems[sha256] = (problem, where)
            if part.rows is not None:
                for row, sha256 in enumerate(part.rows.items["sha256"].to_pylist()):
                    self.rows.setdefault(sha256, (first, row))
                sources.append(part.rows)
                first += 1
        if library.rows is None:  # the first part is the first source
            self.rows = {sha256: (source - 1, row) for sha256, (source, row) in self.rows.items()}
        self.sources = sources
        self.paths = set(scan.paths)
        # of files below a folder that cannot be read now nothing is known
        self.closed = tuple(f"{folder}/" if folder else "" for folder in scan.closed)
        self.gone = Counter(
            state.sha256
            for state in states
            if state.status == ITEM and state.path not in self.paths and not state.path.startswith(self.closed)
        )
        self.items: list[State] = []
        self.others: list[State] = []
        self.picks: list[tuple[int, int]] = []
        self.rejects = list(scan.rejects)
        self.counts = dict.fromkeys(("new", "changed", "moved", "unchanged", "removed"), 0)

    def update(self) -> Update:
        files = zip(self.scan.paths, self.scan.size.tolist(), self.scan.mtime_ns.tolist(), strict=True)
        for path, size, mtime_ns in files:
            if path in self.removed:
                self._exclude(self.library.states[self.library.by_path[path]])
            elif self.library._unchanged(path, size, mtime_ns):
                self._keep(self.library.by_path[path])
            else:
                self._take(path)
        self._keep_unseen()
        self.counts["removed"] = sum(state.status == ITEM for state in self.library.states) - sum(
            self.counts[name] for name in ("changed", "moved", "unchanged")
        )
        source, row = np.array(self.picks, np.int64).reshape(-1, 2).T
        picks = Picks(self.sources, source, row)
        return Update([*self.items, *sorted(self.others)], picks, sorted(self.rejects), self.counts)

    def _keep(self, number: int) -> None:
        """A file whose size and time are those of before, or of which nothing is known now."""
        state = self.library.states[number]
        if state.status == ITEM:
            self._add(state, (0, number))
            self.counts["unchanged"] += 1
        else:
            self.others.append(state)
            if state.status == REJECTED:
                self.rejects.append(Reject(state.path, state.problem, state.where))

    def _take(self, path: str) -> None:
        """A file that was read."""
        number = self.library.by_path.get(path)
        before = None if number is None else self.library.states[number]
        state = self.read.get(path)
        if state is None or not state.sha256:
            problem = ("unreadable file", "") if state is None else (state.problem, state.where)
            self.rejects.append(Reject(path, *problem))
            if number is not None:  # what is stored stays until the file can be read
                self._keep_silently(number)
        elif state.sha256 in self.rows:
            self._add(state._replace(status=ITEM, problem="", where=""), self.rows[state.sha256])
            self._count(before, state)
        elif state.sha256 in self.excluded:
            self._exclude(state)
        else:
            problem = self.problems.get(state.sha256, ("unreadable file", ""))
            self.others.append(state._replace(status=REJECTED, problem=problem[0], where=problem[1]))
            self.rejects.append(Reject(path, *problem))

    def _count(self, before: State | None, state: State) -> None:
        if before is not None and before.status == ITEM:
            self.counts["unchanged" if before.sha256 == state.sha256 else "changed"] += 1
            return
        is_moved = self.gone[state.sha256] > 0
        self.gone[state.sha256] -= is_moved
        self.counts["moved" if is_moved else "new"] += 1

    def _keep_unseen(self) -> None:
        """Files below folders that cannot be read now stay; so do files removed by hand that are not there now."""
        again = {state.sha256 for state in self.others if state.status == EXCLUDED}
        for number, state in enumerate(self.library.states):
            if state.path in self.paths:
                continue
            if state.path in self.removed:
                self._exclude(state)
            elif state.path.startswith(self.closed):
                self._keep(number)
            elif state.status == EXCLUDED and state.sha256 not in again:
                self.others.append(state)

    def _keep_silently(self, number: int) -> None:
        state = self.library.states[number]
        if state.status == ITEM:
            self._add(state, (0, number))
            self.counts["unchanged"] += 1
        elif state.status == EXCLUDED:
            self.others.append(state)

    def _exclude(self, state: State) -> None:
        self.others.append(state._replace(status=EXCLUDED, problem="", where=""))

    def _add(self, state: State, pick: tuple[int, int]) -> None:
        self.items.append(state)
        self.picks.append(pick)


def _columns(part: ReadFiles, *names: str) -> Iterable[tuple[Any, ...]]:
    return zip(*(part.files[name] for name in names), strict=True)


def _candidates(name: str, source: Path) -> list[str]:
    """The ids that a name of ``--remove`` may stand for: as it is, and as a path below the source."""
    absolute = Path(name).absolute()
    candidates = [name.removeprefix("./").rstrip("/")]
    for path in (absolute, absolute.resolve(), absolute.parent.resolve() / absolute.name):
        if path.is_relative_to(source):
            candidates.append(path.relative_to(source).as_posix())
    return list(dict.fromkeys(candidates))


def _nearest_item(name: str, items: Sequence[str]) -> str | None:
    """A next step that names an item like this one; of the same file name where there is one."""
    base = name.rpartition("/")[2]
    same = [path for path in items if path.rpartition("/")[2] == base]
    if same:
        return f"did you mean {same[0]}?"
    return nearest(name, items if len(items) <= 20_000 else [path for path in items if path[:1] == name[:1]][:20_000])
