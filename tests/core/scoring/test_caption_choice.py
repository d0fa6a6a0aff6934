from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccaco_cli.core.data import shards
from ccaco_cli.core.scoring import caption_choice
from ccaco_cli.core.scoring.caption_choice import CaptionChoices, score_choices
from ccaco_cli.core.types import Embedding, EncodedSamples, PairRecord

PICTURES = 12
GROUP = np.arange(PICTURES)


def choices(kinds: list[str]) -> CaptionChoices:
    """Picture i chooses between text 2i (true) and text 2i + 1, once for every kind."""
    row = np.repeat(np.arange(PICTURES), len(kinds))
    nothing = torch.zeros(2 * PICTURES, 0)
    return CaptionChoices(
        kinds * PICTURES, row, np.stack([2 * row, 2 * row + 1], 1), EncodedSamples(Embedding(nothing, nothing))
    )


def by(table: Any) -> Any:
    return lambda index: torch.as_tensor(table)[index[:, 0], index[:, 1]]


def test_a_model_that_looks_beats_both_blind_ones() -> None:
    table = np.zeros((PICTURES, 2 * PICTURES))
    table[np.arange(PICTURES), 2 * np.arange(PICTURES)] = 1.0  # its own true caption
    metrics, items = score_choices(choices(["swap_att", "add_obj"]), GROUP, by(table))
    assert list(metrics)[:3] == [
        "choice_add_obj_accuracy",
        "choice_add_obj_text_only_accuracy",
        "choice_add_obj_shuffled_accuracy",
    ]
    assert metrics["choice_add_obj_accuracy"] == metrics["choice_accuracy"] == 1.0
    assert metrics["choice_swap_att_text_only_accuracy"] == metrics["choice_shuffled_accuracy"] == 0.0  # ties are wrong
    assert items["choice_swap_att"] == [1] * PICTURES and items["choice_add_obj_row"] == list(range(PICTURES))


def test_a_model_that_only_reads_is_detected() -> None:
    table = np.broadcast_to(np.arange(2 * PICTURES) % 2 == 0, (PICTURES, 2 * PICTURES)).astype(float)
    metrics, _ = score_choices(choices(["swap_att"]), GROUP, by(table))
    assert set(metrics.values()) == {1.0} and len(metrics) == 6


@pytest.mark.parametrize("bad_value", [np.zeros, lambda shape: np.full(shape, np.nan)])
def test_ties_and_nan_are_wrong(bad_value: Any) -> None:
    metrics, items = score_choices(choices(["swap_att"]), GROUP, by(bad_value((PICTURES, 2 * PICTURES))))
    assert set(metrics.values()) == {0.0} and items["choice_swap_att"] == [0] * PICTURES


def test_other_pictures_are_of_other_groups_and_the_mean_is_over_kinds() -> None:
    group = np.array([0] * (PICTURES - 1) + [1])  # for all but the last, one other is left: the last
    table = np.zeros((PICTURES, 2 * PICTURES))
    table[-1] = np.arange(2 * PICTURES) % 2 == 0
    two_kinds = choices(["x"])
    unequal = CaptionChoices(["x"] * 3 + ["y"] * (PICTURES - 3), two_kinds.row, two_kinds.pair, two_kinds.texts)
    metrics, _ = score_choices(unequal, group, by(table))
    assert metrics["choice_x_shuffled_accuracy"] == metrics["choice_x_text_only_accuracy"] == 1.0
    assert metrics["choice_y_accuracy"] == pytest.approx(1 / 9) and metrics["choice_accuracy"] == pytest.approx(1 / 18)
    alone, _ = score_choices(unequal, np.zeros(PICTURES, int), by(table))
    assert not any("shuffled" in name or "text_only" in name for name in alone)


def test_a_bigram_model_stands_beside_the_accuracy() -> None:
    plain = choices(["roles_alike"])
    advantage = np.r_[np.ones(9), 0.0, -np.ones(2)]  # a tie is wrong
    with_bigrams = CaptionChoices(plain.kind, plain.row, plain.pair, plain.texts, advantage)
    metrics, items = score_choices(with_bigrams, GROUP, by(np.zeros((PICTURES, 2 * PICTURES))))
    assert metrics["choice_roles_alike_bigram_accuracy"] == metrics["choice_bigram_accuracy"] == 9 / 12
    assert metrics["choice_accuracy"] == 0.0 and "choice_roles_alike_bigram" not in items
    without, _ = score_choices(plain, GROUP, by(np.zeros((PICTURES, 2 * PICTURES))))
    assert not any("bigram" in name for name in without)


@pytest.mark.parametrize("advantage", [(), (0.5,)])
def test_the_choices_of_a_split(tmp_path: Path, advantage: tuple[float, ...]) -> None:
    def records() -> Any:
        for i in range(3):
            meta = {"choices": [["swap_obj", "same", f"false {i}", *advantage]] * i}
            yield PairRecord(f"{i}", f"{i}", "test" if i else "val", {"image": b"P1 1 1 0"}, ["same"], meta=meta)

    shards.write(
        records(),
        tmp_path / "d",
        shards.DatasetInfo(name="d", modalities=("image", "text")),
        shards.WriteOptions(workers=0),
    )
    data = shards.open(tmp_path / "d")
    texts: list[str] = []

    def tokenize(batch_texts: list[str]) -> dict[str, torch.Tensor]:
        texts.extend(batch_texts)
        return {"ids": torch.ones(len(batch_texts), 2), "mask": torch.ones(len(batch_texts), 2, dtype=torch.bool)}

    batch_texts = caption_choice.encode_choices(data.split("test"), tokenize, lambda column: column.inputs(column.row))  # type: ignore[arg-type,return-value]
    assert batch_texts is not None and texts == ["same", "false 1", "false 2"]
    assert (
        batch_texts.row.tolist() == [0, 1, 1]
        and batch_texts.pair.tolist() == [[0, 1], [0, 2], [0, 2]]
        and batch_texts.kind == ["swap_obj"] * 3
    )
    stored = batch_texts.bigram_advantage
    assert stored is None if not advantage else stored is not None and stored.tolist() == [0.5] * 3
    assert caption_choice.encode_choices(data.split("val"), tokenize, lambda column: column.inputs(column.row)) is None  # type: ignore[arg-type,return-value]
