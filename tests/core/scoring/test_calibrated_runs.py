"""Probabilities of a run: which pairs they are fitted on, and where they are stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ccaco_cli.core import manifest
from ccaco_cli.core.evaluation.calibration import Calibration
from ccaco_cli.core.scoring import pair_sampling, results, shown_words
from ccaco_cli.core.scoring.pair_sampling import calibration_pairs
from ccaco_cli.core.scoring.split_scorer import SplitEncodings
from ccaco_cli.core.types import Embedding, EncodedSamples, LocalTokens


def unit(rows: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_pairs_of_a_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    group = np.repeat(np.arange(20), 2)  # two rows of each group
    row_a, row_b = np.arange(40), np.repeat(np.arange(40), 3)
    z_a, z_b = unit(40, 0), unit(120, 1)
    monkeypatch.setattr(pair_sampling, "CALIBRATION_PAIRS", 30)
    true, false = (pairs.numpy() for pairs in calibration_pairs(group, row_a, row_b, z_a, z_b))
    assert len(true) == len(false) == 30
    assert (row_a[true[:, 0]] == row_b[true[:, 1]]).all() and (true[:, 1] == false[:, 1]).all()
    assert (group[row_a[false[:, 0]]] != group[row_b[false[:, 1]]]).all()  # a second row of the group is no other
    cosine = (z_a[false[:, 0]] * z_b[false[:, 1]]).sum(1)
    assert cosine[1::2].mean() > cosine[::2].mean() + 0.2  # alike, and drawn
    assert len(set(false[::2, 0])) > 5
    monkeypatch.setattr(pair_sampling, "ALIKE_OF", 5000)  # so many that every item is among them
    for a, b in calibration_pairs(group, row_a, row_b, z_a, z_b)[1].numpy()[1::2]:
        cosines_of_all = (z_a @ z_b[b]).numpy()
        cosines_of_all[group[row_a] == group[row_b[b]]] = -np.inf
        assert a == cosines_of_all.argmax()


def test_one_group_has_no_pairs() -> None:
    true, false = calibration_pairs(np.zeros(4, int), np.arange(4), np.arange(4), unit(4, 0), unit(4, 1))
    assert len(true) == len(false) == 0


def test_a_run_stores_its_probabilities_and_how_reliable_they_are(run: Path) -> None:
    stored = manifest.open(run, kind="run")
    assert set(stored.facts["calibration"]) == {"cosine", "two-stage"}
    for scoring, facts in stored.facts["calibration"].items():
        fitted = Calibration.from_dict(facts)
        assert fitted.split == "val" and fitted.pairs > 20 and 0 <= fitted.threshold <= 1
        (loaded,) = results.find_runs([run])
        measured = results.load_result(loaded, "test", scoring).reliability
        assert measured is not None and sum(part.n for part in measured.bins) == 2 * fitted.pairs
        assert 0 <= measured.ece <= 1 and 0 <= measured.brier <= 1
        assert results.load_result(loaded, "val", scoring).reliability is None  # measured where it was not fitted
    assert -1 <= stored.facts["word_threshold"] <= 1


class Words:
    """Encodings of captions of two words, whose tokens equal a token of the sample where the word is shown."""

    def __init__(self) -> None:
        names = [f"w{i}" for i in range(12)]
        basis = torch.eye(12)
        self.captions = [f"{names[2 * i]} {names[2 * i + 1]}" for i in range(6)]
        tokens = torch.stack([basis[2 * i : 2 * i + 2] for i in range(6)])
        local = LocalTokens(tokens, torch.ones(6, 2, dtype=torch.bool))
        samples = EncodedSamples(Embedding(unit(6, 0), unit(6, 0)), local)
        rows = np.arange(6)
        spans = lambda text: [(word, [i]) for i, word in enumerate(text.split())]  # noqa: E731
        self.encodings = SplitEncodings(samples, samples, rows, rows, word_spans=spans)
        self.split: Any = SimpleNamespace(
            group=rows, captions=self.captions, caption_start=np.arange(7), caption_row=rows
        )


def test_the_threshold_of_words_separates_shown_from_absent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words()
    monkeypatch.setattr(shown_words, "attended_cosines", lambda aligner, a, b: (b.tokens @ a.tokens.mT).amax(-1))
    chosen = shown_words.threshold(words.split, words.encodings, SimpleNamespace())  # type: ignore[arg-type]
    assert chosen == pytest.approx(0.5)  # halfway between 0 (absent) and 1 (shown)


def test_without_words_or_tokens_there_is_no_threshold() -> None:
    words = Words()
    bare = SplitEncodings(words.encodings.a, words.encodings.b, np.arange(6), np.arange(6))
    assert shown_words.threshold(words.split, bare, SimpleNamespace()) is None  # type: ignore[arg-type]
