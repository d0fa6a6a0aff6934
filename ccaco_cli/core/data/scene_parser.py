"""Reads the captions of the generated scenes: the inverse of ``scene_words``, which says what a sentence claims."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ccaco_cli.core.data.scene_drawing import GROUNDS
from ccaco_cli.core.data.scene_figures import COLOURS
from ccaco_cli.core.data.scene_words import RELATIONS, SYNONYMS, SceneObject

NOUNS = ("cat", "dog", "bird", "fish", "ball", "box", "car", "sofa", "tree", "house")
SIZES = ("small", "large")
POSES = ("napping", "sitting", "running", "flying", "swimming")


@dataclass(frozen=True)
class SceneClaims:
    """What a caption says of a scene.

    Attributes:
        objects: in the order of the sentence; "" where size or pose is not said.
        relation: of the objects at ``related``; "" = none is said. ``inside`` and others as keys of ``RELATIONS``.
        related: numbers of subject and object of the relation.
        place: canonical word; "" = not said.
    """

    objects: tuple[SceneObject, ...]
    relation: str = ""
    related: tuple[int, int] = (0, 1)
    place: str = ""

    def true_of(self, meta: Mapping[str, Any]) -> bool:
        """Whether all that is said is true of a scene: each object is another one of the picture.

        Args:
            meta: facts of the sample, as the source ``scenes`` stores them.
        """
        if self.place and self.place != meta["place"]:
            return False
        facts = [SceneObject(**fact) for fact in meta["facts"]]
        numbers = [_matching(claimed, facts) for claimed in self.objects]
        if None in numbers or len(set(numbers)) < len(numbers):
            return False
        if not self.relation:
            return True
        if self.relation != meta["relation"]:
            return False
        subject, target = (numbers[i] for i in self.related)
        return (subject, target) == (0, 1) or (self.relation == "next" and (subject, target) == (1, 0))


def _matching(claimed: SceneObject, facts: Sequence[SceneObject]) -> int | None:
    """Number of the object with this noun and colour, if its size and pose are as said; nouns and colours of a scene
    differ."""
    for number, fact in enumerate(facts):
        if (claimed.noun, claimed.colour) == (fact.noun, fact.colour):
            same = claimed.size in ("", fact.size) and claimed.pose in ("", fact.pose)
            return number if same else None
    return None


def parse(text: str) -> SceneClaims | None:
    """What a caption says; None where the grammar of ``scene_words`` makes no such sentence.

    Args:
        text: a caption, in any case; spaces and commas may differ.
    """
    words = " ".join(re.sub(r"[,.]", " ", text.lower()).split())
    match = _with_relation().fullmatch(words) or _without_relation().fullmatch(words)
    if match is None:
        return None
    groups = {name: value for name, value in match.groupdict().items() if value}
    phrases = [groups[name] for name in ("a", "b") if name in groups] + groups.get("more", "").split(" and ")
    objects = [_object(phrase) for phrase in phrases if phrase]
    places = [_canonical(value) for name, value in groups.items() if name.startswith("place")]
    if None in objects or len(places) > 1:
        return None
    place = places[0] if places else ""
    if "r" not in groups:
        return SceneClaims(tuple(obj for obj in objects if obj), place=place)
    relation, inverse = _relations()[groups["r"]]
    return SceneClaims(tuple(obj for obj in objects if obj), relation, (1, 0) if inverse else (0, 1), place)


def _object(phrase: str) -> SceneObject | None:
    """A noun phrase, such as "a small orange cat napping"."""
    match = _noun_phrase().fullmatch(phrase)
    if match is None:
        return None
    words = {name: _canonical(value) for name, value in match.groupdict(default="").items()}
    if (words["before"] and words["after"]) or match["article"] != ("an" if phrase.split()[1][0] in "aeiou" else "a"):
        return None
    return SceneObject(words["noun"], words["colour"], words["size"], words["before"] or words["after"])


@cache
def _synonyms() -> dict[str, str]:
    """Words of a sentence -> canonical word."""
    return {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms}


def _canonical(word: str) -> str:
    return _synonyms().get(word, word)


@cache
def _relations() -> dict[str, tuple[str, bool]]:
    """Phrase -> (relation, whether B comes first); a phrase that goes both ways counts as not inverse."""
    phrases: dict[str, tuple[str, bool]] = {}
    for relation, directions in RELATIONS.items():
        for inverse, alternatives in enumerate(directions):
            for phrase in alternatives:
                phrases.setdefault(phrase, (relation, bool(inverse)))
    return phrases


def _any(words: Iterable[str], *, synonyms: bool = True) -> str:
    """A pattern of these words and their synonyms, the longest first."""
    phrases = {phrase for word in words for phrase in (SYNONYMS.get(word, (word,)) if synonyms else (word,))}
    return "|".join(sorted(map(re.escape, phrases), key=len, reverse=True))


def _phrase_pattern() -> str:
    pose = _any(POSES)
    return f"an? (?:(?:{_any(SIZES)}) )?(?:(?:{pose}) )?(?:{_any(COLOURS)}) (?:{_any(NOUNS)})(?: (?:{pose}))?"


@cache
def _noun_phrase() -> re.Pattern[str]:
    pose = _any(POSES)
    return re.compile(
        f"(?P<article>an?) (?:(?P<size>{_any(SIZES)}) )?(?:(?P<before>{pose}) )?(?P<colour>{_any(COLOURS)}) "
        f"(?P<noun>{_any(NOUNS)})(?: (?P<after>{pose}))?"
    )


@cache
def _with_relation() -> re.Pattern[str]:
    phrase, place = _phrase_pattern(), _any(GROUNDS)
    more = f"(?: with (?P<more>{phrase}(?: and {phrase})?) nearby)?"
    related = f"(?P<a>{phrase}) (?:is )?(?P<r>{_any(_relations(), synonyms=False)}) (?P<b>{phrase})"
    places = f"(?: (?P<place_before>{place}))?{more}(?: (?P<place_after>{place}))?"
    return re.compile(f"(?:there is )?(?:(?P<place_first>{place}) )?{related}{places}")


@cache
def _without_relation() -> re.Pattern[str]:
    phrase, place = _phrase_pattern(), _any(GROUNDS)
    return re.compile(f"(?:a picture of )?(?P<a>{phrase})(?: and (?P<b>{phrase}))?(?: (?P<place>{place}))?")
