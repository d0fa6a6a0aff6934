"""Checkpoints: weights in safetensors, the rest of the state read with ``weights_only=True``. Nothing is ever unpickled blindly."""

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
"""Optimiser, generators and cursor."""


def generators() -> dict[str, Tensor]:
    """State of every random generator of this process: torch (and of its GPU), numpy, Python."""
    _, keys, *rest = np.random.get_state()
    _, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(0, dtype=torch.uint8),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), *rest], dtype=torch.float64),  # 32-bit words: exact
        "python": torch.tensor([*internal, gauss is not None, gauss or 0.0], dtype=torch.float64),
    }


def set_generators(states: dict[str, Tensor]) -> None:
    """The inverse of ``generators``."""
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    *keys, position, has_gauss, cached = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), int(position), int(has_gauss), cached))
    *internal, known, gauss = states["python"].tolist()
    random.setstate((3, tuple(map(int, internal)), gauss if known else None))


def save(
    root: Path,
    weights: dict[str, Tensor],
    optimizer: dict[str, Any],
    drawn: list[dict[str, Tensor]],
    keep: int = 1,
    stored: Path | None = None,
    **cursor: Any,
) -> Path:
    """Weights and state of one moment, as a folder of ``root`` that appears whole or not at all; older ones go afterwards.

    weights    of ``weights_of``
    optimizer  its state, every part in one piece
    drawn      ``generators`` of every process
    keep       how many of the newest stay
    stored     a file of these very weights, if there is one: it gets a second name, where the file system has such
    cursor     where the run was: ``step`` and ``epoch`` (they name the folder), and more plain numbers, strings, lists, tensors
    """
    folder = root / f"{cursor['step']:08d}-{cursor['epoch']:04d}"
    if folder.exists():  # of this very moment: it says the same, and to replace it there would be a moment without any
        return folder
    temp = root / f".{folder.name}.{os.getpid()}.tmp"
    for leftover in root.glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        fault.point("checkpoint.before")
        temp.mkdir(parents=True)
        if not _linked(stored, temp / WEIGHTS):
            write_bytes(temp / WEIGHTS, packed(weights))
        fault.point("checkpoint.weights")
        with writing(temp / STATE) as file:
            _save(file, {"optimizer": optimizer, "drawn": drawn, **cursor})
        fault.point("checkpoint.state")
        temp.rename(folder)
        fault.point("checkpoint.renamed")
    except OSError as error:
        good = latest(root)
        left = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
        raise DataError(
            f"cannot save ({error.strerror or error}); {left}",
            where=folder,
            expected="free disk space",
            next="the same command with --resume latest",
        ) from None
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    prune(root, keep)
    fault.point("checkpoint.after")
    return folder


def _linked(stored: Path | None, path: Path) -> bool:
    """Gives a file a second name; False where there is no file or no such thing as a second name."""
    try:
        if stored is not None:
            os.link(stored, path)
    except OSError:
        return False
    return stored is not None


def _save(file: BinaryIO, state: Mapping[str, Any]) -> None:
    """Straight into the file: a buffer between would hold the optimiser's state once more. Raises OSError, as any writing does."""
    try:
        torch.save(dict(state), file)
    except RuntimeError as error:  # torch speaks of its archive, and only behind that of what the disk said
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest checkpoints: also those that a run which was killed in ``save`` left."""
    for old in _all(root)[: -max(1, keep)]:
        shutil.rmtree(old, ignore_errors=True)


def save_best(
    root: Path, weights: dict[str, Tensor], heads: dict[str, Tensor] | None = None, name: str = "best"
) -> None:
    """The weights of the best epoch so far, whole or as they were; ``heads`` that learned beside the model, for a run that has some."""
    fault.point("best.before")
    if heads is not None:
        write_bytes(root / name / HEADS, packed(heads))
    write_bytes(root / name / WEIGHTS, packed(weights))
    fault.point("best.after")


def latest(root: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return next(reversed(_all(root)), None)


def _all(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob(f"[0-9]*/{STATE}"))


def load_state(path: Path) -> dict[str, Any]:
    """What ``save`` was given besides the weights. Raises ManifestError: no such file, or not ours."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if not {"optimizer", "drawn", "step", "epoch"} <= state.keys():
            raise ValueError("other content")
    except Exception as error:  # torch raises many kinds here; all mean the same to the user
        raise ManifestError(
            f"cannot resume ({type(error).__name__})", where=path, expected="state written by ccaco train"
        ) from None
    return state
