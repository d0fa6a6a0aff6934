"""The generated video-audio data set ``bounces``.

A ball falls and bounces. Its material determines the timbre, its size the pitch. Each impact on the ground is an
onset, louder for a higher speed. Every clip has a twin that differs in timing only, so colour and size are not enough
to find the matching sound.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

import av
import numpy as np

from ccaco_cli.core.data.clips import BITEXACT, H264
from ccaco_cli.core.types import PairRecord

Array = np.ndarray[Any, Any]
SECONDS, FPS, RATE = 2.0, 16, 16_000
GROUND, HEIGHT = 0.88, 0.72  # as shares of the side: y of the ground, and the highest start above it
FALL = 0.36  # seconds from the highest start to the ground
MIN_SPEED = 0.12  # as a share of the fastest impact: slower ones are silent and end the bouncing
MIN_TWIN_OFFSET = 0.2  # seconds between the first impacts of twins, at least


@dataclass(frozen=True)
class Material:
    """How a ball of one material looks and sounds.

    Attributes:
        colour: RGB, 0..1.
        stripes: number of stripes; 0 = none.
        partials: (frequency as a multiple of the fundamental, amplitude) of each.
        decay: seconds until the amplitude has fallen to 1/e.
        noise: amplitude of the noise at an onset.
    """

    colour: tuple[float, float, float]
    stripes: float
    partials: tuple[tuple[float, float], ...]
    decay: float
    noise: float


MATERIALS = {
    "wood": Material((0.62, 0.42, 0.22), 6.0, ((1.0, 1.0), (2.57, 0.5), (4.95, 0.2)), 0.07, 0.1),
    "metal": Material((0.62, 0.66, 0.74), 0.0, ((1.0, 1.0), (2.76, 0.8), (5.4, 0.6), (8.93, 0.3)), 0.45, 0.02),
    "glass": Material((0.45, 0.85, 0.9), 0.0, ((1.0, 0.5), (2.32, 1.0), (4.25, 0.8), (6.63, 0.5)), 0.22, 0.02),
    "rubber": Material((0.85, 0.2, 0.25), 0.0, ((0.5, 1.0), (1.0, 0.3)), 0.05, 0.0),
    "stone": Material((0.33, 0.33, 0.35), 9.0, ((1.0, 0.6), (1.83, 0.5), (3.1, 0.4)), 0.03, 0.6),
    "plastic": Material((0.95, 0.82, 0.2), 3.0, ((1.0, 1.0), (2.0, 0.7), (3.0, 0.5), (4.0, 0.3)), 0.11, 0.05),
}
"""Partials of bars and plates (Fletcher & Rossing, The Physics of Musical Instruments, chapters 2 and 3), rounded."""
SIZES = {
    "tiny": (0.05, 987.8),
    "small": (0.075, 698.5),
    "medium": (0.1, 493.9),
    "large": (0.13, 349.2),
    "huge": (0.165, 246.9),
}
"""Radius as a share of the side, and fundamental frequency in Hz."""
UNSEEN = frozenset((material, tuple(SIZES)[(2 * i + 1) % len(SIZES)]) for i, material in enumerate(MATERIALS))
"""(material, size) pairs of the test split only; every material and every size occurs in training, in other pairs."""


@dataclass(frozen=True)
class Bounce:
    """One clip.

    Attributes:
        material, size: keys of ``MATERIALS`` and ``SIZES``.
        delay: seconds until the ball falls.
        drop: start height above the ground, as a share of HEIGHT.
        restitution: speed after an impact, as a share of the speed before.
        x: position of the ball from left to right, 0..1.
        ground, sky: grey levels, 0..1.
        noise: seed of the noise in picture and sound.
        side: pixels.
    """

    material: str
    size: str
    delay: float
    drop: float
    restitution: float
    x: float
    ground: float
    sky: float
    noise: int
    side: int = 64

    @property
    def impacts(self) -> list[tuple[float, float]]:
        """(seconds, speed as a share of the fastest) of every audible impact in the clip."""
        speed = math.sqrt(self.drop)
        time = self.delay + FALL * speed
        impacts = []
        while time < SECONDS and speed > MIN_SPEED:
            impacts.append((time, speed))
            speed *= self.restitution
            time += 2 * FALL * speed
        return impacts

    def height(self, time: float) -> float:
        """Height of the ball's lowest point above the ground at a time in seconds, as a share of HEIGHT."""
        if time <= self.delay:
            return self.drop
        speed = math.sqrt(self.drop)
        last = self.delay - FALL * speed  # as if it had been thrown up at that time
        for impact, impact_speed in self.impacts:
            if time < impact:
                break
            last, speed = impact, impact_speed * self.restitution
        since = (time - last) / FALL
        return max(0.0, 2 * speed * since - since**2)


