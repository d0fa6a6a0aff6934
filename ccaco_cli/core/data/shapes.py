"""The generated data set ``shapes``: point clouds of two or three coloured solids, with captions.

Its captions test binding in three dimensions: which colour and which size belong to which solid, and which solid is
left of, above or on which. Every sample has a random generator seeded by (seed, split, index), so the set is the same
for any number of workers. Composing happens while records are streamed; points are drawn by a picklable function.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ccaco_cli.core.data import arrays, scene_words
from ccaco_cli.core.data.scene_figures import COLOURS
from ccaco_cli.core.data.scene_words import SceneObject, Wording
from ccaco_cli.core.types import PairRecord

Array = np.ndarray[Any, Any]
KINDS: dict[str, tuple[str, ...]] = {
    "": ("left", "above", "on", "next"),
    "role": ("left", "above", "on"),
    "colour": ("left", "above", "on", "next"),
    "size": ("left", "above", "on", "next"),
    "shape": ("left", "above", "on", "next"),
}
"""Kind of swapped twin ("" = none) -> relations for which the swap gives a different cloud."""
FAMILIES = ("", "role", "", "colour", "", "size", "", "shape")
"""Kinds of twins of consecutive families in every split, repeated."""
HELD_OUT = frozenset(
    {
        *(("sphere", "purple"), ("cube", "green"), ("cone", "blue")),
        *(("cylinder", "red"), ("pyramid", "yellow"), ("ring", "orange")),
    }
)
"""(solid, colour) pairs that occur in the test split only."""
SYNONYMS = {"sphere": ("sphere", "sphere", "ball"), "cube": ("cube", "cube", "block"), "ring": ("ring", "ring", "hoop")}
SIZES = {"small": 0.5, "large": 1.0}
"""Side of the cube that a solid fills."""
CAPTIONS, FULL_CAPTIONS = 5, 3
POINTS = (224, 288)
"""Fewest and most points of a cloud."""
TURN = 15.0
"""Degrees by which a solid is turned at most, so that its place in the cube stays what the relation says."""
NOISE = 0.01
"""Standard deviation of the points around their surface."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The content of a cloud.

    Attributes:
        objects: two or three.
        relation: of objects[0] to objects[1].
        jitter: random numbers of the layout, 0..1.
        points: number of points.
        seed: of the points.
    """

    objects: tuple[SceneObject, ...]
    relation: str
    jitter: tuple[float, ...]
    points: int
    seed: int


def swap(scene: Arrangement, kind: str) -> Arrangement:
    """The twin: objects[0] and [1] exchange places (role), colours, sizes or shapes."""
    a, b, *others = scene.objects
    if kind == "role":
        a, b = b, a
    else:
        name = {"colour": "colour", "size": "size", "shape": "noun"}[kind]
        a, b = replace(a, **{name: getattr(b, name)}), replace(b, **{name: getattr(a, name)})
    return replace(scene, objects=(a, b, *others))


def held_out(scene: Arrangement) -> bool:
    """True if an object has a (solid, colour) pair that does not occur in train and val."""
    return any((solid.noun, solid.colour) in HELD_OUT for solid in scene.objects)


def compose(rng: random.Random, kind: str = "", *, allow_held_out: bool = False) -> tuple[Arrangement, ...]:
    """Draws an arrangement and its twin of that kind (none if ``kind`` is ""), with the same layout numbers."""
    while True:
        count = rng.choices((2, 3), (2, 1))[0]
        nouns, colours = rng.sample(tuple(SOLIDS), count), rng.sample(tuple(COLOURS), count)
        sizes = [rng.choice(tuple(SIZES)) for _ in range(count)]
        if kind == "size":
            sizes[:2] = rng.sample(tuple(SIZES), 2)
        scene = Arrangement(
            tuple(map(SceneObject, nouns, colours, sizes)),
            rng.choice(KINDS[kind]),
            tuple(rng.random() for _ in range(12)),
            rng.randint(*POINTS),
            rng.randrange(2**31),
        )
        family = (scene, swap(scene, kind)) if kind else (scene,)
        if allow_held_out or not any(map(held_out, family)):
            return family


def places(scene: Arrangement) -> list[tuple[float, Array]]:
    """(side, centre [3]) of each object; x points to the right, y away from the viewer, z up from the floor."""
    jitter = scene.jitter
    sides = [SIZES[solid.size] * (0.9 + 0.2 * jitter[i]) for i, solid in enumerate(scene.objects)]
    a, b = sides[:2]
    shift = np.array([0.4 * (jitter[3] - 0.5), 0.4 * (jitter[4] - 0.5), 0.0])
    centre_b = np.array([0.0, 0.0, b / 2])
    if scene.relation in ("left", "next"):
        near, direction = scene.relation == "next", -1 if scene.relation == "left" or jitter[5] < 0.5 else 1
        gap = 0.03 if near else 0.3 + 0.3 * jitter[6]
        centre_a = np.array([direction * (a / 2 + gap + b / 2), 0.1 * (jitter[7] - 0.5), a / 2])
    else:
        gap = 0.0 if scene.relation == "on" else 0.35 + 0.25 * jitter[6]
        centre_a = np.array([0.1 * (jitter[7] - 0.5), 0.1 * (jitter[8] - 0.5), b + gap + a / 2])
    centres = [centre_a + shift, centre_b + shift]
    for side in sides[2:]:  # behind the two, a little to one side
        centres.append(np.array([1.6 * (jitter[9] - 0.5), 1.5 + 0.4 * jitter[10], side / 2]) + shift)
    return list(zip(sides, centres, strict=True))


def render(scene: Arrangement) -> bytes:
    """The cloud as a ``.npy`` file of [points, 6] float32: x, y, z, and red, green, blue in 0..1, in no order.

    Equal arrangements give equal bytes.
    """
    rng = np.random.default_rng(scene.seed)
    placed = places(scene)
    # as many points as surface, but enough for a small solid
    weights = np.array([max(side, 0.6) ** 2 for side, _ in placed])
    counts = np.maximum(1, (scene.points * weights / weights.sum()).astype(int))
    counts[0] += scene.points - counts.sum()
    parts = []
    for solid, (side, centre), count in zip(scene.objects, placed, counts.tolist(), strict=True):
        points = turned(SOLIDS[solid.noun](rng, count), rng.uniform(-TURN, TURN)) * side + centre
        points += NOISE * rng.standard_normal(points.shape)
        colour = np.array(COLOURS[solid.colour]) / 255 + 0.03 * rng.standard_normal((count, 3))
        parts.append(np.concatenate([points, colour.clip(0, 1)], 1))
    return arrays.encode(rng.permutation(np.concatenate(parts)))


def turned(points: Array, degrees: float) -> Array:
    """Points [N, 3] turned about the vertical axis."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    moved: Array = points @ np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    return moved


