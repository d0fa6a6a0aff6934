from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.retrieval import token_store


def ragged(rows: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.arange(7) < np.array([3, 7, 1, 5, 2])[:rows, None]
    values = rng.normal(size=(rows, 7, 12)) * 10.0 ** rng.integers(-5, 3, size=(rows, 7, 1))  # norms as gates make them
    return (values * mask[..., None]).astype(np.float16), mask


@pytest.mark.parametrize(("store", "error"), [("float16", 0.0), ("int8", 0.5 / 127 + 1e-3)])
def test_what_is_read_is_what_was_written(tmp_path: Path, store: str, error: float) -> None:
    values, mask = ragged()
    values[3, 1] = 0  # a token of nothing
    with token_store.Writer(tmp_path, store) as writer:
        for part in (slice(0, 2), slice(2, 3), slice(3, 5)):
            writer.add(values[part], mask[part])
    opened = token_store.Tokens.open(tmp_path)
    for rows in ([2, 1], [0], [4, 3, 3]):
        tokens, mask_read = opened.read(rows)
        longest = mask[rows].sum(1).max()
        assert tokens.dtype == np.float32
        assert (mask_read == mask[rows][:, :longest]).all()
        assert not tokens[~mask_read].any()
        wanted = values[rows][:, :longest].astype(np.float32)
        assert (np.abs(tokens - wanted) <= error * np.abs(wanted).max(-1, keepdims=True) + 1e-12).all()


def test_int8_takes_half_the_place(tmp_path: Path) -> None:
    values, mask = np.random.default_rng(0).normal(size=(20, 30, 256)).astype(np.float16), np.ones((20, 30), bool)
    size = {}
    for store in token_store.STORES:
        with token_store.Writer(tmp_path / store, store) as writer:
            writer.add(values, mask)
        size[store] = sum(file.stat().st_size for file in (tmp_path / store).iterdir())
    assert size["int8"] < 0.53 * size["float16"]


def test_any_number_of_rows_fits_into_the_head_and_none_leaves_nothing(tmp_path: Path) -> None:
    values, mask = np.ones((1, 3, 4), np.float16), np.ones((1, 3), bool)
    with token_store.Writer(tmp_path, "float16") as writer:
        for _ in range(1234):
            writer.add(values, mask)
    assert token_store.Tokens.open(tmp_path).tokens.shape == (3702, 4)
    with token_store.Writer(tmp_path / "none", "int8"):
        pass
    assert not list((tmp_path / "none").iterdir())


def test_an_unknown_store_is_refused() -> None:
    token_store.check("none")
    with pytest.raises(ConfigError, match=r"--store-tokens int4; expected float16 \| int8 \| none"):
        token_store.check("int4")
