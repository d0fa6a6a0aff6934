"""The animals and objects of the generated scenes, drawn with Pillow.

A figure is drawn facing right in a unit square (x right, y down), at four times its size, and reduced, which gives
anti-aliasing. Figures are cached in the process, so drawing a picture is mostly pasting.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]

COLOURS: dict[str, RGB] = {
    "red": (216, 40, 44),
    "orange": (246, 138, 28),
    "yellow": (250, 219, 50),
    "green": (44, 158, 70),
    "blue": (44, 104, 218),
    "purple": (144, 62, 186),
}
# Six grey levels stand for the colours in grey drawings: a style changes the look, but not the meaning of captions.
TONES = {"purple": 56, "blue": 92, "red": 128, "green": 164, "orange": 200, "yellow": 236}

# Heights at which an object stands on a figure, and boxes in which it fits inside one, in the unit square.
SEATS = {"sofa": 0.56, "tree": 0.1, "house": 0.06, "car": 0.2}
INSIDE: dict[str, Box] = {"box": (0.16, 0.34, 0.84, 0.92), "house": (0.22, 0.48, 0.78, 0.94)}

_OVER = 4
_INK: RGB = (38, 33, 44)
_CREAM: RGB = (255, 240, 196)
_BROWN: RGB = (128, 84, 48)
_GLASS: RGB = (190, 226, 240)
_GREY: RGB = (92, 92, 100)
_LEAF: RGB = (70, 140, 60)


class Pen:
    """Draws in the unit square of one figure. ``main`` is the figure's colour, ``light`` and ``dark`` its tints."""

    def __init__(self, canvas: Image.Image, colour: str, style: str):
        self.draw, self.side, self.toneless = ImageDraw.Draw(canvas), canvas.width, style == "sketch"
        tone = TONES[colour]
        self.main: RGB = (tone, tone, tone) if self.toneless else COLOURS[colour]
        self.light = mix(self.main, (255, 255, 255), 0.5)
        self.dark = mix(self.main, (0, 0, 0), 0.3)
        self.ink = self._fill(_INK)
        self.width = max(1, round(self.side * 0.032))

    def at(self, *values: float) -> list[float]:
        return [v * (self.side - 1) for v in values]

    def _fill(self, fill: RGB | None) -> RGB:
        if fill is None:
            return self.main
        return grey(fill) if self.toneless else fill

    def oval(self, x: float, y: float, rx: float, ry: float, fill: RGB | None = None, *, outlined: bool = True) -> None:
        self.draw.ellipse(
            self.at(x - rx, y - ry, x + rx, y + ry), self._fill(fill), self.ink if outlined else None, self.width
        )

    def poly(self, *points: float, fill: RGB | None = None) -> None:
        self.draw.polygon(self.at(*points), self._fill(fill), self.ink, self.width)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: RGB | None = None, *, radius: float = 0.0) -> None:
        self.draw.rounded_rectangle(self.at(x0, y0, x1, y1), radius * self.side, self._fill(fill), self.ink, self.width)

    def line(self, *points: float, fill: RGB | None = None, width: float = 0.03) -> None:
        self.draw.line(
            self.at(*points),
            self.ink if fill is None else self._fill(fill),
            max(1, round(width * self.side)),
            joint="curve",
        )

    def limb(self, *points: float, width: float = 0.11, fill: RGB | None = None) -> None:
        """A bent line with round ends and an outline: legs and tails."""
        for colour, w in ((self.ink, width), (self._fill(fill), width - 0.06)):
            self.draw.line(self.at(*points), colour, max(1, round(w * self.side)), joint="curve")
            for x, y in (points[:2], points[-2:]):
                self.draw.ellipse(self.at(x - w / 2, y - w / 2, x + w / 2, y + w / 2), colour)

    def pie(self, x: float, y: float, rx: float, ry: float, start: int, end: int, fill: RGB | None = None) -> None:
        self.draw.pieslice(self.at(x - rx, y - ry, x + rx, y + ry), start, end, self._fill(fill), self.ink, self.width)

    def eye(self, x: float, y: float, *, closed: bool) -> None:
        if closed:
            self.draw.arc(self.at(x - 0.06, y - 0.05, x + 0.06, y + 0.05), 10, 170, self.ink, self.width)
        else:
            self.oval(x, y, 0.05, 0.055, (255, 255, 255), outlined=False)
            self.oval(x + 0.01, y, 0.034, 0.04, (20, 18, 24), outlined=False)


