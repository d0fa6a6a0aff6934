from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ccaco_cli.core.errors import DataError, ManifestError
from ccaco_cli.core.model import weights
from ccaco_cli.core.training import checkpoint
from ccaco_cli.core.training.optim import adamw


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_weights_come_back_bit_by_bit(toy: Any, tmp_path: Path) -> None:
    saved, fresh = toy.aligner(toy.config(seed=1)), toy.aligner(toy.config(seed=2))
    weights.save_weights(tmp_path / "w", saved)
    assert not torch.equal(
        saved.state_dict()["sides.image.heads.0.project.weight"],
        fresh.state_dict()["sides.image.heads.0.project.weight"],
    )
    weights.load_weights(tmp_path / "w", fresh)
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in saved.state_dict().items())


def test_frozen_towers_are_left_out_unless_everything_is_requested(toy: Any, tmp_path: Path) -> None:
    config = toy.config(model__image__lock=True)
    model = toy.aligner(config)
    weights.save_weights(tmp_path / "some", model)
    weights.save_weights(tmp_path / "all", model, everything=True)
    some, every = set(load_file(tmp_path / "some")), set(load_file(tmp_path / "all"))
    assert every == set(model.state_dict())
    assert every - some == {"sides.image.tower.linear.weight", "sides.image.tower.linear.bias"}
    weights.load_weights(tmp_path / "some", toy.aligner(config))
    with pytest.raises(ManifestError, match=r"sides\.image\.tower\.linear\.bias is missing"):
        weights.load_weights(tmp_path / "some", toy.aligner(config), everything=True)


def test_another_shape_names_the_tensors(toy: Any, tmp_path: Path) -> None:
    weights.save_weights(tmp_path / "w", toy.aligner(toy.config(model__width=12)))
    with pytest.raises(ManifestError, match=r"\w+\.weight is \[12.*\], not \[8") as caught:
        weights.load_weights(tmp_path / "w", toy.aligner(toy.config()))
    assert str(tmp_path / "w") in str(caught.value)
    assert str(caught.value).endswith("config.toml")
    weights.save_weights(tmp_path / "w", toy.aligner(toy.config(model__fusion__kind="concat")))
    with pytest.raises(ManifestError, match=r"unknown|missing"):
        weights.load_weights(tmp_path / "w", toy.aligner(toy.config()))


def test_garbage_is_refused(toy: Any, tmp_path: Path) -> None:
    model = toy.aligner(toy.config())
    with pytest.raises(ManifestError, match="gone"):
        weights.load_weights(tmp_path / "gone", model)
    for data in (b"", b"not weights at all", b"\xff" * 100):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(ManifestError, match="cannot read these weights"):
            weights.load_weights(tmp_path / "bad", model)
        with pytest.raises(ManifestError, match="cannot resume"):
            checkpoint.load_state(tmp_path / "bad")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled_blindly(toy: Any, tmp_path: Path) -> None:
    torch.save({"optimizer": Bomb(tmp_path / "boom")}, tmp_path / "state.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    for name in ("state.pt", "raw.pt"):
        with pytest.raises(ManifestError, match="cannot resume"):
            checkpoint.load_state(tmp_path / name)
    assert not (tmp_path / "boom").exists()


def test_a_moment_is_saved_once_and_stays_while_it_is_saved_again(toy: Any, tmp_path: Path) -> None:
    first = (save(toy, tmp_path, 3, epoch=0) / checkpoint.STATE).stat().st_ino
    assert (save(toy, tmp_path, 3, epoch=0) / checkpoint.STATE).stat().st_ino == first


def test_weights_that_lie_there_already_get_a_second_name(toy: Any, tmp_path: Path) -> None:
    model = toy.aligner(toy.config())
    checkpoint.save_best(tmp_path, weights.weights_of(model))
    best = tmp_path / "best" / weights.WEIGHTS
    folder = checkpoint.save(
        tmp_path,
        weights.weights_of(model),
        {},
        [checkpoint.generator_states(torch.device("cpu"))],
        same_weights=best,
        step=1,
        epoch=0,
    )
    assert (folder / weights.WEIGHTS).samefile(best)
    before = best.read_bytes()
    checkpoint.save_best(
        tmp_path, weights.weights_of(toy.aligner(toy.config(seed=9)))
    )  # another best leaves the checkpoint as it is
    assert best.read_bytes() != before
    assert (folder / weights.WEIGHTS).read_bytes() == before
    gone = tmp_path / "gone"
    again = checkpoint.save(
        tmp_path,
        weights.weights_of(model),
        {},
        [checkpoint.generator_states(torch.device("cpu"))],
        same_weights=gone,
        step=2,
        epoch=0,
    )
    assert (again / weights.WEIGHTS).read_bytes() == before


def test_one_memory_under_two_names_is_kept_under_both(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    weights.save_weights(tmp_path / "w", model)
    loaded_weights = load_file(tmp_path / "w")
    assert torch.equal(loaded_weights["a.weight"], loaded_weights["b.weight"])
    assert len(loaded_weights) == 4


def save(toy: Any, root: Path, step: int, keep: int = 1, **cursor: Any) -> Path:
    model = toy.aligner(toy.config())
    optimizer = adamw(model, toy.config().optim)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return checkpoint.save(
        root,
        weights.weights_of(model),
        optimizer.state_dict(),
        [checkpoint.generator_states(torch.device("cpu"))],
        keep,
        step=step,
        **cursor,
    )


def test_state_restores_optimiser_generators_and_cursor(toy: Any, tmp_path: Path) -> None:
    random.gauss(0, 1), np.random.standard_normal()  # both keep a second number back
    state = checkpoint.load_state(save(toy, tmp_path, 7, epoch=2, best=float("-inf")) / checkpoint.STATE)
    drawn = torch.rand(3), np.random.standard_normal(3), random.random(), random.gauss(0, 1)
    checkpoint.set_generator_states(state.pop("generators")[0], torch.device("cpu"))
    assert torch.equal(torch.rand(3), drawn[0])
    assert (np.random.standard_normal(3) == drawn[1]).all()
    assert (random.random(), random.gauss(0, 1)) == drawn[2:]
    moments = state.pop("optimizer")["state"]
    assert all(float(m["exp_avg_sq"].max()) > 0 for m in moments.values())
    assert state == {"step": 7, "epoch": 2, "best": float("-inf")}


def test_the_newest_stay_and_nothing_else(toy: Any, tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    for step, epoch in ((2, 0), (3, 0), (3, 1), (10, 1)):
        assert checkpoint.latest(tmp_path) != save(toy, tmp_path, step, keep=2, epoch=epoch)
    assert names(tmp_path) == ["00000003-0001", "00000010-0001"]
    assert checkpoint.latest(tmp_path) == tmp_path / "00000010-0001"


def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = save(toy, tmp_path, 2, epoch=0)
    before = {f.name: f.read_bytes() for f in good.iterdir()}

    def full(path: Path, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    @contextmanager
    def full_later(path: Path) -> Iterator[BinaryIO]:
        with open("/dev/full", "wb", buffering=0) as file:
            yield file

    for name, writer in (("write_bytes", full), ("writing", full_later)):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, writer)
            with pytest.raises(
                DataError, match=rf"No space left on device\); the last good checkpoint is {good}.*--resume latest"
            ):
                save(toy, tmp_path, 3, epoch=0)
    assert names(tmp_path) == [good.name]
    assert {f.name: f.read_bytes() for f in good.iterdir()} == before
