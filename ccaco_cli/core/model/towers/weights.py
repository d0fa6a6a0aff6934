"""Weights of towers: read from files, fitted with clear errors, fetched from a hub, and told apart by hash."""

from __future__ import annotations

import difflib
import hashlib
import logging
import pickle
import socket
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from torch import nn

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.tower import TowerSpec

RANDOM = "none"
FILE_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """The known names that look most like ``name``, for the ``expected`` of an error."""
    known = sorted(names)
    found = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    return "one of " + ", ".join(found or known[: 3 * count]) + ("" if found or len(known) <= 3 * count else ", ...")


def weights_file(spec: TowerSpec) -> Path | None:
    """The file that ``spec.weights`` names, or None when it is a tag, ``none`` or empty.

    Raises  TowerError: it looks like a path, and no file is there
    """
    path = Path(spec.weights).expanduser()
    if spec.weights and path.is_file():
        return path
    if "/" in spec.weights or path.suffix in FILE_ENDINGS:
        raise TowerError(
            "no weights file here", where=path, expected=f"a {' or '.join(FILE_ENDINGS[:3])} file", next=_without(spec)
        )
    return None


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """State dict of a .safetensors file or torch checkpoint (wrappers such as ``state_dict`` and ``module.`` taken off); never unpickles.

    Raises  TowerError: the file is no state dict
    """
    import timm.models

    try:
        state: dict[str, torch.Tensor] = timm.models.load_state_dict(str(path), weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        OSError,
        AttributeError,
    ) as error:
        raise TowerError(
            f"unreadable weights ({first_line(error)})", where=path, expected="a safetensors or torch state dict"
        ) from None
    if not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise TowerError("this file holds no state dict", where=path, expected="a mapping of names to tensors")
    return state


def fit(module: nn.Module, state: dict[str, torch.Tensor], where: object, head: tuple[str, ...] = ()) -> None:
    """Loads ``state`` into ``module``, every key of it.

    head    prefixes of the classifier, which a tower does not use: its keys may be absent, extra or of another shape
    Raises  TowerError: names the first keys that are missing, unexpected or of another shape
    """
    own = module.state_dict()
    state = {k: v for k, v in state.items() if not k.startswith(head) or (k in own and own[k].shape == v.shape)}
    shapes = [
        f"{k} {list(v.shape)} for {list(own[k].shape)}"
        for k, v in state.items()
        if k in own and own[k].shape != v.shape
    ]
    keys = None if shapes else module.load_state_dict(state, strict=False)
    missing = [k for k in (keys.missing_keys if keys else own.keys() - state.keys()) if not k.startswith(head)]
    refuse_misfit(missing, keys.unexpected_keys if keys else sorted(state.keys() - own.keys()), shapes, where)


def refuse_misfit(missing: Sequence[str], unexpected: Sequence[str], shapes: Sequence[str], where: object) -> None:
    """Raises TowerError naming the first keys of each kind; returns when there are none."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    said = [
        f"{len(keys)} {kind} ({', '.join(sorted(keys)[:2])}{', ...' if len(keys) > 2 else ''})"
        for kind, keys in kinds.items()
        if keys
    ]
    if said:
        raise TowerError(
            "weights do not fit this tower: " + ", ".join(said),
            where=where,
            expected="a state dict of the same architecture",
        )


@contextmanager
def hub(spec: TowerSpec) -> Iterator[None]:
    """Wraps what may download, so that without a network it fails in seconds, with one line, and still finds what is cached.

    Raises  TowerError: the files are neither at hand nor to be had
    """
    from huggingface_hub import constants

    # The hub client retries a dead name server for 20 to 50 s; its offline mode reads the cache and fails at once.
    offline, muted = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    constants.HF_HUB_OFFLINE = offline or not _reachable(constants.ENDPOINT)
    logging.disable(logging.ERROR)
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise TowerError(
            f"the files of this tower cannot be had ({first_line(error)})",
            where=spec,
            expected="a network, or the files in the cache",
            next=_without(spec),
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.disable(muted)


def fingerprint(module: nn.Module, *facts: object) -> str:
    """sha256 of every tensor of a tower and of what else decides its output (family, name, preprocessing), each by its ``repr``."""
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """What an error of a library says, kept to its first sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".:")[:160]


def refuse_modality(spec: TowerSpec, modality: str, known: Sequence[str]) -> None:
    """Raises TowerError when the family has no tower for this modality."""
    if modality not in known:
        raise TowerError(f"family {spec.family} has no {modality} tower", where=spec, expected=" or ".join(known))


def _without(spec: TowerSpec) -> str:
    if spec.family == "hf":  # even random weights want the model's config
        return "hf:FOLDER with a saved model, or tiny, which needs nothing"
    return f"{TowerSpec(spec.family, spec.name, RANDOM)} for random weights, or {spec.family}:{spec.name}@FILE for weights at hand"


def _reachable(endpoint: str, seconds: float = 3.0) -> bool:
    if urllib.request.getproxies():  # a proxy resolves names for us, so a failing name server says nothing
        return True
    address = urlsplit(endpoint)
    try:
        socket.create_connection(
            (address.hostname or "", address.port or (80 if address.scheme == "http" else 443)), seconds
        ).close()
    except OSError:
        return False
    return True
