from __future__ import annotations

import math
import tomllib
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccaco_cli.core import config_io, recipes
from ccaco_cli.core.config import LossConfig, RunConfig
from ccaco_cli.core.config_io import load, override, parse_setting, to_toml, validate
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.recipes import build, recipe_of
from ccaco_cli.core.settings import MAX, ConfigKey, check_range, config_keys, setting


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


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optim.lr", math.nan, "nan does not fit: optim.lr (--lr); expected above 0"),
        ("optim.lr", math.inf, "inf does not fit: optim.lr (--lr); expected above 0"),
        ("optim.lr", 0.0, "0.0 does not fit: optim.lr (--lr); expected above 0"),
        ("loss.alpha", math.nan, "nan does not fit: loss.alpha (--alpha); expected 0 to 1000000"),
        ("loss.alpha", -1, "-1 does not fit: loss.alpha (--alpha); expected 0 to 1000000"),
        ("seed", -1, "-1 does not fit: seed (--seed); expected 0 to 4294967295"),
        ("optim.epochs", 0, "0 does not fit: optim.epochs (--epochs); expected 1 to 1000000"),
        ("optim.batch_size", 0, "0 does not fit: optim.batch_size (--batch-size); expected 1 to 1000000"),
        ("optim.warmup", -1, "-1 does not fit: optim.warmup (--warmup); expected 0 to 1000000000"),
        ("optim.beta2", 1.0, "1.0 does not fit: optim.beta2; expected 0 or more, below 1"),
        ("model.image.crop", 0.0, "0.0 does not fit: model.image.crop; expected above 0, at most 1"),
        ("model.text.context_length", -1, "model.text.context_length (--context-length)"),
        ("model.audio.cache_tokens", 0, "model.audio.cache_tokens (--cache-tokens)"),
        ("model.image.grayscale", math.nan, "nan does not fit: model.image.grayscale; expected 0 to 1"),
        ("model.fusion.window", 0, "0 does not fit: model.fusion.window; expected 1 to 1000000"),
        ("model.fusion.features", 0, "0 does not fit: model.fusion.features; expected 1 to 4096"),
        ("model.vectors", 0, "0 does not fit: model.vectors; expected 1 to 1024"),
        ("domain.weight", -0.5, "-0.5 does not fit: domain.weight (--domain-weight); expected 0 to 1000000"),
        ("loss.teach", -1.0, "-1.0 does not fit: loss.teach; expected 0 to 1000000"),
        ("eval.rerank_weights", [0.0, math.nan], "nan does not fit: eval.rerank_weights; expected 0 to 1000000"),
    ],
)
def test_a_number_out_of_range_names_key_flag_and_range(key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(RunConfig(), {key: value})
    assert words in str(caught.value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


NUMBERS = [k for k in config_keys(RunConfig) if _is_number(k.default[0] if isinstance(k.default, tuple) else k.default)]


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: key.key)
def test_every_number_outside_its_range_is_refused(key: ConfigKey) -> None:
    limits = key.setting
    outside: list[Any] = [math.nan, math.inf, -math.inf, "text", "1", True]
    outside += [] if limits.min is None else [limits.min - 1]
    outside += [] if limits.max is None else [2 * limits.max + 1]
    outside += [10**400, -(10**400)]  # larger than any float
    outside += [limit for limit in (limits.above, limits.below) if limit is not None]
    assert len(outside) > 9, "both limits are declared"
    for value in outside:
        with pytest.raises(ConfigError) as refused:
            override(RunConfig(), {key.key: [value] if isinstance(key.default, tuple) else value})
        assert key.key in str(refused.value), value


def test_a_number_has_an_upper_bound_also_where_none_is_declared() -> None:
    with pytest.raises(ConfigError, match=r"optim\.batch_size \(--batch-size\); expected 1 to 1000000$"):
        override(RunConfig(), {"optim.batch_size": MAX + 1})
    assert override(RunConfig(), {"optim.batch_size": MAX}).optim.batch_size == MAX
    with pytest.raises(ConfigError, match=r"a number of more than 30 digits does not fit: loss\.beta"):
        override(RunConfig(), {"loss.beta": 10**5000})


def test_a_number_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    digits = "1" * 5000  # Python converts at most 4300
    with pytest.raises(ConfigError, match=r"loss\.beta"):
        override(RunConfig(), dict([parse_setting(f"loss.beta={digits}")]))
    (tmp_path / "c.toml").write_text(f"seed = {digits}\n")
    with pytest.raises(ConfigError, match="not TOML"):
        load(tmp_path / "c.toml")


def test_every_number_has_a_range_and_every_default_fits() -> None:
    for key in config_keys(RunConfig):
        check_range(key, key.default)
        assert key.setting.help, key.key
        for number in key.default if isinstance(key.default, tuple) else (key.default,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                assert not key.setting.in_range(math.nan), key.key
                assert key.setting.range_text(), key.key
    with pytest.raises(TypeError, match="must declare min or above"):
        setting(3, "A number without a range.")


def test_every_choice_of_a_table_is_checked_with_the_key_and_the_choices() -> None:
    validate(RunConfig())
    for key in config_keys(RunConfig):
        if not key.setting.choices:
            continue
        names = key.setting.choice_names()
        assert key.default in (*names, ""), key.key
        if key.flag:
            assert all(name in key.setting.help for name in names), f"the help of {key.flag} must name its choices"
        with pytest.raises(ConfigError) as caught:
            validate(override(RunConfig(), {key.key: "no such word"}))
        assert key.key in str(caught.value)
        assert " | ".join(names) in str(caught.value)


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
    monkeypatch.setitem(recipes.RECIPES, "locked", recipe)
    locked = {"model.image.lock": True, "model.text.lock": True}
    resolved = build(
        base=locked | {"optim.batch_size": 5, "optim.lr": 0.5},
        explicit={"optim.lr": 0.25},
        modalities=("image", "text"),
    )
    assert (resolved.optim.epochs, resolved.optim.batch_size, resolved.optim.lr) == (77, 5, 0.25)
    assert resolved.model.image.lock


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
    assert recipe in recipes.RECIPES


def test_every_recipe_names_known_keys() -> None:
    for recipe in recipes.RECIPES.values():
        override(RunConfig(), recipe)


@settings(deadline=None, max_examples=40)
@given(
    st.text(st.characters(codec="utf-8")),
    st.floats(0, MAX),
    st.integers(0, 2**32 - 1),
    st.integers(-100, 100),
)
def test_toml_round_trip(text: str, number: float, seed: int, states: int) -> None:
    settings = {"dataset": text, "loss.beta": number, "seed": seed, "model.text.states": states}
    config = override(RunConfig(), settings | {"eval.rerank_weights": [number, 0.0]})
    assert config_io.from_dict(tomllib.loads(to_toml(config))) == config
    assert config_io.from_dict(asdict(config)) == config


def test_files(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('seed = 3\n[loss]\nbeta = 0.5\n[model.image]\nspec = "tiny"\n')
    assert load(tmp_path / "c.toml") == {"seed": 3, "loss.beta": 0.5, "model.image.spec": "tiny"}
    (tmp_path / "bad.toml").write_text("seed = \n")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "latin.toml").write_bytes(b'seed = 3\narm = "caf\xe9"\n')
    (tmp_path / "zero.toml").write_bytes(b"seed = 3\n\0\n")
    for name, words in (
        ("gone.toml", "no such config file"),
        ("bad.toml", "not TOML"),
        ("bytes.toml", "UTF-16 text, not UTF-8: .*bytes.toml, line 1, byte 1; "),
        ("latin.toml", "not UTF-8 text .byte 0xe9.: .*latin.toml, line 2, byte 11; "),
        ("zero.toml", "binary data where text was expected .byte 0x00.: .*zero.toml, line 2, byte 1; "),
        (".", "cannot read"),
    ):
        with pytest.raises(ConfigError, match=words):
            load(tmp_path / name)
