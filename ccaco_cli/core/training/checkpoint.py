"""Checkpoints: weights in safetensors, the rest of the state read with ``weights_only=True``. Nothing is ever unpickled blindly."""

from __future__ import annotations

import io
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ccaco_cli.core.errors import ManifestError
from ccaco_cli.core.manifest import write_bytes

WEIGHTS, HEADS, STATE = "model.safetensors", "adaptation.safetensors", "state.pt"
"""The model; heads that learned beside it and are no part of it; optimiser, generators and cursor."""


def weights_of(model: nn.Module, *, everything: bool = False) -> dict[str, Tensor]:
    """Named tensors of a model; frozen towers are left out unless ``everything`` (they are rebuilt from their SPEC)."""
    frozen = set() if everything else _frozen_prefixes(model)
    return {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items() if not k.startswith(tuple(frozen))}


def save_weights(path: Path, model: nn.Module, *, everything: bool = False) -> None:
    """Writes weights atomically."""
    write_bytes(path, save(weights_of(model, everything=everything)))


def load_weights(path: Path, model: nn.Module, *, everything: bool = False) -> None:
    """Fills a model.

    Raises ManifestError: no such file, not safetensors, or tensors of another shape (the first differences are named)
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ManifestError(f"cannot read these weights ({error})", where=path, expected="a safetensors file", next="ccaco train") from None
    wanted = weights_of(model, everything=everything)
    faults = [f"{k} is missing" for k in wanted.keys() - found.keys()] + [f"{k} is unknown" for k in found.keys() - wanted.keys()]
    faults += [f"{k} is {list(found[k].shape)}, not {list(v.shape)}" for k, v in wanted.items() if k in found and found[k].shape != v.shape]
    if faults:
        what = f"a checkpoint of another shape: {'; '.join(sorted(faults)[:3])}{' ...' if len(faults) > 3 else ''}"
        raise ManifestError(
            what, where=path, expected="weights made with this config", next="train again, or use the run's own config.toml"
        )
    model.load_state_dict(found, strict=False)


def save_state(path: Path, optimizer: torch.optim.Optimizer, **cursor: Any) -> None:
    """Optimiser, random generators and whatever says where the run was (plain numbers, strings, tensors)."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
        **cursor,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def save_both(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, **cursor: Any) -> None:
    """Weights and state of one moment: written beside ``folder`` and put in its place together, so that a kill never mixes two epochs."""
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    save_weights(new / WEIGHTS, model)
    save_state(new / STATE, optimizer, **cursor)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_state(path: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restores optimiser and generators; returns the cursor."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds here; all mean the same to the user
        raise ManifestError(f"cannot resume ({type(error).__name__})", where=path, expected="state written by ccaco train") from None
    optimizer.load_state_dict(state.pop("optimizer"))
    torch.set_rng_state(state.pop("torch"))
    cuda = state.pop("cuda")
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)
    kind, keys, *rest = state.pop("numpy")
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state.pop("python")
    random.setstate((version, tuple(internal), gauss))
    return state


def _frozen_prefixes(model: nn.Module) -> set[str]:
    towers = {name for name, _ in model.named_modules() if name.startswith("sides.") and name.endswith(".tower") and name.count(".") == 2}
    return {f"{name}." for name in towers if not any(p.requires_grad for p in model.get_submodule(name).parameters())}
