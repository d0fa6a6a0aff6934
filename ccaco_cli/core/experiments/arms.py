"""Arms of an ablation: each edits a base config, and its docstring is its hypothesis.

All arms keep data, towers, budget (steps, batch), seeds and selection as the base has them; ``CHANGES`` says what each may touch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from ccaco_cli.core.config import MODALITIES, RunConfig, override
from ccaco_cli.core.errors import ConfigError

Arm = Callable[[RunConfig], RunConfig]
ARMS: dict[str, Arm] = {}
CHANGES: dict[str, tuple[str, ...]] = {}
"""Arm -> the config keys that it may change; ``model.*.pool`` is every modality's."""
MATCHING = ("loss.cross", "model.fusion.direction", "eval.shortlist", "eval.shortlist_back")
"""What ``_matching`` sets."""
CANDIDATES = 16
"""The most that matchers which run a transformer on every pair look at; the figures are flat from here to 128 (SCIENCE, corrections)."""


def arm(*names: str, changes: tuple[str, ...] = ()) -> Callable[[Arm], Arm]:
    """Enters a function in ``ARMS`` under each name, and what it may change in ``CHANGES``."""

    def enter(function: Arm) -> Arm:
        for name in names:
            ARMS[name], CHANGES[name] = function, changes
        return function

    return enter


def _every(key: str, value: Any) -> dict[str, Any]:
    return {f"model.{m}.{key}": value for m in MODALITIES}


def _matching(config: RunConfig, fusion: Mapping[str, Any]) -> RunConfig:
    """The cross branch trained on matching, both sides looking, in this way of fusion."""
    few = {f"eval.{name}": min(getattr(config.eval, name), CANDIDATES) for name in ("shortlist", "shortlist_back")}
    return override(config, {"loss.cross": "matching", "model.fusion.direction": "both"} | few | dict(fusion))


# baselines


@arm("ccaco")
def ccaco(config: RunConfig) -> RunConfig:
    """Joined alignment: contrastive and cross-attention in one loss beat either half."""
    return config


@arm("clip", "-cross", changes=("loss.beta",))
def clip(config: RunConfig) -> RunConfig:
    """Contrastive only (CLIP, arXiv:2103.00020): one vector a sample is enough."""
    return override(config, {"loss.beta": 0.0})


@arm("vilbert", changes=("loss.alpha", "model.fusion.kind", "model.fusion.layers", *MATCHING))
def vilbert(config: RunConfig) -> RunConfig:
    """Two streams with co-attention, trained on matching alone (ViLBERT, arXiv:1908.02265), need no shared space."""
    return _matching(config, {"loss.alpha": 0.0, "model.fusion.kind": "coattention", "model.fusion.layers": 2})


@arm("concat", changes=("loss.alpha", "loss.cross", "model.fusion.kind"))
def concat(config: RunConfig) -> RunConfig:
    """Pooled features side by side and fully connected layers find the matches without attention or a shared space."""
    return override(config, {"loss.alpha": 0.0, "loss.cross": "matching", "model.fusion.kind": "concat"})


@arm("handmade", changes=("method", "loss.beta"))
def handmade(config: RunConfig) -> RunConfig:
    """Gradient and colour histograms, TF-IDF and linear canonical correlation do the job without learned features."""
    return override(config, {"method": "cca", "loss.beta": 0.0})


@arm("resnet-bert", changes=("model.image.spec", "model.text.spec", "loss.beta"))
def resnet_bert(config: RunConfig) -> RunConfig:
    """A pretrained CNN and BERT as a plain two-tower model are enough (weights are needed, so no set holds this arm: name it)."""
    return override(
        config,
        {"model.image.spec": "timm:resnet50.a1_in1k", "model.text.spec": "hf:bert-base-uncased", "loss.beta": 0.0},
    )


# fusion: the joined model, its cross branch trained on matching, in each way that features can meet

FUSION = ("model.fusion.kind", *MATCHING)


@arm("early", changes=FUSION)
def early(config: RunConfig) -> RunConfig:
    """Features joined before one encoder: meeting early lets everything interact."""
    return _matching(config, {"model.fusion.kind": "early"})


@arm("late", changes=FUSION)
def late(config: RunConfig) -> RunConfig:
    """Each side decides alone and only decisions are joined: meeting late costs nothing in quality and is cheapest."""
    return _matching(config, {"model.fusion.kind": "late"})


@arm("cross", "matching", changes=FUSION)
def cross(config: RunConfig) -> RunConfig:
    """Co-attention and a matching head with hard negatives (ALBEF, arXiv:2107.07651): "same or not" is the best teacher of attention."""
    return _matching(config, {"model.fusion.kind": "coattention"})


