from __future__ import annotations

import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from ccaco_cli.core.data import loader, shards
from ccaco_cli.core.data.checks import decode_image
from ccaco_cli.core.data.loader import (
    NONE,
    CachedColumn,
    MediaColumn,
    PairDataset,
    PairPlan,
    PixelColumn,
    TextColumn,
    part,
)
from ccaco_cli.core.data.shards import Split


class Words:
    """A tokenizer: one id a word, padded to forty."""

    calls = 0

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        self.calls += 1
        counts = torch.tensor([min(40, len(t.split())) for t in texts])
        mask = torch.arange(40)[None] < counts[:, None]
        return {"ids": torch.where(mask, counts[:, None] * 100 + torch.arange(40), 0), "mask": mask}


@pytest.fixture
def split(data_root: Path) -> Split:
    return shards.open(data_root / "scenes").split("train")


@pytest.fixture
def plan(toy: Any) -> PairPlan:
    return PairPlan(*toy.columns(25), family=np.repeat(np.arange(13), 2)[:25], batch_size=4, seed=3)


def test_an_epoch_is_a_function_of_seed_and_number(plan: PairPlan) -> None:
    def flat(epoch: Any) -> list[list[int]]:
        return [part.tolist() for batch in epoch for part in batch]

    assert flat(plan.epoch(2)) == flat(plan.epoch(2))
    assert flat(plan.epoch(2)) != flat(plan.epoch(3))
    assert flat(plan.epoch(2)) != flat(replace(plan, seed=4).epoch(2))


def test_every_row_at_most_once_with_an_item_of_its_own(plan: PairPlan) -> None:
    chosen = set()
    for number in range(20):
        batches = plan.epoch(number)
        assert [len(rows) for rows, _, _ in batches] == [4] * 6 == [4] * len(plan)
        rows, a, b = (np.concatenate(part) for part in zip(*batches, strict=True))
        assert len(set(rows.tolist())) == 24
        assert (plan.a.row[a] == rows).all()
        assert (plan.b.row[b] == rows).all()
        chosen |= set(b.tolist())
    assert chosen == set(range(50)), "every caption gets its turn"


def test_families_stay_side_by_side(plan: PairPlan) -> None:
    rows = np.concatenate([batch[0] for batch in plan.epoch(0)])
    families = plan.family[rows]
    assert (np.diff(families) != 0).sum() + 1 == len(set(families.tolist()))
    assert families.tolist() != sorted(families.tolist())


def test_a_set_smaller_than_a_batch_is_one_batch(plan: PairPlan) -> None:
    small = replace(plan, batch_size=100)
    assert len(small) == 1
    assert sorted(small.epoch(0)[0][0].tolist()) == list(range(25))


