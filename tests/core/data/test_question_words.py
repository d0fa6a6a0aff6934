"""Questions as the decoder reads them: which texts a batch has, and which words carry a loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ccaco_cli.core.config import DecoderConfig
from ccaco_cli.core.data.caption_words import CaptionWords
from ccaco_cli.core.data.loader import PairPlan, part
from ccaco_cli.core.data.question_words import CAPTION, MixedWords, QuestionColumn
from ccaco_cli.core.data.questions import QUESTIONS, Question, stored
from ccaco_cli.core.losses.caption import caption_loss
from ccaco_cli.core.model.decoder import IGNORED, TextDecoder
from ccaco_cli.core.model.towers.tower import TextIds

VOCABULARY = ["a", "ball", "what", "colour", "how", "many", "red", "two", "dark", "START", "END"]
START, END = VOCABULARY.index("START"), VOCABULARY.index("END")
ROWS = [
    [Question("what colour", ("red", "dark red"))],
    [],
    [Question("how many", ("two",)), Question("what colour", ("red",))],
]


def tokenize(texts: list[str]) -> dict[str, torch.Tensor]:
    rows = [[START, *(VOCABULARY.index(word) for word in text.split()), END] for text in texts]
    longest = max(map(len, rows))
    mask = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    return {"ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]), "mask": mask}


class Rows:
    """A split with questions."""

    def __len__(self) -> int:
        return len(ROWS)

    def metas(self, rows: Any) -> list[dict[str, Any]]:
        return [{QUESTIONS: stored(ROWS[row])} if ROWS[row] else {} for row in rows]


class Captions:
    """Captions of a text column: "a ball" for each item."""

    def inputs(self, items: Any) -> dict[str, torch.Tensor]:
        return tokenize(["a ball"] * len(items))


def column(share: float = 0.5) -> QuestionColumn:
    return QuestionColumn(Rows(), tokenize, (START, END), share)  # type: ignore[arg-type]


def mixed(share: float = 0.5) -> MixedWords:
    return MixedWords(CaptionWords(Captions()), column(share))  # type: ignore[arg-type]


def words_of(row: torch.Tensor, mask: torch.Tensor) -> str:
    return " ".join(VOCABULARY[i] for i in row[mask].tolist())


def test_an_item_is_a_question_with_one_of_its_answers() -> None:
    questions = column()
    assert questions.start.tolist() == [0, 2, 2, 4]
    texts = [questions.text(item) for item in range(4)]
    assert [" ".join(VOCABULARY[i] for i in ids) for ids, _ in texts] == [
        "START what colour red END",
        "START what colour dark red END",
        "START how many two END",
        "START what colour red END",
    ]
    assert [length for _, length in texts] == [2, 2, 2, 2]


def test_a_batch_mixes_captions_and_questions() -> None:
    words = mixed()(np.arange(3), np.array([1, CAPTION, 2]))
    assert [words_of(row, mask) for row, mask in zip(words.ids, words.mask, strict=True)] == [
        "START what colour dark red END",
        "START a ball END",
        "START how many two END",
    ]
    assert words.prefix is not None and words.prefix.tolist() == [2, 0, 2]


def test_the_share_of_questions_is_that_of_the_setting_and_samples_without_any_have_captions() -> None:
    rng = np.random.default_rng(0)
    drawn = column(0.3).draw(np.zeros(10_000, np.int64), rng)
    assert np.mean(drawn != CAPTION) == pytest.approx(0.3, abs=0.02)
    assert set(drawn.tolist()) == {CAPTION, 0, 1}
    assert (column(1.0).draw(np.ones(100, np.int64), rng) == CAPTION).all()
    assert set(column(1.0).draw(np.full(100, 2), rng).tolist()) == {2, 3}
    assert set(column().token_ids().tolist()) == {VOCABULARY.index(w) for w in VOCABULARY[2:9]}


def decoder(max_words: int = 8) -> TextDecoder:
    torch.manual_seed(0)
    ids = TextIds(len(VOCABULARY), START, END)
    built = TextDecoder(ids, 16, DecoderConfig(layers=1, heads=2, dropout=0.0, max_words=max_words))
    built.add_words(range(len(VOCABULARY)))
    return built.eval()


def memory(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 4, 16, generator=torch.Generator().manual_seed(1)), torch.ones(rows, 4, dtype=torch.bool)


def test_the_question_carries_no_loss_and_its_answer_does() -> None:
    words = mixed()(np.arange(2), np.array([1, CAPTION]))
    predicted = decoder()(*memory(2), words)
    dark, red, end = (VOCABULARY.index(word) for word in ("dark", "red", "END"))
    a, ball = (VOCABULARY.index(word) for word in ("a", "ball"))
    assert predicted.targets.tolist() == [[IGNORED, IGNORED, dark, red, end], [a, ball, end, IGNORED, IGNORED]]


def test_the_answer_has_a_gradient_through_the_picture_and_the_question() -> None:
    words = mixed()(np.arange(1), np.array([0]))
    described, mask = memory(1)
    described.requires_grad_()
    built = decoder()
    predicted = built(described, mask, words)
    caption_loss(predicted.logits, predicted.targets).backward()
    assert described.grad is not None and described.grad.abs().sum() > 0
    # another question changes what is predicted, although its own words are not scored
    other = built(described, mask, mixed()(np.arange(1), np.array([2])))
    assert not torch.allclose(other.logits[:, 2], predicted.logits[:, 2])


def test_a_plan_draws_the_same_questions_for_any_number_of_processes_and_leaves_the_pairs_as_they_are() -> None:
    class Items:
        row, start, length = np.arange(3), np.arange(4), None

    items, family = Items(), np.arange(3)
    plain = PairPlan(items, items, family, 3, 7)  # type: ignore[arg-type]
    with_questions = PairPlan(items, items, family, 3, 7, questions=column().draw)  # type: ignore[arg-type]
    for number in range(4):
        without, entries = plain.epoch(number), with_questions.epoch(number)
        for expected, entry in zip(without, entries, strict=True):
            assert len(expected) == 3
            assert all(np.array_equal(x, y) for x, y in zip(expected, entry[:3], strict=True))
            shares = [part(entry, rank, 3) for rank in range(3)]
            assert np.array_equal(np.concatenate([share[3] for share in shares]), entry[3])
    drawn = [tuple(with_questions.epoch(number)[0][3]) for number in range(8)]
    assert len(set(drawn)) > 2 and drawn[0] == tuple(with_questions.epoch(0)[0][3])
