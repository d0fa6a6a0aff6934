"""Captions of the generated scenes: English sentences from templates and synonyms, each true of the facts of its scene.

A ``Wording`` does not depend on the scene. So the same wording applied to a picture and to its swapped twin gives two
sentences with the same words, which differ only in which attribute belongs to which object.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

SYNONYMS: dict[str, tuple[str, ...]] = {
    "cat": ("cat", "cat", "cat", "kitty"),
    "dog": ("dog", "dog", "dog", "puppy"),
    "sofa": ("sofa", "sofa", "couch"),
    "house": ("house", "house", "hut"),
    "red": ("red", "red", "red", "scarlet"),
    "orange": ("orange", "orange", "orange", "tangerine"),
    "yellow": ("yellow", "yellow", "yellow", "golden"),
    "green": ("green", "green", "green", "emerald"),
    "blue": ("blue", "blue", "blue", "azure"),
    "purple": ("purple", "purple", "purple", "violet"),
    "small": ("small", "small", "little", "tiny"),
    "large": ("large", "big", "big", "huge"),
    "napping": ("napping", "napping", "sleeping", "snoozing"),
    "running": ("running", "running", "racing"),
    "sitting": ("sitting", "sitting", "resting"),
    "garden": ("in the garden", "in a garden", "on the lawn"),
    "beach": ("on the beach", "on the beach", "by the sea"),
    "room": ("in a room", "in the room", "indoors"),
    "snow": ("in the snow", "in the snow", "on a snowy day"),
    "street": ("on the street", "in the street", "on the road"),
    "desert": ("in the desert", "in the desert", "in a dry desert"),
    "forest": ("in the forest", "in the woods", "among the trees"),
    "night": ("at night", "at night", "under the stars"),
}
"""Canonical word -> synonyms, repeated by frequency; a word that is not listed has no synonyms."""

RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left": (("left of", "to the left of"), ("right of", "to the right of")),
    "above": (("above", "over"), ("below", "underneath")),
    "on": (("on", "on", "on top of"), ("carrying",)),
    "inside": (("inside", "inside", "in"), ("holding", "containing")),
    "chasing": (("chasing", "chasing", "following"), ("chased by", "followed by")),
    "next": (("next to", "beside"), ("next to", "beside")),
}
"""Relation -> (phrases for A to B, phrases for B to A)."""

FULL = (
    "{a} {r} {b}{more} {place}",
    "{a} {r} {b} {place}{more}",
    "{place}, {a} {r} {b}{more}",
    "{a} is {r} {b}{more} {place}",
)
SHORT = ("{a} {r} {b}{more}", "{a} {r} {b}{more}", "there is {a} {r} {b}{more}", "{a} is {r} {b}{more}")


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object of a scene, in canonical words; ``pose`` is "" for an object that has none."""

    noun: str
    colour: str
    size: str
    pose: str = ""


@dataclass(frozen=True, slots=True)
class Wording:
    """The form of a caption: template, synonyms, which attributes are named, whether B comes first (``inverse``).

    Attributes:
        words: canonical word -> English synonym.
        draws: canonical word -> random number 0..1, by which every language chooses its synonym.
    """

    template: int
    placed: bool
    inverse: bool
    sized: bool
    posed: bool
    pose_first: bool
    phrase: float
    more: int
    words: dict[str, str] = field(default_factory=dict)
    draws: dict[str, float] = field(default_factory=dict)

    @classmethod
    def draw(cls, rng: random.Random) -> Wording:
        """Draws a wording; it depends on the generator only."""
        template = rng.randrange(len(FULL))
        wording = cls(
            template=template,
            placed=rng.random() < 0.5,
            inverse=rng.random() < 0.35,
            sized=rng.random() < 0.5,
            posed=rng.random() < 0.85,
            # with "is" the relation follows, so the pose goes before the noun
            pose_first=template == 3 or rng.random() < 0.3,
            phrase=rng.random(),
            more=rng.choice((0, 1, 1, 2)),
            draws={word: rng.random() for word in SYNONYMS},
        )
        return replace(wording, words={word: wording.choose(word, synonyms) for word, synonyms in SYNONYMS.items()})

    def choose(self, word: str, synonyms: Sequence[str]) -> str:
        """Chooses among the synonyms that a language has for a canonical word."""
        return synonyms[int(self.draws.get(word, self.phrase) * len(synonyms))]

    def noun_phrase(self, obj: SceneObject, *, posed: bool = True) -> str:
        """One noun phrase: "a small orange cat napping"."""
        pose = self.say(obj.pose) if posed and self.posed and obj.pose else ""
        size = self.say(obj.size) if self.sized else ""
        front = [
            size,
            pose if self.pose_first else "",
            self.say(obj.colour),
            self.say(obj.noun),
            "" if self.pose_first else pose,
        ]
        text = " ".join(word for word in front if word)
        return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"

    def say(self, word: str) -> str:
        return self.words.get(word, word)


def full(wording: Wording, objects: Sequence[SceneObject], relation: str, place: str) -> str:
    """A caption with the main relation, objects[0] to objects[1], with attributes and possibly further objects."""
    a, b = (1, 0) if wording.inverse else (0, 1)
    phrases = RELATIONS[relation][wording.inverse]
    # "chasing" implies the pose of both, so it is not named again
    posed = relation != "chasing"
    extras = [wording.noun_phrase(t, posed=False) for t in objects[2 : 2 + wording.more]]
    template = (FULL if wording.placed else SHORT)[wording.template]
    return template.format(
        a=wording.noun_phrase(objects[a], posed=posed),
        b=wording.noun_phrase(objects[b], posed=posed),
        r=phrases[int(wording.phrase * len(phrases))],
        more=f" with {' and '.join(extras)} nearby" if extras else "",
        place=wording.say(place),
    )


def partial(wording: Wording, named: Sequence[SceneObject], place: str) -> str:
    """A caption of one or two objects with attributes and possibly the place, but without a relation."""
    text = " and ".join(wording.noun_phrase(obj) for obj in named)
    if wording.placed:
        return f"{text} {wording.say(place)}"
    return f"a picture of {text}" if wording.template == 0 else text
