from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.config import DomainConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.domains import AcrossDomains, across, split_names, unpaired_rows
from ccaco_cli.core.errors import CcacoError
from ccaco_cli.core.types import PairRecord

Make = Callable[..., shards.PairData]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def written(rows: list[tuple[str, str, str]], **more: Any) -> shards.PairData:
        """Rows of (split, domain, label); captions name their row; no captions in domain ``bare``."""
        records = [
            PairRecord(
                f"id{i}",
                f"g{i}",
                split,
                {"smell": b"%d" % i},
                [] if domain == "bare" else [f"{i}.0", f"{i}.1"],
                domain,
                label,
                f"f{i % 2}",
            )
            for i, (split, domain, label) in enumerate(rows)
        ]
        info = shards.DatasetInfo("toy", ("smell", "text"), unpaired=("bare",), **more)
        shards.write(records, tmp_path / "d", info, shards.WriteOptions(workers=0))
        return shards.open(tmp_path / "d")

    return written


ROWS = [
    (s, d, label)
    for s in ("train", "val", "test")
    for d, label in (("a", "x"), ("t", "z"), ("b", "y"), ("t", "x"), ("a", "y"))
]
TARGET = DomainConfig(target="t")


def test_the_splits_of_a_view(make: Make) -> None:
    view = across(make(ROWS), TARGET)
    assert isinstance(view, AcrossDomains)
    assert (view.sources, view.target) == (("a", "b"), "t")
    assert view.splits == ("train", "val", "val-target", "test", "test-source")
    assert [view.split(n).ids for n in view.splits[1:]] == [
        ["id5", "id7", "id9"],
        ["id6", "id8"],
        ["id11", "id13"],
        ["id10", "id12", "id14"],
    ]
    assert view.split("test").captions == ["11.0", "11.1", "13.0", "13.1"]
    assert view.modalities == ("smell", "text") and view.manifest.sha256 == view.data.manifest.sha256


def test_of_the_targets_training_rows_nothing_is_known_but_media_and_domain(make: Make) -> None:
    train = across(make(ROWS), TARGET).split("train")
    assert train.ids == ["id0", "id2", "id4", "id1", "id3"] and train.paired == 3
    assert train.captions == ["0.0", "0.1", "2.0", "2.1", "4.0", "4.1"]
    assert train.caption_start.tolist() == [0, 2, 4, 6, 6, 6] and train.caption_row.tolist() == [0, 0, 1, 1, 2, 2]
    assert unpaired_rows(train).tolist() == [3, 4]
    assert train.media("smell", [3, 0]) == [b"1", b"0"]
    for column in (train.group, train.label, train.family):
        assert (column[3:] == -1).all() and (column[:3] >= 0).all()
    assert [train.domains[d] for d in train.domain] == ["a", "b", "a", "t", "t"]


def test_classes_are_those_of_the_sources(make: Make) -> None:
    view = across(make(ROWS), TARGET)
    assert view.split("train").labels == view.split("test").labels == ("x", "y")
    assert view.split("train").label.tolist() == [0, 1, 1, -1, -1]
    assert view.split("test").label.tolist() == [-1, 0], "z is no class of the sources"


def test_chosen_sources_only(make: Make) -> None:
    view = across(make(ROWS), DomainConfig(target="t", sources=" b ,"))
    assert view.split("train").ids == ["id2", "id1", "id3"] and view.split("val").ids == ["id7"]


def test_caches_of_different_rows_have_different_names(make: Make) -> None:
    data = make(ROWS)
    views = [across(data, DomainConfig(target=t)) for t in ("t", "a", "b")]
    keys = {v.split(n).key for v in views for n in v.splits} | {data.split("train").key}
    assert len(keys) == 3 * 5 + 1
    assert data.split("train").key == "train"


def test_a_target_without_captions(make: Make) -> None:
    view = across(
        make([(s, d, "") for s in ("train", "val", "test") for d in ("a", "bare", "a")]), DomainConfig(target="bare")
    )
    assert view.splits == ("train", "val", "test-source"), "what has no captions cannot be scored"
    assert len(unpaired_rows(view.split("train"))) == 1


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        (ROWS, {"target": "tt"}, r"no such domain: --target-domain tt; expected a, t, b; next: did you mean t\?"),
        (ROWS, {"target": "t", "sources": "a,c"}, "no such domain: --source-domains c"),
        (ROWS, {"target": "t", "sources": "a,t"}, "the target is among the sources"),
        (ROWS, {"loss": "dann"}, "no target domain: domain.loss = dann; expected --target-domain"),
        (ROWS, {"sources": "a"}, "no target domain"),
        (ROWS, {"oracle": True}, "no target domain"),
        ([(s, "a", "") for s in ("train", "val")], {"target": "a"}, "one domain only"),
        (
            [("train", "a", ""), ("val", "a", ""), ("test", "t", "")],
            {"target": "t"},
            "one domain only|no training samples of the target",
        ),
        (
            [("train", "a", ""), ("train", "b", ""), ("test", "t", "")],
            {"target": "t"},
            "no training samples of the target domain: t",
        ),
        (
            [("train", "a", ""), ("train", "t", ""), ("val", "t", "")],
            {"target": "t"},
            "no samples of the source domains in val",
        ),
        (
            [("train", "a", ""), ("train", "bare", ""), ("val", "a", "")],
            {},
            "1 training samples have no caption.*--target-domain NAME",
        ),
        (
            [("train", d, "") for d in ("a", "bare", "t")] + [("val", "a", "")],
            {"target": "t"},
            "no caption: domain 'bare'",
        ),
    ],
)
def test_what_cannot_be_is_one_clear_line(make: Make, rows: list[Any], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CcacoError, match=words):
        across(make(rows), DomainConfig(**settings))


def test_without_a_target_the_data_set_is_itself(make: Make) -> None:
    data = make(ROWS)
    assert across(data, DomainConfig()) is data


def test_names_with_commas() -> None:
    assert split_names(" photo, art,,photo ") == ("photo", "art")
    assert split_names("") == ()


def test_rows_of_a_view_cannot_be_chosen_past_what_is_withheld(make: Make) -> None:
    with pytest.raises(CcacoError, match="withheld"):
        across(make(ROWS), TARGET).split("train").select(np.array([3]))
