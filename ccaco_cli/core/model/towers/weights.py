"""Weights of towers: reading files, loading with clear errors, access to a hub, and fingerprints."""

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
    """Lists the known names most similar to ``name``, for the ``expected`` of an error."""
    known = sorted(names)
    matches = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    ellipsis = "" if matches or len(known) <= 3 * count else ", ..."
    return "one of " + ", ".join(matches or known[: 3 * count]) + ellipsis


def weights_file(spec: TowerSpec) -> Path | None:
    """Returns the file that ``spec.weights`` names, or None when it is a tag, ``none`` or empty.

    Raises:
        TowerError: it looks like a path, and no such file exists.
    """
    path = Path(spec.weights).expanduser()
    if spec.weights and path.is_file():
        return path
    if "/" in spec.weights or path.suffix in FILE_ENDINGS:
        raise TowerError(
            "no weights file here",
            where=path,
            expected=f"a {' or '.join(FILE_ENDINGS[:3])} file",
            next=_offline_alternative(spec),
        )
    return None


def hub_name(spec: TowerSpec) -> str:
    """The name or the folder of a SPEC as transformers takes it."""
    is_path = spec.name.startswith((".", "/", "~")) or spec.name.count("/") > 1
    name = str(Path(spec.name).expanduser()) if is_path else spec.name
    if is_path and not Path(name).is_dir():
        raise TowerError("no model folder here", where=name, expected="a folder with config.json, or a name on the hub")
    if not spec.name:
        raise TowerError("no model is named", where=spec, expected="hf:NAME or hf:FOLDER")
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise TowerError("no config.json here", where=name, expected="a folder with a model that transformers saved")
    return name


def hub_revision(spec: TowerSpec, file: Path | None) -> str:
    """The revision on the hub that a SPEC names."""
    return "main" if file or spec.weights in ("", RANDOM) else spec.weights


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Reads the state dict of a .safetensors file or torch checkpoint; never unpickles code.

    Wrappers such as ``state_dict`` and ``module.`` are removed.

    Raises:
        TowerError: the file is no state dict.
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


def load_state(
    module: nn.Module, state: dict[str, torch.Tensor], where: object, head_prefixes: tuple[str, ...] = ()
) -> None:
    """Loads ``state`` into ``module``, every key of it.

    Args:
        where: file or SPEC named in errors.
        head_prefixes: of the classifier, which a tower does not use; its keys may be absent, extra or of another shape.
    Raises:
        TowerError: names the first keys that are missing, unexpected or of another shape.
    """
    current = module.state_dict()
    state = {
        k: v
        for k, v in state.items()
        if not k.startswith(head_prefixes) or (k in current and current[k].shape == v.shape)
    }
    shapes = [
        f"{k} {list(v.shape)} for {list(current[k].shape)}"
        for k, v in state.items()
        if k in current and current[k].shape != v.shape
    ]
    keys = None if shapes else module.load_state_dict(state, strict=False)
    missing = keys.missing_keys if keys else current.keys() - state.keys()
    unexpected = keys.unexpected_keys if keys else sorted(state.keys() - current.keys())
    check_state_keys([k for k in missing if not k.startswith(head_prefixes)], unexpected, shapes, where)


def check_state_keys(missing: Sequence[str], unexpected: Sequence[str], shapes: Sequence[str], where: object) -> None:
    """Raises TowerError that names the first keys of each kind; returns when there are none."""
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    faults = [
        f"{len(keys)} {kind} ({', '.join(sorted(keys)[:2])}{', ...' if len(keys) > 2 else ''})"
        for kind, keys in kinds.items()
        if keys
    ]
    if faults:
        raise TowerError(
            "weights do not fit this tower: " + ", ".join(faults),
            where=where,
            expected="a state dict of the same architecture",
        )


@contextmanager
def hub_access(spec: TowerSpec) -> Iterator[None]:
    """Wraps code that may download: without a network it uses the cache, or fails within seconds, with one line.

    Raises:
        TowerError: the files are neither in the cache nor on a hub within reach.
    """
    from huggingface_hub import constants

    # The hub client retries a dead name server for 20 to 50 s; its offline mode reads the cache and fails at once.
    offline, muted = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    constants.HF_HUB_OFFLINE = offline or not is_reachable(constants.ENDPOINT)
    logging.disable(logging.ERROR)
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise TowerError(
            f"the files of this tower cannot be had ({first_line(error)})",
            where=spec,
            expected="a network, or the files in the cache",
            next=_offline_alternative(spec),
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.disable(muted)


def fingerprint(module: nn.Module, *facts: object) -> str:
    """Returns the sha256 of every tensor of a module and of the ``repr`` of ``facts`` (family, preprocessing ...)."""
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """Returns the first sentence of a library's error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".:")[:160]


def _offline_alternative(spec: TowerSpec) -> str:
    if spec.family == "hf":  # even random weights need the model's config
        return "hf:FOLDER with a saved model, or tiny, which needs nothing"
    if spec.weights == RANDOM:  # even random weights need a config or a tokenizer of a hub
        return f"{spec.family}:FOLDER with a saved model, or tiny, which needs nothing"
    random = TowerSpec(spec.family, spec.name, RANDOM)
    return f"{random} for random weights, or {spec.family}:{spec.name}@FILE for weights at hand"


def is_reachable(endpoint: str, seconds: float = 3.0) -> bool:
    """Whether a server can be connected to; with a proxy, this is not tried."""
    if urllib.request.getproxies():  # a proxy resolves the names, so the local name server does not matter
        return True
    address = urlsplit(endpoint)
    try:
        socket.create_connection(
            (address.hostname or "", address.port or (80 if address.scheme == "http" else 443)), seconds
        ).close()
    except OSError:
        return False
    return True