def records(split: str, count: int, seed: int, side: int) -> Iterator[PairRecord]:
    """``count`` clips of a split, twins side by side; they depend on the arguments only.

    Half of the test clips are ``UNSEEN``.
    """
    combinations = [(m, s) for m in MATERIALS for s in SIZES]
    known = [pair for pair in combinations if pair not in UNSEEN]
    for pair in range(-(-count // 2)):
        rng = np.random.default_rng((seed, *split.encode(), pair))
        pool = sorted(UNSEEN) if split == "test" and pair % 2 else known
        material, size = pool[int(rng.integers(len(pool)))]
        ground, sky = 0.25 + 0.2 * rng.random(), 0.6 + 0.3 * rng.random()
        first = Bounce(
            material, size, *_timing(rng), 0.2 + 0.6 * rng.random(), ground, sky, int(rng.integers(2**31)), side
        )
        second = first
        while abs(first.impacts[0][0] - second.impacts[0][0]) < MIN_TWIN_OFFSET:
            delay, drop, restitution = _timing(rng)
            second = replace(first, delay=delay, drop=drop, restitution=restitution)
        for twin, bounce in zip("ab", (first, second), strict=True):
            if 2 * pair + (twin == "b") < count:
                yield _record(split, f"{split}-{pair:05d}{twin}", f"{split}-{pair:05d}", bounce)


def _record(split: str, id: str, family: str, bounce: Bounce) -> PairRecord:
    clip = partial(render, bounce)
    return PairRecord(
        id=id,
        group=id,
        split=split,
        media={"video": clip, "audio": clip},
        label=f"{bounce.size} {bounce.material}",
        family=family,
        meta={
            "material": bounce.material,
            "size": bounce.size,
            "onsets": [round(time, 3) for time, _ in bounce.impacts],
            "combination": "unseen" if (bounce.material, bounce.size) in UNSEEN else "seen",
        },
    )


def _timing(rng: np.random.Generator) -> tuple[float, float, float]:
    return 0.05 + 0.75 * rng.random(), 0.35 + 0.65 * rng.random(), 0.5 + 0.35 * rng.random()


@lru_cache(maxsize=2)  # a record needs the same bytes as video and as audio
def render(bounce: Bounce) -> bytes:
    """The clip as an MP4 file: H.264 at 16 frames per second, AAC at 16 kHz, two seconds.

    Equal bounces give equal bytes.
    """
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as file:
        video = file.add_stream("libx264", FPS, options=H264 | {"crf": "24"})
        video.width = video.height = bounce.side
        video.pix_fmt = "yuv420p"
        audio = file.add_stream("aac", RATE, layout="mono", bit_rate=48_000, options=BITEXACT)
        for pixels in pictures(bounce):
            file.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(video.encode(None))
        samples = waveform(bounce)
        frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
        # without timestamps the encoder's delay would remain in the sound
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        file.mux(audio.encode(frame))
        file.mux(audio.encode(None))
    return out.getvalue()


def pictures(bounce: Bounce) -> Iterator[Array]:
    """Yields the frames: uint8 [side, side, 3]."""
    rng = np.random.default_rng(bounce.noise)
    material, radius = MATERIALS[bounce.material], SIZES[bounce.size][0]
    y, x = (np.mgrid[: bounce.side, : bounce.side] + 0.5) / bounce.side
    scene = np.where(y > GROUND, bounce.ground, bounce.sky)[..., None].repeat(3, -1)
    for number in range(round(SECONDS * FPS)):
        bottom = GROUND - HEIGHT * bounce.height(number / FPS)
        dx, dy = x - bounce.x, y - (bottom - radius)
        inside = np.clip((radius - np.hypot(dx, dy)) * bounce.side + 0.5, 0, 1)[..., None]
        light = (
            1
            - 0.5 * np.clip((dx + dy) / radius, -0.5, 1)
            + 0.15 * np.sign(np.sin(material.stripes * np.pi * dx / radius))
        )
        ball = np.asarray(material.colour) * light[..., None]
        grain = 0.01 * rng.standard_normal((bounce.side, bounce.side, 1))
        yield (255 * np.clip(scene * (1 - inside) + ball * inside + grain, 0, 1)).round().astype(np.uint8)


def waveform(bounce: Bounce) -> Array:
    """The sound: float32 [SECONDS * RATE]."""
    rng = np.random.default_rng(bounce.noise + 1)
    material = MATERIALS[bounce.material]
    pitch = SIZES[bounce.size][1] * 2 ** ((rng.random() - 0.5) / 12)  # detuned by at most a quarter tone
    time = np.arange(round(SECONDS * RATE)) / RATE
    sound = 0.001 * rng.standard_normal(len(time))
    for onset, speed in bounce.impacts:
        since = time[time >= onset] - onset
        body = sum(
            amplitude * np.sin(2 * np.pi * pitch * ratio * since)
            for ratio, amplitude in material.partials
            if pitch * ratio < RATE / 2
        )
        burst = material.noise * rng.standard_normal(len(since)) * np.exp(-since / 0.01)
        sound[len(time) - len(since) :] += 0.2 * speed * (body * np.exp(-since / material.decay) + burst)
    return np.tanh(sound).astype(np.float32)