def _sphere(rng: np.random.Generator, count: int) -> Array:
    directions = rng.standard_normal((count, 3))
    points: Array = 0.5 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return points


def _cube(rng: np.random.Generator, count: int) -> Array:
    points = rng.random((count, 3)) - 0.5
    points[np.arange(count), rng.integers(0, 3, count)] = rng.choice((-0.5, 0.5), count)
    return points


def _round(rng: np.random.Generator, count: int, caps: tuple[float, ...], top: float) -> Array:
    """A solid of revolution whose radius goes from 0.5 at the bottom to ``top`` at the top; ``caps`` are heights of its
    discs."""
    angle, up = 2 * np.pi * rng.random(count), rng.random(count)
    up = 1 - np.sqrt(1 - up) if top == 0 else up  # the surface of a cone shrinks with its height
    radius, height = 0.5 + (top - 0.5) * up, up - 0.5
    on_cap = rng.random(count) < 0.3
    radius = np.where(on_cap, 0.5 * np.sqrt(rng.random(count)), radius)
    height = np.where(on_cap, rng.choice(caps, count), height)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], 1)


def _pyramid(rng: np.random.Generator, count: int) -> Array:
    up = 1 - np.sqrt(1 - rng.random(count))
    up[rng.random(count) < 0.3] = 0.0
    points = rng.random((count, 3)) - 0.5
    edge = up > 0  # points of the four sides; the others lie in the base
    axis, sign = rng.integers(0, 2, count), rng.choice((-0.5, 0.5), count)
    points[edge, axis[edge]] = sign[edge]
    points[:, :2] *= (1 - up)[:, None]
    points[:, 2] = up - 0.5
    return points


def _ring(rng: np.random.Generator, count: int) -> Array:
    """A ring that stands upright, so that a solid can lie on it."""
    around, across = 2 * np.pi * rng.random((2, count))
    radius = 0.38 + 0.12 * np.cos(across)
    return np.stack([radius * np.cos(around), 0.12 * np.sin(across), radius * np.sin(around)], 1)


SOLIDS: Mapping[str, Callable[[np.random.Generator, int], Array]] = {
    "sphere": _sphere,
    "cube": _cube,
    "cylinder": partial(_round, caps=(-0.5, 0.5), top=0.5),
    "cone": partial(_round, caps=(-0.5,), top=0.0),
    "pyramid": _pyramid,
    "ring": _ring,
}
"""Noun -> (generator, count) -> points on its surface, [count, 3], within -0.5..0.5."""


def records(split: str, count: int, seed: int) -> Iterator[PairRecord]:
    """``count`` clouds of a split, or one fewer where a twin would not fit; they depend on the arguments only."""
    index = 0
    for kind in itertools.cycle(FAMILIES):
        if index + (2 if kind else 1) > count:
            return
        rng = random.Random(f"shapes/{seed}/{split}/{index}")
        family = compose(rng, kind, allow_held_out=split == "test")
        wordings = [_wording(rng) for _ in range(FULL_CAPTIONS)]
        ids = [f"shapes/{split}/{index + i:06d}" for i in range(len(family))]
        full = [[scene_words.full(w, s.objects, s.relation, "") for w in wordings] for s in family]
        for i, scene in enumerate(family):
            partial_captions = [_partial(_wording(rng), scene, rng) for _ in range(CAPTIONS - FULL_CAPTIONS)]
            meta = {
                "things": len(scene.objects),
                "facts": [{"noun": t.noun, "colour": t.colour, "size": t.size} for t in scene.objects],
                "relation": scene.relation,
                "heldout": held_out(scene),
                "full_captions": FULL_CAPTIONS,
                "twin": {"kind": kind, "of": ids[0]} if kind else None,
                "binding": [[true, false] for true, false in zip(full[i], full[1 - i], strict=True)] if kind else [],
            }
            yield PairRecord(
                ids[i],
                ids[i],
                split,
                {"array": partial(render, scene)},
                (*full[i], *partial_captions),
                family=ids[0] if kind else "",
                meta=meta,
            )
        index += len(family)


def _wording(rng: random.Random) -> Wording:
    """A wording that names sizes and no place."""
    wording = Wording.draw(rng)
    words = {noun: rng.choice(synonyms) for noun, synonyms in SYNONYMS.items()}
    return replace(wording, placed=False, sized=True, words=wording.words | words)


def _partial(wording: Wording, scene: Arrangement, rng: random.Random) -> str:
    """A caption of one or two solids without their relation."""
    named = rng.sample(scene.objects, rng.choice((1, 1, 2)))
    return " and ".join(wording.noun_phrase(solid) for solid in named)
