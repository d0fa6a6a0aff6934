from __future__ import annotations

import pickle
from collections import defaultdict
from dataclasses import asdict

import numpy as np
import pytest

from ccaco_cli.core.data import bounces
from ccaco_cli.core.data.bounces import MATERIALS, SIZES, UNSEEN, Bounce
from ccaco_cli.core.data.clips import Clip

BALL = Bounce("wood", "large", 0.3, 0.8, 0.7, 0.5, 0.3, 0.8, 5)
TIMING = ("delay", "drop", "restitution")


def clip_of(record: object) -> Bounce:
    return record.media["video"].args[0]  # type: ignore[attr-defined, no-any-return]


def test_a_ball_falls_bounces_and_stays_above_the_ground() -> None:
    heights = np.array([BALL.height(t) for t in np.arange(0, 2, 0.001)])
    assert heights[0] == heights[299] == 0.8 and heights.min() >= 0 and heights.max() == pytest.approx(0.8, abs=1e-6)
    times, speeds = zip(*BALL.impacts, strict=True)
    assert len(times) >= 3 and np.allclose(np.diff(speeds) / speeds[:-1], -0.3)
    for time in times:
        assert BALL.height(time) == pytest.approx(0, abs=1e-9)
        assert BALL.height(time - 0.05) > 0.01
    assert max(BALL.height(t) for t in np.linspace(times[0], times[1], 99)) == pytest.approx(0.8 * 0.7**2, abs=1e-3)


def test_each_impact_is_heard_when_it_is_seen() -> None:
    loud = np.abs(bounces.waveform(BALL))
    for time, speed in BALL.impacts:
        at = round(time * bounces.RATE)
        assert loud[at : at + 400].max() > 0.1 * speed
        assert loud[at : at + 400].max() > 2 * loud[at - 400 : at - 20].max()
    assert loud[: round(BALL.impacts[0][0] * bounces.RATE) - 1].max() < 0.01
    bottom = [np.argwhere(p.astype(int).sum(-1).std(1) > 40).max() for p in bounces.pictures(BALL)]
    touching = [n for n, row in enumerate(bottom) if row >= round(bounces.GROUND * 64) - 2]
    assert min(touching) == pytest.approx(BALL.impacts[0][0] * bounces.FPS, abs=1)


@pytest.mark.parametrize("size", SIZES)
def test_size_is_pitch(size: str) -> None:
    sound = bounces.waveform(Bounce("plastic", size, 0.1, 1.0, 0.5, 0.5, 0.3, 0.8, 5))
    spectrum = np.abs(np.fft.rfft(sound[round(0.46 * 16_000) :][:2_400] * np.hanning(2_400)))
    pitch = SIZES[size][1]
    assert spectrum[1:].argmax() * 16_000 / 2_400 == pytest.approx(pitch, rel=0.06)


def test_materials_sound_and_look_unlike() -> None:
    sounds, looks = [], []
    for material in MATERIALS:
        ball = Bounce(material, "large", 0.1, 1.0, 0.5, 0.5, 0.3, 0.8, 5)
        spectrum = np.abs(np.fft.rfft(bounces.waveform(ball)))
        sounds.append(spectrum / np.linalg.norm(spectrum))
        looks.append(next(bounces.pictures(ball)).astype(float).ravel() / 255)
    for table in (
        np.array(sounds) @ np.array(sounds).T,
        1 - np.linalg.norm(np.array(looks)[:, None] - np.array(looks)[None], axis=-1) / 3,
    ):
        assert table[~np.eye(len(table), dtype=bool)].max() < 0.95


def test_twins_differ_in_timing_alone() -> None:
    pairs = defaultdict(list)
    for record in bounces.records("train", 60, seed=1, side=64):
        pairs[record.family].append(clip_of(record))
    assert len(pairs) == 30 and all(len(pair) == 2 for pair in pairs.values())
    for first, second in pairs.values():
        a, b = asdict(first), asdict(second)
        assert {key for key in a if a[key] != b[key]} == set(TIMING)
        assert abs(first.impacts[0][0] - second.impacts[0][0]) >= bounces.MIN_TWIN_OFFSET


def test_unseen_combinations_are_in_test_alone() -> None:
    def described(split: str) -> set[tuple[str, str]]:
        return {(r.meta["material"], r.meta["size"]) for r in bounces.records(split, 400, seed=0, side=64)}

    assert not described("train") & UNSEEN and not described("val") & UNSEEN
    assert described("test") & UNSEEN == UNSEEN and described("test") - UNSEEN
    assert {m for m, _ in described("train")} == set(MATERIALS) and {s for _, s in described("train")} == set(SIZES)
    shares = [r.meta["combination"] == "unseen" for r in bounces.records("test", 200, seed=0, side=64)]
    assert np.mean(shares) == 0.5


def test_clips_are_a_function_of_the_seed_and_not_of_their_number() -> None:
    smaller, larger = (list(bounces.records("val", n, seed=2, side=64)) for n in (3, 8))
    assert [clip_of(r) for r in smaller] == [clip_of(r) for r in larger[:3]]
    assert [clip_of(r) for r in smaller] != [clip_of(r) for r in bounces.records("val", 3, seed=3, side=64)]
    assert [clip_of(r) for r in pickle.loads(pickle.dumps(smaller))] == [clip_of(r) for r in smaller], (
        "workers draw them"
    )
    data = bounces.render(clip_of(smaller[0]))
    bounces.render.cache_clear()
    assert bounces.render(clip_of(smaller[0])) == data


def test_the_file_holds_what_was_drawn_and_played() -> None:
    clip = Clip(bounces.render(BALL))
    frames = np.stack([np.asarray(f) for f in clip.frames(16)]).astype(float)
    drawn = np.stack(list(bounces.pictures(BALL))).astype(float)
    assert frames.shape == drawn.shape == (32, 64, 64, 3) and np.abs(frames - drawn).mean() < 6
    heard, played = clip.samples(16_000)[:32_000], bounces.waveform(BALL)
    assert np.corrcoef(heard[:31_000], played[:31_000])[0, 1] > 0.9, "the encoder's delay is taken out"
