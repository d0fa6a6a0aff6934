"""A data set seen across domains: pairs from the sources, and of the target unpaired samples only, until it is scored."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ccaco_cli.core.config import DomainConfig
from ccaco_cli.core.data.pairs import Array, PairData, Split
from ccaco_cli.core.errors import ConfigError, DataError

TARGET_VAL, SOURCE_TEST = "val-target", "test-source"
ORIGIN = {"train": "train", "val": "val", TARGET_VAL: "val", "test": "test", SOURCE_TEST: "test"}
"""Split of this view -> the split of the data set that its rows are from."""
OF_TARGET = (TARGET_VAL, "test")


@dataclass(frozen=True, eq=False)
class AcrossDomains(PairData):
    """The view of ``across``. Its splits:

    ``train``        rows of the sources, and behind them (``Split.paired``) rows of the target without captions, labels, groups or families
    ``val``          rows of the sources
    ``test``         rows of the target
    ``val-target``   rows of the target: for the oracle only
    ``test-source``  rows of the sources
    """

    whole: PairData
    sources: tuple[str, ...]
    target: str

    def split(self, name: str) -> Split:
        """Raises DataError for a split that is not there, with those that are. Labels are numbered by the classes of the sources."""
        if name not in self.splits:
            raise DataError(f"no split {name!r}", where=self.manifest.path, expected=f"one of {', '.join(self.splits)}")
        found = self.whole.split(ORIGIN[name])
        if name in OF_TARGET:
            return self._relabelled(_of(found, [self.target]))
        sources = self._relabelled(_of(found, self.sources))
        return _and_unpaired(sources, _of(found, [self.target])) if name == "train" else sources

    def _relabelled(self, split: Split) -> Split:
        """The classes are those that the sources' training rows have, so that nothing depends on what the target's rows are called."""
        train = self.whole.split("train")
        known = np.unique(_of(train, self.sources).label)
        known = known[known >= 0]
        code = np.full(len(split.labels) + 1, -1)  # the last place is that of -1, no label
        code[known] = np.arange(len(known))
        return replace(split, label=code[split.label], labels=tuple(split.labels[i] for i in known))


def across(data: PairData, config: DomainConfig) -> PairData:
    """The data set as a model may see it that learns from the sources and is asked about the target; itself where no target is named.

    Raises ConfigError: another setting of adaptation is set, but no target; the target is among the sources;
           DataError: one domain only, no such domain, no rows of the target or the sources in ``train`` or ``val``
    """
    if not config.target:
        return _alone(data, config)
    train = data.split("train")
    sizes = {name: int((train.domain == code).sum()) for code, name in enumerate(train.domains)}
    if len(sizes) < 2:
        told = "one domain only" if any(sizes) else "no domains"
        raise DataError(
            told,
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
        whole=data,
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
        if not len(_of(data.split(name), sources)):
            raise DataError(
                f"no samples of the source domains in {name}",
                where=", ".join(sources),
                expected="pairs of them in every split",
            )
    _refuse_lonely(view.split("train"), view.split("train").paired)
    return view


def split_names(text: str) -> tuple[str, ...]:
    """``"photo, art"`` -> ("photo", "art")."""
    return tuple(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))


def _alone(data: PairData, config: DomainConfig) -> PairData:
    default = DomainConfig()
    for field in ("sources", "loss", "stats", "oracle"):
        if getattr(config, field) != getattr(default, field):
            raise ConfigError(
                "no target domain", where=f"domain.{field} = {getattr(config, field)}", expected="--target-domain NAME"
            )
    if "text" in data.modalities:
        _refuse_lonely(data.split("train"), None)
    return data


def _refuse_lonely(train: Split, paired: int | None) -> None:
    """A picture without a caption has no partner to learn from."""
    if "text" not in train.modalities:
        return
    lonely = np.flatnonzero(train.caption_count[:paired] == 0)
    if len(lonely):
        where = train.domains[train.domain[lonely[0]]]
        raise DataError(
            f"{len(lonely)} training samples have no caption",
            where=f"domain {where!r}",
            expected="captions, or a target domain",
            next="--target-domain NAME",
        )


def _splits(data: PairData, sources: Sequence[str], target: str) -> tuple[str, ...]:
    """Those of ``ORIGIN`` that have rows; splits of the target only where it has captions to be scored by."""
    found = []
    for name, origin in ORIGIN.items():
        if origin not in data.splits:
            continue
        part = _of(data.split(origin), [target] if name in OF_TARGET else sources)
        if len(part) and not (name in OF_TARGET and "text" in data.modalities and not part.caption_count.all()):
            found.append(name)
    return tuple(found)


def _of(split: Split, domains: Sequence[str]) -> Split:
    codes = [code for code, name in enumerate(split.domains) if name in domains]
    return split.select(np.flatnonzero(np.isin(split.domain, codes)))


def _and_unpaired(sources: Split, target: Split) -> Split:
    """Nothing of a target row is known but its media and its domain."""
    none = np.full(len(target), -1)
    hidden = {"label": none, "group": none, "family": none, "rows": target.rows, "domain": target.domain}
    # numbered anew, or the order of an epoch would depend on how many families the target has
    sources = replace(sources, family=np.unique(sources.family, return_inverse=True)[1])
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(sources, name), values]) for name, values in hidden.items()
    }
    return replace(sources, **columns, paired=len(sources))


def unpaired_rows(split: Split) -> Array:
    """The rows of a training split that have no partner (they lie behind the others)."""
    return np.arange(len(split) if split.paired is None else split.paired, len(split))
