from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccaco_cli.core.data.loader import CachedColumn
from ccaco_cli.core.encoding import token_cache
from ccaco_cli.core.encoding.batching import batch_positions
from ccaco_cli.core.encoding.encode import EncodeOptions, encode, reduced_precision
from ccaco_cli.core.encoding.token_cache import cached
from ccaco_cli.core.model.token_pooling import pool_grid
from ccaco_cli.core.types import Features


def test_order_and_batching_do_not_matter(toy: Any) -> None:
    aligner, column = toy.aligner(toy.config()).train(), toy.columns()[1]
    progress: list[tuple[int, int | None]] = []
    reference = encode(
        aligner,
        "text",
        column,
        options=EncodeOptions(batch_size=7),
        on_progress=lambda done, total, facts: progress.append((done, total)),
    )
    assert not aligner.training
    assert progress[-1] == (48, 48)
    assert reference.tokens is None
    for item in (0, 17, 47):
        alone, _ = aligner.encode("text", column.inputs(np.array([item])))
        assert torch.allclose(reference.z[item], alone.z[0], atol=1e-6)
        assert torch.allclose(reference.embedding.pooled[item], alone.pooled[0], atol=1e-6)
    some = encode(aligner, "text", column, items=[40, 3], options=EncodeOptions(batch_size=1))
    assert torch.allclose(some.z, reference.z[[40, 3]], atol=1e-6)
    assert reference.z.dtype == torch.float32
    assert torch.allclose(reference.z.norm(dim=1), torch.ones(48), atol=1e-6)


def test_local_keeps_the_tokens_of_the_cross_branch(toy: Any) -> None:
    aligner, column = toy.aligner(toy.config()), toy.columns()[1]
    tokens = encode(aligner, "text", column, local_tokens=True, options=EncodeOptions(batch_size=5)).local_tokens
    assert tokens.tokens.dtype == torch.float16
    assert tokens.mask.sum(1).tolist() == column.length.tolist()
    assert not tokens.tokens[~tokens.mask].any()
    for item in (0, 17, 47):
        inputs = column.inputs(np.array([item]))
        wanted = aligner.local_tokens("text", aligner.encode("text", inputs)[1])
        length = int(column.length[item])
        assert torch.allclose(tokens.tokens[item, :length].float(), wanted.tokens[0, :length], atol=2e-3)


@pytest.mark.parametrize("side", [0, 1], ids=["fixed", "ragged"])
def test_the_cache_equals_the_tower_and_is_made_once(toy: Any, tmp_path: Path, side: int) -> None:
    column, width = toy.columns()[side], (6, 10)[side]
    if side == 0:
        column.mask[:], column.length = True, None
    tower = toy.tower("x", width).module
    calls: list[int] = []
    tower.register_forward_hook(lambda *_: calls.append(1))
    tokens = cached(tower, column, tmp_path / "c", grid=None, max_tokens=0, device="cpu")
    assert (tokens.row == column.row).all()
    items = np.array([9, 2, 20])
    got, wanted = tokens.inputs(items), tower(column.inputs(items))
    for place in range(3):
        assert torch.allclose(
            got.tokens[place][got.mask[place]].float(), wanted.tokens[place][wanted.mask[place]], atol=2e-3
        )
    assert torch.allclose(got.pooled.float(), wanted.pooled, atol=2e-3)
    calls.clear()
    assert torch.equal(
        cached(tower, column, tmp_path / "c", grid=None, max_tokens=0, device="cpu").inputs(items).tokens, got.tokens
    )
    assert not calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_towers_give_the_same_vectors_and_are_put_back(toy: Any, dtype: torch.dtype) -> None:
    aligner, columns = toy.aligner(toy.config()), dict(zip(("image", "text"), toy.columns(), strict=True))
    plain = {m: encode(aligner, m, column, local_tokens=True) for m, column in columns.items()}
    towers = [side.tower for side in aligner.sides.values()]
    with pytest.raises(KeyboardInterrupt), reduced_precision(aligner, dtype):
        for modality, column in columns.items():
            assert {p.dtype for p in aligner.sides[modality].tower.parameters()} == {dtype}
            encoded, wanted = encode(aligner, modality, column, local_tokens=True), plain[modality]
            assert encoded.z.dtype == torch.float32
            assert not torch.equal(encoded.z, wanted.z)
            assert (encoded.z * wanted.z).sum(1).min() > 1 - 1e-3
            assert torch.allclose(encoded.local_tokens.tokens.float(), wanted.local_tokens.tokens.float(), atol=0.05)
            assert torch.equal(encoded.local_tokens.mask, wanted.local_tokens.mask)
        raise KeyboardInterrupt
    assert [side.tower for side in aligner.sides.values()] == towers
    assert {p.dtype for p in aligner.parameters()} == {torch.float32}
    with reduced_precision(aligner, torch.float32):
        assert torch.equal(encode(aligner, "text", columns["text"]).z, plain["text"].z)


