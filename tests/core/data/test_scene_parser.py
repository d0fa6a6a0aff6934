"""The parser is the inverse of the grammar: for 10,000 scenes, all templates and synonyms."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from ccaco_cli.core.data import scene_records, scene_words, scenes
from ccaco_cli.core.data.scene_parser import NOUNS, SceneClaims, parse
from ccaco_cli.core.data.scene_words import FULL, SHORT, SceneObject, Wording


def meta_of(scene: Any) -> dict[str, Any]:
    return scene_records._meta(scene)


def as_worded(wording: Wording, obj: SceneObject, *, posed: bool) -> SceneObject:
    """The object as a sentence of this wording names it."""
    return replace(obj, size=obj.size if wording.sized else "", pose=obj.pose if posed and wording.posed else "")


def test_parse_of_a_generated_sentence_gives_its_facts() -> None:
    rng = random.Random(5)
    templates = set()
    for _ in range(10_000):
        scene = scenes.compose(rng, rng.choice(list(scenes.KINDS)), allow_held_out=True)[-1]
        wording = Wording.draw(rng)
        templates.add((FULL if wording.placed else SHORT)[wording.template])
        text = scene_words.full(wording, scene.objects, scene.relation, scene.place)
        order = (1, 0) if wording.inverse else (0, 1)
        extras = scene.objects[2 : 2 + wording.more]
        objects = [as_worded(wording, scene.objects[i], posed=scene.relation != "chasing") for i in order]
        objects += [as_worded(wording, obj, posed=False) for obj in extras]
        related = (1, 0) if wording.inverse and scene.relation != "next" else (0, 1)
        place = scene.place if wording.placed else ""
        claims = parse(text)
        assert claims == SceneClaims(tuple(objects), scene.relation, related, place), text
        assert claims.true_of(meta_of(scene)), text
    assert templates == {*FULL, *SHORT}


def test_sentences_without_a_relation() -> None:
    rng = random.Random(6)
    for _ in range(3_000):
        scene = scenes.compose(rng, allow_held_out=True)[0]
        wording = Wording.draw(rng)
        text = scene_words.partial(wording, rng.sample(scene.objects, rng.choice((1, 1, 2))), scene.place)
        claims = parse(text)
        assert claims is not None, text
        assert claims.relation == "" and claims.place == (scene.place if wording.placed else "")
        assert claims.true_of(meta_of(scene)), text


@pytest.mark.parametrize("kind", ["role", "colour", "shape"])
def test_a_sentence_is_false_of_the_swapped_twin(kind: str) -> None:
    rng = random.Random(7)
    for _ in range(500):
        scene, twin = scenes.compose(rng, kind, allow_held_out=True)
        claims = parse(scene_words.full(Wording.draw(rng), scene.objects, scene.relation, scene.place))
        assert claims is not None and claims.true_of(meta_of(scene)) and not claims.true_of(meta_of(twin))


SCENE = {
    "facts": [
        {"noun": "cat", "colour": "orange", "size": "small", "pose": "napping"},
        {"noun": "sofa", "colour": "blue", "size": "large", "pose": ""},
    ],
    "relation": "on",
    "place": "snow",
}


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("an orange cat on a blue sofa", True),
        ("In the snow , an orange cat sleeping on top of a big azure couch", True),
        ("a blue sofa carrying a tiny tangerine kitty", True),
        ("a red cat on a blue sofa", False),
        ("an orange cat on a blue box", False),
        ("a large orange cat on a blue sofa", False),
        ("a blue sofa on an orange cat", False),
        ("an orange cat next to a blue sofa", False),
        ("an orange cat at night", False),
        ("an orange cat sitting", False),
        ("an orange cat and an orange cat", False),
        ("an orange cat on a blue sofa with a red ball nearby", False),
    ],
)
def test_what_is_true_of_a_picture(text: str, true: bool) -> None:
    claims = parse(text)
    assert claims is not None and claims.true_of(SCENE) == true


@pytest.mark.parametrize(
    "text", ["", "a", "cat on sofa", "a orange cat", "an orange cat on", "an orange cat on a blue sofa on a red car"]
)
def test_no_sentence_of_the_grammar(text: str) -> None:
    assert parse(text) is None


def test_every_noun_is_known() -> None:
    assert set(NOUNS) == {*scenes.ANIMALS, *scenes.OBJECTS}