@arm("unified", changes=FUSION)
def unified(config: RunConfig) -> RunConfig:
    """One single-stream transformer over patches and words (UNITER, arXiv:1909.11740) fuses better than two streams."""
    return _matching(config, {"model.fusion.kind": "unified"})


# ablations


@arm("-contrastive", changes=("loss.alpha",))
def no_contrastive(config: RunConfig) -> RunConfig:
    """Without the contrastive half the cross branch alone finds the matches (scored exhaustively)."""
    return override(config, {"loss.alpha": 0.0})


@arm("-collaboration", changes=("model.fusion.share",))
def no_collaboration(config: RunConfig) -> RunConfig:
    """Two halves that share neither projections nor gradients are as good: a gain is not from learning together (locked: always so)."""
    return override(config, {"model.fusion.share": False})


@arm("one-way-t2i", changes=("model.fusion.direction",))
def text_to_image(config: RunConfig) -> RunConfig:
    """Words looking at patches are enough (the default of ``ccaco``, by name)."""
    return override(config, {"model.fusion.direction": "b_to_a"})


@arm("one-way-i2t", changes=("model.fusion.direction",))
def image_to_text(config: RunConfig) -> RunConfig:
    """Patches looking at words are enough."""
    return override(config, {"model.fusion.direction": "a_to_b"})


@arm("two-way", changes=("model.fusion.direction",))
def two_way(config: RunConfig) -> RunConfig:
    """Both sides looking at each other see more than one."""
    return override(config, {"model.fusion.direction": "both"})


@arm("-residual", changes=(*FUSION, "model.fusion.residual"))
def no_residual(config: RunConfig) -> RunConfig:
    """Co-attention needs no residual path: what attention brings is enough (hold this against ``cross``)."""
    return override(cross(config), {"model.fusion.residual": False})


@arm("attended", changes=("model.fusion.kind", "loss.cross"))
def attended(config: RunConfig) -> RunConfig:
    """Gated attended similarity (after SCAN, arXiv:1803.08024) is the best cross branch (the default of ``ccaco``, by name)."""
    return override(config, {"model.fusion.kind": "attended", "loss.cross": "infonce"})


@arm("maxsim", changes=("model.fusion.kind", "loss.cross"))
def maxsim(config: RunConfig) -> RunConfig:
    """The best patch of every word and the best word of every patch (FILIP, arXiv:2111.07783) say as much as attention."""
    return override(config, {"model.fusion.kind": "maxsim", "loss.cross": "infonce"})


@arm("listwise", changes=(*FUSION, "loss.negatives"))
def listwise(config: RunConfig) -> RunConfig:
    """Choosing among one true and eight hard partners teaches co-attention more than judging pairs one by one."""
    return override(cross(config), {"loss.cross": "listwise", "loss.negatives": 8})


@arm("taught", changes=("loss.teach",))
def taught(config: RunConfig) -> RunConfig:
    """The cosine learns from the cross branch what it cannot see by itself, so that the fast score gains too."""
    return override(config, {"loss.teach": 1.0})


@arm("mse", changes=("model.fusion.kind", "model.fusion.share", "loss.cross"))
def mse(config: RunConfig) -> RunConfig:
    """The source description's loss, the mean squared change that attention makes, aligns (a known flaw: it only shrinks tokens)."""
    return override(config, {"model.fusion.kind": "residual", "model.fusion.share": True, "loss.cross": "mse"})


@arm("pool-mean", changes=("model.*.pool",))
def pool_mean(config: RunConfig) -> RunConfig:
    """The mean of all tokens is the better global vector (the default of pretrained towers; from scratch it is the maximum)."""
    return override(config, _every("pool", "mean"))


@arm("pool-cls", changes=("model.*.pool",))
def pool_cls(config: RunConfig) -> RunConfig:
    """The tower's own summary is the better global vector."""
    return override(config, _every("pool", "cls"))


@arm("pool-attention", changes=("model.*.pool",))
def pool_attention(config: RunConfig) -> RunConfig:
    """A learned weight a token makes a better global vector than their mean."""
    return override(config, _every("pool", "attention"))


@arm("temperature-fixed", changes=("loss.learn_temperature",))
def temperature_fixed(config: RunConfig) -> RunConfig:
    """The temperature need not be learned."""
    return override(config, {"loss.learn_temperature": False})


@arm("dropout-0", changes=("model.*.input_dropout", "model.*.head_dropout", "model.fusion.dropout"))
def no_dropout(config: RunConfig) -> RunConfig:
    """Without dropout the heads learn more, not less."""
    return override(config, _every("input_dropout", 0.0) | _every("head_dropout", 0.0) | {"model.fusion.dropout": 0.0})


