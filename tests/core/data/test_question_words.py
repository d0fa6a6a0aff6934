"""Questions as the decoder reads them: which texts a batch has, and which words carry a loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ccaco_cli.core.config import DecoderConfig
from ccaco_cli.core.data.loader import PairPlan, part
from ccaco_cli.core.data.question_words import NO_QUESTION, QuestionColumn
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


def column(per_pair: int = 2) -> QuestionColumn:
    return QuestionColumn(Rows(), tokenize, (START, END), per_pair)  # type: ignore[arg-type]


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


def test_an_item_has_its_texts_and_a_sample_without_questions_has_no_tokens() -> None:
    words = column()(np.array([1, NO_QUESTION, 2]))
    assert [words_of(row, mask) for row, mask in zip(words.ids, words.mask, strict=True)] == [
        "START what colour dark red END",
        "",
        "START how many two END",
    ]
    assert words.prefix is not None and words.prefix.tolist() == [2, 0, 2]


def test_each_pair_has_different_questions_and_repeats_them_where_it_has_too_few() -> None:
    rng = np.random.default_rng(0)
    drawn = column(2).draw(np.array([0, 1, 2] * 50), rng)
    assert {tuple(items) for items in drawn[0::3]} == {(0, 1), (1, 0)}
    assert (drawn[1::3] == NO_QUESTION).all()
    assert {tuple(items) for items in drawn[2::3]} == {(2, 3), (3, 2)}
    assert sorted(column(3).draw(np.array([2]), rng)[0]) in ([2, 2, 3], [2, 3, 3])
    assert set(column(1).draw(np.zeros(100, np.int64), rng)[:, 0].tolist()) == {0, 1}
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
    predicted = decoder()(*memory(3), column()(np.array([1, NO_QUESTION, 2])))
    dark, red, two, end = (VOCABULARY.index(word) for word in ("dark", "red", "two", "END"))
    assert predicted.targets.tolist() == [
        [IGNORED, IGNORED, dark, red, end],
        [IGNORED] * 5,
        [IGNORED, IGNORED, two, end, IGNORED],
    ]


def test_the_answer_has_a_gradient_through_the_picture_and_the_question() -> None:
    words = column()(np.array([0]))
    described, mask = memory(1)
    described.requires_grad_()
    built = decoder()
    predicted = built(described, mask, words)
    caption_loss(predicted.logits, predicted.targets).backward()
    assert described.grad is not None and described.grad.abs().sum() > 0
    # another question changes what is predicted, although its own words are not scored
    other = built(described, mask, column()(np.array([2])))
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
    drawn = [tuple(with_questions.epoch(number)[0][3].flatten()) for number in range(8)]
    assert len(set(drawn)) > 2 and drawn[0] == tuple(with_questions.epoch(0)[0][3].flatten())
