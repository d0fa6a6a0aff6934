from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ccaco_cli.core.model.handmade import align, image_features

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "yellow": (230, 220, 30)}
SHAPES = ("square", "disc", "bar")


def drawn(colour: str, shape: str, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (80, 60), (240, 240, 240))
    x, y = (int(v) for v in rng.integers(12, 24, 2))
    pen = ImageDraw.Draw(image)
    if shape == "square":
        pen.rectangle((x, y, x + 28, y + 28), COLOURS[colour])
    elif shape == "disc":
        pen.ellipse((x, y, x + 28, y + 28), COLOURS[colour])
    else:
        pen.rectangle((x, y, x + 44, y + 6), COLOURS[colour])
    return image


def test_features_are_finite_and_see_shape_and_colour() -> None:
    whats = (("red", "disc"), ("red", "disc"), ("blue", "disc"), ("red", "bar"))
    first, same, other_colour, other_shape = (image_features(drawn(colour, shape, 1)) for colour, shape in whats)
    assert first.dtype == np.float32
    assert first.ndim == 1
    assert np.isfinite(first).all()
    assert np.array_equal(first, same)
    histogram = 4 * 4**3
    assert np.abs(first - other_colour)[-histogram:].sum() > 1
    assert np.abs(first - other_shape)[:-histogram].sum() > 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "1"])
def test_pictures_of_other_modes_and_sizes_have_the_same_features_shape(mode: str) -> None:
    assert image_features(Image.new(mode, (7, 200))).shape == image_features(Image.new("RGB", (64, 64))).shape


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, list[str], np.ndarray]:
    """120 pictures of one thing, two captions each."""
    rng = np.random.default_rng(0)
    whats = [(rng.choice(list(COLOURS)), rng.choice(SHAPES)) for _ in range(120)]
    pictures = np.stack([image_features(drawn(c, s, i)) for i, (c, s) in enumerate(whats)])
    texts = [text for c, s in whats for text in (f"a {c} {s}", f"there is one {s} and it is {c}")]
    return pictures, texts, np.repeat(np.arange(120), 2)


def test_new_pictures_find_their_words(world: tuple[np.ndarray, list[str], np.ndarray]) -> None:
    pictures, texts, row = world
    aligned = align(pictures, texts, row)
    every = [(c, s) for c in COLOURS for s in SHAPES]
    z = aligned.images(np.stack([image_features(drawn(c, s, 1000 + i)) for i, (c, s) in enumerate(every)]))
    words = aligned.texts([f"a {c} {s}" for c, s in every])
    assert z.shape == words.shape
    assert z.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1, atol=1e-5)
    assert ((z @ words.T).argmax(1) == np.arange(12)).mean() > 0.5  # chance 1 / 12
    assert aligned.parameters > 0


def test_shuffled_pairs_teach_nothing(world: tuple[np.ndarray, list[str], np.ndarray]) -> None:
    pictures, texts, row = world
    aligned = align(pictures, texts, np.random.default_rng(1).permutation(row))
    z, words = aligned.images(pictures), aligned.texts([f"a {c} {s}" for c in COLOURS for s in SHAPES])
    captions = [texts[2 * i] for i in range(120)]
    options = [f"a {c} {s}" for c in COLOURS for s in SHAPES]
    assert np.mean([options[k] == t for k, t in zip((z @ words.T).argmax(1), captions, strict=True)]) < 0.35


def test_the_same_seed_gives_the_same_vectors_and_few_pictures_are_enough(
    world: tuple[np.ndarray, list[str], np.ndarray],
) -> None:
    pictures, texts, row = world
    first, second = (align(pictures[:6], texts[:12], row[:12], seed=3) for _ in range(2))
    assert np.array_equal(first.images(pictures), second.images(pictures))
    assert np.isfinite(first.texts(["words never heard"])).all()
