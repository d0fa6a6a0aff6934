from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from ccaco_cli.core.data.sources.scenes import COUNTS, SOURCE, STYLES_COUNTS, STYLES_SOURCE
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError


def test_entries():
    assert (SOURCE.name, STYLES_SOURCE.name) == ("scenes", "scenes-styles")
    assert SOURCE.embedded and STYLES_SOURCE.embedded
    assert SOURCE.modalities == STYLES_SOURCE.modalities == ("image", "text")


def test_default_sizes():
    assert COUNTS == {"train": {"colour": 12_000}, "val": {"colour": 1_000}, "test": {"colour": 1_000}}
    counted = Counter((r.split, r.domain) for r in STYLES_SOURCE.read(None, SourceOptions()).records)
    assert counted == {(split, domain): n for split, domains in STYLES_COUNTS.items() for domain, n in domains.items()}


def test_options_reach_the_generator():
    def first(**options):
        return next(iter(SOURCE.read(None, SourceOptions(**options)).records))

    assert first(seed=1).captions == first(seed=1).captions != first(seed=2).captions
    assert len(first(size=128).media["image"]()) > len(first(size=64).media["image"]())
    counted = Counter(r.split for r in SOURCE.read(None, SourceOptions(limit=3)).records)
    assert counted == {"train": 3, "val": 3, "test": 3}


def test_styles_have_their_own_pictures_and_ids():
    records = list(STYLES_SOURCE.read(None, SourceOptions(limit=60)).records)
    assert len({r.id for r in records}) == len(records)
    test = {
        d: [r.captions for r in records if r.split == "test" and r.domain == d] for d in ("colour", "sketch", "noisy")
    }
    assert all(test.values())
    assert not set(test["colour"]) & set(test["sketch"])


def test_records_are_streamed():
    assert len(list(islice(SOURCE.read(None, SourceOptions()).records, 2))) == 2


def test_bad_input_is_refused_at_once():
    with pytest.raises(DataError, match="generated"):
        SOURCE.read(Path("somewhere"), SourceOptions())
    with pytest.raises(DataError, match="at least 32"):
        SOURCE.read(None, SourceOptions(size=8))
