from __future__ import annotations

import tomllib
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccaco_cli.core import config as configs
from ccaco_cli.core.config import LossConfig, RunConfig, build, load, override, parse_setting, recipe_of, to_toml
from ccaco_cli.core.errors import ConfigError


def with_towers(image: str = "tiny", text: str = "tiny", lock: bool = False) -> RunConfig:
    return override(
        RunConfig(),
        {"model.image.spec": image, "model.text.spec": text, "model.image.lock": lock, "model.text.lock": lock},
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("loss.beta=0.25", ("loss.beta", 0.25)),
        ("optim.epochs=3", ("optim.epochs", 3)),
        ("model.image.lock=true", ("model.image.lock", True)),
        ("loss.cross=matching", ("loss.cross", "matching")),
        ("model.text.spec=hf:a@b=c", ("model.text.spec", "hf:a@b=c")),
        ("eval.rerank_weights=[0.0, 1]", ("eval.rerank_weights", [0.0, 1])),
    ],
)
def test_settings_are_read_as_toml_or_bare_words(text: str, wanted: tuple[str, Any]) -> None:
    assert parse_setting(text) == wanted


@pytest.mark.parametrize("text", ["loss.beta", "=3", ""])
def test_a_setting_without_key_and_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_setting(text)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("loss.bta", "loss.beta"),
        ("optim.batchsize", "optim.batch_size"),
        ("model.imag.lock", "model.image"),
        ("model.fusion.kin", "model.fusion.kind"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match="unknown config key") as caught:
        override(RunConfig(), {key: 1})
    assert f"did you mean {nearest}?" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss.beta", "much"),
        ("loss.beta", True),
        ("optim.epochs", 1.5),
        ("model.image.lock", 1),
        ("loss.cross", 3),
        ("loss", 3),
        ("seed.x", 1),
        ("eval.rerank_weights", ["a"]),
        ("eval.rerank_weights", 0.5),
    ],
)
def test_a_value_of_another_kind_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key.split(".")[0]):
        override(RunConfig(), {key: value})


def test_override_makes_a_copy_and_whole_numbers_fit_fractions() -> None:
    base = RunConfig()
    changed = override(base, {"loss.beta": 3, "eval.rerank_weights": [0, 2]})
    assert changed.loss.beta == 3.0
    assert isinstance(changed.loss.beta, float)
    assert changed.eval.rerank_weights == (0.0, 2.0)
    assert base == RunConfig()
    with pytest.raises(FrozenInstanceError):
        base.seed = 3  # type: ignore[misc]
    assert override(LossConfig(), {"beta": 0.125}).beta == 0.125


def test_flags_win_over_file_over_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"optim.epochs": 77, "optim.batch_size": 78, "optim.lr": 0.79}
    monkeypatch.setitem(configs.RECIPES, "locked", recipe)
    locked = {"model.image.lock": True, "model.text.lock": True}
    found = build(
        base=locked | {"optim.batch_size": 5, "optim.lr": 0.5},
        explicit={"optim.lr": 0.25},
        modalities=("image", "text"),
    )
    assert (found.optim.epochs, found.optim.batch_size, found.optim.lr) == (77, 5, 0.25)
    assert found.model.image.lock


@pytest.mark.parametrize(
    ("config", "recipe"),
    [
        (with_towers(), "scratch"),
        (with_towers("timm:resnet18@none", "tiny"), "scratch"),
        (with_towers("timm:resnet18", "tiny"), "finetune"),
        (with_towers("timm:resnet18", "hf:x", lock=True), "locked"),
        (override(with_towers("timm:resnet18", "tiny"), {"model.image.lock": True}), "scratch"),
    ],
)
def test_the_recipe_follows_the_towers(config: RunConfig, recipe: str) -> None:
    assert recipe_of(config, ("image", "text")) == recipe
    assert recipe in configs.RECIPES


def test_every_recipe_names_known_keys() -> None:
    for recipe in configs.RECIPES.values():
        override(RunConfig(), recipe)


@settings(deadline=None, max_examples=40)
@given(st.text(st.characters(codec="utf-8")), st.floats(allow_nan=False), st.integers(-(2**60), 2**60))
def test_toml_round_trip(text: str, number: float, whole: int) -> None:
    config = override(
        RunConfig(), {"dataset": text, "loss.beta": number, "seed": whole, "eval.rerank_weights": [number, 0.0]}
    )
    assert configs.from_dict(tomllib.loads(to_toml(config))) == config
    assert configs.from_dict(asdict(config)) == config


def test_files(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('seed = 3\n[loss]\nbeta = 0.5\n[model.image]\nspec = "tiny"\n')
    assert load(tmp_path / "c.toml") == {"seed": 3, "loss.beta": 0.5, "model.image.spec": "tiny"}
    (tmp_path / "bad.toml").write_text("seed = \n")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name, words in (
        ("gone.toml", "no such config file"),
        ("bad.toml", "not TOML"),
        ("bytes.toml", "not TOML"),
        (".", "cannot read"),
    ):
        with pytest.raises(ConfigError, match=words):
            load(tmp_path / name)
