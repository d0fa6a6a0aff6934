"""Arms of an ablation: each arm edits a base config, and its docstring states its hypothesis.

All arms keep the data, towers, budget (steps, batch size), seeds and model selection of the base config. ``CHANGES``
lists the keys that each may change.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.experiments import domain_arms
from ccaco_cli.core.experiments.arm_registry import ARMS, CHANGES, Arm, arm
from ccaco_cli.core.modalities import MODALITIES

__all__ = ["ARMS", "CHANGES", "SETS", "Arm", "apply", "expand"]

MATCHING = ("loss.cross", "model.fusion.direction", "eval.shortlist", "eval.shortlist_back")
"""The keys that ``_matching`` sets."""
CANDIDATES = 16
"""Largest shortlist of matchers that run a transformer on every pair: recalls do not change between 16 and 128
candidates.
"""


def _every_modality(key: str, value: Any) -> dict[str, Any]:
    return {f"model.{m}.{key}": value for m in MODALITIES}


def _matching(config: RunConfig, fusion: Mapping[str, Any]) -> RunConfig:
    """Trains the cross branch on matching, attending in both directions, with these fusion settings."""
    shortlists = {
        f"eval.{name}": min(getattr(config.eval, name), CANDIDATES) for name in ("shortlist", "shortlist_back")
    }
    return override(config, {"loss.cross": "matching", "model.fusion.direction": "both"} | shortlists | dict(fusion))


# baselines


@arm("ccaco")
def ccaco(config: RunConfig) -> RunConfig:
    """Joined alignment: contrastive and cross-attention losses in one model beat either loss alone."""
    return config


@arm("clip", "-cross", changes=("loss.beta",))
def clip(config: RunConfig) -> RunConfig:
    """Contrastive only, on the towers of this run (the loss of CLIP, arXiv:2103.00020; not OpenAI's model): one vector
    per sample is enough.
    """
    return override(config, {"loss.beta": 0.0})


@arm("zero-shot", changes=("method", "loss.beta"))
def zero_shot(config: RunConfig) -> RunConfig:
    """The pretrained model of ``--model`` without any training is enough (scored by its cosine; it is in no set: select
    it by name).
    """
    if not config.model.spec:
        raise ConfigError(
            "this arm scores a pretrained model, and none is named", where="zero-shot", expected="--model SPEC"
        )
    return override(config, {"method": "zero-shot", "loss.beta": 0.0})


@arm("vilbert", changes=("loss.alpha", "model.fusion.kind", "model.fusion.layers", *MATCHING))
def vilbert(config: RunConfig) -> RunConfig:
    """Two streams with co-attention, trained on matching alone (ViLBERT, arXiv:1908.02265), need no shared embedding
    space.
    """
    return _matching(config, {"loss.alpha": 0.0, "model.fusion.kind": "coattention", "model.fusion.layers": 2})


@arm("concat", changes=("loss.alpha", "loss.cross", "model.fusion.kind"))
def concat(config: RunConfig) -> RunConfig:
    """Concatenated pooled features and fully connected layers match pairs without attention or a shared embedding
    space.
    """
    return override(config, {"loss.alpha": 0.0, "loss.cross": "matching", "model.fusion.kind": "concat"})


@arm("handmade", changes=("method", "loss.beta"))
def handmade(config: RunConfig) -> RunConfig:
    """Gradient and colour histograms, TF-IDF and linear canonical correlation are enough: learned features are not
    needed.
    """
    return override(config, {"method": "cca", "loss.beta": 0.0})


@arm("resnet-bert", changes=("model.image.spec", "model.text.spec", "loss.beta"))
def resnet_bert(config: RunConfig) -> RunConfig:
    """A pretrained ResNet and BERT as a plain two-tower model are enough (needs downloaded weights, so it is in no set:
    select it by name).
    """
    return override(
        config,
        {"model.image.spec": "timm:resnet50.a1_in1k", "model.text.spec": "hf:bert-base-uncased", "loss.beta": 0.0},
    )


# fusion: the joined model with its cross branch trained on matching, for each kind of fusion

FUSION = ("model.fusion.kind", *MATCHING)


@arm("early", changes=FUSION)
def early(config: RunConfig) -> RunConfig:
    """Features of both modalities in one joint encoder: early fusion is better, because all tokens interact."""
    return _matching(config, {"model.fusion.kind": "early"})


@arm("late", changes=FUSION)
def late(config: RunConfig) -> RunConfig:
    """Each modality is scored alone and only the decisions are combined: late fusion is as good and cheapest."""
    return _matching(config, {"model.fusion.kind": "late"})


@arm("cross", "matching", changes=FUSION)
def cross(config: RunConfig) -> RunConfig:
    """Co-attention and a matching head with hard negatives (ALBEF, arXiv:2107.07651): binary matching trains attention
    best.
    """
    return _matching(config, {"model.fusion.kind": "coattention"})


@arm("unified", changes=FUSION)
def unified(config: RunConfig) -> RunConfig:
    """One single-stream transformer over patches and words (UNITER, arXiv:1909.11740) is better than two streams."""
    return _matching(config, {"model.fusion.kind": "unified"})


# ablations


@arm("-contrastive", changes=("loss.alpha",))
def no_contrastive(config: RunConfig) -> RunConfig:
    """Without the contrastive loss the cross branch alone is enough (it scores every pair)."""
    return override(config, {"loss.alpha": 0.0})


@arm("-collaboration", changes=("model.fusion.share",))
def no_collaboration(config: RunConfig) -> RunConfig:
    """Two branches without shared projections and gradients are as good: joint training brings no gain (always so with
    locked towers).
    """
    return override(config, {"model.fusion.share": False})


@arm("one-way-t2i", changes=("model.fusion.direction",))
def text_to_image(config: RunConfig) -> RunConfig:
    """Attention from words to patches is enough (the default of ``ccaco``, by name)."""
    return override(config, {"model.fusion.direction": "b_to_a"})


@arm("one-way-i2t", changes=("model.fusion.direction",))
def image_to_text(config: RunConfig) -> RunConfig:
    """Attention from patches to words is enough."""
    return override(config, {"model.fusion.direction": "a_to_b"})


@arm("two-way", changes=("model.fusion.direction",))
def two_way(config: RunConfig) -> RunConfig:
    """Attention in both directions is better than in one direction."""
    return override(config, {"model.fusion.direction": "both"})


@arm("-residual", changes=(*FUSION, "model.fusion.residual"))
def no_residual(config: RunConfig) -> RunConfig:
    """Co-attention needs no residual path: the attention output alone is enough (compare with ``cross``)."""
    return override(cross(config), {"model.fusion.residual": False})


@arm("attended", changes=("model.fusion.kind", "loss.cross"))
def attended(config: RunConfig) -> RunConfig:
    """Gated attended similarity (after SCAN, arXiv:1803.08024) is the best cross branch (the default of ``ccaco``, by
    name).
    """
    return override(config, {"model.fusion.kind": "attended", "loss.cross": "infonce"})


@arm("maxsim", changes=("model.fusion.kind", "loss.cross"))
def maxsim(config: RunConfig) -> RunConfig:
    """The most similar patch of every word and word of every patch (FILIP, arXiv:2111.07783) match as well as
    attention.
    """
    return override(config, {"model.fusion.kind": "maxsim", "loss.cross": "infonce"})


@arm("listwise", changes=(*FUSION, "loss.negatives"))
def listwise(config: RunConfig) -> RunConfig:
    """Choosing among one true and eight hard partners trains co-attention better than classifying pairs one by one."""
    return override(cross(config), {"loss.cross": "listwise", "loss.negatives": 8})


@arm("taught", changes=("loss.teach",))
def taught(config: RunConfig) -> RunConfig:
    """Distilling the cross branch into the embeddings improves the fast cosine score."""
    return override(config, {"loss.teach": 1.0})


@arm("+caption", changes=("loss.gamma",))
def with_caption(config: RunConfig) -> RunConfig:
    """Learning to write the captions (CoCa, arXiv:2205.01917) makes the towers bind attributes and roles better."""
    return override(config, {"loss.gamma": config.loss.gamma or 1.0})


@arm("mse", changes=("model.fusion.kind", "model.fusion.share", "loss.cross"))
def mse(config: RunConfig) -> RunConfig:
    """The mean squared change of the tokens by attention is a loss that aligns (known flaw: it only shrinks the
    tokens).
    """
    return override(config, {"model.fusion.kind": "residual", "model.fusion.share": True, "loss.cross": "mse"})


@arm("pool-mean", changes=("model.*.pool",))
def pool_mean(config: RunConfig) -> RunConfig:
    """The mean of all tokens is the better global vector (the default of pretrained towers; from scratch it is the
    maximum).
    """
    return override(config, _every_modality("pool", "mean"))


@arm("pool-cls", changes=("model.*.pool",))
def pool_cls(config: RunConfig) -> RunConfig:
    """The tower's class token is the better global vector."""
    return override(config, _every_modality("pool", "cls"))


@arm("pool-attention", changes=("model.*.pool",))
def pool_attention(config: RunConfig) -> RunConfig:
    """A learned weight per token makes a better global vector than the mean."""
    return override(config, _every_modality("pool", "attention"))


@arm("temperature-fixed", changes=("loss.learn_temperature",))
def temperature_fixed(config: RunConfig) -> RunConfig:
    """A fixed temperature is as good as a learned one."""
    return override(config, {"loss.learn_temperature": False})


@arm("dropout-0", changes=("model.*.input_dropout", "model.*.head_dropout", "model.fusion.dropout"))
def no_dropout(config: RunConfig) -> RunConfig:
    """Without dropout the heads generalise better."""
    return override(
        config,
        _every_modality("input_dropout", 0.0) | _every_modality("head_dropout", 0.0) | {"model.fusion.dropout": 0.0},
    )


# attention: each attention kind in co-attention; windows are smaller than small grids, so that they leave tokens out


@arm("attention-window", changes=(*FUSION, "model.fusion.attention", "model.fusion.window", "model.fusion.spread"))
def attention_window(config: RunConfig) -> RunConfig:
    """Local windows and a few global tokens (Longformer, arXiv:2004.05150) are as good as dense attention (compare with
    ``cross``).
    """
    return override(
        cross(config), {"model.fusion.attention": "window", "model.fusion.window": 4, "model.fusion.spread": 4}
    )


@arm("attention-linear", changes=(*FUSION, "model.fusion.attention"))
def attention_linear(config: RunConfig) -> RunConfig:
    """Random features (Performer, arXiv:2009.14794) are as good as the softmax that they approximate (compare with
    ``cross``).
    """
    return override(cross(config), {"model.fusion.attention": "linear"})


@arm("unified-window", changes=(*FUSION, "model.fusion.attention", "model.fusion.window", "model.fusion.spread"))
def unified_window(config: RunConfig) -> RunConfig:
    """A single stream needs attention only to nearby patches and words (compare with ``unified``)."""
    return override(
        unified(config), {"model.fusion.attention": "window", "model.fusion.window": 4, "model.fusion.spread": 4}
    )


@arm("unified-linear", changes=(*FUSION, "model.fusion.attention"))
def unified_linear(config: RunConfig) -> RunConfig:
    """A single stream with random-feature attention is as good (compare with ``unified``)."""
    return override(unified(config), {"model.fusion.attention": "linear"})


# balance: how the weights of the two losses are set


@arm("balance-schedule", changes=("loss.balance",))
def balance_schedule(config: RunConfig) -> RunConfig:
    """The cross branch trains best after a contrastive warm-up (the default of trained towers)."""
    return override(config, {"loss.balance": "schedule"})


@arm("balance-fixed", changes=("loss.balance",))
def balance_fixed(config: RunConfig) -> RunConfig:
    """Both losses from the first step: the cross branch needs no contrastive warm-up (the default of locked towers)."""
    return override(config, {"loss.balance": "fixed"})


@arm("balance-cosine", changes=("loss.balance", "loss.ramp", "loss.cross_ramp"))
def balance_cosine(config: RunConfig) -> RunConfig:
    """A cross weight that rises by a cosine over all steps after the warm-up disturbs training less than a short
    ramp.
    """
    return override(balance_schedule(config), {"loss.ramp": "cosine", "loss.cross_ramp": 1.0 - config.loss.cross_start})


@arm("balance-uncertainty", changes=("loss.balance",))
def balance_uncertainty(config: RunConfig) -> RunConfig:
    """Loss weights learned as homoscedastic uncertainty (arXiv:1705.07115) replace alpha and beta."""
    return override(config, {"loss.balance": "uncertainty"})


@arm("balance-gradnorm", changes=("loss.balance",))
def balance_gradnorm(config: RunConfig) -> RunConfig:
    """Losses with gradients of equal size (GradNorm, arXiv:1711.02257) train best together."""
    return override(config, {"loss.balance": "gradnorm"})


_BASELINES = ("ccaco", "clip", "vilbert", "concat", "handmade")
_FUSION = ("ccaco", "early", "late", "cross", "unified")
# one-way-t2i and attended are always the defaults of ccaco; with some towers others are too, and ``ablate`` leaves
# those out
_ABLATION = (
    *("ccaco", "-contrastive", "-cross", "-collaboration", "one-way-i2t", "two-way", "-residual"),
    *("maxsim", "matching", "listwise", "+caption", "mse"),
    *("pool-mean", "pool-cls", "pool-attention", "temperature-fixed", "dropout-0"),
)
SETS: Mapping[str, tuple[str, ...]] = {
    "all": (*_BASELINES, *_FUSION, *_ABLATION),
    "baselines": _BASELINES,
    "fusion": _FUSION,
    "ablation": _ABLATION,
    "attention": (
        "ccaco",
        "cross",
        "attention-window",
        "attention-linear",
        "unified",
        "unified-window",
        "unified-linear",
    ),
    "balance": (
        "ccaco",
        "balance-schedule",
        "balance-fixed",
        "balance-cosine",
        "balance-uncertainty",
        "balance-gradnorm",
    ),
    "domain": domain_arms.DOMAIN,
    "classifiers": domain_arms.CLASSIFIERS,
}
"""Set -> its arms. ``domain`` and ``classifiers`` need a target domain, so ``all`` leaves them out."""


def expand(text: str) -> list[str]:
    """Names of arms from text such as ``"baselines,-residual"``, in the given order; of several names of one arm, the
    first.

    Raises:
        ConfigError: a word is neither an arm nor a set, or there are no words.
    """
    names: dict[Arm, str] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        for name in SETS.get(word, (word,)):
            names.setdefault(_arm(name), name)
    if not names:
        raise ConfigError("no arms", where=repr(text), expected=f"{' | '.join(SETS)} | NAME,NAME,...")
    return list(names.values())


def apply(config: RunConfig, name: str) -> RunConfig:
    """Returns the config as an arm changes it. Raises ConfigError with the nearest name if there is no such arm."""
    return override(_arm(name)(config), {"arm": name})


def _arm(name: str) -> Arm:
    if name not in ARMS:
        near = difflib.get_close_matches(name, [*ARMS, *SETS], 1)
        raise ConfigError(
            "unknown arm", where=name, expected=" | ".join(ARMS), next=f"did you mean {near[0]}?" if near else None
        )
    return ARMS[name]
