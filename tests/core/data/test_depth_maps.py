"""Images of one channel of more than 8 bits: depth maps and scans keep their contrast, and it is said how."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.data.checks import Rules, check_image, decode_image

DEPTH = np.linspace(800, 4000, 64 * 48).reshape(48, 64)
"""Depths in millimetres: 5 % of what 16 bits hold."""


def file(array: Any, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (DEPTH.astype(np.uint16), "PNG"),
        (DEPTH.astype(np.uint16), "TIFF"),
        (DEPTH.astype(np.int32), "TIFF"),
        (DEPTH.astype(np.float32) / 1000, "TIFF"),
    ],
    ids=["16-bit PNG", "16-bit TIFF", "32-bit TIFF", "float TIFF in metres"],
)
def test_a_depth_map_keeps_its_contrast(array: Any, kind: str) -> None:
    image = decode_image(file(array, kind))
    pixels = np.asarray(image)[..., 0].astype(int)
    assert image.mode == "RGB" and image.size == (64, 48)
    assert pixels.min() == 0 and pixels.max() == 255 and len(np.unique(pixels)) > 250
    assert (np.diff(pixels.ravel()) >= 0).all(), "farther is brighter, in order"
    _, measures, facts = check_image(file(array, kind), Rules(None, ("image",)))
    low, high = np.percentile(array, (1, 99))
    assert facts["range"] == pytest.approx([low, high], rel=1e-3)
    assert measures["range_high"] == pytest.approx(high, rel=1e-3)


def test_pixels_without_a_measurement_do_not_count() -> None:
    array = DEPTH.astype(np.float32)
    array[:, :20] = 0
    array[0], array[1, 30] = np.nan, np.inf
    pixels = np.asarray(decode_image(file(array, "TIFF")))[..., 0]
    assert (pixels[:, :20] == 0).all() and (pixels[0] == 0).all() and pixels[1, 30] == 0
    assert pixels[2:, 20:].max() == 255 and pixels[2:, 20:].mean() > 100


@pytest.mark.parametrize(("value", "expected"), [(0x7FFF, 127), (0xFFFF, 255), (0, 0)])
def test_a_scan_of_one_value_is_scaled_by_16_bits(value: int, expected: int) -> None:
    assert (np.asarray(decode_image(file(np.full((4, 4), value, np.uint16), "PNG"))) == expected).all()
    assert (np.asarray(decode_image(file(np.full((4, 4), np.nan, np.float32), "TIFF"))) == 0).all()


def test_8_bits_stay_as_they_are() -> None:
    data = file((DEPTH / 40).astype(np.uint8), "PNG")
    assert (np.asarray(decode_image(data))[..., 0] == (DEPTH / 40).astype(np.uint8)).all()
    assert "range" not in check_image(data, Rules(None, ("image",)))[2]


def test_prepare_says_so(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "maps").mkdir(exist_ok=True)
        (tmp_path / f"maps/{number}.png").write_bytes(file((DEPTH + number).astype(np.uint16), "PNG"))
    done = ccaco("prepare", "media", "--source", tmp_path / "maps", "--out", tmp_path / "d", "--workers", 0)
    assert done.code == 0 and "1st to its 99th percentile" in done.err, done.err
