"""Pictures for people: the contact sheet of a retrieval."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccaco_cli.core.errors import DataError

COLUMNS = 5
SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")


def contact_sheet(path: Path, answers: Sequence[tuple[str, Sequence[Any]]]) -> None:
    """Writes the pictures of ranked answers (``Hit``), one row of five and more a query, each under its rank and score.

    path    .png, .jpg, .pdf or .svg
    Raises  DataError: another suffix
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError("no such kind of picture", where=path, expected=" | ".join(SUFFIXES))
    if not answers:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    lines = [(query, hits[first : first + COLUMNS]) for query, hits in answers for first in range(0, max(1, len(hits)), COLUMNS)]
    figure, axes = plt.subplots(len(lines), COLUMNS, figsize=(2.2 * COLUMNS, 3.6 * len(lines)), squeeze=False)
    for (query, hits), row in zip(lines, axes, strict=True):
        row[0].set_title(query if hits and hits[0].rank == 1 else "", loc="left", fontsize=11, fontweight="bold", pad=22, parse_math=False)
        for axis in row:
            axis.axis("off")
        for axis, hit in zip(row, hits, strict=False):
            captions = hit.item["text"]
            caption = captions[0] if isinstance(captions, list) and captions else captions or ""
            if hit.item.get("thumbnail"):
                axis.imshow(Image.open(io.BytesIO(hit.item["thumbnail"])), interpolation="nearest")
            axis.text(0, 1.03, f"{hit.rank}.  {hit.score:.3g}", transform=axis.transAxes, fontsize=9)
            axis.text(0, -0.03, textwrap.fill(caption, 30), transform=axis.transAxes, fontsize=7, va="top", parse_math=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
