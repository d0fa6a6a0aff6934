"""Handcrafted image features and their linear alignment with texts: a baseline without learned networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ccaco_cli.core.words import words

Array = NDArray[Any]
SIDE, COLOURS = 64, 4
DIMENSIONS = 256
"""Principal components of each modality."""
RIDGE = 0.1
"""Share of the mean variance that is added to variances, so that small ones are not amplified."""


def image_features(image: Image.Image) -> Array:
    """Describes the shape and colour of an image: [F] float32.

    A histogram of oriented gradients (Dalal & Triggs, CVPR 2005: 9 directions, cells of 8 x 8 pixels, blocks of 2 x 2)
    of the image cropped and resized to 64 x 64, and the square roots of the RGB histograms (4 bins per channel) of its
    four quarters.
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
class LinearAlignment:
    """The result of ``align``.

    Attributes:
        images: image features [k, F] -> z [k, E] float32, unit norm.
        texts: k texts -> z [k, E] float32, unit norm.
        parameters: number of fitted numbers.
    """

    images: Callable[[Array], Array]
    texts: Callable[[Sequence[str]], Array]
    parameters: int


def _terms(text: str) -> list[str]:
    """The words of a text in lower case; in ASCII, those of two characters or more, as scikit-learn cuts them."""
    lower = text.lower()
    return re.findall(r"\b\w\w+\b", lower) if text.isascii() else [word.form for word in words(lower)]


def align(images: Array, texts: Sequence[str], row: Array, *, seed: int = 0) -> LinearAlignment:
    """Canonical correlation analysis of image features and TF-IDF (Hardoon et al., Neural Computation 16, 2004).

    Both modalities are reduced to whitened principal components (with a ridge). The singular vectors of their
    cross-covariance then map them to a shared space, each weighted by its correlation.

    Args:
        images: [n, F], outputs of ``image_features``.
        texts: the m captions.
        row: [m] int64, the image of each caption.
        seed: of the randomised decompositions.
    """
    from sklearn.decomposition import PCA, TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=_terms, sublinear_tf=True, dtype=np.float32)
    tfidf = vectorizer.fit_transform(texts)
    dimensions = min(DIMENSIONS, len(images) - 1)
    # centring a sparse matrix would fill it: a first decomposition reduces it, the PCA after it centres the result
    svd = TruncatedSVD(min(dimensions, tfidf.shape[1] - 1), random_state=seed)
    reduced = svd.fit_transform(tfidf)
    pcas = [PCA(min(dimensions, *x.shape), random_state=seed).fit(x) for x in (images, reduced)]
    whiten = [1 / np.sqrt(pca.explained_variance_ + RIDGE * pca.explained_variance_.mean()) for pca in pcas]
    x, y = ((pca.transform(data) * scale) for pca, data, scale in zip(pcas, (images, reduced), whiten, strict=True))
    u, correlation, v = np.linalg.svd(x[row].T @ y / len(row), full_matrices=False)
    to_shared = [scale[:, None] * basis * correlation for scale, basis in zip(whiten, (u, v.T), strict=True)]
    parameters = svd.components_.size + sum(
        pca.components_.size + matrix.size for pca, matrix in zip(pcas, to_shared, strict=True)
    )
    return LinearAlignment(
        lambda new: _unit(pcas[0].transform(new) @ to_shared[0]),
        lambda new: _unit(pcas[1].transform(svd.transform(vectorizer.transform(new))) @ to_shared[1]),
        parameters,
    )


def _unit(vectors: Array) -> Array:
    unit: Array = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return unit
