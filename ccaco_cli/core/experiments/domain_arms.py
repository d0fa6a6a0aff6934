"""Arms that train on source domains and are tested on a target domain: with text, and with a supervised classifier
instead of text.
"""

from __future__ import annotations

from typing import Any

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.experiments.arm_registry import arm

ACROSS = ("domain.loss", "domain.stats")
CLASSIFIER: dict[str, Any] = {"method": "classifier", "loss.alpha": 0.0, "loss.beta": 0.0, "domain.classify": 1.0}


def _without_cross(config: RunConfig) -> RunConfig:
    return override(config, {"loss.beta": 0.0})


@arm("source-only", changes=ACROSS)
def source_only(config: RunConfig) -> RunConfig:
    """A model trained on the source domains works in the target domain without adaptation (baseline of the other domain
    arms).
    """
    return override(config, {"domain.loss": "none", "domain.stats": "source"})


@arm("+adabn", changes=ACROSS)
def adabn(config: RunConfig) -> RunConfig:
    """Normalisation statistics re-estimated on the target after training (AdaBN, arXiv:1603.04779) give most of the
    gain of adaptation.
    """
    return override(config, {"domain.loss": "none", "domain.stats": "target"})


@arm("+mmd", changes=ACROSS)
def with_mmd(config: RunConfig) -> RunConfig:
    """Matching the kernel means of both domains (DAN, arXiv:1502.02791) improves the target and does not harm the
    sources.
    """
    return override(config, {"domain.loss": "mmd", "domain.stats": "source"})


@arm("+dann", changes=ACROSS)
def with_dann(config: RunConfig) -> RunConfig:
    """Features that a domain classifier cannot separate (DANN, arXiv:1505.07818) improve the target and do not harm the
    sources.
    """
    return override(config, {"domain.loss": "dann", "domain.stats": "source"})


@arm("+both", changes=ACROSS)
def with_both(config: RunConfig) -> RunConfig:
    """The adversarial loss and the kernel-mean loss together improve the target more than either alone."""
    return override(config, {"domain.loss": "both", "domain.stats": "source"})


@arm("source-only-cross", changes=(*ACROSS, "loss.beta"))
def source_only_clip(config: RunConfig) -> RunConfig:
    """Without the cross branch, a model trained on the sources works in the target equally well."""
    return _without_cross(source_only(config))


@arm("+adabn-cross", changes=(*ACROSS, "loss.beta"))
def adabn_clip(config: RunConfig) -> RunConfig:
    """Without the cross branch, normalisation statistics of the target improve it as much."""
    return _without_cross(adabn(config))


@arm("+mmd-cross", changes=(*ACROSS, "loss.beta"))
def mmd_clip(config: RunConfig) -> RunConfig:
    """Without the cross branch, the kernel-mean loss improves the target as much."""
    return _without_cross(with_mmd(config))


@arm("+dann-cross", changes=(*ACROSS, "loss.beta"))
def dann_clip(config: RunConfig) -> RunConfig:
    """Without the cross branch, the adversarial loss improves the target as much."""
    return _without_cross(with_dann(config))


@arm("+both-cross", changes=(*ACROSS, "loss.beta"))
def both_clip(config: RunConfig) -> RunConfig:
    """Without the cross branch, both domain losses together improve the target as much."""
    return _without_cross(with_both(config))


# a supervised classifier instead of text, as papers on domain adaptation measure it


@arm("classifier", changes=(*CLASSIFIER, *ACROSS))
def classifier(config: RunConfig) -> RunConfig:
    """A label predictor trained on the sources needs no adaptation (baseline of the other classifiers)."""
    return override(source_only(config), CLASSIFIER)


@arm("adabn-classifier", changes=(*CLASSIFIER, *ACROSS))
def adabn_classifier(config: RunConfig) -> RunConfig:
    """A label predictor needs only the normalisation statistics of the target."""
    return override(adabn(config), CLASSIFIER)


@arm("dann-classifier", changes=(*CLASSIFIER, *ACROSS))
def dann_classifier(config: RunConfig) -> RunConfig:
    """Feature extractor, label predictor and domain classifier (DANN, arXiv:1505.07818) recognise the classes in the
    target too.
    """
    return override(with_dann(config), CLASSIFIER)


@arm("mmd-classifier", changes=(*CLASSIFIER, *ACROSS))
def mmd_classifier(config: RunConfig) -> RunConfig:
    """Feature extractor, label predictor and kernel-mean loss (DAN, arXiv:1502.02791) recognise the classes in the
    target too.
    """
    return override(with_mmd(config), CLASSIFIER)


DOMAIN = tuple(name + end for end in ("", "-cross") for name in ("source-only", "+adabn", "+mmd", "+dann", "+both"))
CLASSIFIERS = ("classifier", "adabn-classifier", "mmd-classifier", "dann-classifier")
