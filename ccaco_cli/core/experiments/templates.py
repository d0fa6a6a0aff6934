"""Zero-shot classes: a class is the mean of its name in several sentences (CLIP, arXiv:2103.00020, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.text_input import decode_utf8

Template = Callable[[str], str]
"""Class name -> sentence."""
NAMED = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
"""Name -> templates that open_clip publishes: 80 and 7 sentences."""


def load_templates(name: str) -> tuple[Template, ...]:
    """The templates of a name, or of a file with one sentence per line.

    Args:
        name: ``openai``, ``simple``, or a UTF-8 file whose lines have ``{}`` where the class name belongs.
    Raises:
        ConfigError: neither a name nor a file, an empty file, or a line without ``{}``.
    """
    if name in NAMED:
        import open_clip

        return tuple(getattr(open_clip, NAMED[name]))
    path = Path(name)
    try:
        lines = [line.strip() for line in decode_utf8(path.read_bytes(), path, error=ConfigError).splitlines()]
    except OSError as error:
        raise ConfigError(
            f"no templates here ({error.strerror or error})",
            where=f"--templates {name}",
            expected=f"{' | '.join(NAMED)} | a file with one sentence per line",
        ) from None
    sentences = [line for line in lines if line]
    wrong = next((line for line in sentences if "{}" not in line), None)
    if wrong is not None or not sentences:
        raise ConfigError(
            "this file is empty" if wrong is None else "a template has no {} for the class name",
            where=path if wrong is None else f"{path}, line {lines.index(wrong) + 1}: {wrong[:60]}",
            expected='one sentence per line, such as "a photo of a {}."',
        )
    return tuple(_template(sentence) for sentence in sentences)


def _template(sentence: str) -> Template:
    return lambda name: sentence.replace("{}", name)


def class_vectors(names: Sequence[str], templates: Sequence[Template], encode: Callable[[list[str]], Tensor]) -> Tensor:
    """The vector of each class: the mean over templates of unit vectors, with unit norm.

    Args:
        names: C class names.
        encode: n sentences -> [n, E] float, unit norm.
    Returns:
        [C, E] float32, as ``open_clip.build_zero_shot_classifier`` computes them.
    """
    vectors = [encode([template(name) for template in templates]).float().mean(0) for name in names]
    return F.normalize(torch.stack(vectors), dim=-1)
