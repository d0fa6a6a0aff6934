"""Which members of a tar shard belong to one sample.

WebDataset's rule is that the key is the name up to the first dot: ``KEY.jpg``, ``KEY.txt``, ``KEY.seg.png``. Names
such as ``photo v1.0.jpg`` and ``photo v1.1.jpg`` would then be one sample. Here a part between dots that cannot be the
name of a field (``0``) belongs to the key, and parts of one kind are never merged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ccaco_cli.core.modalities import MODALITIES

SEVERAL = "several files of one kind under one key"
NO_MEMBER = "no image and no text under this key"
_FIELD = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Attributes:
        name: in the tar.
        key: of the sample by WebDataset's rule, with the parts that are no field names.
        stem: the name without its last suffix.
        kind: image | txt | json | "" (any other).
        content: what the record needs of it.
    """

    name: str
    key: str
    stem: str
    kind: str
    content: Any = None


@dataclass(frozen=True)
class TarSample:
    """The members of one sample by kind; ``problem`` is the reason why it cannot be used."""

    key: str
    parts: dict[str, Member] = field(default_factory=dict)
    problem: str = ""


def parse_member(name: str) -> Member:
    """Takes a member's name apart: ``x/photo v1.0.jpg`` has the key and the stem ``x/photo v1.0``."""
    folder, slash, base = name.rpartition("/")
    first, *others = base.split(".")
    suffix = others.pop().lower() if others else ""
    # the key ends before the last run of parts that can be field names
    fields = 0
    while fields < len(others) and _FIELD.fullmatch(others[-1 - fields]):
        fields += 1
    key = ".".join([first, *others[: len(others) - fields]])
    stem = ".".join([first, *others])
    kind = "image" if f".{suffix}" in MODALITIES["image"].suffixes else suffix if suffix in ("txt", "json") else ""
    return Member(name, folder + slash + key, folder + slash + stem, kind)


def _is_chain(stems: set[str]) -> bool:
    """Whether each stem is the start of the next longer one: ``KEY``, ``KEY.small``."""
    ordered = sorted(stems, key=len)
    return all(longer.startswith(f"{stem}.") for stem, longer in pairwise(ordered))


def split_members(members: list[Member]) -> Iterator[TarSample]:
    """The samples of consecutive members of one key; [] for none.

    Members of which there is one of each kind are one sample (``KEY.txt`` and ``KEY.small.jpg``, but not ``KEY.a.txt``
    and ``KEY.b.jpg``). Otherwise those with the same stem are one sample, but a stem with a field name and without a
    caption of its own (``KEY.seg.png`` beside ``KEY.jpg``) belongs to the sample ``KEY``. Members of one kind and stem
    cannot be told apart: each is a sample with a problem.
    """
    if not members:
        return
    key = members[0].key
    used = [member for member in members if member.kind]
    if not used:
        yield TarSample(key, problem=NO_MEMBER)
        return
    if max(Counter(member.kind for member in used).values()) == 1 and _is_chain({member.stem for member in used}):
        yield TarSample(key, {member.kind: member for member in used})
        return
    stems: dict[str, list[Member]] = {}
    for member in used:
        stems.setdefault(member.stem, []).append(member)
    has_image = any(member.kind == "image" for member in stems.get(key, []))
    for stem, group in stems.items():
        kinds = Counter(member.kind for member in group)
        if has_image and stem != key and not (kinds["image"] and kinds["txt"] + kinds["json"]):
            continue  # a further field of the sample KEY
        if max(kinds.values()) == 1:
            yield TarSample(stem, {member.kind: member for member in group})
            continue
        # as many records as there are members of the most frequent kind, so that none of them is uncounted
        for _ in range(max(kinds.values())):
            yield TarSample(stem, problem=SEVERAL)
