"""Features made by hand, and their linear alignment: what could be done before networks were learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Array = NDArray[Any]
SIDE, COLOURS = 64, 4
DIMENSIONS = 256
"""Principal components kept of either modality."""
RIDGE = 0.1
"""Added to their variances, as a share of the mean: directions that hardly vary are not blown up."""


def picture(image: Image.Image) -> Array:
    """Shape and colour of a picture: [F] float32.

    Histogram of oriented gradients (Dalal & Triggs, CVPR 2005: 9 directions, cells of 8 x 8 pixels, blocks of 2 x 2) of the picture
    cropped and resized to 64 x 64, beside the square roots of the RGB histograms (4 bins a channel) of its four quarters.
    """
    from skimage.feature import hog

    fitted = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE))
    shape = hog(np.asarray(fitted.convert("L")), orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2))
    codes = (np.asarray(fitted).astype(int) * COLOURS // 256) @ [COLOURS**2, COLOURS, 1]
    half = SIDE // 2
    quarters = [codes[y : y + half, x : x + half].ravel() for y in (0, half) for x in (0, half)]
    colour = np.concatenate([np.sqrt(np.bincount(q, minlength=COLOURS**3) / q.size) for q in quarters])
    return np.concatenate([shape, colour]).astype(np.float32)


@dataclass(frozen=True)
class Aligned:
    """What ``align`` found: pictures [k, F] -> z [k, E] and texts -> z [k, E] (unit norm, float32), and how many numbers it learned."""

    pictures: Callable[[Array], Array]
    texts: Callable[[Sequence[str]], Array]
    parameters: int


def align(pictures: Array, texts: Sequence[str], row: Array, *, seed: int = 0) -> Aligned:
    """Canonical correlation analysis of picture features and TF-IDF of words (Hardoon et al., Neural Computation 16, 2004).

    Whitened principal components of either side (with a ridge), then the singular vectors of their cross-covariance, each weighed by
    its correlation.

    pictures  [n, F], as ``picture`` gives them
    texts     the m captions; row [m] int64, the picture of each
    seed      of the randomised decompositions
    """
    from sklearn.decomposition import PCA, TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
    table = words.fit_transform(texts)
    most = min(DIMENSIONS, len(pictures) - 1)
    # a sparse table cannot be centred without filling it: the first decomposition narrows it, the second centres what is left
    svd = TruncatedSVD(min(most, table.shape[1] - 1), random_state=seed)
    narrow = svd.fit_transform(table)
    sides = [PCA(min(most, *x.shape), random_state=seed).fit(x) for x in (pictures, narrow)]
    whiten = [1 / np.sqrt(side.explained_variance_ + RIDGE * side.explained_variance_.mean()) for side in sides]
    x, y = ((side.transform(x) * scale) for side, x, scale in zip(sides, (pictures, narrow), whiten, strict=True))
    u, correlation, v = np.linalg.svd(x[row].T @ y / len(row), full_matrices=False)
    to_shared = [scale[:, None] * turn * correlation for scale, turn in zip(whiten, (u, v.T), strict=True)]
    learned = svd.components_.size + sum(
        side.components_.size + turn.size for side, turn in zip(sides, to_shared, strict=True)
    )
    return Aligned(
        lambda new: _unit(sides[0].transform(new) @ to_shared[0]),
        lambda new: _unit(sides[1].transform(svd.transform(words.transform(new))) @ to_shared[1]),
        learned,
    )


def _unit(vectors: Array) -> Array:
    found: Array = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return found