# attention: co-attention by each kind, with windows that are small beside small grids, so that something is left out


@arm("attention-window", changes=(*FUSION, "model.fusion.attention", "model.fusion.window", "model.fusion.spread"))
def attention_window(config: RunConfig) -> RunConfig:
    """Local windows and a few global tokens (Longformer, arXiv:2004.05150) see as much as dense attention (hold this against ``cross``)."""
    return override(
        cross(config), {"model.fusion.attention": "window", "model.fusion.window": 4, "model.fusion.spread": 4}
    )


@arm("attention-linear", changes=(*FUSION, "model.fusion.attention"))
def attention_linear(config: RunConfig) -> RunConfig:
    """Random features (Performer, arXiv:2009.14794) are as good as the softmax they stand for (hold this against ``cross``)."""
    return override(cross(config), {"model.fusion.attention": "linear"})


@arm("unified-window", changes=(*FUSION, "model.fusion.attention", "model.fusion.window", "model.fusion.spread"))
def unified_window(config: RunConfig) -> RunConfig:
    """A single stream needs to see near patches and words only (hold this against ``unified``)."""
    return override(
        unified(config), {"model.fusion.attention": "window", "model.fusion.window": 4, "model.fusion.spread": 4}
    )


@arm("unified-linear", changes=(*FUSION, "model.fusion.attention"))
def unified_linear(config: RunConfig) -> RunConfig:
    """A single stream by random features loses nothing (hold this against ``unified``)."""
    return override(unified(config), {"model.fusion.attention": "linear"})


# balance: how the weights of the two losses come about


@arm("balance-schedule", changes=("loss.balance",))
def balance_schedule(config: RunConfig) -> RunConfig:
    """The cross branch learns best from halves that a contrastive warm-up has brought near (the default of towers that learn)."""
    return override(config, {"loss.balance": "schedule"})


@arm("balance-fixed", changes=("loss.balance",))
def balance_fixed(config: RunConfig) -> RunConfig:
    """Both losses from the first step on: the cross branch needs no contrastive warm-up (the default of locked towers)."""
    return override(config, {"loss.balance": "fixed"})


@arm("balance-cosine", changes=("loss.balance", "loss.ramp", "loss.cross_ramp"))
def balance_cosine(config: RunConfig) -> RunConfig:
    """A cross loss that rises softly, by a cosine over all the steps that are left after the warm-up, disturbs less than a short ramp."""
    return override(balance_schedule(config), {"loss.ramp": "cosine", "loss.cross_ramp": 1.0 - config.loss.cross_start})


@arm("balance-uncertainty", changes=("loss.balance",))
def balance_uncertainty(config: RunConfig) -> RunConfig:
    """Weights learned as homoscedastic uncertainty (arXiv:1705.07115) make alpha and beta needless."""
    return override(config, {"loss.balance": "uncertainty"})


@arm("balance-gradnorm", changes=("loss.balance",))
def balance_gradnorm(config: RunConfig) -> RunConfig:
    """Losses whose gradients are kept of one size (arXiv:1711.02257) help each other most."""
    return override(config, {"loss.balance": "gradnorm"})


# across domains: each with the cross branch and, behind "-cross", without it

ACROSS = ("domain.loss", "domain.stats")


@arm("source-only", changes=ACROSS)
def source_only(config: RunConfig) -> RunConfig:
    """What is learned from the source domains holds in the target without any adaptation (the bar for every other arm)."""
    return override(config, {"domain.loss": "none", "domain.stats": "source"})


@arm("+adabn", changes=ACROSS)
def adabn(config: RunConfig) -> RunConfig:
    """The target's running statistics alone, estimated after training (AdaBN, arXiv:1603.04779), give most of what adaptation gives."""
    return override(config, {"domain.loss": "none", "domain.stats": "target"})


@arm("+mmd", changes=ACROSS)
def with_mmd(config: RunConfig) -> RunConfig:
    """Kernel means of both domains drawn together (DAN, arXiv:1502.02791) help the target and cost the sources nothing."""
    return override(config, {"domain.loss": "mmd", "domain.stats": "source"})


@arm("+dann", changes=ACROSS)
def with_dann(config: RunConfig) -> RunConfig:
    """Features that a domain classifier cannot tell apart (DANN, arXiv:1505.07818) help the target and cost the sources nothing."""
    return override(config, {"domain.loss": "dann", "domain.stats": "source"})


@arm("+both", changes=ACROSS)
def with_both(config: RunConfig) -> RunConfig:
    """An adversary and kernel means together help more than either."""
    return override(config, {"domain.loss": "both", "domain.stats": "source"})