def mix(a: RGB, b: RGB, share: float) -> RGB:
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def grey(c: RGB) -> RGB:
    tone = (299 * c[0] + 587 * c[1] + 114 * c[2]) // 1000
    return (tone, tone, tone)


# Four-legged animals: one body per pose, one head and tail per animal.


def _quadruped(pen: Pen, noun: str, pose: str) -> None:
    if pose == "napping":
        _tail(pen, noun, 0.12, 0.8, low=True)
        _body(pen, noun, 0.42, 0.76, 0.38, 0.22)
        pen.limb(0.45, 0.93, 0.74, 0.93)
        _head(pen, noun, 0.74, 0.74, closed=True)
        return
    if pose == "sitting":
        _tail(pen, noun, 0.24, 0.86, low=True)
        _body(pen, noun, 0.42, 0.68, 0.23, 0.3)
        pen.oval(0.36, 0.84, 0.17, 0.14)
        pen.limb(0.58, 0.62, 0.6, 0.93)
        pen.limb(0.38, 0.94, 0.48, 0.94)
        _head(pen, noun, 0.6, 0.32, closed=False)
        return
    top = 0.6
    legs = (0.2, 0.34, 0.58, 0.7)
    steps = (-0.13, -0.1, 0.12, 0.14)
    _tail(pen, noun, 0.15, top - 0.04, low=False)
    for x, step in zip(legs, steps, strict=True):
        pen.limb(x, top + 0.08, x + step * 0.6, top + 0.22, x + step, 0.93, width=0.12)
    _body(pen, noun, 0.44, top, 0.33, 0.19)
    _head(pen, noun, 0.74 if noun == "dog" else 0.78, 0.4, closed=False)


def _body(pen: Pen, noun: str, x: float, y: float, rx: float, ry: float) -> None:
    """Cats are tabby, dogs have a light belly: seen at the size of a thumb nail, where ears are two pixels."""
    pen.oval(x, y, rx, ry)
    if noun == "cat":
        for at in (-0.55, -0.2, 0.15):
            reach = ry * (1 - at * at) ** 0.5
            pen.line(
                x + at * rx,
                y - reach,
                x + (at + 0.12) * rx,
                y + reach * 0.3,
                fill=mix(pen.main, (0, 0, 0), 0.5),
                width=0.06,
            )
    else:
        pen.pie(x, y, rx, ry, 20, 160, pen.light)


def _tail(pen: Pen, noun: str, x: float, y: float, *, low: bool) -> None:
    if low:
        pen.limb(x + 0.02, y + 0.02, x - 0.07, y + 0.03, x - 0.05, 0.93, x + 0.2, 0.94, width=0.1)
    elif noun == "cat":
        pen.limb(x + 0.06, y, x - 0.06, y - 0.1, x - 0.08, y - 0.34, x + 0.0, y - 0.4, width=0.1)
    else:
        pen.limb(x + 0.06, y, x - 0.07, y - 0.2, width=0.1)


def _head(pen: Pen, noun: str, x: float, y: float, *, closed: bool) -> None:
    if noun == "cat":
        for side in (-1, 1):
            pen.poly(x + side * 0.2, y - 0.02, x + side * 0.17, y - 0.29, x + side * 0.01, y - 0.14)
        pen.oval(x, y, 0.22, 0.19)
        pen.eye(x - 0.07, y - 0.03, closed=closed)
        pen.eye(x + 0.1, y - 0.03, closed=closed)
        pen.poly(x - 0.02, y + 0.05, x + 0.06, y + 0.05, x + 0.02, y + 0.09, fill=(240, 130, 140))
        for side in (-1, 1):
            pen.line(x + side * 0.12, y + 0.07, x + side * 0.25, y + 0.04, width=0.02)
            pen.line(x + side * 0.12, y + 0.09, x + side * 0.25, y + 0.12, width=0.02)
    else:
        pen.oval(x, y, 0.19, 0.19)
        pen.oval(x + 0.12, y + 0.08, 0.13, 0.095, pen.light)
        pen.oval(x + 0.21, y + 0.04, 0.045, 0.04, _INK)
        pen.oval(x - 0.15, y + 0.03, 0.085, 0.2, pen.dark)
        pen.eye(x + 0.04, y - 0.06, closed=closed)


