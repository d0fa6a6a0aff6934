from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from ccaco_cli.core import distributed
from ccaco_cli.core.config import ModelConfig, TowerConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.training.augment import augment, augment_pixels, check, resized_crops
from ccaco_cli.core.types import PairBatch
from tests.processes import launch

BOTH = ("image", "text")


def batch(count: int = 6, unpaired: int = 0) -> PairBatch:
    shown = torch.randint(
        256, (count + unpaired, 3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    rows = torch.arange(count)
    return PairBatch({"pixels": shown}, {"ids": rows[:, None], "mask": rows[:, None] >= 0}, rows, rows, rows * 0)


def changed(original: PairBatch, seed: int = 0, **image: float) -> torch.Tensor:
    config = ModelConfig(image=replace(TowerConfig(), **image))
    augmented = augment(original, config, BOTH, torch.Generator().manual_seed(seed))
    assert torch.equal(augmented.b["ids"], original.b["ids"]) and torch.equal(augmented.rows, original.rows)
    shown: torch.Tensor = augmented.a["pixels"]
    return shown


def test_nothing_is_drawn_or_changed_by_default() -> None:
    original, generator = batch(), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert augment(original, ModelConfig(), BOTH, generator) is original
    assert augment(original, ModelConfig(image=TowerConfig(crop=0.5)), ("video", "audio"), generator) is original
    assert torch.equal(generator.get_state(), before)


def test_so_many_pictures_lose_their_colours() -> None:
    original = batch(400)
    augmented = changed(original, grayscale=0.3)
    grey = (augmented == augmented[:, :1]).flatten(1).all(1)
    assert 0.2 < grey.float().mean() < 0.4
    assert torch.equal(augmented[~grey], original.a["pixels"][~grey]), "the others stay as they are"


def test_crops_are_parts_of_the_picture_blown_up_to_its_size_and_not_flipped() -> None:
    ramp = torch.linspace(0, 255, 32).round().to(torch.uint8).expand(60, 3, 24, 32)
    augmented = changed(replace(batch(60), a={"pixels": ramp}), crop=0.3).float()
    across, shown = augmented.mean((1, 2)), augmented[..., -1].mean((1, 2)) - augmented[..., 0].mean((1, 2))
    assert (across.diff(dim=1) > -1).all(), "from dark to bright, as before"
    assert shown.min() < 150 and (shown <= 256).all() and shown.std() > 10, "some show a part only, each another"
    assert augmented.shape == ramp.shape


def test_a_draw_is_the_same_again_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, same, second = (changed(batch(), seed, crop=0.5, grayscale=0.5) for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelConfig(text=TowerConfig(grayscale=0.5)), "only images"),
        (ModelConfig(image=TowerConfig(crop=0.5, lock=True)), "encodes each image only once"),
    ],
)
def test_what_cannot_be_is_refused(model: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(model)


def halves() -> None:
    with distributed.process_group("cpu"):
        rank = distributed.rank()
        full_batch = batch(4, unpaired=2)
        seeds = torch.randint(2**62, [6], generator=torch.Generator().manual_seed(0))
        wanted = augment_pixels(full_batch.a["pixels"], TowerConfig(crop=0.5), seeds)
        rows = [2 * rank, 2 * rank + 1, 4 + rank]  # two pairs and one without a partner
        local_batch = replace(batch(2), a={"pixels": full_batch.a["pixels"][rows]})
        assert torch.equal(changed(local_batch, crop=0.5), wanted[rows])


def test_processes_change_their_pictures_as_one_would() -> None:
    assert launch(2, halves) == [0, 0]


def test_crops_of_all_pictures_at_once_are_those_of_single_pictures() -> None:
    pixels = batch(40).a["pixels"]
    sizes = torch.randint(1, 24, (40, 2), generator=torch.Generator().manual_seed(0)).tolist()
    boxes = [{"top": 24 - h, "left": i % (32 - w), "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    boxes[-1] = {"top": 0, "left": 0, "height": 24, "width": 32}
    expected = [
        functional.resized_crop(image, **box, size=[24, 32], interpolation=InterpolationMode.BICUBIC, antialias=True)
        for image, box in zip(pixels, boxes, strict=True)
    ]
    difference = (resized_crops(pixels, boxes).int() - torch.stack(expected).int()).abs()
    assert difference.max() <= 2
    assert difference.float().mean() < 0.02
    assert not difference[-1].any()
