from __future__ import annotations

import pytest

from ccaco_cli.core.evaluation.answers import answer_accuracy, normalise_answer


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Dog.", "dog"),
        ("a cat", "cat"),
        ("two", "2"),
        ("None", "0"),
        ("red/white", "red white"),
        ("red / white", "red white"),
        ("yes, it is", "yes it is"),
        ("1,000", "1000"),
        ("2.5", "2.5"),
        ("don't", "dont"),
        ("t-shirt", "t shirt"),
        ("", ""),
    ],
)
def test_answers_are_compared_as_vqa_does(text: str, normalised: str) -> None:
    assert normalise_answer(text) == normalised


@pytest.mark.parametrize("count", range(11))
def test_an_answer_counts_by_how_many_people_gave_it(count: int) -> None:
    people = ["yes"] * count + ["no"] * (10 - count)
    # by hand: of the people one is left out, who may have given this answer
    expected = (count * min((count - 1) / 3, 1) + (10 - count) * min(count / 3, 1)) / 10 if count else 0
    assert answer_accuracy("Yes.", people, voted=True) == pytest.approx(expected)


def test_one_of_several_accepted_answers_is_right() -> None:
    assert answer_accuracy("couch", ["sofa", "a couch"]) == 1
    assert answer_accuracy("bed", ["sofa", "a couch"]) == 0
    assert answer_accuracy("sofa", ["sofa"], voted=True) == 1