def test_text_is_tokenised_once_and_trimmed_to_its_longest(split: Split, tmp_path: Path) -> None:
    words = Words()
    column = TextColumn(split, words)
    assert column.length is not None
    order = np.argsort(column.length)
    items = order[[1, 0, len(order) // 2]]
    for chosen in (items, order[-3:]):
        batch = column.inputs(chosen)
        longest = int(column.length[chosen].max())
        assert batch["ids"].shape == batch["mask"].shape == (3, longest)
        assert batch["ids"].dtype == torch.int64
        wanted = Words()([split.captions[i] for i in chosen])
        assert torch.equal(batch["ids"], wanted["ids"][:, :longest])
        assert not wanted["mask"][:, longest:].any()
    assert words.calls == 1
    assert (column.row == split.caption_row).all()
    for _ in range(2):
        cached = TextColumn(split, words, tmp_path / "kept")
        for name, tensor in column.inputs(items).items():
            assert torch.equal(cached.inputs(items)[name], tensor)
        assert cached.cut == column.cut
        assert cached.length.tolist() == column.length.tolist()
    assert words.calls == 2
    assert isinstance(cached.ids, np.memmap)


def test_pixels_equal_decoding(split: Split, tmp_path: Path) -> None:
    column = PixelColumn(split, "image", pil_to_tensor, tmp_path / "cache")
    rows = np.array([5, 0, 23])
    wanted = torch.stack([pil_to_tensor(decode_image(data)) for data in split.media("image", rows)])
    assert torch.equal(column.inputs(rows)["pixels"], wanted)
    assert torch.equal(MediaColumn(split, "image", pil_to_tensor).inputs(rows)["pixels"], wanted)
    assert column.pixels.dtype == np.uint8

    def never(image: Any) -> torch.Tensor:
        raise AssertionError("decoded again")

    again = PixelColumn(split, "image", never, tmp_path / "cache")
    assert torch.equal(again.inputs(rows)["pixels"], wanted)


@pytest.mark.parametrize("counts", [[3, 3, 3, 3], [2, 5, 1, 4]], ids=["fixed", "ragged"])
def test_cached_tokens_equal_what_was_written(counts: list[int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = [rng.normal(size=(n, 6)).astype(np.float16) for n in counts]
    pooled = rng.normal(size=(4, 6)).astype(np.float16)
    np.save(tmp_path / "tokens.npy", np.concatenate(tokens))
    np.save(tmp_path / "pooled.npy", pooled)
    np.save(tmp_path / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]))
    batch = CachedColumn(tmp_path, np.arange(4), np.arange(5)).inputs(np.array([2, 0, 3]))
    assert batch.tokens.shape[1] == max(counts[i] for i in (2, 0, 3))
    for place, item in enumerate((2, 0, 3)):
        assert batch.mask[place].tolist() == [j < counts[item] for j in range(batch.mask.shape[1])]
        assert np.array_equal(batch.tokens[place][batch.mask[place]].numpy(), tokens[item])
        assert not batch.tokens[place][~batch.mask[place]].any()
    assert np.array_equal(batch.pooled.numpy(), pooled[[2, 0, 3]])


def resident_pages(file: Path) -> int:
    """KiB of a mapped file that are resident in this process."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not report mapped pages")
@pytest.mark.parametrize("ragged_counts", [False, True], ids=["fixed", "ragged"])
def test_a_batch_leaves_no_pages_of_the_token_cache_in_memory(ragged_counts: bool, tmp_path: Path) -> None:
    counts = np.full(64, 32) + ragged_counts * np.arange(64) % 7
    np.save(tmp_path / "tokens.npy", np.ones((counts.sum(), 384), np.float16))
    np.save(tmp_path / "pooled.npy", np.ones((64, 384), np.float16))
    np.save(tmp_path / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]))
    column = CachedColumn(tmp_path, np.arange(64), np.arange(65))
    assert column.tokens.max() == 1  # reads every page
    assert resident_pages(tmp_path / "tokens.npy") > 1000
    for _ in range(2):
        batch = column.inputs(np.array([3, 60, 31]))
        assert batch.tokens[batch.mask].min() == batch.pooled.min() == 1
        assert resident_pages(tmp_path / "tokens.npy") == resident_pages(tmp_path / "pooled.npy") == 0


def test_workers_start_beside_threads_without_a_warning(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.12 on, a fork in a process with several threads warns; here a warning is an error."""
    fork, forks = os.fork, []

    def warning_fork() -> int:
        forks.append(1)
        message = (
            f"This process (pid={os.getpid()}) is multi-threaded, use of fork() may lead to deadlocks in the child."
        )
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return fork()

    monkeypatch.setattr(os, "fork", warning_fork)
    data, plan = toy.data(toy.config())
    assert len(list(loader.load(data, plan.epoch(0), 1))) == 3
    assert forks
    with pytest.raises(DeprecationWarning):
        os.fork()


def test_batches_are_the_plans_in_order_with_any_number_of_workers(toy: Any) -> None:
    data, plan = toy.data(toy.config())
    alone, helped = (list(loader.load(data, plan.epoch(0), workers)) for workers in (0, 1))
    assert len(alone) == len(helped) == 3
    for batch, other, (rows, items_a, items_b) in zip(alone, helped, plan.epoch(0), strict=True):
        assert batch.rows.tolist() == batch.group.tolist() == rows.tolist()
        assert torch.equal(batch.a["tokens"], data.a.tokens[items_a])  # type: ignore[attr-defined]
        assert torch.equal(batch.b["tokens"], data.b.tokens[items_b])  # type: ignore[attr-defined]
        assert torch.equal(batch.b["tokens"], other.b["tokens"])
    assert isinstance(data, PairDataset)


def test_items_without_a_partner_come_behind_the_pairs_and_apart_from_one_another(toy: Any) -> None:
    a, b = toy.columns(30)
    lone_a, lone_b = np.arange(24, 30), b.start[24:30]
    plan = PairPlan(a, b, np.arange(24), 8, seed=0, unpaired=(lone_a, lone_b))
    alone = replace(plan, unpaired=(loader.NONE, loader.NONE))
    both_in_batch = False
    for number in range(3):
        drawn = np.concatenate([items_a[8:] for _, items_a, _ in plan.epoch(number)])
        assert np.unique(drawn, return_counts=True)[1].tolist() == [4] * 6, "none comes again before all have come"
        for (rows, items_a, items_b), (rows_, a_, b_) in zip(plan.epoch(number), alone.epoch(number), strict=True):
            assert len(rows) == 8 and len(items_a) == len(items_b) == 16
            assert (rows == rows_).all() and (items_a[:8] == a_).all() and (items_b[:8] == b_).all(), (
                "the pairs are what they were"
            )
            assert set(items_a[8:]) <= set(lone_a) and set(items_b[8:]) <= set(lone_b)
            both_in_batch |= bool((a.row[items_a[8:]] == b.row[items_b[8:]]).all())
    assert not both_in_batch
    assert len(plan.epoch(0)[0][1]) == len(replace(plan, unpaired=(lone_a, loader.NONE)).epoch(0)[0][2]) + 8


def test_processes_share_pairs_and_what_has_no_partner() -> None:
    entry = (np.arange(4), np.array([0, 1, 2, 3, 10, 11, 12, 13]), np.arange(4))
    rows, items_a, items_b = part(entry, 1, 2)
    assert (rows.tolist(), items_a.tolist(), items_b.tolist()) == ([2, 3], [2, 3, 12, 13], [2, 3])


def test_a_row_brings_different_captions_and_each_picture_is_read_once(plan: PairPlan) -> None:
    several = replace(plan, captions=5)  # there are two of each
    assert len(several) == len(plan)
    for (once, _, _), (rows, a, b) in zip(plan.epoch(1), several.epoch(1), strict=True):
        assert rows.tolist() == [*once, *once], "neighbours are different rows"
        assert len(set(b.tolist())) == 8 and (plan.b.row[b] == rows).all()
        assert (plan.a.row[a] == rows).all()
    data = PairDataset(plan.a, plan.b, np.arange(25), np.zeros(25, np.int64))
    batch = data[(rows, a, b)]
    assert len(batch.a["tokens"]) == 4 and batch.at_b is None and len(batch.b["tokens"]) == 8
    assert torch.equal(batch.a["tokens"][batch.at_a], plan.a.inputs(a)["tokens"])


def test_of_several_processes_each_reads_a_picture_once_a_pair_in_a_loaders_worker_too(
    plan: PairPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.distributed, "world", lambda: 2)
    data = PairDataset(plan.a, plan.b, np.arange(25), np.zeros(25, np.int64))
    monkeypatch.setattr(loader.distributed, "world", lambda: 1)  # a worker that was not forked is in no group
    batch = data[replace(plan, captions=2).epoch(0)[0]]
    assert len(batch.a["tokens"]) == len(batch.rows) == 8 and batch.at_a is None


def test_a_row_with_fewer_captions_brings_fewer_pairs(plan: PairPlan) -> None:
    some = SimpleNamespace(row=np.array([0, 1, 1, 1, 2, 2]), start=np.array([0, 1, 4, 6]))
    first_side = SimpleNamespace(row=np.arange(3), start=np.arange(4))
    batch = PairPlan(first_side, some, np.arange(3), 3, 0, captions=2).epoch(0)[0]  # type: ignore[arg-type]
    assert np.bincount(batch[0]).tolist() == [1, 2, 2]
    assert len(set(batch[2].tolist())) == 5
    unpaired = PairPlan(first_side, some, np.arange(2), 2, 0, (np.array([2]), NONE), captions=2).epoch(0)[0]  # type: ignore[arg-type]
    assert unpaired[1].tolist() == [*unpaired[0], 2, 2] and len(unpaired[2]) == len(unpaired[0]) == 3
