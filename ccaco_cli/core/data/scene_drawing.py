"""Draws the generated scenes: textured backgrounds, three styles, and figures.

Equal facts give equal bytes: a background depends on (place, variant), noise on the seed of the picture.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageChops, ImageDraw

from ccaco_cli.core.data.scene_figures import RGB, mix, sprite

VARIANTS = 12
"""Number of backgrounds per place."""

STYLES = ("colour", "sketch", "noisy")

_OVER = 2


@dataclass(frozen=True, slots=True)
class SceneFigure:
    """One figure of a picture; lengths are shares of the picture's side.

    Attributes:
        noun, colour, pose: what is drawn.
        left: it faces left.
        x, y: upper left corner of the figure's square.
        side: of that square.
        shadow: (centre x, y, width) of the shadow on the ground; None = it floats or rests on another object.
    """

    noun: str
    colour: str
    pose: str
    left: bool
    x: float
    y: float
    side: float
    shadow: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class ScenePicture:
    """Everything that drawing needs; figures from back to front, and ``noise``, the seed of the style "noisy"."""

    place: str
    variant: int
    figures: tuple[SceneFigure, ...]
    noise: str


class _Ground:
    """A background in unit coordinates; ``horizon`` separates sky or wall from the ground."""

    def __init__(self, side: int, rng: random.Random):
        self.side, self.rng, self.horizon = side, rng, rng.uniform(0.36, 0.46)
        self.image = Image.new("RGB", (side, side))
        self.draw = ImageDraw.Draw(self.image)

    def band(self, y0: float, y1: float, top: RGB, bottom: RGB) -> None:
        a, b = round(y0 * self.side), round(y1 * self.side)
        shift = self.rng.randint(-8, 8)
        for y in range(a, b):
            c = mix(top, bottom, (y - a) / max(1, b - a))
            self.draw.line((0, y, self.side, y), tuple(min(255, max(0, v + shift)) for v in c))

    def oval(self, x: float, y: float, rx: float, ry: float, fill: RGB) -> None:
        self.draw.ellipse([v * self.side for v in (x - rx, y - ry, x + rx, y + ry)], fill)

    def poly(self, *points: float, fill: RGB) -> None:
        self.draw.polygon([v * self.side for v in points], fill)

    def line(self, *points: float, fill: RGB, width: float) -> None:
        self.draw.line([v * self.side for v in points], fill, max(1, round(width * self.side)))

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: RGB) -> None:
        self.draw.rectangle([v * self.side for v in (x0, y0, x1, y1)], fill)

    def scatter(self, n: int, y0: float, y1: float) -> list[tuple[float, float, float]]:
        """n points (x, y, nearness 0..1) between two heights, the farthest first."""
        spots = sorted((self.rng.uniform(y0, y1), self.rng.random()) for _ in range(n))
        return [(x, y, (y - y0) / max(1e-6, y1 - y0)) for y, x in spots]

    def sky(self, top: RGB, bottom: RGB, cloud: RGB, clouds: int) -> None:
        self.band(0, self.horizon, top, bottom)
        for x, y, _ in self.scatter(clouds, 0.06, self.horizon * 0.6):
            for dx, r in ((-0.07, 0.035), (0.0, 0.055), (0.075, 0.04)):
                self.oval(x + dx, y, r * 1.4, r, cloud)


def _garden(g: _Ground) -> None:
    g.sky((132, 200, 246), (206, 236, 250), (250, 252, 254), 2)
    g.band(g.horizon, 1, (150, 204, 104), (108, 176, 76))
    for i in range(11):
        g.rect(i * 0.1 - 0.02, g.horizon - 0.13, i * 0.1 + 0.035, g.horizon + 0.01, (236, 226, 206))
    g.rect(0, g.horizon - 0.09, 1, g.horizon - 0.06, (214, 200, 176))
    for x, y, near in g.scatter(70, g.horizon + 0.03, 1):
        g.line(
            x, y, x + 0.01, y - 0.02 - 0.03 * near, fill=mix((96, 166, 66), (176, 220, 120), g.rng.random()), width=0.01
        )


def _beach(g: _Ground) -> None:
    g.sky((110, 196, 240), (214, 240, 248), (252, 252, 252), 1)
    g.band(g.horizon - 0.12, g.horizon + 0.06, (54, 142, 200), (110, 200, 222))
    for x, y, _ in g.scatter(14, g.horizon - 0.1, g.horizon + 0.04):
        g.line(x, y, x + 0.09, y, fill=(190, 230, 242), width=0.01)
    g.band(g.horizon + 0.06, 1, (246, 230, 186), (234, 206, 146))
    g.line(0, g.horizon + 0.065, 1, g.horizon + 0.065, fill=(250, 250, 250), width=0.02)
    for x, y, _ in g.scatter(90, g.horizon + 0.1, 1):
        g.oval(x, y, 0.006, 0.004, mix((208, 176, 112), (255, 246, 214), g.rng.random()))


def _room(g: _Ground) -> None:
    wall = g.rng.choice([(236, 214, 200), (214, 222, 232), (226, 228, 204), (238, 224, 190)])
    g.band(0, g.horizon, wall, mix(wall, (0, 0, 0), 0.06))
    for i in range(13):
        g.line(i / 12, 0, i / 12, g.horizon, fill=mix(wall, (255, 255, 255), 0.35), width=0.018)
    x = g.rng.uniform(0.15, 0.7)
    g.rect(x, 0.06, x + 0.2, 0.26, (250, 250, 250))
    g.rect(x + 0.015, 0.075, x + 0.185, 0.245, (168, 212, 238))
    g.line(x + 0.1, 0.06, x + 0.1, 0.26, fill=(250, 250, 250), width=0.015)
    g.band(g.horizon, 1, (206, 166, 122), (190, 146, 102))
    g.rect(0, g.horizon - 0.02, 1, g.horizon + 0.01, (250, 246, 240))
    for i in range(1, 7):
        y = g.horizon + (1 - g.horizon) * (i / 7) ** 1.4
        g.line(0, y, 1, y, fill=(166, 122, 82), width=0.01)
        for x, _, _ in g.scatter(3, 0, 1):
            g.line(x, y, x, y + 0.07, fill=(166, 122, 82), width=0.01)


def _snow(g: _Ground) -> None:
    g.sky((164, 186, 210), (222, 230, 240), (236, 240, 246), 2)
    for x, _, _ in g.scatter(5, 0, 1):
        g.poly(
            x - 0.07,
            g.horizon + 0.02,
            x,
            g.horizon - g.rng.uniform(0.12, 0.2),
            x + 0.07,
            g.horizon + 0.02,
            fill=(120, 150, 146),
        )
    g.band(g.horizon, 1, (232, 239, 247), (212, 224, 238))
    for x, y, near in g.scatter(6, g.horizon + 0.08, 1):
        g.oval(x, y, 0.1 + 0.12 * near, 0.02 + 0.02 * near, (222, 231, 243))
    for x, y, _ in g.scatter(60, 0, 1):
        g.oval(x, y, 0.009, 0.009, (255, 255, 255))


def _street(g: _Ground) -> None:
    g.band(0, g.horizon, (186, 206, 222), (216, 224, 230))
    x = -g.rng.uniform(0, 0.1)
    while x < 1:
        w, top = g.rng.uniform(0.14, 0.24), g.rng.uniform(0.03, 0.18)
        wall = g.rng.choice([(190, 150, 134), (170, 164, 170), (206, 186, 150), (150, 158, 172)])
        g.rect(x, top, x + w - 0.01, g.horizon, wall)
        for row in range(3):
            for column in range(2):
                wx, wy = x + w * (0.18 + 0.42 * column), top + 0.04 + row * 0.1
                g.rect(wx, wy, wx + w * 0.22, max(wy, min(wy + 0.055, g.horizon)), (236, 230, 196))
        x += w
    g.rect(0, g.horizon - 0.02, 1, g.horizon + 0.05, (206, 204, 200))
    g.band(g.horizon + 0.05, 1, (146, 146, 150), (122, 122, 128))
    for x, y, _ in g.scatter(50, g.horizon + 0.06, 1):
        g.oval(x, y, 0.006, 0.004, (160, 160, 164))
    shift = g.rng.uniform(0, 0.2)
    for i in range(-1, 5):
        g.rect(i * 0.25 + shift, 0.72, i * 0.25 + shift + 0.13, 0.735, (236, 226, 170))


def _desert(g: _Ground) -> None:
    g.sky((246, 204, 152), (252, 230, 192), (252, 236, 206), 0)
    g.oval(g.rng.uniform(0.1, 0.9), 0.13, 0.08, 0.08, (255, 246, 206))
    x = g.rng.random()
    g.poly(x - 0.5, g.horizon + 0.02, x, g.horizon - 0.14, x + 0.6, g.horizon + 0.02, fill=(220, 164, 112))
    g.band(g.horizon, 1, (228, 178, 118), (206, 148, 90))
    for _, y, near in g.scatter(12, g.horizon + 0.04, 1):
        x = g.rng.uniform(-0.1, 0.8)
        g.line(x, y, x + 0.12, y - 0.015, x + 0.3 + 0.1 * near, y, fill=(190, 132, 78), width=0.01)


def _forest(g: _Ground) -> None:
    g.band(0, g.horizon, (96, 140, 104), (150, 182, 132))
    for x, _, near in g.scatter(13, 0, 1):
        w = 0.02 + 0.035 * near
        g.rect(x - w, 0, x + w, g.horizon + 0.03, mix((122, 122, 96), (92, 74, 56), near))
    for x, y, _ in g.scatter(22, 0, 0.12):
        g.oval(x, y, 0.09, 0.05, mix((62, 110, 66), (98, 148, 84), g.rng.random()))
    g.band(g.horizon, 1, (124, 144, 88), (100, 112, 66))
    for x, y, _ in g.scatter(80, g.horizon + 0.03, 1):
        g.oval(x, y, 0.014, 0.007, g.rng.choice([(150, 120, 70), (128, 140, 80), (84, 100, 58), (168, 140, 84)]))


def _night(g: _Ground) -> None:
    g.band(0, g.horizon, (44, 50, 110), (86, 92, 156))
    for x, y, _ in g.scatter(26, 0, g.horizon - 0.04):
        g.oval(x, y, 0.008, 0.008, (250, 246, 210))
    x = g.rng.uniform(0.12, 0.88)
    g.oval(x, 0.13, 0.075, 0.075, (250, 244, 206))
    g.oval(x + 0.035, 0.115, 0.06, 0.06, (56, 62, 122))
    g.band(g.horizon, 1, (84, 104, 128), (72, 88, 114))
    for x, y, near in g.scatter(50, g.horizon + 0.03, 1):
        g.line(x, y, x + 0.008, y - 0.02 - 0.02 * near, fill=(98, 122, 142), width=0.008)


GROUNDS: dict[str, Callable[[_Ground], None]] = {
    **{"garden": _garden, "beach": _beach, "room": _room, "snow": _snow},
    **{"street": _street, "desert": _desert, "forest": _forest, "night": _night},
}


@lru_cache(maxsize=len(GROUNDS) * VARIANTS)
def background(place: str, variant: int, side: int, style: str = "colour") -> Image.Image:
    """One place without figures, RGB [side, side]. Cached: do not draw on it."""
    ground = _Ground(side * _OVER, random.Random(f"{place}/{variant}"))
    GROUNDS[place](ground)
    image = ground.image.reduce(_OVER)
    if style != "sketch":
        return image
    # a pencil sketch: faint edges of the grey image, so that the objects have the darkest lines
    grey = image.convert("L")
    edges = ImageChops.difference(grey, ImageChops.offset(grey, 1, 1)).point(lambda v: 255 - min(120, 3 * v))
    return Image.merge("RGB", [ImageChops.multiply(Image.blend(grey, Image.new("L", grey.size, 245), 0.82), edges)] * 3)


@lru_cache(maxsize=512)
def _shadow(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width * _OVER, height * _OVER))
    ImageDraw.Draw(mask).ellipse((0, 0, width * _OVER - 1, height * _OVER - 1), 70)
    return mask.reduce(_OVER)


def draw(picture: ScenePicture, side: int, style: str = "colour") -> Image.Image:
    """Draws a picture: RGB [side, side], side in pixels, style one of ``STYLES``."""
    image = background(picture.place, picture.variant, side, style).copy()
    for f in picture.figures:
        if f.shadow:
            x, y, width = (v * side for v in f.shadow)
            w, h = max(2, round(width)), max(2, round(width * 0.24))
            image.paste((34, 34, 34), (round(x - w / 2), round(y - h * 0.62)), _shadow(w, h))
        figure = sprite(f.noun, f.colour, f.pose, f.left, max(4, round(f.side * side)), style)
        image.paste(figure, (round(f.x * side), round(f.y * side)), figure)
    if style == "noisy":
        grain = Image.frombytes("RGB", image.size, random.Random(picture.noise).randbytes(3 * side * side))
        image = Image.blend(ImageChops.invert(image), grain, 0.22)
    return image


def render_jpeg(picture: ScenePicture, side: int, style: str = "colour") -> bytes:
    """The picture as JPEG (quality 92, no chroma subsampling, which would blur 64 pixels)."""
    buffer = BytesIO()
    draw(picture, side, style).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()
