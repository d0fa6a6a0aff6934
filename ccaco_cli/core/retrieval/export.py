"""Exports the query side of an index as ONNX graphs: the text tower with its head, and the matcher
(``query.Exported``)."""

from __future__ import annotations

import contextlib
import errno
import inspect
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ccaco_cli.core import manifest
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.model.towers.weights import first_line
from ccaco_cli.core.retrieval.query import (
    ENCODER,
    ENCODER_INPUTS,
    ENCODER_OUTPUTS,
    MATCHER,
    MATCHER_INPUTS,
    SETTINGS,
    TOKENIZER,
    Exported,
)
from ccaco_cli.core.types import LocalTokens

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSE = 1e-3
"""Largest difference of cosines between exported and trained model; of match logits, relative to the largest."""
TRIED = 32
MODALITY = "text"
SENTENCES = (
    "one caption of a few words",
    "two",
    "a third that is a little longer than the others are, to move the length",
)
"""Texts with which graphs are traced and compared, beside those of the data."""


class _Encoder(nn.Module):
    def __init__(self, aligner: Aligner):
        super().__init__()
        self.aligner = aligner

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        embedding, features = self.aligner.encode(MODALITY, {"ids": ids, "mask": mask})
        if MODALITY not in self.aligner.modalities:  # a further side, whose tokens the cross branch does not take
            return embedding.z, features.tokens[..., :1]
        return embedding.z, self.aligner.local_tokens(MODALITY, features).tokens


class _Matcher(nn.Module):
    def __init__(self, aligner: Aligner):
        super().__init__()
        self.aligner = aligner

    def forward(self, tokens_a: Tensor, mask_a: Tensor, tokens_b: Tensor, mask_b: Tensor) -> Tensor:
        a, b = LocalTokens(tokens_a, mask_a), LocalTokens(tokens_b, mask_b)
        return self.aligner.matcher.pairs(a, b).match_logit  # type: ignore[no-any-return,operator]


def export(
    folder: Path, aligner: Aligner, towers: Mapping[str, Tower], samples: Sequence[str], *, matcher: bool
) -> dict[str, Any]:
    """Writes the query side of a model into ``folder``, and removes it when its results differ from those of the model.

    A model that cannot be exported raises no error, because queries can use the model itself.

    Args:
        aligner: on the CPU, in evaluation mode.
        samples: captions on which both are compared, end to end from the text.
        matcher: also export the cross branch.
    Returns:
        For the manifest: {"exported": True, "cosine_difference", "match_difference"} or {"exported": False, "why"},
            without
        "why" where there is no text.
    """
    tower = towers.get(MODALITY)
    described = tower.tokenizer.portable() if tower is not None and tower.tokenizer is not None else None
    if tower is None:
        return {"exported": False}
    if described is None:
        return {"exported": False, "why": "its tokenizer needs the library that made it"}
    tokenizer, settings = described
    folder.mkdir(parents=True)
    try:
        manifest.write_bytes(folder / TOKENIZER, tokenizer.encode())
        manifest.write_json(folder / SETTINGS, {"modality": MODALITY, **settings})
        with torch.inference_mode(False), torch.no_grad(), quiet_exporter():
            texts = tower.preprocess(list(SENTENCES))
            write_graph(
                folder / ENCODER, _Encoder(aligner), (texts["ids"], texts["mask"]), ENCODER_INPUTS, ENCODER_OUTPUTS
            )
            if matcher:
                write_graph(
                    folder / MATCHER, _Matcher(aligner), _pairs(aligner, 3, 11, 6), MATCHER_INPUTS, ("match_logit",)
                )
        differences = _differences(Exported(folder), aligner, tower, [*SENTENCES, *samples][:TRIED], matcher=matcher)
    except Exception as error:  # the exporter raises many kinds of errors
        shutil.rmtree(folder)
        if full := no_space_error(error):  # the index must not be completed without its query side
            raise full from None
        return {"exported": False, "why": root_cause(error)}
    if max(differences.values()) > CLOSE:
        shutil.rmtree(folder)
        return {"exported": False, "why": "its results differ from those of the model", **differences}
    return {"exported": True, **differences}


def root_cause(error: Exception) -> str:
    """The first error of a chain, in one line: the exporter wraps it in pages of coloured text."""
    cause = _first_error(error)
    return f"{type(cause).__name__}: {first_line(cause)}"


def no_space_error(error: Exception) -> Exception | None:
    """The first error of a chain, if it says that the disk is full."""
    cause = _first_error(error)
    return cause if getattr(cause, "errno", None) in _NO_SPACE else None


def _first_error(error: Exception) -> Exception:
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def write_graph(
    path: Path,
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    varying: Sequence[int] = (0, 1),
) -> None:
    """Writes a module as an ONNX graph and its weights beside it; the dimensions ``varying`` of each input may vary."""
    auto = torch.export.Dim.AUTO
    shapes = [{d: auto for d in varying if d < argument.dim()} for argument in arguments]
    program = torch.onnx.export(
        module.eval(),
        arguments,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=_like_parameters(module, shapes),
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("no program came out")
    program.save(str(path), external_data=True)


def _like_parameters(module: nn.Module, shapes: Sequence[Any]) -> tuple[Any, ...]:
    """Shapes of the arguments as the exporter takes them: those of ``*parameters`` are one tuple."""
    parameters = inspect.signature(module.forward).parameters.values()
    fixed = sum(parameter.kind is not parameter.VAR_POSITIONAL for parameter in parameters)
    return (*shapes[:fixed], *([tuple(shapes[fixed:])] if fixed < len(shapes) else ()))


def _pairs(aligner: Aligner, count: int, n_a: int, n_b: int) -> tuple[Tensor, ...]:
    """Random prepared tokens of ``count`` pairs, with padding."""
    generator = torch.Generator().manual_seed(0)
    width = aligner.matcher.local_width
    a, b = (torch.randn(count, n, width, generator=generator) / width**0.5 for n in (n_a, n_b))
    mask_a, mask_b = torch.ones(count, n_a, dtype=torch.bool), torch.ones(count, n_b, dtype=torch.bool)
    mask_b[0, n_b // 2 :], b[0, n_b // 2 :] = False, 0.0
    return a, mask_a, b, mask_b


def _differences(
    exported: Exported, aligner: Aligner, tower: Tower, texts: Sequence[str], *, matcher: bool
) -> dict[str, float]:
    query = exported.encode(texts)
    with torch.no_grad():
        embedding, features = aligner.encode(MODALITY, tower.preprocess(list(texts)))
        z = embedding.z.numpy()
        differences = {"cosine_difference": float(np.abs(z @ z.T - query.z @ z.T).max())}
        if matcher:
            pairs = _pairs(aligner, 5, 7, 9)
            logits = _Matcher(aligner)(*pairs).numpy()
            exported_logits = exported.match(*(part.numpy() for part in pairs))
            differences["match_difference"] = float(
                np.abs(exported_logits - logits).max() / max(1.0, np.abs(logits).max())
            )
    if not np.array_equal(query.mask, features.mask.numpy()):
        return {"cosine_difference": float("inf")}
    return {name: value if np.isfinite(value) else float("inf") for name, value in differences.items()}


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter prints, warns and logs; transformer layers leave their fused path, which has no graph."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        torch.backends.mha.set_fastpath_enabled(fused)
