"""Splits that a source does not have: parts of ``train`` by hash of the group, and the error where a split is missing.

A group is in the same split on every machine and in every version of a data set, so added samples move no others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ccaco_cli.core.data.sources.lists import hash_fraction
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.shell import command_line, quoted_path
from ccaco_cli.core.types import PairRecord

SHARE = 0.1
"""The share of ``train`` that an error proposes for a missing split."""
MAX_SHARE = 0.3
"""The largest share that is proposed first: two of them leave something to train on."""
GROUPS = 5
"""A proposed share has this many groups on average, because a hash can leave a smaller split empty."""


@dataclass(frozen=True)
class SplitShares:
    """The fractions of ``train`` that become ``val`` and ``test`` where a source has no such split; 0 = none."""

    val: float = 0.0
    test: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise ConfigError(
                "val and test leave nothing to train on",
                where=f"--val {self.val:.0%} --test {self.test:.0%}",
                expected="together less than 100 %",
                next="--val 10% --test 10%",
            )

    def requested(self) -> dict[str, float]:
        """Split -> share of those that are not 0."""
        return {name: share for name, share in (("val", self.val), ("test", self.test)) if share}

    def missing(self, published: Collection[str]) -> SplitShares:
        """The shares of the splits that are not ``published``."""
        return SplitShares(*(0.0 if name in published else share for name, share in vars(self).items()))

    def split_of(self, group: str) -> str:
        """train, val or test, by hash of the group."""
        # the prefix makes the hash independent of the one by which some sources choose their splits
        fraction = hash_fraction(f"split of {group}")
        return "val" if fraction < self.val else "test" if fraction < self.val + self.test else "train"

    def divide(self, records: Iterable[PairRecord]) -> Iterator[PairRecord]:
        """The records, where those of ``train`` have the split of their group."""
        for record in records:
            yield replace(record, split=self.split_of(record.group)) if record.split == "train" else record

    @property
    def protocol(self) -> str:
        """The rule in words, for the protocol of the data set; "" without shares."""
        parts = " and ".join(f"{name} {share:.4g} %" for name, share in self._percent().items())
        return f"; {parts} of train by hash of the group" if parts else ""

    def _percent(self) -> Mapping[str, float]:
        return {name: 100 * share for name, share in self.requested().items()}


def published_splits(records: Iterable[PairRecord], wanted: Collection[str]) -> set[str]:
    """The splits of usable records, read until all ``wanted`` ones occurred.

    Raises:
        DataError: no record is of ``train``, which the wanted splits would be taken from.
    """
    splits: set[str] = set()
    for record in records:
        if not record.problem:
            splits.add(record.split)
        if {"train", *wanted} <= splits:
            break
    if missing := [name for name in wanted if name not in splits and "train" not in splits]:
        raise DataError(
            f"there is no split 'train' to take {' and '.join(missing)} from",
            where=" and ".join(f"--{name}" for name in missing),
            expected=f"a source with training samples; this one has {' and '.join(sorted(splits)) or 'none'}",
            next=f"leave {' and '.join(f'--{name}' for name in missing)} out",
        )
    return splits


def require_splits(data: Manifest, splits: Sequence[str], needed: Sequence[str] = ("train", "val")) -> None:
    """Checks that a data set has the splits that a command needs.

    Args:
        data: of the data set.
        splits: those that have samples.
        needed: without one of these nothing can be done.
    Raises:
        DataError: names the missing splits and the command that makes them.
    """
    missing = [name for name in needed if name not in splits]
    if not missing:
        return
    names = " and ".join(f"'{name}'" for name in missing)
    raise DataError(
        f"no split {names} in this data set",
        where=data.path,
        expected=f"{' and '.join(needed)}; it has {', '.join(splits) or 'no samples'}",
        next=next_step_without(data, splits, missing),
    )


def next_step_without(data: Manifest, splits: Sequence[str], missing: Sequence[str]) -> str:
    """The command to type when a data set lacks splits."""
    if "train" not in splits:
        return f"ccaco report RUN --on {quoted_path(data.path)}, or train on a data set with a split 'train'"
    return prepare_command(data, missing)


def prepare_command(data: Manifest, missing: Sequence[str]) -> str:
    """The command that made a data set, with shares for ``val`` and ``test`` where they are missing."""
    argv = [str(word) for word in data.made_by.get("argv", ())]
    if argv[1:2] == ["prepare"]:
        words = _without_options(argv[2:], ("--out", "--val", "--test"))
    else:
        words = [str(data.config.get("source", "NAME")), "--source", "PATH"]
    before = data.config.get("split_shares", {})
    shares = {name: share for name, share in before.items() if name not in missing and share}
    counts: Mapping[str, Mapping[str, int]] = data.facts["splits"]
    lacking = [*missing, *(["test"] if not counts.get("test", {}).get("samples") else [])]
    enough = math.ceil(100 * GROUPS / max(1, counts.get("train", {}).get("groups", 1))) / 100
    limit = (0.9 - sum(shares.values())) / len(lacking)
    for name in lacking:  # a share that left the split empty is doubled
        shares[name] = min(limit, 2 * before[name]) if before.get(name) else min(MAX_SHARE, max(SHARE, enough))
    flags = [word for name, share in shares.items() for word in (f"--{name}", f"{100 * share:.4g}%")]
    return command_line("prepare", *words, *flags, "--out", _free_folder(data.path))


def _free_folder(folder: Path) -> Path:
    """A folder beside this one that does not exist yet."""
    number, free = 1, folder.with_name(f"{folder.name}-split")
    while free.exists():
        number, free = number + 1, folder.with_name(f"{folder.name}-split{number + 1}")
    return free


def _without_options(words: Sequence[str], names: Collection[str]) -> list[str]:
    """A command line without some options and their values."""
    left: list[str] = []
    skip = False
    for word in words:
        if not skip and word.partition("=")[0] not in names:
            left.append(word)
        skip = not skip and word in names
    return left


def evaluation_split(splits: Sequence[str]) -> str:
    """The split that is embedded or scored where none is named: test, else val, else train, else the first."""
    return next((name for name in ("test", "val", "train") if name in splits), splits[0] if splits else "test")
