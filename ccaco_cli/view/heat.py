"""Heat maps: the relevance of each image cell for each word, drawn over the image, with the measured faithfulness."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import OnProgress
from ccaco_cli.view import fonts

if TYPE_CHECKING:
    from ccaco_cli.core.reporting.hit_explanation import ExplainedHit

COLUMNS = 6
SIDE = 224
"""Pixels of the shorter side of an image under a heat map; smaller images are enlarged."""
TITLE_WIDTH = 33
"""Characters of the title for each column of panels."""
NAME = "explain.json"


def write(folder: Path, hits: Iterable[ExplainedHit], total: int, on_progress: OnProgress) -> None:
    """Writes one figure for each explained hit, and then ``explain.json`` with the numbers of all of them.

    Args:
        folder: created when it does not exist.
        total: number of hits, for the progress.
    Raises:
        DataError: the folder holds anything else than an earlier explanation.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / NAME).is_file():
        raise DataError(
            "something else lies here", where=folder, expected="a new folder, or one of an earlier --explain"
        )
    facts: list[dict[str, Any]] = []
    query, number = None, 0
    for done, explained in enumerate(hits, start=1):
        if not facts:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / NAME).unlink(missing_ok=True)  # numbers must not stand beside the figures of another call
        number += explained.query != query
        query = explained.query
        slug = re.sub(r"[^a-z0-9]+", "-", Path(query).stem.lower())[:40].strip("-")
        parts = (f"{number:02d}", slug, f"{explained.hit.rank:02d}")  # a query in another script has no slug
        file = folder / f"{'-'.join(filter(None, parts))}.png"
        draw(file, explained)
        facts.append({"picture": file.name, **explained.facts()})
        on_progress(done, total, {})
    if facts:
        manifest.write_json(folder / NAME, facts)


def draw(path: Path, explained: ExplainedHit) -> None:
    """Draws one explained hit: its image, a heat map for each content word, and the score while cells are hidden."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    explanation, trial = explained.explanation, explained.explanation.trial
    image = np.full((SIDE, SIDE, 3), 128, np.uint8) if explained.image is None else explained.image
    heat_maps = zip(explanation.words, explanation.heat, strict=True)
    panels = [("model input", image), *((word, overlay(image, heat)) for word, heat in heat_maps)]
    columns = min(COLUMNS, len(panels) + 1)
    lines = -(-(len(panels) + 1) // columns)
    title = _title(explained, TITLE_WIDTH * columns)
    size = (2.1 * columns, 2.5 * lines + 0.4 + 0.15 * (title.count("\n") + 1))
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, panel) in zip(axes.flat, panels, strict=False):
        axis.imshow(panel, interpolation="nearest")
        axis.set_title(name, fontsize=10, parse_math=False)
    curve = axes.flat[len(panels)]
    curve.axis("on")
    for name, values, style in (("most relevant first", trial.deletion, "-"), ("random", trial.random, "--")):
        curve.plot(100 * (1 - trial.kept_shares), values, style, label=name)
    curve.axhline(trial.score, color="0.6", linewidth=0.8)
    curve.set_xlabel("% of cells hidden", fontsize=8)
    curve.set_title("match score", fontsize=9)
    curve.tick_params(labelsize=7)
    curve.legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left", parse_math=False)
    fonts.save(figure, path, dpi=110)


def _title(explained: ExplainedHit, width: int) -> str:
    """What a figure shows: the query and the caption of the hit, and below them the numbers."""
    trial, item, method = explained.explanation.trial, explained.hit.item, explained.explanation.method
    caption = item.get("text")
    hit = f" · hit: {caption}" if isinstance(caption, str) and caption != explained.query else ""
    unused = "" if explained.weight else " (not used in this ranking)"
    texts = fonts.paragraph(f"{explained.query}{hit}", width)
    return (
        f"{texts}\n"
        f"rank {explained.hit.rank} · {item['id']} · match {trial.score:.2f}{unused} · {method} · "
        f"gain over random cells: deletion {trial.deletion_gain:+.2f}, insertion {trial.insertion_gain:+.2f}"
    )


def enlarged(picture: Any) -> Image.Image:
    """An image [H, W, 3] uint8 as RGB image with a shorter side of ``SIDE`` pixels or more."""
    base = Image.fromarray(picture)
    scale = max(1.0, SIDE / min(base.size))
    size = (round(base.width * scale), round(base.height * scale))
    return base.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC)


def overlay(picture: Any, heat: Any) -> Image.Image:
    """Draws a heat map over an image; the hottest cell is brightest.

    Args:
        picture: [H, W, 3] uint8.
        heat: [h, w] float >= 0.
    Returns:
        RGB image with a shorter side of ``SIDE`` pixels or more.
    """
    from matplotlib import colormaps

    base = enlarged(picture)
    size = base.size
    share = Image.fromarray((255 * heat / max(float(heat.max()), 1e-12)).astype(np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    strength = np.asarray(share)[..., None] / 255
    grey = np.asarray(base.convert("L").convert("RGB")) * 0.55
    hot = np.asarray(colormaps["inferno"](strength[..., 0]))[..., :3] * 255
    lit = np.asarray(base) * strength + grey * (1 - strength)
    return Image.fromarray((0.55 * lit + 0.45 * np.maximum(hot, lit * strength)).clip(0, 255).astype(np.uint8))
