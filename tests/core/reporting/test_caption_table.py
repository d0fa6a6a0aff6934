"""The table of captions: what is said stands beside what is true."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ccaco_cli.core.reporting import caption_table
from ccaco_cli.core.scoring.captions import CaptionedSample, StoredCaptions

REFERENCES = ("a red cat chasing a blue dog", "a red cat and a blue dog")
RUN: Any = SimpleNamespace(name="words", dataset="scenes", label="+caption", facts={"seed": 0})


def sample(caption: str, nearest: str, is_true: bool | None) -> CaptionedSample:
    things = None if is_true is None else 2
    return CaptionedSample("a", caption, nearest, REFERENCES, things, is_true, None if is_true is None else False)


def rows(samples: list[CaptionedSample], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(caption_table, "caption_metrics", lambda captions, references: {"BLEU-4": 0.5})
    listed = caption_table._rows(RUN, StoredCaptions(samples, 4))
    return {row.captions: row for row in listed if row.samples == "all"}


def test_captions_that_say_less_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [sample("a red cat", "a red cat chasing a blue fish", True), sample("cat cat red", REFERENCES[0], False)]
    by_source = rows(samples, monkeypatch)
    decoder, nearest, references = (by_source[name] for name in ("decoder", "nearest", "references"))
    assert (decoder.true_captions, decoder.things_named, decoder.relation_named, decoder.beam) == (0.5, 0.5, 0.0, 4)
    assert (nearest.true_captions, nearest.things_named, nearest.relation_named, nearest.beam) == (0.0, 2.0, 1.0, None)
    assert (references.true_captions, references.things_named, references.relation_named) == (None, 2.0, 0.5)
    assert decoder.metrics == {"BLEU-4": 0.5} and references.metrics == {}


def test_captions_of_photos_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = rows([sample("a red cat", "a dog", None)], monkeypatch)["decoder"]
    assert (decoder.true_captions, decoder.things_named, decoder.relation_named) == (None, None, None)