def _bird(pen: Pen, noun: str, pose: str) -> None:
    flying = pose == "flying"
    if flying:
        pen.poly(0.46, 0.5, 0.22, 0.04, 0.62, 0.42, fill=pen.dark)
    elif pose == "sitting":
        for x in (0.42, 0.54):
            pen.line(x, 0.78, x, 0.97, x + 0.09, 0.97, fill=(230, 140, 30), width=0.05)
    low = 0.16 if pose == "napping" else 0.0
    pen.poly(0.24, 0.52 + low, 0.0, 0.42 + low, 0.04, 0.66 + low, fill=pen.dark)
    pen.oval(0.46, 0.58 + low, 0.3, 0.23)
    pen.oval(0.72, 0.38 + low, 0.18, 0.17)
    pen.poly(0.87, 0.34 + low, 1.0, 0.41 + low, 0.86, 0.46 + low, fill=(250, 170, 40))
    pen.eye(0.76, 0.35 + low, closed=pose == "napping")
    if flying:
        pen.poly(0.3, 0.52, 0.36, 0.0, 0.6, 0.54)
    else:
        pen.pie(0.4, 0.54 + low, 0.2, 0.2, 0, 180, pen.dark)


def _fish(pen: Pen, noun: str, pose: str) -> None:
    pen.poly(0.26, 0.5, 0.0, 0.24, 0.06, 0.5, 0.0, 0.76, fill=pen.dark)
    pen.poly(0.34, 0.3, 0.5, 0.1, 0.72, 0.3, fill=pen.dark)
    pen.oval(0.58, 0.5, 0.4, 0.28)
    pen.line(0.44, 0.3, 0.5, 0.5, 0.44, 0.7, fill=pen.light, width=0.07)
    pen.poly(0.56, 0.52, 0.42, 0.66, 0.6, 0.66, fill=pen.dark)
    pen.eye(0.8, 0.44, closed=False)
    pen.line(0.97, 0.56, 0.86, 0.6)


def _ball(pen: Pen, noun: str, pose: str) -> None:
    pen.oval(0.5, 0.5, 0.46, 0.46)
    stripe = (250, 250, 250)
    pen.draw.arc(pen.at(-0.34, 0.1, 0.46, 0.9), -52, 52, stripe, round(pen.side * 0.09))
    pen.draw.arc(pen.at(0.54, 0.1, 1.34, 0.9), 128, 232, stripe, round(pen.side * 0.09))
    pen.draw.ellipse(pen.at(0.04, 0.04, 0.96, 0.96), None, pen.ink, pen.width)


def _box(pen: Pen, noun: str, pose: str) -> None:
    pen.poly(0.08, 0.22, 0.0, 0.08, 0.3, 0.08, 0.4, 0.22, fill=pen.light)
    pen.poly(0.92, 0.22, 1.0, 0.08, 0.7, 0.08, 0.6, 0.22, fill=pen.light)
    pen.rect(0.06, 0.2, 0.94, 0.98)
    pen.rect(0.18, 0.34, 0.82, 0.9, mix(_BROWN, _CREAM, 0.55))


