from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import SearchOptions
from ccaco_cli.core.workflows.retrieve import QUERY_BATCH, by_file, by_text


def test_queries_are_answered_in_order_and_blank_lines_left_out(index: Path) -> None:
    answers = list(by_text(Index(index), ["  a cat\n", "", "  \n", "a dog"], SearchOptions(3, rerank=0)))
    assert [query for query, _ in answers] == ["a cat", "a dog"]
    assert all(len(hits) == 3 for _, hits in answers)


def test_a_stream_is_read_no_further_than_needed(index: Path) -> None:
    taken: list[int] = []

    def endless() -> Iterator[str]:
        number = 0
        while True:
            taken.append(number)
            yield f"cat {number}"
            number += 1

    assert len(list(islice(by_text(Index(index), endless(), SearchOptions(1, rerank=0)), 3))) == 3
    assert len(taken) == QUERY_BATCH


def test_a_picture_finds_captions_and_a_broken_one_is_refused(index: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (50, 40), "green").save(tmp_path / "p.png")
    hits = by_file(Index(index), "image", tmp_path / "p.png", SearchOptions(4, rerank=0))
    assert len(hits) == 4
    assert all(isinstance(h.item["text"], str) for h in hits)
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    for name, words in (
        ("bad.png", r"not a picture: .*bad\.png"),
        ("gone.png", "cannot read this file"),
        (".", "cannot read this file"),
    ):
        with pytest.raises(DataError, match=words):
            by_file(Index(index), "image", tmp_path / name, SearchOptions(1, rerank=0))
