"""The generated image-text data set ``scenes``.

Its captions test binding: which colour belongs to which object, and which object is left of, on or chasing which.
Every picture has a random generator seeded by (seed, split, domain, index), so the set is the same for any number of
workers. Composing is cheap and happens while records are streamed; drawing is done by a picklable function in the
worker processes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from ccaco_cli.core.data.scene_drawing import GROUNDS, VARIANTS, SceneFigure, ScenePicture
from ccaco_cli.core.data.scene_figures import COLOURS, INSIDE, SEATS, Box, extent
from ccaco_cli.core.data.scene_words import SceneObject

POSES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("cat", "dog"), ("napping", "napping", "sitting", "running")),
    **{"bird": ("sitting", "flying", "napping"), "fish": ("swimming",)},
}
"""Animals and their poses, unless the relation is chasing; other objects have no pose."""

ANIMALS = (*("cat",) * 4, *("dog",) * 4, *("bird", "fish") * 2)
OBJECTS = (*("ball",) * 3, *("box", "car", "sofa", "tree", "house") * 2)
"""Nouns, repeated by frequency: a few are common and the others rare, as in photos."""

HELD_OUT = frozenset(
    {
        *(("cat", "purple"), ("dog", "green"), ("bird", "blue"), ("fish", "red"), ("ball", "purple")),
        *(("box", "yellow"), ("car", "green"), ("tree", "orange"), ("house", "blue"), ("sofa", "red")),
    }
)
"""(noun, colour) pairs that occur in the test split only."""

KINDS: dict[str, tuple[str, ...]] = {
    "": ("left", "left", "above", "on", "inside", "chasing", "chasing", "next"),
    "role": ("left", "left", "above", "on", "chasing", "chasing"),
    "colour": ("left", "above", "on", "inside", "chasing", "next"),
    "shape": ("left", "above", "on", "chasing", "next"),
}
"""Kind of swapped twin ("" = none) -> relations for which the swap gives a different, possible picture."""

SCALES = {"small": 0.37, "large": 0.44}
FURTHER = {"small": 0.31, "large": 0.37}
"""Side of an object's square as a share of the picture: of objects[0] and [1] (before jitter), and of the others."""

_FLOATS = ("fish",)
_CHASE = {"bird": "flying", "fish": "swimming"}
_RESTS = ("sofa", "box", "car", "house")


@dataclass(frozen=True, slots=True)
class Composition:
    """The content of a picture.

    Attributes:
        objects: two to five.
        relation: of objects[0] to objects[1].
        place, variant: of the background.
        jitter: random numbers of the layout, 0..1.
        spots: (x, bottom) of objects[2:].
    """

    objects: tuple[SceneObject, ...]
    relation: str
    place: str
    variant: int
    jitter: tuple[float, ...]
    spots: tuple[tuple[float, float], ...] = ()


def swap(scene: Composition, kind: str) -> Composition:
    """The twin of a scene: objects[0] and [1] exchange places (role), colours (colour), or nouns and poses (shape)."""
    a, b, *others = scene.objects
    if kind == "role":
        a, b = b, a
    elif kind == "colour":
        a, b = replace(a, colour=b.colour), replace(b, colour=a.colour)
    else:
        a, b = replace(a, noun=b.noun, pose=b.pose), replace(b, noun=a.noun, pose=a.pose)
    return replace(scene, objects=(a, b, *others))


def held_out(scene: Composition) -> bool:
    """True if an object has a (noun, colour) pair that does not occur in train and val."""
    return any((t.noun, t.colour) in HELD_OUT for t in scene.objects)


def compose(rng: random.Random, kind: str = "", *, allow_held_out: bool = False) -> tuple[Composition, ...]:
    """Draws a scene and its twin of that kind (none if ``kind`` is ""); both have the same layout numbers."""
    while True:
        scene = _facts(rng, rng.choice(KINDS[kind]))
        family = (scene, swap(scene, kind)) if kind else (scene,)
        if allow_held_out or not any(held_out(s) for s in family):
            break
    taken = [box for s in family for _, box in _main(s)]
    spots: list[tuple[float, float]] = []
    for obj in scene.objects[2:]:
        spot = _free_spot(rng, obj, taken)
        if spot is None:
            break
        spots.append(spot)
    return tuple(replace(s, objects=s.objects[: 2 + len(spots)], spots=tuple(spots)) for s in family)


