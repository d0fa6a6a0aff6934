"""Heat maps over pictures: which words met which patches, with the measured faithfulness beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import OnProgress

COLUMNS = 6
SIDE = 224
"""Pixels of a picture's shorter side under a heat map; smaller pictures are enlarged."""
NAME = "explain.json"


def write(folder: Path, explained: Iterable[Any], total: int, on_progress: OnProgress) -> None:
    """A picture for each explained answer (``Explained``), and then ``explain.json`` with the numbers of all.

    folder  made when it is not there; Raises DataError when something else than an earlier explanation lies in it
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / NAME).is_file():
        raise DataError(
            "something else lies here", where=folder, expected="a new folder, or one of an earlier --explain"
        )
    facts: list[dict[str, Any]] = []
    query, number = None, 0
    for done, one in enumerate(explained, start=1):
        if not facts:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / NAME).unlink(missing_ok=True)
        number += one.query != query
        query = one.query
        slug = re.sub(r"[^a-z0-9]+", "-", Path(query).stem.lower())[:40].strip("-")
        file = folder / f"{number:02d}-{slug}-{one.hit.rank:02d}.png"
        draw(file, one)
        facts.append({"picture": file.name, **one.facts()})
        on_progress(done, total, {})
    if facts:
        manifest.write_json(folder / NAME, facts)


def draw(path: Path, one: Any) -> None:
    """One explained answer: the picture, a heat map for each content word, and the score as cells are taken away."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    why, trial = one.why, one.why.trial
    picture = np.full((SIDE, SIDE, 3), 128, np.uint8) if one.picture is None else one.picture
    panels = [
        ("as seen", picture),
        *((word, overlay(picture, heat)) for word, heat in zip(why.words, why.heat, strict=True)),
    ]
    columns = min(COLUMNS, len(panels) + 1)
    lines = -(-(len(panels) + 1) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.1 * columns, 2.5 * lines + 0.7), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, shown) in zip(axes.flat, panels, strict=False):
        axis.imshow(shown, interpolation="nearest")
        axis.set_title(name, fontsize=10, parse_math=False)
    curve = axes.flat[len(panels)]
    curve.axis("on")
    for name, values, style in (("relevant first", trial.deletion, "-"), ("random", trial.random, "--")):
        curve.plot(100 * (1 - trial.kept), values, style, label=name)
    curve.axhline(trial.score, color="0.6", linewidth=0.8)
    curve.set_xlabel("% of cells hidden", fontsize=8)
    curve.set_title("match score", fontsize=9)
    curve.tick_params(labelsize=7)
    curve.legend(fontsize=7, frameon=False)
    said = (
        f" · found: {one.hit.item['text']}"
        if isinstance(one.hit.item.get("text"), str) and one.hit.item["text"] != one.query
        else ""
    )
    silent = "" if one.weight else " (no say in this ranking)"
    figure.suptitle(
        f"{one.query}{said}\nrank {one.hit.rank} · {one.hit.item['id']} · match {trial.score:.2f}{silent} · {why.method} · "
        f"deletion {trial.deletion_gain:+.2f}, insertion {trial.insertion_gain:+.2f} against random",
        fontsize=9,
        x=0.01,
        ha="left",
        parse_math=False,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def overlay(picture: Any, heat: Any) -> Image.Image:
    """A heat map over a picture: [H, W, 3] uint8 and [h, w] >= 0 -> RGB image, ``SIDE`` pixels or more; the hottest cell is brightest."""
    from matplotlib import colormaps

    base = Image.fromarray(picture)
    scale = max(1.0, SIDE / min(base.size))
    size = (round(base.width * scale), round(base.height * scale))
    base = base.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC)
    share = Image.fromarray((255 * heat / max(float(heat.max()), 1e-12)).astype(np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    strength = np.asarray(share)[..., None] / 255
    grey = np.asarray(base.convert("L").convert("RGB")) * 0.55
    hot = np.asarray(colormaps["inferno"](strength[..., 0]))[..., :3] * 255
    lit = np.asarray(base) * strength + grey * (1 - strength)
    return Image.fromarray((0.55 * lit + 0.45 * np.maximum(hot, lit * strength)).clip(0, 255).astype(np.uint8))
