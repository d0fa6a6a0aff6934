from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from ccaco_cli.core.data import scene_records
from ccaco_cli.core.data.questions import Question, read_questions
from ccaco_cli.core.data.scene_questions import COUNT_WORDS, NO, YES
from ccaco_cli.core.scoring.answers import MajorityAnswers
from ccaco_cli.core.types import PairRecord

COUNTS = {"train": {"colour": 3000}, "test": {"colour": 1000}}
KINDS = {"colour", "count", "relation", "place", "yes/no"}


def make(seed: int = 0) -> list[PairRecord]:
    return list(scene_records.records("scenes", COUNTS, seed=seed, size=64, limit=None))


@pytest.fixture(scope="module")
def records() -> list[PairRecord]:
    return make()


def is_true(text: str, answer: str, record: PairRecord) -> bool:
    """Reads a question by its words, and looks its answer up in the facts."""
    meta, words = record.meta, text.removesuffix("?").replace(",", "").split()
    facts = {fact["noun"]: fact for fact in meta["facts"]}
    if text.startswith("what colour"):
        return bool(facts[words[-1]]["colour"] == answer)
    if "things" in words:
        return COUNT_WORDS[len(facts)] == answer
    if "animals" in words:
        return COUNT_WORDS[sum(bool(fact["pose"]) for fact in facts.values())] == answer
    if words[0] == "where":
        return bool(meta["place"] == answer)
    if text.startswith("is there"):
        return (words[-1] in facts) == {YES: True, NO: False}[answer]
    if words[0] == "is":
        return (facts[words[2]]["colour"] == words[3]) == {YES: True, NO: False}[answer]
    relation = {"left": "left", "above": "above", "top": "on", "chasing": "chasing"}
    (named_relation,) = [value for word, value in relation.items() if word in words]
    return bool(meta["relation"] == named_relation and meta["facts"][0]["noun"] == answer and answer in words)


def test_every_answer_is_true_and_one_word(records: list[PairRecord]) -> None:
    kinds = Counter()
    for record in records:
        for question in read_questions(record.meta):
            (answer,) = question.answers
            kinds[question.kind] += 1
            assert len(answer.split()) == 1 and is_true(question.text, answer, record), (question, record.meta)
    assert kinds.keys() == KINDS and min(kinds.values()) > 1000


def questions_of(records: list[PairRecord], split: str) -> list[Question]:
    return [question for record in records if record.split == split for question in read_questions(record.meta)]


def test_the_question_alone_answers_at_chance(records: list[PairRecord]) -> None:
    blind = MajorityAnswers(questions_of(records, "train"))
    outcomes: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for question in questions_of(records, "test"):
        assert question.chance is not None
        outcomes[question.kind].append((blind(question) == question.answers[0], question.chance))
    assert outcomes.keys() == KINDS
    for kind, values in outcomes.items():
        accuracy, chance = (sum(column) / len(values) for column in zip(*values, strict=True))
        error = 1.96 * (chance * (1 - chance) / len(values)) ** 0.5
        assert abs(accuracy - chance) <= error, (kind, accuracy, chance)


def test_each_text_has_its_answers_equally_often_in_each_split(records: list[PairRecord]) -> None:
    for split in COUNTS:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for question in questions_of(records, split):
            counts[question.text].update(question.answers)
        assert all(len(set(by_answer.values())) == 1 and len(by_answer) > 1 for by_answer in counts.values())


def test_the_same_seed_gives_the_same_questions(records: list[PairRecord]) -> None:
    assert [record.meta for record in make()] == [record.meta for record in records]
    assert [record.meta["questions"] for record in make(1)] != [record.meta["questions"] for record in records]


def test_captions_and_facts_are_those_of_data_without_questions(records: list[PairRecord]) -> None:
    import hashlib

    counts = {"train": {"colour": 60, "sketch": 24}, "test": {"colour": 60}}
    sha = hashlib.sha256()
    for record in scene_records.records("s", counts, seed=0, size=64, limit=None):
        meta = {name: value for name, value in record.meta.items() if name != "questions"}
        sha.update(repr((record.id, record.captions, record.family, meta)).encode())
    assert sha.hexdigest() == "cb8565b22fa8ea90741cdb2e1d89a7d75144a04098d7555c09ff4e3216a89e9c"