def _facts(rng: random.Random, relation: str) -> Composition:
    count = rng.choices((2, 3, 4, 5), (46, 26, 17, 11))[0]
    chase = relation == "chasing"
    nouns: list[str] = []
    while len(nouns) < count:
        pool: tuple[str, ...] = ANIMALS if rng.random() < 0.58 else OBJECTS
        if not nouns and (chase or relation == "on" or (relation == "inside" and rng.random() < 0.7)):
            pool = ANIMALS
        elif not nouns and relation == "above" and rng.random() < 0.5:
            pool = ("bird", "bird", "fish")
        elif len(nouns) == 1:
            pool = {
                "chasing": (*ANIMALS, "ball", "ball", "ball", "car", "car"),
                "on": _RESTS,
                "inside": tuple(INSIDE),
            }.get(relation, pool)
        noun = rng.choice(pool)
        if noun not in nouns:
            nouns.append(noun)
    objects: list[SceneObject] = []
    for i, noun in enumerate(nouns):
        main = i < 2
        pose = _CHASE.get(noun, "running") if chase and main and noun in POSES else rng.choice(POSES.get(noun, ("",)))
        size = (
            {0: "small", 1: "large"}[i]
            if relation == "inside" and main
            else rng.choice(("small", "large") if main else ("small", "small", "large"))
        )
        colour = rng.choice(
            [c for c in COLOURS if all(c != t.colour for t in objects)]
        )  # so that a colour names one object
        objects.append(SceneObject(noun, colour, size, pose))
    # an orange cat napping is the query of the examples, and would be rare by chance
    if not chase and rng.random() < 0.1 and "cat" in nouns[:2]:
        cat = nouns.index("cat")
        if all(t.colour != "orange" for t in objects if t.noun != "cat"):
            objects[cat] = replace(objects[cat], colour="orange", pose="napping")
    return Composition(
        tuple(objects),
        relation,
        rng.choice(tuple(GROUNDS)),
        rng.randrange(VARIANTS),
        tuple(rng.random() for _ in range(12)),
    )


def _scale(scene: Composition, i: int) -> float:
    """Side of an object's square; few different values, so that figures are found in the cache."""
    if scene.relation == "inside" and i < 2:
        return (0.3, 0.56)[i]
    size = scene.objects[i].size
    if i >= 2:
        return FURTHER[size]
    return SCALES[size] * (0.94, 1.0, 1.06)[int(scene.jitter[i] * 3)]


def _at(noun: str, pose: str, left: bool, side: float, x: float, bottom: float) -> Box:
    """Tight box of a figure whose middle is at x and whose lowest point is at ``bottom``."""
    x0, y0, x1, y1 = extent(noun, pose, left)
    return (x - side * (x1 - x0) / 2, bottom - side * (y1 - y0), x + side * (x1 - x0) / 2, bottom)


def _main(scene: Composition) -> list[tuple[bool, Box]]:
    """(faces left, box) of objects[0] and objects[1], placed so that their relation holds."""
    j = scene.jitter
    a, b = scene.objects[:2]
    sa, sb = _scale(scene, 0), _scale(scene, 1)
    ground = 0.88 + 0.08 * j[6]
    la, lb = j[7] < 0.5, j[8] < 0.5
    middle = 0.5 + 0.4 * (j[9] - 0.5)
    left = scene.relation == "left"
    if scene.relation in ("left", "chasing", "next"):
        towards_left = scene.relation == "chasing" and j[10] < 0.5
        if scene.relation == "chasing":
            la = lb = towards_left
        box_a, box_b = (
            _at(a.noun, a.pose, la, sa, 0, ground),
            _at(b.noun, b.pose, lb, sb, 0, ground - 0.03 + 0.06 * j[11]),
        )
        order = [box_b, box_a] if towards_left or (scene.relation == "next" and j[10] < 0.5) else [box_a, box_b]
        width = sum(x1 - x0 for x0, _, x1, _ in order)
        # "next to" leaves a small gap, the other relations a wide one
        gap = 0.02 if scene.relation == "next" else min(0.1 + 0.08 * j[9], 0.94 - width)
        width += gap
        start = 0.03 + max(0.0, 0.94 - width) * (0.25 + 0.5 * j[10] if left else j[9])
        first = _shift(order[0], start - order[0][0])
        second = _shift(order[1], first[2] + gap - order[1][0])
        box_a, box_b = (second, first) if order[0] is box_b else (first, second)
    else:
        box_b = _at(b.noun, b.pose, lb, sb, middle, ground)
        top, height = box_b[1], box_b[3] - box_b[1]
        y0, y1 = extent(b.noun, b.pose, lb)[1::2]
        if scene.relation == "on":
            seat = box_b[1] + sb * (max(SEATS.get(b.noun, y0 + 0.06), y0) - y0)
            box_a = _at(a.noun, a.pose, la, sa, middle, seat + 0.01)
        elif scene.relation == "inside":
            hole = INSIDE[b.noun]
            box_a = _at(a.noun, a.pose, la, sa, middle, top + height * (hole[3] - 0.02 - y0) / (y1 - y0))
        else:
            box_a = _at(a.noun, a.pose, la, sa, middle + 0.08 * (j[10] - 0.5), top - 0.05 - 0.06 * j[11])
    # a tall pile may leave the picture, so both boxes are moved down
    down = max(0.0, 0.01 - min(box_a[1], box_b[1]))
    return [(la, _shift(box_a, 0, down)), (lb, _shift(box_b, 0, down))]


