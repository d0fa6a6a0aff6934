"""Questions with one-word answers about the generated scenes, which cannot be answered without the picture.

Candidates are drawn from the facts of each picture. Of the candidates of one text, as many are kept of each answer that
it can have: a model that reads the question alone is right as often as one that draws an answer blindly.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ccaco_cli.core.data.questions import Question
from ccaco_cli.core.data.scene_drawing import GROUNDS
from ccaco_cli.core.data.scene_words import SceneObject

COUNT_WORDS = ("no", "one", "two", "three", "four", "five")
COUNT_OPTIONS = {
    "how many things are there?": ("two", "three", "four"),
    "how many animals are there?": ("one", "two", "three"),
}
"""Question -> its answers: counts that are rare would leave few questions. Other pictures have no such question."""
RELATION_QUESTIONS = {
    "left": "what is on the left, the {} or the {}?",
    "above": "what is above, the {} or the {}?",
    "on": "what is on top, the {} or the {}?",
    "chasing": "who is chasing, the {} or the {}?",
}
"""Relation -> question about its first object; relations whose objects cannot exchange places have none."""
YES, NO = "yes", "no"


@dataclass(frozen=True, slots=True)
class QuestionCandidate:
    """A question that a picture can have.

    Attributes:
        kind: colour, count, relation, place or yes/no.
        text: the question.
        answer: one word.
        options: the answers that the text can have in pictures of this split.
    """

    kind: str
    text: str
    answer: str
    options: tuple[str, ...]


def question_candidates(
    objects: Sequence[SceneObject],
    relation: str,
    place: str,
    colours: Mapping[str, Sequence[str]],
    rng: random.Random,
) -> Iterator[QuestionCandidate]:
    """Draws the candidates of one picture.

    Args:
        objects, relation, place: the facts of the picture.
        colours: every noun -> its colours in pictures of this split.
    """
    for obj in objects:
        text = f"what colour is the {obj.noun}?"
        yield QuestionCandidate("colour", text, obj.colour, tuple(colours[obj.noun]))
    animals = sum(bool(obj.pose) for obj in objects)
    for (text, options), count in zip(COUNT_OPTIONS.items(), (len(objects), animals), strict=True):
        if COUNT_WORDS[count] in options:
            yield QuestionCandidate("count", text, COUNT_WORDS[count], options)
    yield QuestionCandidate("place", "where is it?", place, tuple(GROUNDS))
    if relation in RELATION_QUESTIONS:
        nouns = tuple(sorted(obj.noun for obj in objects[:2]))
        yield QuestionCandidate("relation", RELATION_QUESTIONS[relation].format(*nouns), objects[0].noun, nouns)
    yes_no = (YES, NO)
    obj, is_true = rng.choice(objects), rng.random() < 0.5
    colour = obj.colour if is_true else rng.choice([c for c in colours[obj.noun] if c != obj.colour])
    yield QuestionCandidate("yes/no", f"is the {obj.noun} {colour}?", YES if is_true else NO, yes_no)
    is_there = rng.random() < 0.5
    present = {obj.noun for obj in objects}
    noun = rng.choice([noun for noun in colours if (noun in present) == is_there])
    yield QuestionCandidate("yes/no", f"is there a {noun}?", YES if is_there else NO, yes_no)


def balanced(pictures: Sequence[Sequence[QuestionCandidate]], rng: random.Random) -> list[list[Question]]:
    """Chooses the questions of the pictures of a split.

    Args:
        pictures: the candidates of each picture.
    Returns:
        The questions of each picture. Over all of them, each text has each of its options equally often.
    """
    by_text: dict[str, dict[str, list[tuple[int, QuestionCandidate]]]] = {}
    for number, candidates in enumerate(pictures):
        for candidate in candidates:
            by_text.setdefault(candidate.text, {}).setdefault(candidate.answer, []).append((number, candidate))
    chosen: list[list[Question]] = [[] for _ in pictures]
    for by_answer in by_text.values():
        options = next(iter(by_answer.values()))[0][1].options
        count = min(len(by_answer.get(option, ())) for option in options)
        for option in options if count else ():
            for number, candidate in rng.sample(by_answer[option], count):
                question = Question(candidate.text, (option,), candidate.kind, round(1 / len(options), 4))
                chosen[number].append(question)
    return chosen
