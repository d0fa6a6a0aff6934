"""LoRA (arXiv:2106.09685) by the library ``peft``: low-rank updates of the linear layers of the towers.

``peft`` is needed in training only, because saved models hold the merged weights.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model.aligner import Aligner


def add_low_rank(aligner: Aligner, rank: int) -> None:
    """Freezes the weights of all towers that are not locked, and adds trained updates of a rank to their linear layers.

    The scale of an update is 1 (``lora_alpha`` = rank), and it starts at zero: the model is the same as before.

    Raises:
        ConfigError: the library is not installed, every tower is locked, or a tower has no linear layers.
    """
    encoders = {m: aligner.encoder(m) for m in aligner.modalities}
    towers = {m: encoder for m, encoder in encoders.items() if not (encoder.config.lock or encoder.config.lock_side)}
    if not towers:
        raise ConfigError("every tower is locked", where=f"--lora {rank}", expected="a tower that learns")
    targets = {m: linear_layers(encoder.tower) for m, encoder in towers.items()}
    for modality, names in targets.items():
        if not names:
            raise ConfigError(
                f"the {modality} tower has no linear layers",
                where=f"--lora {rank}, {towers[modality].config.spec}",
                expected="a transformer",
                next=f"--lock-{modality}, or another way to fine-tune",
            )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError(
            "LoRA needs a library that is not installed", where=f"--lora {rank}", next="pip install 'ccaco[finetune]'"
        ) from None
    for modality, encoder in towers.items():
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets[modality]), encoder.tower)
    aligner.low_rank = rank


def linear_layers(tower: nn.Module) -> list[str]:
    """Names of the layers of a tower that LoRA adapts: linear layers, and attention of torch with all its projections.

    The linear layers of a ResNet's attention pool are left out: it reads their weights and does not call them.
    """
    names: list[str] = []
    inside: tuple[str, ...] = ()
    for name, module in tower.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, nn.MultiheadAttention | AttentionPool2d):
            inside += (f"{name}.",)
        joined_projections = isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
        if joined_projections or isinstance(module, nn.Linear):
            names.append(name)
    return names


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model with its low-rank updates added to the weights, under the names without LoRA.

    The model itself is not changed.
    """
    from peft.tuners.lora import LoraLayer

    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and not name.startswith(tuple(f"{outer}." for outer in layers)):
            layers[name] = module
    prefixes = tuple(f"{name}." for name in layers)
    merged = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(prefixes)}
    for name, layer in layers.items():
        merged |= {f"{name}.{key}": tensor for key, tensor in _merged(deepcopy(layer)).state_dict().items()}
    return merged


def _merged(layer: nn.Module) -> nn.Module:
    """The plain layer that a layer of peft becomes when its update is merged."""
    if hasattr(layer, "unload_and_optionally_merge_module"):  # attention of torch
        return layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)  # type: ignore[no-any-return, operator]
    layer.merge()  # type: ignore[operator]
    return layer.get_base_layer()  # type: ignore[no-any-return, operator]
