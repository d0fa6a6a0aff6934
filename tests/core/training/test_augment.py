from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ccaco_cli.core import distributed
from ccaco_cli.core.config import ModelConfig, TowerConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.training.augment import augment, augment_pixels, check
from ccaco_cli.core.types import PairBatch
from tests.processes import launch

BOTH = ("image", "text")


def batch(count: int = 6, lone: int = 0) -> PairBatch:
    shown = torch.randint(256, (count + lone, 3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    rows = torch.arange(count)
    return PairBatch({"pixels": shown}, {"ids": rows[:, None], "mask": rows[:, None] >= 0}, rows, rows, rows * 0)


def changed(given: PairBatch, seed: int = 0, **image: float) -> torch.Tensor:
    config = ModelConfig(image=replace(TowerConfig(), **image))
    found = augment(given, config, BOTH, torch.Generator().manual_seed(seed))
    assert torch.equal(found.b["ids"], given.b["ids"]) and torch.equal(found.rows, given.rows)
    shown: torch.Tensor = found.a["pixels"]
    return shown


def test_nothing_is_drawn_or_changed_unless_asked_for() -> None:
    given, generator = batch(), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert augment(given, ModelConfig(), BOTH, generator) is given
    assert augment(given, ModelConfig(image=TowerConfig(crop=0.5)), ("video", "audio"), generator) is given
    assert torch.equal(generator.get_state(), before)


def test_so_many_pictures_lose_their_colours() -> None:
    given = batch(400)
    found = changed(given, grayscale=0.3)
    grey = (found == found[:, :1]).flatten(1).all(1)
    assert 0.2 < grey.float().mean() < 0.4
    assert torch.equal(found[~grey], given.a["pixels"][~grey]), "the others stay as they are"


def test_crops_are_parts_of_the_picture_blown_up_to_its_size_and_not_flipped() -> None:
    ramp = torch.linspace(0, 255, 32).round().to(torch.uint8).expand(60, 3, 24, 32)
    found = changed(replace(batch(60), a={"pixels": ramp}), crop=0.3).float()
    across, shown = found.mean((1, 2)), found[..., -1].mean((1, 2)) - found[..., 0].mean((1, 2))
    assert (across.diff(dim=1) > -1).all(), "from dark to bright, as before"
    assert shown.min() < 150 and (shown <= 256).all() and shown.std() > 10, "some show a part only, each another"
    assert found.shape == ramp.shape


def test_a_draw_is_the_same_again_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same, other = (changed(batch(), seed, crop=0.5, grayscale=0.5) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (ModelConfig(text=TowerConfig(grayscale=0.5)), "only images"),
        (ModelConfig(image=TowerConfig(crop=0.5, lock=True)), "encodes each image only once"),
    ],
)
def test_what_cannot_be_is_refused(model: ModelConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(model)


def halves() -> None:
    with distributed.process_group("cpu"):
        rank = distributed.rank()
        whole = batch(4, lone=2)
        seeds = torch.randint(2**62, [6], generator=torch.Generator().manual_seed(0))
        wanted = augment_pixels(whole.a["pixels"], TowerConfig(crop=0.5), seeds)
        mine = [2 * rank, 2 * rank + 1, 4 + rank]  # two pairs and one without a partner
        own = replace(batch(2), a={"pixels": whole.a["pixels"][mine]})
        assert torch.equal(changed(own, crop=0.5), wanted[mine])


def test_processes_change_their_pictures_as_one_would() -> None:
    assert launch(2, halves) == [0, 0]
