"""Checks of a tower when it is built: the invariants that training, token caches and search rely on.

Two samples of different length are encoded in one batch, and the shorter one alone. A tower whose output of a sample
depends on anything but that sample is refused, because its cached tokens and its index would not fit its queries.
Of blocks that are equal in all but their weights, only the first and the last compute (``repeated_blocks``): twelve
layers behave as two of them do, and a large tower costs seconds. A tower that fails is checked again with all blocks,
whose result counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.towers.pooling import RULES
from ccaco_cli.core.model.towers.repeated_blocks import finite_weights, without_repeated_blocks
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.model.towers.weights import first_line
from ccaco_cli.core.types import Features

LIMIT = 1e-3
"""Largest difference of two vectors that count as equal, relative to their length. Another batch size changes float32
results by about 1e-6."""
Inputs = dict[str, Tensor]

_passed: set[tuple[str, type[nn.Module], str]] = set()
"""Towers that passed in this process: an ablation builds the same tower for every arm."""


def probe(tower: Tower) -> None:
    """Encodes two small samples and checks what comes out; a tower that has passed is not encoded again.

    Raises:
        TowerError: names the first check that fails: the tower cannot encode the samples, shapes that differ from the
            declared ones, values that are not finite, a pooled vector that does not follow the declared rule, or an
            output that changes from call to call, with padding, or with the other samples of the batch.
    """
    samples = tower.probe_samples or MODALITIES[tower.modality].probe_samples
    key = (tower.modality, type(tower.module), _identity(tower))
    if samples is None or key in _passed:
        return
    short, long = samples()
    with evaluation(tower.module):
        alone, batch = _inputs(tower, [short]), _inputs(tower, [short, long])
        if not all(torch.equal(value, alone[name]) for name, value in _inputs(tower, [short]).items()):
            raise _refusal(tower, "the preprocessing of this tower gives another output for the same sample")
        with without_repeated_blocks(tower.module) as skipped:
            passes = bool(skipped) and finite_weights(skipped) and _passes(tower, alone, batch)
        if not passes:
            _check_encoding(tower, alone, batch)
    _passed.add(key)


def _passes(tower: Tower, alone: Inputs, batch: Inputs) -> bool:
    try:
        _check_encoding(tower, alone, batch)
    except TowerError:
        return False
    return True


def _check_encoding(tower: Tower, alone: Inputs, batch: Inputs) -> None:
    """Checks what a sample becomes alone and as the first one of a batch."""
    features, features_alone = _encode(tower, batch), _encode(tower, alone)
    for inputs, output in ((batch, features), (alone, features_alone)):
        _check_output(tower, inputs, output)
    if _difference(features_alone, features[:1]) > LIMIT:
        raise _refusal(tower, _dependence(tower, alone, batch, features))


def _identity(tower: Tower) -> str:
    """What the checks depend on: the weights, or of a tower that starts at random its architecture alone."""
    if tower.pretrained:
        return tower.fingerprint
    shapes = [tuple(weight.shape) for weight in tower.module.state_dict().values()]
    return repr((str(tower.spec), repr(tower.preprocess), tower.tokens, tower.pooled_from, shapes))


def probe_length(tower: Tower) -> None:
    """Encodes one text that fills the whole context of a text tower. Raises TowerError: the tower cannot encode it."""
    assert tower.tokenizer is not None
    with evaluation(tower.module):
        inputs = _inputs(tower, ["a dog " * tower.tokens])
        _check_output(tower, inputs, _encode(tower, inputs))


def captions() -> list[str]:
    """Returns a short and a longer caption."""
    return ["a dog", "two orange cats run through the deep snow of a garden, and a dog looks at them"]


def images() -> list[Image.Image]:
    """Returns two images of random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def recordings() -> list[RandomRecording]:
    """Returns a recording of half a second and one of 1.5 seconds."""
    return [RandomRecording(0, 0.5), RandomRecording(1, 1.5)]


class RandomRecording:
    """A ``types.Recording`` of noise, ``length`` seconds long."""

    def __init__(self, seed: int, length: float):
        self.seed, self.length = seed, length

    def samples(self, rate: int, seconds: float) -> Any:
        count = max(1, round(rate * min(seconds, self.length)))
        return np.random.default_rng(self.seed).normal(0, 0.1, count).astype(np.float32)

    def frames(self, rate: float, seconds: float) -> Iterator[Image.Image]:
        generator = np.random.default_rng(self.seed)
        for _ in range(max(1, round(rate * min(seconds, self.length)))):
            yield Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8))


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes of all submodules and the random generator are restored."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training