@arm("source-only-cross", changes=(*ACROSS, "loss.beta"))
def source_only_clip(config: RunConfig) -> RunConfig:
    """Without the cross branch, what is learned from the sources holds in the target no less."""
    return clip(source_only(config))


@arm("+adabn-cross", changes=(*ACROSS, "loss.beta"))
def adabn_clip(config: RunConfig) -> RunConfig:
    """Without the cross branch, the target's statistics help no less."""
    return clip(adabn(config))


@arm("+mmd-cross", changes=(*ACROSS, "loss.beta"))
def mmd_clip(config: RunConfig) -> RunConfig:
    """Without the cross branch, kernel means help no less."""
    return clip(with_mmd(config))


@arm("+dann-cross", changes=(*ACROSS, "loss.beta"))
def dann_clip(config: RunConfig) -> RunConfig:
    """Without the cross branch, an adversary helps no less."""
    return clip(with_dann(config))


@arm("+both-cross", changes=(*ACROSS, "loss.beta"))
def both_clip(config: RunConfig) -> RunConfig:
    """Without the cross branch, both losses together help no less."""
    return clip(with_both(config))


# a supervised head instead of words, as the domain-adaptation papers score it

CLASSIFIER: dict[str, Any] = {"method": "classifier", "loss.alpha": 0.0, "loss.beta": 0.0, "domain.classify": 1.0}


@arm("classifier", changes=(*CLASSIFIER, *ACROSS))
def classifier(config: RunConfig) -> RunConfig:
    """A label predictor trained on the sources' classes needs no adaptation (the bar for the other classifiers)."""
    return override(source_only(config), CLASSIFIER)


@arm("adabn-classifier", changes=(*CLASSIFIER, *ACROSS))
def adabn_classifier(config: RunConfig) -> RunConfig:
    """A label predictor needs no more than the target's running statistics."""
    return override(adabn(config), CLASSIFIER)


@arm("dann-classifier", changes=(*CLASSIFIER, *ACROSS))
def dann_classifier(config: RunConfig) -> RunConfig:
    """Feature extractor, label predictor and domain classifier (DANN, arXiv:1505.07818): classes are found in the target too."""
    return override(with_dann(config), CLASSIFIER)


@arm("mmd-classifier", changes=(*CLASSIFIER, *ACROSS))
def mmd_classifier(config: RunConfig) -> RunConfig:
    """Feature extractor, label predictor and kernel means (DAN, arXiv:1502.02791): classes are found in the target too."""
    return override(with_mmd(config), CLASSIFIER)


_BASELINES = ("ccaco", "clip", "vilbert", "concat", "handmade")
_FUSION = ("ccaco", "early", "late", "cross", "unified")
# one-way-t2i and attended are always ccaco's defaults; others are so by the towers, and then ``ablate`` leaves them out
_ABLATION = (
    *(
        "ccaco",
        "-contrastive",
        "-cross",
        "-collaboration",
        "one-way-i2t",
        "two-way",
        "-residual",
        "maxsim",
        "matching",
        "listwise",
        "mse",
    ),
    *("pool-mean", "pool-cls", "pool-attention", "temperature-fixed", "dropout-0"),
)
_DOMAIN = tuple(name + end for end in ("", "-cross") for name in ("source-only", "+adabn", "+mmd", "+dann", "+both"))
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
    "domain": _DOMAIN,
    "classifiers": ("classifier", "adabn-classifier", "mmd-classifier", "dann-classifier"),
}
"""Of these the last two need a target domain, and so are not part of ``all``."""


def expand(text: str) -> list[str]:
    """``"baselines,-residual"`` -> names of arms in the order given; of names for one arm (clip, -cross) only the first stays.

    Raises ConfigError: neither an arm nor a set, or nothing at all
    """
    found: dict[Arm, str] = {}
    for word in filter(None, (w.strip() for w in text.split(","))):
        for name in SETS.get(word, (word,)):
            found.setdefault(_arm(name), name)
    if not found:
        raise ConfigError("no arms", where=repr(text), expected=f"{' | '.join(SETS)} | NAME,NAME,...")
    return list(found.values())


def apply(config: RunConfig, name: str) -> RunConfig:
    """A config as an arm changes it. Raises ConfigError with the nearest name."""
    return override(_arm(name)(config), {"arm": name})


def _arm(name: str) -> Arm:
    if name not in ARMS:
        near = difflib.get_close_matches(name, [*ARMS, *SETS], 1)
        raise ConfigError(
            "unknown arm", where=name, expected=" | ".join(ARMS), next=f"did you mean {near[0]}?" if near else None
        )
    return ARMS[name]
