"""Checkpoints: weights as safetensors, other state read with ``weights_only=True``. Nothing untrusted is unpickled."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import save as packed
from torch import Tensor

from ccaco_cli.core import fault
from ccaco_cli.core.errors import DataError, ManifestError
from ccaco_cli.core.manifest import write_bytes, writing
from ccaco_cli.core.model.weights import HEADS, WEIGHTS

STATE = "state.pt"
"""File of the optimiser, random generators and cursor."""


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """State of every random generator of a process that computes on ``device``: torch, the GPU's, numpy, Python."""
    _, keys, *position = np.random.get_state()
    _, internal, gauss = random.getstate()
    gpu_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.empty(0, dtype=torch.uint8)
    return {
        "torch": torch.get_rng_state(),
        "cuda": gpu_state,
        "numpy": torch.tensor([*np.asarray(keys).tolist(), *position], dtype=torch.float64),  # 32-bit words: exact
        "python": torch.tensor([*internal, gauss is not None, gauss or 0.0], dtype=torch.float64),
    }


def set_generator_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Restores ``generator_states``; the state of a GPU's generator only where the run continues on a GPU."""
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    *keys, position, has_gauss, cached = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), int(position), int(has_gauss), cached))
    *internal, has_spare, gauss = states["python"].tolist()
    random.setstate((3, tuple(map(int, internal)), gauss if has_spare else None))


def save(
    root: Path,
    weights: dict[str, Tensor],
    optimizer: dict[str, Any],
    generators: list[dict[str, Tensor]],
    keep: int = 1,
    same_weights: Path | None = None,
    **cursor: Any,
) -> Path:
    """Saves weights and state as a folder of ``root``, atomically; then removes older checkpoints.

    Args:
        weights: of ``weights_of``.
        optimizer: its state, not sharded.
        generators: ``generator_states`` of every process.
        keep: how many of the newest checkpoints are kept.
        same_weights: a file with these weights, if one exists; it is hard-linked where the file system can.
        cursor: ``step`` and ``epoch``, which name the folder, and further numbers, strings, lists and tensors.
    Returns:
        The folder.
    Raises:
        DataError: the disk is full, or not writable.
    """
    folder = root / f"{cursor['step']:08d}-{cursor['epoch']:04d}"
    if folder.exists():  # it holds the same state, and replacing it would leave a moment without a checkpoint
        return folder
    temp = root / f".{folder.name}.{os.getpid()}.tmp"
    for leftover in root.glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        fault.point("checkpoint.before")
        temp.mkdir(parents=True)
        if not _link(same_weights, temp / WEIGHTS):
            write_bytes(temp / WEIGHTS, packed(weights))
        fault.point("checkpoint.weights")
        with writing(temp / STATE) as file:
            _save_state(file, {"optimizer": optimizer, "generators": generators, **cursor})
        fault.point("checkpoint.state")
        temp.rename(folder)
        fault.point("checkpoint.renamed")
    except OSError as error:
        newest = latest(root)
        remaining = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
        raise DataError(
            f"cannot save ({error.strerror or error}); {remaining}",
            where=folder,
            expected="free disk space",
            next="the same command with --resume latest",
        ) from None
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    prune(root, keep)
    fault.point("checkpoint.after")
    return folder


def _link(file: Path | None, path: Path) -> bool:
    """Hard-links a file; False if there is no file, or the file system has no hard links."""
    try:
        if file is not None:
            os.link(file, path)
    except OSError:
        return False
    return file is not None


def _save_state(file: BinaryIO, state: Mapping[str, Any]) -> None:
    """Writes without a buffer, which would hold the optimiser's state a second time. Raises OSError."""
    try:
        torch.save(dict(state), file)
    except RuntimeError as error:  # torch reports its archive; the error of the disk is the context
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest checkpoints, also those of a run that was killed during ``save``."""
    for old in _checkpoints(root)[: -max(1, keep)]:
        shutil.rmtree(old, ignore_errors=True)


def save_best(
    root: Path, weights: dict[str, Tensor], heads: dict[str, Tensor] | None = None, name: str = "best"
) -> None:
    """Saves the weights of the best epoch so far, atomically, and those of adaptation ``heads`` if the run has any."""
    fault.point("best.before")
    if heads is not None:
        write_bytes(root / name / HEADS, packed(heads))
    write_bytes(root / name / WEIGHTS, packed(weights))
    fault.point("best.after")


def latest(root: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return next(reversed(_checkpoints(root)), None)


def _checkpoints(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob(f"[0-9]*/{STATE}"))


def load_state(path: Path) -> dict[str, Any]:
    """The state that ``save`` has stored beside the weights. Raises ManifestError: no such file, or another format."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if not {"optimizer", "generators", "step", "epoch"} <= state.keys():
            raise ValueError("another format")
    except Exception as error:  # torch raises many types here, with one meaning for the user
        raise ManifestError(
            f"cannot resume ({type(error).__name__})", where=path, expected="state written by ccaco train"
        ) from None
    return state