def _inputs(tower: Tower, samples: Sequence[Any]) -> Inputs:
    """Makes one batch as the loader does; texts are cut to the longest text of the batch."""
    if tower.tokenizer is None:
        inputs: Inputs = MODALITIES[tower.modality].collate([tower.preprocess(sample) for sample in samples])
        return inputs
    tokenized = tower.tokenizer(list(samples))
    longest = int(tokenized["mask"].any(0).nonzero().max()) + 1
    return {name: tokenized[name][:, :longest] for name in ("ids", "mask")}


def _encode(tower: Tower, inputs: Inputs) -> Features:
    try:
        features: Features = tower.module(inputs)
    except Exception as error:  # models of other libraries fail in different ways
        raise _refusal(
            tower,
            f"this tower cannot encode its {tower.modality} inputs ({type(error).__name__}: {first_line(error)})",
            expected="the size and length that the model was trained with",
        ) from error
    return features


def _check_output(tower: Tower, inputs: Inputs, features: Features) -> None:
    """Checks shapes, finite values and the pooling of one batch."""
    batch, (rows, count, width) = len(next(iter(inputs.values()))), features.tokens.shape
    shapes = {
        f"tokens [{rows}, {count}, {width}]": rows == batch and width == tower.width and count <= tower.tokens,
        f"a mask {list(features.mask.shape)}": features.mask.shape == (rows, count),
        f"a mask of {features.mask.dtype}": features.mask.dtype == torch.bool,
        f"pooled {list(features.pooled.shape)}": features.pooled.shape == (batch, tower.pooled_width),
        f"{count} tokens for a grid of {tower.grid}": tower.grid is None or math.prod(tower.grid) <= count,
        "no class token before its patches": tower.pooled_from != "first" or math.prod(tower.grid or (0,)) < count,
        "a sample without real tokens": bool(features.mask.any(-1).all()),
    }
    wrong = [name for name, correct in shapes.items() if not correct]
    if wrong:
        declared = f"[{batch}, up to {tower.tokens}, {tower.width}] as declared"
        raise _refusal(tower, f"this tower returns {wrong[0]}", expected=f"tokens {declared}, and one mask row each")
    if not all(values.isfinite().all() for values in (features.tokens, features.pooled)):
        raise _refusal(
            tower, "this tower returns values that are not finite (NaN or infinite)", expected="finite weights"
        )
    rule = RULES.get(tower.pooled_from)
    if rule and _distance(features.pooled, rule(features.tokens, features.mask)) > LIMIT:
        raise _refusal(tower, f"the pooled vector of this tower is not the {tower.pooled_from} of its tokens")


def _dependence(tower: Tower, alone: Inputs, batch: Inputs, features: Features) -> str:
    """Says what else than the sample itself changes its output."""
    if _difference(_encode(tower, batch), features) > LIMIT:
        return "this tower gives another output for the same input"
    # the short sample by itself, padded as in the batch
    padded = _encode(tower, {name: value[:1] for name, value in batch.items()})
    if _difference(_encode(tower, alone), padded) > LIMIT:
        return "the output of this tower changes with padding"
    return "the output of this tower for a sample changes with the other samples of its batch"


def _difference(first: Features, second: Features) -> float:
    """Largest difference of real tokens and pooled vectors; infinite where the numbers of tokens differ."""
    if not torch.equal(first.mask.sum(1), second.mask.sum(1)):
        return math.inf
    return max(_distance(first.pooled, second.pooled), _distance(first.tokens[first.mask], second.tokens[second.mask]))


def _distance(vectors: Tensor, expected: Tensor) -> float:
    """Largest distance of a row [W] to its expected row, relative to the expected length (at least the mean length)."""
    lengths = expected.float().norm(dim=-1)
    scale = torch.maximum(lengths, lengths.mean()).clamp_min(1e-12)
    return float(((vectors.float() - expected.float()).norm(dim=-1) / scale).nan_to_num(math.inf).max())


def _refusal(tower: Tower, fault: str, expected: str = "an output that depends on the sample only") -> TowerError:
    return TowerError(fault, where=tower.spec, expected=expected, next=f"another {tower.modality} tower, such as tiny")
