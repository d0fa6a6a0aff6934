"""Compares an exported model, loaded by the library that it was exported for, with the model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ccaco_cli.core.encoding.encode import EncodeOptions
from ccaco_cli.core.encoding.samples import encode_samples
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.pretrained import LoadedModel
from ccaco_cli.core.export.dual_encoder import scale_of
from ccaco_cli.core.model.towers.library_checks import picture

CLOSE = 1e-4
"""Largest difference of one number of a unit vector, and relative difference of the logit scale."""
SIZES = ((96, 64), (64, 150), (300, 220))
"""(width, height) of the images that are compared."""
TEXTS = (
    "a dog",
    "",
    "two cats chase a very long red ball over the green hills & far away, " * 8,
    "A photo of the Eiffel Tower, at night!",
)


@dataclass(frozen=True)
class LibraryModel:
    """An exported model as its library loads it.

    Attributes:
        encode: modality -> (samples) -> [n, E] embeddings; samples are PIL images or texts.
        logit_scale: multiplies cosines.
        logit_bias: is added to scaled cosines; None = the model has none.
    """

    encode: Mapping[str, Callable[[Sequence[Any]], Tensor]]
    logit_scale: float
    logit_bias: float | None


def images() -> list[Image.Image]:
    """Images of several shapes, smooth enough that a resize does not remove all that they show."""
    return [picture(size) for size in SIZES]


def largest_difference(model: LoadedModel, exported: LibraryModel) -> float:
    """The largest difference between the unit vectors of both, over all modalities that the library encodes.

    Raises:
        DataError: it is too large, or the logit scale or bias differs.
    """
    samples: dict[str, Sequence[Any]] = {"image": images(), "text": TEXTS}
    differences = {m: _difference(model, m, samples[m], encode) for m, encode in exported.encode.items()}
    scale, bias = scale_of(model)
    differences["logit scale"] = abs(exported.logit_scale / scale - 1)
    differences["logit bias"] = 0.0 if bias is None else abs((exported.logit_bias or 0.0) - bias)
    name, difference = max(differences.items(), key=lambda item: item[1])
    if not difference <= CLOSE:  # NaN is no agreement
        raise DataError(
            f"the exported model differs from this model ({name} by {difference:.2g})",
            where=model.manifest.facts["name"],
            expected=f"at most {CLOSE:g}",
        )
    return max(differences[m] for m in exported.encode)


def _difference(
    model: LoadedModel, modality: str, samples: Sequence[Any], encode: Callable[[Sequence[Any]], Tensor]
) -> float:
    ours = encode_samples(
        model.aligner, model.towers[modality], samples, local_tokens=False, options=EncodeOptions()
    ).z.float()
    with torch.no_grad():
        exported = torch.nn.functional.normalize(encode(samples).float(), dim=-1)
    return float((ours - exported).abs().max()) if ours.shape == exported.shape else float("inf")
