"""What the formats of dual encoders share: which models they hold, and what their towers and weights are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.pretrained import LoadedModel
from ccaco_cli.core.model.towers.dual_encoders import LogitScale
from ccaco_cli.core.tower_config import ADAPTER, NEW

HEADS = {
    NEW: "has a new head (projection and residual MLP)",
    ADAPTER: "has an adapter (a residual MLP) behind its projection",
}
"""``TowerConfig.head`` -> why a published architecture cannot hold this side."""


def global_half_missing(model: LoadedModel) -> str:
    """Why nothing of a model can be exported; "" = it can."""
    return "" if model.config.loss.alpha > 0 else "it was trained without the contrastive half (loss.alpha = 0)"


def not_of_family(model: LoadedModel, family: str) -> str:
    """Why a model is not the dual encoder of a library; "" = it is.

    Args:
        family: of tower SPECs.
    """
    if reason := global_half_missing(model):
        return reason
    specs = {str(tower.spec) for tower in model.towers.values()}
    for modality, tower in model.towers.items():
        config = model.config.model.tower(modality)
        if tower.spec.family != family:
            return f"its {modality} tower is of the family {tower.spec.family}"
        if config.head in HEADS:
            return f"its {modality} side {HEADS[config.head]}"
        if config.tiles:
            return "it encodes large images in tiles"
    return "" if len(specs) == 1 else "its two sides are of different models"


def scale_of(model: LoadedModel) -> LogitScale:
    """The logit scale and bias of a model, as it has learned them."""
    bias = model.aligner.logit_bias
    return float(model.aligner.logit_scale().detach()), None if bias is None else float(bias.detach())


def load_state(published: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Loads weights into the published architecture, every one of them.

    Raises:
        DataError: names or shapes differ.
    """
    try:
        published.load_state_dict(state, strict=True)
    except RuntimeError as error:
        differences = [line.strip() for line in str(error).splitlines()[1:]]
        raise DataError(
            f"the weights of this model do not fit its published architecture ({'; '.join(differences[:2])})",
            where=name,
            expected="positions and sizes as they were published",
            next="--export onnx",
        ) from None
