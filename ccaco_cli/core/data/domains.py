"""Views of a data set for domain adaptation: pairs of the source domains and unpaired samples of the target domain."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ccaco_cli.core.config import DomainConfig
from ccaco_cli.core.data.domain_names import SOURCE_TEST, TARGET_VAL
from ccaco_cli.core.data.pairs import Array, PairData, Split
from ccaco_cli.core.errors import ConfigError, DataError

ORIGIN = {"train": "train", "val": "val", TARGET_VAL: "val", "test": "test", SOURCE_TEST: "test"}
"""Split of this view -> split of the data set that its rows come from."""
TARGET_SPLITS = (TARGET_VAL, "test")


@dataclass(frozen=True, eq=False)
class AcrossDomains(PairData):
    """The view that ``across`` returns.

    ``train`` has the rows of the sources, followed (see ``Split.paired``) by rows of the target without captions,
    labels, groups or families. ``val`` and ``test-source`` have rows of the sources. ``test`` and ``val-target`` have
    rows of the target; ``val-target`` is for the oracle only.
    """

    data: PairData
    sources: tuple[str, ...]
    target: str

    def split(self, name: str) -> Split:
        """One split, its labels numbered by the classes of the sources. Raises DataError: there is no such split."""
        if name not in self.splits:
            raise DataError(f"no split {name!r}", where=self.manifest.path, expected=f"one of {', '.join(self.splits)}")
        split = self.data.split(ORIGIN[name])
        if name in TARGET_SPLITS:
            return self._relabelled(_of_domains(split, [self.target]))
        sources = self._relabelled(_of_domains(split, self.sources))
        return _append_unpaired(sources, _of_domains(split, [self.target])) if name == "train" else sources

    def _relabelled(self, split: Split) -> Split:
        """Numbers labels by the classes of the sources' training rows, so that labels of the target have no effect."""
        train = self.data.split("train")
        known = np.unique(_of_domains(train, self.sources).label)
        known = known[known >= 0]
        code = np.full(len(split.labels) + 1, -1)  # the last position serves -1, no label
        code[known] = np.arange(len(known))
        return replace(split, label=code[split.label], labels=tuple(split.labels[i] for i in known))


def across(data: PairData, config: DomainConfig) -> PairData:
    """The view of a data set for training on the source domains and testing on the target domain.

    Returns:
        The data set itself where the config names no target.
    Raises:
        ConfigError: a setting of adaptation without a target; the target is one of the sources.
        DataError: a single domain, no such domain, no rows of the target or the sources in ``train`` or ``val``.
    """
    if not config.target:
        return _without_target(data, config)
    train = data.split("train")
    sizes = {name: int((train.domain == code).sum()) for code, name in enumerate(train.domains)}
    if len(sizes) < 2:
        raise DataError(
            "one domain only" if any(sizes) else "no domains",
            where=data.name,
            expected="a data set with a domain column of two values or more",
            next="ccaco prepare --list",
        )
    sources = split_names(config.sources) or tuple(name for name in sizes if name not in ("", config.target))
    for key, names in (("--target-domain", (config.target,)), ("--source-domains", sources)):
        for name in names:
            if name not in sizes:
                near = difflib.get_close_matches(name, sizes, 1)
                hint = f"did you mean {near[0]}?" if near else None
                raise DataError(
                    "no such domain", where=f"{key} {name}", expected=", ".join(filter(None, sizes)), next=hint
                )
    if config.target in sources:
        raise ConfigError(
            "the target is among the sources", where=f"--source-domains {config.sources}", expected="other domains"
        )
    view = AcrossDomains(
        data.manifest,
        data.name,
        data.modalities,
        _splits(data, sources, config.target),
        data=data,
        sources=sources,
        target=config.target,
    )
    if not sizes[config.target]:
        raise DataError(
            "no training samples of the target domain",
            where=config.target,
            expected="pictures (captions are not needed)",
        )
    for name in ("train", "val"):
        if not len(_of_domains(data.split(name), sources)):
            raise DataError(
                f"no samples of the source domains in {name}",
                where=", ".join(sources),
                expected="pairs of them in every split",
            )
    _refuse_missing_captions(view.split("train"), view.split("train").paired)
    return view


def split_names(text: str) -> tuple[str, ...]:
    """``"photo, art"`` -> ("photo", "art")."""
    return tuple(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))


def _without_target(data: PairData, config: DomainConfig) -> PairData:
    """Checks a run without a target domain."""
    default = DomainConfig()
    for field in ("sources", "loss", "stats", "oracle"):
        if getattr(config, field) != getattr(default, field):
            raise ConfigError(
                "no target domain", where=f"domain.{field} = {getattr(config, field)}", expected="--target-domain NAME"
            )
    if "text" in data.modalities:
        _refuse_missing_captions(data.split("train"), None)
    return data


def _refuse_missing_captions(train: Split, paired: int | None) -> None:
    """Raises DataError: a paired training sample has no caption."""
    if "text" not in train.modalities:
        return
    missing = np.flatnonzero(train.caption_count[:paired] == 0)
    if len(missing):
        where = train.domains[train.domain[missing[0]]]
        raise DataError(
            f"{len(missing)} training samples have no caption",
            where=f"domain {where!r}",
            expected="captions, or a target domain",
            next="--target-domain NAME",
        )


def _splits(data: PairData, sources: Sequence[str], target: str) -> tuple[str, ...]:
    """The splits of ``ORIGIN`` that have rows; those of the target only if it has captions for scoring."""
    names = []
    for name, origin in ORIGIN.items():
        if origin not in data.splits:
            continue
        part = _of_domains(data.split(origin), [target] if name in TARGET_SPLITS else sources)
        if len(part) and not (name in TARGET_SPLITS and "text" in data.modalities and not part.caption_count.all()):
            names.append(name)
    return tuple(names)


def _of_domains(split: Split, domains: Sequence[str]) -> Split:
    """The rows of these domains."""
    codes = [code for code, name in enumerate(split.domains) if name in domains]
    return split.select(np.flatnonzero(np.isin(split.domain, codes)))


def _append_unpaired(sources: Split, target: Split) -> Split:
    """Appends the rows of the target, of which only the media and the domain stay visible."""
    none = np.full(len(target), -1)
    hidden = {"label": none, "group": none, "family": none, "rows": target.rows, "domain": target.domain}
    # renumbered: otherwise the order of an epoch would depend on the number of families of the target
    sources = replace(sources, family=np.unique(sources.family, return_inverse=True)[1])
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(sources, name), values]) for name, values in hidden.items()
    }
    return replace(sources, **columns, paired=len(sources))


def unpaired_rows(split: Split) -> Array:
    """The rows of a training split that have no partner (they follow the paired ones)."""
    return np.arange(len(split) if split.paired is None else split.paired, len(split))