def _car(pen: Pen, noun: str, pose: str) -> None:
    pen.poly(0.16, 0.5, 0.3, 0.2, 0.7, 0.2, 0.86, 0.5)
    pen.poly(0.25, 0.48, 0.34, 0.27, 0.47, 0.27, 0.47, 0.48, fill=_GLASS)
    pen.poly(0.53, 0.48, 0.53, 0.27, 0.66, 0.27, 0.76, 0.48, fill=_GLASS)
    pen.rect(0.0, 0.46, 0.99, 0.78, radius=0.1)
    pen.oval(0.93, 0.58, 0.05, 0.06, (255, 240, 150))
    for x in (0.24, 0.76):
        pen.oval(x, 0.78, 0.15, 0.15, (40, 40, 46))
        pen.oval(x, 0.78, 0.06, 0.06, (190, 190, 196), outlined=False)


def _tree(pen: Pen, noun: str, pose: str) -> None:
    pen.rect(0.41, 0.55, 0.59, 0.98, _BROWN)
    for x, y, r in ((0.26, 0.46, 0.24), (0.74, 0.46, 0.24), (0.5, 0.28, 0.28)):
        pen.oval(x, y, r, r)
    pen.oval(0.5, 0.46, 0.25, 0.18, outlined=False)


def _house(pen: Pen, noun: str, pose: str) -> None:
    pen.rect(0.72, 0.06, 0.84, 0.36, _GREY)
    pen.rect(0.1, 0.4, 0.9, 0.98)
    pen.poly(0.0, 0.44, 0.5, 0.02, 1.0, 0.44, fill=pen.dark)
    pen.rect(0.24, 0.5, 0.76, 0.92, _CREAM)
    pen.line(0.24, 0.92, 0.76, 0.92, width=0.05)


def _sofa(pen: Pen, noun: str, pose: str) -> None:
    for x in (0.14, 0.86):
        pen.rect(x - 0.05, 0.84, x + 0.05, 0.97, _BROWN)
    pen.rect(0.08, 0.2, 0.92, 0.72, radius=0.1)
    pen.line(0.5, 0.24, 0.5, 0.54)
    pen.rect(0.1, 0.54, 0.9, 0.74, pen.light, radius=0.05)
    pen.rect(0.06, 0.7, 0.94, 0.88)
    pen.rect(0.0, 0.42, 0.17, 0.88, radius=0.07)
    pen.rect(0.83, 0.42, 1.0, 0.88, radius=0.07)


def _zzz(pen: Pen, noun: str, pose: str) -> None:
    for x, y, s in ((0.02, 0.55, 0.4), (0.5, 0.08, 0.46)):
        for colour, width in (((250, 250, 250), 0.24), (_INK, 0.11)):
            pen.line(x, y, x + s, y, x, y + s, x + s, y + s, fill=colour, width=width)


def _speed(pen: Pen, noun: str, pose: str) -> None:
    for y, x in ((0.2, 0.3), (0.5, 0.0), (0.8, 0.24)):
        for colour, width in (((250, 250, 250), 0.16), (_INK, 0.07)):
            pen.line(x, y, 0.95, y, fill=colour, width=width)


DRAWERS: dict[str, Callable[[Pen, str, str], None]] = {
    **{"cat": _quadruped, "dog": _quadruped, "bird": _bird, "fish": _fish},
    **{"ball": _ball, "box": _box, "car": _car, "tree": _tree, "house": _house, "sofa": _sofa},
    **{"zzz": _zzz, "speed": _speed},
}


@lru_cache(maxsize=6144)
def sprite(noun: str, colour: str, pose: str, left: bool, side: int, style: str = "colour") -> Image.Image:
    """One figure, RGBA [side, side], transparent around it; ``left`` = it faces left. Cached: do not draw on it."""
    canvas = Image.new("RGBA", (side * _OVER, side * _OVER))
    DRAWERS[noun](Pen(canvas, colour, style), noun, pose)
    if left:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return canvas.reduce(_OVER)


@lru_cache(maxsize=256)
def extent(noun: str, pose: str, left: bool) -> Box:
    """Tight box of a figure in its unit square (x0, y0, x1, y1)."""
    alpha = sprite(noun, "red", pose, left, 96).getchannel("A").point(lambda a: 255 * (a > 127))
    x0, y0, x1, y1 = alpha.getbbox() or (0, 0, 96, 96)
    return (x0 / 96, y0 / 96, x1 / 96, y1 / 96)