def _shift(box: Box, x: float, y: float = 0.0) -> Box:
    return (box[0] + x, box[1] + y, box[2] + x, box[3] + y)


def _free_spot(rng: random.Random, obj: SceneObject, taken: list[Box]) -> tuple[float, float] | None:
    """(x, bottom) for a further object where it covers almost nothing; its box is added to ``taken``."""
    side = FURTHER[obj.size]
    up = obj.noun in _FLOATS or obj.pose == "flying"
    for _ in range(60):
        x, bottom = rng.uniform(0.14, 0.86), rng.uniform(0.3, 0.7) if up else rng.uniform(0.5, 0.96)
        box = _at(obj.noun, obj.pose, False, side, x, bottom)
        allowed = 0.1 * (box[2] - box[0]) * (box[3] - box[1])
        if (
            box[0] > 0.01
            and box[1] > 0.01
            and box[2] < 0.99
            and sum(_overlap(box, placed) for placed in taken) <= allowed
        ):
            taken.append(box)
            return x, bottom
    return None


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def place(scene: Composition) -> list[tuple[bool, Box]]:
    """(faces left, box) of every object; boxes are tight, (x0, y0, x1, y1) as shares of the side, y down."""
    boxes = _main(scene)
    for i, (x, bottom) in enumerate(scene.spots, start=2):
        obj, left = scene.objects[i], scene.jitter[5] < 0.5
        boxes.append((left, _at(obj.noun, obj.pose, left, _scale(scene, i), x, bottom)))
    return boxes


def picture(scene: Composition, noise: str = "") -> ScenePicture:
    """The figures of a scene from back to front. ``noise`` seeds the noise of the style "noisy"."""
    placed = place(scene)
    floats = {0} if scene.relation in ("above", "on", "inside") else set()
    # an object on, in or above another is drawn after it, whatever its lower edge
    behind = [box[3] + (1.0 if i == 0 and floats else 0.0) for i, (_, box) in enumerate(placed)]
    figures: list[SceneFigure] = []
    for i in sorted(range(len(placed)), key=behind.__getitem__):
        obj, (left, box), side = scene.objects[i], placed[i], _scale(scene, i)
        ex0, ey0, _, _ = extent(obj.noun, obj.pose, left)
        width, middle = box[2] - box[0], (box[0] + box[2]) / 2
        airborne = i in floats or obj.noun in _FLOATS or obj.pose == "flying"
        shadow = None if airborne else (middle, box[3], width * 1.1)
        figures.append(
            SceneFigure(obj.noun, obj.colour, obj.pose, left, box[0] - ex0 * side, box[1] - ey0 * side, side, shadow)
        )
        if obj.pose == "napping":
            mark = 0.11 if obj.size == "small" else 0.14
            x = box[0] + width * (0.0 if left else 0.75)
            figures.append(SceneFigure("zzz", "yellow", "", False, x, max(0.0, box[1] - mark * 0.7), mark))
        elif scene.relation == "chasing" and i < 2:
            mark = side * 0.3
            x = box[2] - mark * 0.1 if left else box[0] - mark * 0.9
            figures.append(SceneFigure("speed", "yellow", "", left, x, (box[1] + box[3]) / 2 - mark / 2, mark))
    return ScenePicture(scene.place, scene.variant, tuple(figures), noise)
