from __future__ import annotations

from dataclasses import asdict
from fnmatch import fnmatch

import pytest

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import flatten, override
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.experiments.arms import ARMS, CHANGES, SETS, apply, expand
from ccaco_cli.core.experiments.methods import METHODS
from ccaco_cli.core.losses.domain import DOMAIN_LOSSES
from ccaco_cli.core.losses.total import CROSS_LOSSES
from ccaco_cli.core.model.matching import MATCHERS
from ccaco_cli.core.recipes import RECIPES

# a base that is nowhere at the value an arm sets, so that every key an arm touches shows
BASE = override(
    RunConfig(),
    {
        "dataset": "x",
        "model.spec": "?",
        "loss.alpha": 0.75,
        "loss.beta": 0.25,
        "loss.cross": "?",
        "loss.negatives": 3,
        "loss.balance": "?",
    }
    | {"domain.loss": "?", "domain.stats": "?", "domain.classify": 0.5}
    | {"model.fusion.kind": "?", "model.fusion.direction": "?", "model.fusion.layers": 5, "model.fusion.dropout": 0.3}
    | {
        f"model.{m}.{k}": v
        for m in ("image", "text", "audio", "video")
        for k, v in (("pool", "?"), ("input_dropout", 0.3), ("head_dropout", 0.3))
    },
)
SHARED = (
    "optim.*",
    "seed",
    "dataset",
    "device",
    "eval.select",
    "eval.protocol",
    "eval.small",
    "eval.exhaustive",
    "model.width",
    "*.lock",
)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_changes_only_its_declared_fields_and_all_of_them(name: str) -> None:
    changed = set[str]()
    for base in (BASE, override(BASE, {"model.fusion.share": False})):  # one arm turns it off, another on
        before, after = flatten(asdict(base)), flatten(asdict(apply(base, name)))
        changed |= {key for key in before if before[key] != after[key]} - {"arm"}
        assert after["arm"] == name
    assert not [key for key in changed if not any(fnmatch(key, pattern) for pattern in CHANGES[name])]
    assert not [pattern for pattern in CHANGES[name] if not any(fnmatch(key, pattern) for key in changed)]
    assert not [key for key in changed if any(fnmatch(key, pattern) for pattern in SHARED)], (
        "data, budget, seed, pool and selection are shared"
    )


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_states_its_hypothesis_and_can_be_built(name: str) -> None:
    assert len(ARMS[name].__doc__ or "") > 30
    config = apply(override(RunConfig(), {"model.spec": "?"}), name)
    assert config.model.fusion.kind in MATCHERS
    assert config.loss.cross in CROSS_LOSSES
    assert config.method in METHODS
    assert config.loss.alpha + config.loss.beta + config.domain.classify > 0
    assert config.domain.loss in DOMAIN_LOSSES
    assert 0 in config.eval.rerank_weights


def test_arms_of_one_function_are_one_row_and_others_differ() -> None:
    scratch = override(RunConfig(), RECIPES["scratch"])
    every = {name: flatten(asdict(apply(scratch, name))) | {"arm": ""} for name in SETS["all"]}
    for config in every:
        for other in every:
            assert (every[config] == every[other]) == (ARMS[config] is ARMS[other]), f"{config} and {other}"


def test_sets_hold_what_their_names_promise() -> None:
    assert set(SETS["all"]) == set().union(*(SETS[name] for name in ("baselines", "fusion", "ablation")))
    assert {"ccaco", "clip", "vilbert", "concat", "handmade"} == set(SETS["baselines"])
    assert {name: names[0] for name, names in SETS.items()} == {
        **dict.fromkeys(("all", "baselines", "fusion", "ablation", "attention", "balance"), "ccaco"),
        **{"domain": "source-only", "classifiers": "classifier"},
    }, "the reference is in every set"
    assert not any("resnet-bert" in names for names in SETS.values()), "it needs weights"


def test_attention_and_balance_differ_from_their_partners_in_what_they_are_about() -> None:
    for first, second, keys in (
        ("attention-window", "cross", {"model.fusion.attention", "model.fusion.window", "model.fusion.spread"}),
        ("attention-linear", "cross", {"model.fusion.attention"}),
        ("unified-linear", "unified", {"model.fusion.attention"}),
        ("balance-gradnorm", "ccaco", {"loss.balance"}),
        ("balance-cosine", "balance-schedule", {"loss.ramp", "loss.cross_ramp"}),
    ):
        a, b = (flatten(asdict(apply(RunConfig(), name))) | {"arm": ""} for name in (first, second))
        assert {key for key in a if a[key] != b[key]} == keys
    assert {"dense", "window", "linear"} == {
        apply(RunConfig(), name).model.fusion.attention for name in expand("attention")
    }


def test_expand_keeps_the_order_and_no_doubles() -> None:
    assert expand("late, clip,late") == ["late", "clip"]
    assert expand("baselines,-cross,-residual") == [*SETS["baselines"], "-residual"]
    assert expand("-cross,baselines")[:3] == ["-cross", "ccaco", "vilbert"]
    assert len(expand("all")) == len(set(expand("all"))) == len({ARMS[n] for n in SETS["all"]})
    assert expand("resnet-bert") == ["resnet-bert"]


@pytest.mark.parametrize("text", ["", " , "])
def test_no_arms_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no arms"):
        expand(text)


def test_the_halves() -> None:
    assert (apply(BASE, "clip").loss.alpha, apply(BASE, "clip").loss.beta) == (0.75, 0.0)
    assert (apply(BASE, "-contrastive").loss.alpha, apply(BASE, "-contrastive").loss.beta) == (0.0, 0.25)


def test_an_unknown_arm_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown arm: clipp; .*did you mean clip\?"):
        apply(BASE, "clipp")
    with pytest.raises(ConfigError, match=r"did you mean baselines\?"):
        expand("ccaco,baseline")
    with pytest.raises(ConfigError, match="ccaco"):
        apply(BASE, "zzz")


def test_arms_across_domains_come_with_and_without_the_cross_branch() -> None:
    names = SETS["domain"]
    assert len(names) == 10
    for name in names[:5]:
        plain, crossed = apply(BASE, name), apply(BASE, f"{name}-cross")
        assert (plain.loss.beta, crossed.loss.beta) == (0.25, 0.0)
        assert plain.domain == crossed.domain
    settings = {(apply(BASE, name).domain.loss, apply(BASE, name).domain.stats) for name in names[:5]}
    assert settings == {
        ("none", "source"),
        ("none", "target"),
        ("mmd", "source"),
        ("dann", "source"),
        ("both", "source"),
    }
