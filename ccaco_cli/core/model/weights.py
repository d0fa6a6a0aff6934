"""Reading and writing the weights of a model as safetensors."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as packed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ccaco_cli.core.errors import ManifestError
from ccaco_cli.core.manifest import write_bytes

WEIGHTS, HEADS = "model.safetensors", "adaptation.safetensors"
"""The model; heads that learned beside it and are no part of it."""


def weights_of(model: nn.Module, *, everything: bool = False) -> dict[str, Tensor]:
    """Named tensors of a model, on the CPU, to be written before it learns on: those that lie there already are not copied.

    Frozen towers are left out unless ``everything`` (they are rebuilt from their SPEC).
    """
    # fsdp's parts: every process must come here
    whole = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in _kept(model, everything).items()}
    found, seen = {}, set()
    for name, tensor in whole.items():
        flat = tensor.cpu().contiguous()
        place = flat.untyped_storage().data_ptr()
        found[name] = flat.clone() if place in seen else flat  # safetensors takes no two names for one memory
        seen.add(place)
    return found


def _kept(model: nn.Module, everything: bool) -> dict[str, Tensor]:
    frozen = () if everything else tuple(_frozen_prefixes(model))
    return {k: v.detach() for k, v in model.state_dict().items() if not k.startswith(frozen)}


def save_weights(path: Path, model: nn.Module, *, everything: bool = False) -> None:
    """Writes weights atomically."""
    write_bytes(path, packed(weights_of(model, everything=everything)))


def load_weights(path: Path, model: nn.Module, *, everything: bool = False) -> None:
    """Fills a model.

    Raises ManifestError: no such file, not safetensors, or tensors of another shape (the first differences are named)
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ManifestError(
            f"cannot read these weights ({error})", where=path, expected="a safetensors file", next="ccaco train"
        ) from None
    wanted = _kept(model, everything)
    faults = [f"{k} is missing" for k in wanted.keys() - found.keys()] + [
        f"{k} is unknown" for k in found.keys() - wanted.keys()
    ]
    faults += [
        f"{k} is {list(found[k].shape)}, not {list(v.shape)}"
        for k, v in wanted.items()
        if k in found and found[k].shape != v.shape
    ]
    if faults:
        what = f"a checkpoint of another shape: {'; '.join(sorted(faults)[:3])}{' ...' if len(faults) > 3 else ''}"
        raise ManifestError(
            what,
            where=path,
            expected="weights made with this config",
            next="train again, or use the run's own config.toml",
        )
    model.load_state_dict(found, strict=False)


def _frozen_prefixes(model: nn.Module) -> set[str]:
    towers = {
        name
        for name, _ in model.named_modules()
        if name.startswith("sides.") and name.endswith(".tower") and name.count(".") == 2
    }
    return {f"{name}." for name in towers if not any(p.requires_grad for p in model.get_submodule(name).parameters())}