@pytest.mark.parametrize("side", [0, 1], ids=["fixed", "ragged"])
def test_an_interrupted_cache_goes_on_where_it_stopped(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    monkeypatch.setattr(token_cache, "PART", 10)
    column, tower = toy.columns()[side], toy.tower("x", (6, 10)[side]).module
    if side == 0:
        column.mask[:], column.length = True, None

    def make(folder: Path, until: int) -> tuple[CachedColumn | None, int]:
        batches = 0

        def count(module: Any, inputs: Any) -> None:
            nonlocal batches
            batches += len(inputs[0]["mask"])
            if batches > until:
                raise KeyboardInterrupt

        hook = tower.register_forward_pre_hook(count)
        try:
            return cached(tower, column, folder, grid=None, max_tokens=0, device="cpu"), batches
        except KeyboardInterrupt:
            return None, batches
        finally:
            hook.remove()

    monkeypatch.setattr(token_cache, "BATCH_SIZE", {"cpu": 5})
    items = np.arange(len(column.row))
    complete, every = make(tmp_path / "whole", 10**6)
    assert every == len(items)
    broken, _ = make(tmp_path / "c", len(items) - 1)
    assert broken is None
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [".c.tmp"]
    resumed, batches = make(tmp_path / "c", 10**6)
    assert 0 < batches < len(items)
    assert complete is not None
    assert resumed is not None
    first, second = complete.inputs(items), resumed.inputs(items)
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.pooled, second.pooled)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["offsets.npy", "pooled.npy", "tokens.npy"]


@pytest.mark.parametrize("side", [0, 1], ids=["fixed", "ragged"])
def test_a_cache_is_made_of_small_batches_on_a_cpu(toy: Any, tmp_path: Path, side: int) -> None:
    """The feature maps of a batch are most of the memory that a convolutional tower needs."""
    column, tower = toy.columns()[side], toy.tower("x", (6, 10)[side]).module
    if side == 0:
        column.mask[:], column.length = True, None
    sizes: list[int] = []
    tower.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0]["mask"])))
    cached(tower, column, tmp_path / "c", grid=None, max_tokens=0, device="cpu")
    assert sum(sizes) == len(column.row) > 16
    assert max(sizes) == 16


def test_a_patch_grid_is_averaged_by_hand() -> None:
    patches = torch.arange(16.0).view(1, 16, 1)
    special = torch.tensor([[[100.0]]])
    features = Features(torch.cat([special, patches], 1), torch.ones(1, 17, dtype=torch.bool), special[:, 0])
    pooled = pool_grid(features, (4, 4), 4)
    assert pooled.tokens.flatten().tolist() == [100.0, 2.5, 4.5, 10.5, 12.5]
    assert pooled.mask.shape == (1, 5)
    assert pooled.mask.all()
    assert torch.equal(pooled.pooled, features.pooled)
    assert pool_grid(features, (4, 4), 16) is features
    assert pool_grid(features, None, 4) is features


class Sized:
    """A column that only knows how large its items are."""

    def __init__(self, length: list[int] | None, side: int = 0) -> None:
        self.length = None if length is None else np.array(length)
        self.side = side

    def inputs(self, items: np.ndarray) -> dict[str, torch.Tensor]:
        return {"pixels": torch.empty(1, dtype=torch.uint8).expand(len(items), 3, self.side, self.side)}


def test_large_items_are_encoded_fewer_at_a_time() -> None:
    words = [part.tolist() for part in batch_positions(Sized([30_000, 10, 20, 2_000, 40_000]), np.arange(5), 256)]
    assert words == [[1, 2, 3], [0], [4]]
    assert [len(part) for part in batch_positions(Sized([77] * 600), np.arange(600), 256)] == [256, 256, 88]
    assert [len(part) for part in batch_positions(Sized(None, 224), np.arange(300), 256)] == [256, 44]
    assert [len(part) for part in batch_positions(Sized(None, 4096), np.arange(2), 256)] == [1, 1]
    assert [part.tolist() for part in batch_positions(Sized(None, 8), np.array([5, 3]), 1)] == [[0], [1]]
    assert not list(batch_positions(Sized([]), np.arange(0), 256))
