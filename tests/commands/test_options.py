from __future__ import annotations

from pathlib import Path

import pytest

from ccaco_cli.commands import options
from ccaco_cli.core.config import RunConfig, override
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.view.tables import FORMATS


def test_every_flag_sets_a_key_that_exists() -> None:
    for key in options.KEYS.values():
        value: object = RunConfig()
        for name in key.split("."):
            value = getattr(value, name)
        assert override(RunConfig(), {key: value}) == RunConfig()


def test_set_wins_over_flags_and_absent_flags_say_nothing() -> None:
    flags = {"beta": 0.5, "lr": None, "seed": 3, "name": "x", "cache_tokens": 9}
    found = options.settings(["loss.beta=0.25", "optim.wd=0.5"], flags)
    assert found == {"loss.beta": 0.25, "seed": 3, "optim.wd": 0.5} | {
        f"model.{m}.cache_tokens": 9 for m in ("image", "text", "audio", "video")
    }
    assert options.settings(None, {}) == {}
    override(RunConfig(), found)


def test_picture_sizes_and_tiles() -> None:
    assert options.settings(None, {"image_size": "96"}) == {"model.image.size": 96, "model.image.tiles": ""}
    found = options.settings(None, {"image_size": "4096x2048", "tile": 512})
    assert found == {"model.image.size": 512, "model.image.tiles": "8x4"}
    override(RunConfig(), found)
    for flags, words in (
        ({"image_size": "large"}, "HEIGHTxWIDTH"),
        ({"image_size": "1x2x3"}, "HEIGHTxWIDTH"),
        ({"image_size": "64x32"}, "add --tile"),
        ({"image_size": "64x32", "tile": 24}, "divisor"),
        ({"tile": 24}, "HEIGHTxWIDTH"),
    ):
        with pytest.raises(ConfigError, match=words):
            options.settings(None, flags)  # type: ignore[arg-type]


def test_files_and_formats(tmp_path: Path) -> None:
    assert options.file_settings(None) == {}
    (tmp_path / "c.toml").write_text("[loss]\nbeta = 0.125\n")
    assert options.file_settings(tmp_path / "c.toml") == {"loss.beta": 0.125}
    with pytest.raises(ConfigError, match="gone"):
        options.file_settings(tmp_path / "gone.toml")
    assert tuple(options.Format) == FORMATS
