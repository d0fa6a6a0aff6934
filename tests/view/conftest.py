"""Fixtures of the search page: an index of photos whose files lie beside it, and a browser without a screen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
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
def media_index(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``media_index(modality, name -> bytes)``: an index of files by a small random model.

    Further arguments: ``place``, its name or address, in which {} stands for a new folder; ``thumbnails=False``.
    """

    def embed(modality: str, files: Mapping[str, bytes], place: str = "{}/m.idx", *, thumbnails: bool = True) -> str:
        from ccaco_cli.core.library.request import MediaRequest
        from ccaco_cli.core.library.update import embed_folder
        from ccaco_cli.core.retrieval.address import index_place

        folder = tmp_path_factory.mktemp(modality)
        for name, data in files.items():
            path = folder / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ccaco_cli.core.experiments.pretrained.open_model", lambda *_: random_model(modality))
            # the export takes longer than all else together, and has its own tests
            without = {"exported": False, "why": "not tried here"}
            patch.setattr("ccaco_cli.core.retrieval.export.export", lambda *_, **__: without)
            if not thumbnails:
                patch.setattr("ccaco_cli.core.library.reader._thumbnail", lambda *_: b"")
            text = place.format(folder)
            index, database = index_place(text)
            assert index is not None
            settings = {"database": database, "device": "cpu", "precision": "fp32"}
            embed_folder(MediaRequest(index, folder / "files", modality, "hf:random", **settings))
        return text

    return embed


def random_model(modality: str) -> Any:
    """A small model of a modality and text with random weights, and a cross branch."""
    import torch

    from ccaco_cli.core import config_io
    from ccaco_cli.core.config import RunConfig
    from ccaco_cli.core.experiments.pretrained import LoadedModel
    from ccaco_cli.core.manifest import Manifest
    from ccaco_cli.core.model import aligner as aligners

    torch.manual_seed(0)
    modalities = (modality, "text")
    config = config_io.override(RunConfig(), {"model.width": 16, "model.array.columns": 3})
    aligner, towers = aligners.build(config.model, config.loss, modalities)
    facts = {"name": "random", "modalities": list(modalities), "towers": {}, "headline": "two-stage", "weight": 1.0}
    return LoadedModel(aligner.eval(), towers, config, Manifest(Path("random"), "model", facts))


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
