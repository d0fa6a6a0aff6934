"""The captions of the generated scenes: English sentences from templates and synonyms, each true of the facts it is made from.

A ``Wording`` is chosen without looking at a scene, so the same wording said of a picture and of its twin gives two
sentences of the same words that differ only in what binds to what.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

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
"""Canonical word -> how captions say it, by frequency; a word that is not listed is said as it is."""

RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left": (("left of", "to the left of"), ("right of", "to the right of")),
    "above": (("above", "over"), ("below", "underneath")),
    "on": (("on", "on", "on top of"), ("carrying",)),
    "inside": (("inside", "inside", "in"), ("holding", "containing")),
    "chasing": (("chasing", "chasing", "following"), ("chased by", "followed by")),
    "next": (("next to", "beside"), ("next to", "beside")),
}
"""Relation -> (how A stands to B, how B stands to A)."""

FULL = (
    "{a} {r} {b}{more} {place}",
    "{a} {r} {b} {place}{more}",
    "{place}, {a} {r} {b}{more}",
    "{a} is {r} {b}{more} {place}",
)
SHORT = ("{a} {r} {b}{more}", "{a} {r} {b}{more}", "there is {a} {r} {b}{more}", "{a} is {r} {b}{more}")


@dataclass(frozen=True, slots=True)
class Thing:
    """What captions may say of one thing, in canonical words; ``pose`` is "" for what has none."""

    noun: str
    colour: str
    size: str
    pose: str = ""


@dataclass(frozen=True, slots=True)
class Wording:
    """How to say a scene: which template, which synonyms, which attributes, whether B comes first."""

    template: int
    placed: bool
    inverse: bool
    sized: bool
    posed: bool
    pose_first: bool
    phrase: float
    more: int
    words: dict[str, str] = field(default_factory=dict)

    @classmethod
    def draw(cls, rng: random.Random) -> Wording:
        """A wording, from the generator alone."""
        template = rng.randrange(len(FULL))
        return cls(
            template=template,
            placed=rng.random() < 0.5,
            inverse=rng.random() < 0.35,
            sized=rng.random() < 0.5,
            posed=rng.random() < 0.85,
            # "is" wants what the thing does behind it, so the pose moves before the noun.
            pose_first=template == 3 or rng.random() < 0.3,
            phrase=rng.random(),
            more=rng.choice((0, 1, 1, 2)),
            words={word: said[int(rng.random() * len(said))] for word, said in SYNONYMS.items()},
        )

    def thing(self, thing: Thing, *, posed: bool = True) -> str:
        """One noun phrase: "a small orange cat napping"."""
        pose = self.say(thing.pose) if posed and self.posed and thing.pose else ""
        size = self.say(thing.size) if self.sized else ""
        front = [
            size,
            pose if self.pose_first else "",
            self.say(thing.colour),
            self.say(thing.noun),
            "" if self.pose_first else pose,
        ]
        text = " ".join(word for word in front if word)
        return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"

    def say(self, word: str) -> str:
        return self.words.get(word, word)


def full(wording: Wording, things: Sequence[Thing], relation: str, place: str) -> str:
    """A caption that names the main relation, things[0] to things[1], with attributes, and perhaps further things."""
    a, b = (1, 0) if wording.inverse else (0, 1)
    phrases = RELATIONS[relation][wording.inverse]
    # A chase says what both do; naming the pose again ("running chasing") would only be clumsy.
    posed = relation != "chasing"
    extras = [wording.thing(t, posed=False) for t in things[2 : 2 + wording.more]]
    template = (FULL if wording.placed else SHORT)[wording.template]
    return template.format(
        a=wording.thing(things[a], posed=posed),
        b=wording.thing(things[b], posed=posed),
        r=phrases[int(wording.phrase * len(phrases))],
        more=f" with {' and '.join(extras)} nearby" if extras else "",
        place=wording.say(place),
    )


def partial(wording: Wording, things: Sequence[Thing], place: str, rng: random.Random) -> str:
    """A caption that names a part only: one or two things, how they look, and perhaps where; no relation."""
    named = rng.sample(range(len(things)), rng.choice((1, 1, 2)))
    text = " and ".join(wording.thing(things[i]) for i in named)
    if wording.placed:
        return f"{text} {wording.say(place)}"
    return f"a picture of {text}" if wording.template == 0 else text
