"""Fixtures of the search page: an index of photos whose files lie beside it, and a browser without a screen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PLACES = ("beach", "city")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen JPEG files in two folders, one a year from 2010 on, each with its date and camera."""
    folder = tmp_path_factory.mktemp("media") / "photos"
    for number in range(16):
        blocks = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        picture = Image.fromarray(blocks).resize((48, 40), Image.Resampling.NEAREST)
        exif = picture.getexif()
        exif[306] = f"{2010 + number}:07:04 12:00:00"
        exif[271], exif[272] = "Canon", "EOS 5D" if number % 2 else "EOS R6"
        path = folder / PLACES[number % 2] / f"p{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=95, exif=exif)
    return folder


@pytest.fixture(scope="session")
def photo_index(run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the photos: one side, with the columns of their files and EXIF data."""
    from ccaco_cli.core.library.request import MediaRequest
    from ccaco_cli.core.library.update import embed_folder

    index = tmp_path_factory.mktemp("photo") / "photos.idx"
    embed_folder(MediaRequest(source=photos, model=run, index=index, device="cpu", precision="fp32"))
    return index


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a screen; it needs: apt install chromium chromium-driver."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed: pip install 'ccaco[browser]'"
    )
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no browser: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(driver))
    chrome.set_script_timeout(240)
    yield chrome
    chrome.quit()
