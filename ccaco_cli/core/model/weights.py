"""Reading and writing the weights of a model as safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as packed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ccaco_cli.core.errors import ManifestError
from ccaco_cli.core.manifest import write_bytes

WEIGHTS, HEADS = "model.safetensors", "adaptation.safetensors"
"""Files of the model, and of the adaptation heads, which are no part of it."""


def weights_of(model: nn.Module, *, everything: bool = False, merged: bool = False) -> dict[str, Tensor]:
    """Returns the named tensors of a model on the CPU. Tensors that lie there already are not copied: write them before
    the next step.

    Args:
        everything: also the weights of locked towers, which can be rebuilt from their SPEC.
        merged: low-rank updates are added to the weights, so that the model without them can load these tensors.
    """
    # sharded tensors (fsdp) are gathered: every process must call this function
    stored = _stored_tensors(model, everything, merged)
    gathered = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in stored.items()}
    tensors, addresses = {}, set()
    for name, tensor in gathered.items():
        flat = tensor.cpu().contiguous()
        address = flat.untyped_storage().data_ptr()
        tensors[name] = flat.clone() if address in addresses else flat  # safetensors refuses two names for one memory
        addresses.add(address)
    return tensors


def _stored_tensors(model: nn.Module, everything: bool, merged: bool = False) -> dict[str, Tensor]:
    everything = everything or bool(getattr(model, "stores_locked_towers", False))
    frozen = () if everything else tuple(_frozen_prefixes(model))
    state = model.state_dict()
    if merged and getattr(model, "low_rank", False):
        from ccaco_cli.core.model.low_rank import merged_state

        state = merged_state(model)
    return {k: v.detach() for k, v in state.items() if not k.startswith(frozen)}


def save_weights(path: Path, model: nn.Module, *, everything: bool = False) -> None:
    """Writes weights atomically; ``everything`` as of ``weights_of``."""
    write_bytes(path, packed(weights_of(model, everything=everything)))


def load_weights(path: Path, model: nn.Module, *, everything: bool = False) -> None:
    """Loads weights into a model; ``everything`` as when they were written. Weights of locked towers are loaded where
    the file has them.

    Raises:
        ManifestError: no such file, not safetensors, or other names or shapes (the first differences are named).
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ManifestError(
            f"cannot read these weights ({error})", where=path, expected="a safetensors file", next="ccaco train"
        ) from None
    required = _stored_tensors(model, everything).keys()
    if differences := shape_differences(required, model.state_dict(), tensors):
        raise ManifestError(
            f"a checkpoint of another shape: {differences}",
            where=path,
            expected="weights made with this config",
            next="train again, or use the run's own config.toml",
        )
    model.load_state_dict(tensors, strict=False)


def shape_differences(required: Set[str], state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """How tensors differ from those of a model in names and shapes, the first three; "" = they fit.

    Args:
        required: names that must be among the tensors.
        state: of the model.
    """
    faults = [f"{k} is missing" for k in required - tensors.keys()]
    faults += [f"{k} is unknown" for k in tensors.keys() - state.keys()]
    faults += [
        f"{k} is {list(tensors[k].shape)}, not {list(v.shape)}"
        for k, v in state.items()
        if k in tensors and tensors[k].shape != v.shape
    ]
    return f"{'; '.join(sorted(faults)[:3])}{' ...' if len(faults) > 3 else ''}" if faults else ""


def _frozen_prefixes(model: nn.Module) -> set[str]:
    towers = {
        name
        for name, _ in model.named_modules()
        if name.startswith("sides.") and name.endswith(".tower") and name.count(".") == 2
    }
    return {f"{name}." for name in towers if not any(p.requires_grad for p in model.get_submodule(name).parameters())}
