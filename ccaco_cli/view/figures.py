"""Contact sheets: the hits of a search, and samples of a data set."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import picture_of
from ccaco_cli.view import fonts
from ccaco_cli.view.line_breaks import wrap

if TYPE_CHECKING:
    from ccaco_cli.core.data.shards import PreparedData

COLUMNS = 5
PIXELS = 224
"""Pixels per side of a drawn sample: the width of a waveform, the sufficient short side of an image."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")


def contact_sheet(path: Path, results: Sequence[tuple[str, Sequence[Any]]]) -> None:
    """Draws the hits of queries, five in a row, each with its rank, score and caption.

    Args:
        path: .png, .jpg, .pdf or .svg.
        results: (query, its hits).
    Raises:
        DataError: another suffix.
    """
    check_suffix(path)
    if not results:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    lines = [
        (query, hits[first : first + COLUMNS])
        for query, hits in results
        for first in range(0, max(1, len(hits)), COLUMNS)
    ]
    size = (2.2 * COLUMNS, 3.6 * len(lines))
    figure, axes = plt.subplots(len(lines), COLUMNS, figsize=size, squeeze=False, layout="tight")
    for (query, hits), row in zip(lines, axes, strict=True):
        row[0].set_title(
            query if hits and hits[0].rank == 1 else "",
            loc="left",
            fontsize=11,
            fontweight="bold",
            pad=22,
            parse_math=False,
        )
        for axis in row:
            axis.axis("off")
        for axis, hit in zip(row, hits, strict=False):
            captions = hit.item.get("text") or hit.item["id"]
            caption = captions[0] if isinstance(captions, list) and captions else captions or ""
            if hit.item.get("thumbnail"):
                axis.imshow(Image.open(io.BytesIO(hit.item["thumbnail"])), interpolation="nearest")
            axis.text(0, 1.03, f"{hit.rank}.  {hit.score:.3g}", transform=axis.transAxes, fontsize=9)
            below = {"transform": axis.transAxes, "fontsize": 7, "va": "top", "parse_math": False}
            lines_of_text = {"multialignment": "right" if fonts.is_right_to_left(caption) else "left"}
            axis.text(0, -0.03, fonts.paragraph(caption, 30), **below, **lines_of_text)
    _save(figure, path)


def check_suffix(path: Path) -> None:
    """Raises DataError: a figure cannot be written in this format."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError("no such kind of picture", where=path, expected=" | ".join(SUFFIXES))


def preview(path: Path, data: PreparedData, rows: int = 3) -> None:
    """Draws evenly spaced samples of every split, each with its id, domain and captions.

    Args:
        path: as in ``contact_sheet``.
        rows: rows of five samples, over all splits.
    """
    check_suffix(path)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    lines = []  # (split, samples of one line, whether it is the first line of the split)
    for name in data.splits:
        part = data.split(name)
        chosen = np.unique(np.linspace(0, len(part) - 1, COLUMNS * max(1, rows // len(data.splits))).astype(int))
        lines += [(part, chosen[first : first + COLUMNS], first == 0) for first in range(0, len(chosen), COLUMNS)]
    shape = {
        "figsize": (2.4 * COLUMNS, 4 * len(lines)),
        "height_ratios": [2.4, 1.6] * len(lines),
        "layout": "constrained",
    }
    figure, axes = plt.subplots(2 * len(lines), COLUMNS, squeeze=False, **shape)
    for axis in axes.flat:
        axis.axis("off")
    for (part, chosen, first), pictures, words in zip(lines, axes[::2], axes[1::2], strict=True):
        if first:
            pictures[0].set_title(f"{part.name}: {len(part):,} samples", loc="left", fontsize=11, fontweight="bold")
        for above, below, row in zip(pictures, words, chosen.tolist(), strict=False):
            above.set_anchor("SW")
            for modality in [m for m in data.modalities if picture_of(m)][:1]:
                above.imshow(picture_of(modality)(part.media(modality, [row])[0], PIXELS), interpolation="nearest")
            captions = part.captions[part.caption_start[row] : part.caption_start[row + 1]]
            description = [
                part.ids[row][-44:],
                *filter(None, [part.domains[part.domain[row]]]),
                *("".join(["- ", *wrap(caption, 80, max_lines=1)]) for caption in captions[:5]),
            ]
            filled = [fonts.paragraph(line, 42, indent="  ", max_lines=2) for line in description]
            below.text(0, 1, "\n".join(filled), transform=below.transAxes, fontsize=6, va="top", parse_math=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fonts.save(figure, path, dpi=150)
