from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ccaco_cli.core.errors import ManifestError
from ccaco_cli.core.training import checkpoint
from ccaco_cli.core.training.optim import adamw


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_weights_come_back_bit_by_bit(toy: Any, tmp_path: Path) -> None:
    saved, fresh = toy.aligner(toy.config(seed=1)), toy.aligner(toy.config(seed=2))
    checkpoint.save_weights(tmp_path / "w", saved)
    assert not torch.equal(saved.state_dict()["sides.image.project.weight"], fresh.state_dict()["sides.image.project.weight"])
    checkpoint.load_weights(tmp_path / "w", fresh)
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in saved.state_dict().items())


def test_frozen_towers_are_left_out_unless_everything_is_asked_for(toy: Any, tmp_path: Path) -> None:
    config = toy.config(model__image__lock=True)
    model = toy.aligner(config)
    checkpoint.save_weights(tmp_path / "some", model)
    checkpoint.save_weights(tmp_path / "all", model, everything=True)
    some, every = set(load_file(tmp_path / "some")), set(load_file(tmp_path / "all"))
    assert every == set(model.state_dict())
    assert every - some == {"sides.image.tower.linear.weight", "sides.image.tower.linear.bias"}
    checkpoint.load_weights(tmp_path / "some", toy.aligner(config))
    with pytest.raises(ManifestError, match=r"sides\.image\.tower\.linear\.bias is missing"):
        checkpoint.load_weights(tmp_path / "some", toy.aligner(config), everything=True)


def test_another_shape_names_the_tensors(toy: Any, tmp_path: Path) -> None:
    checkpoint.save_weights(tmp_path / "w", toy.aligner(toy.config(model__width=12)))
    with pytest.raises(ManifestError, match=r"\w+\.weight is \[12.*\], not \[8") as caught:
        checkpoint.load_weights(tmp_path / "w", toy.aligner(toy.config()))
    assert str(tmp_path / "w") in str(caught.value)
    assert str(caught.value).endswith("config.toml")
    checkpoint.save_weights(tmp_path / "w", toy.aligner(toy.config(model__fusion__kind="concat")))
    with pytest.raises(ManifestError, match=r"unknown|missing"):
        checkpoint.load_weights(tmp_path / "w", toy.aligner(toy.config()))


def test_garbage_is_refused(toy: Any, tmp_path: Path) -> None:
    model = toy.aligner(toy.config())
    optimizer = adamw(model, toy.config().optim)
    with pytest.raises(ManifestError, match="gone"):
        checkpoint.load_weights(tmp_path / "gone", model)
    for data in (b"", b"not weights at all", b"\xff" * 100):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(ManifestError, match="cannot read these weights"):
            checkpoint.load_weights(tmp_path / "bad", model)
        with pytest.raises(ManifestError, match="cannot resume"):
            checkpoint.load_state(tmp_path / "bad", optimizer)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled_blindly(toy: Any, tmp_path: Path) -> None:
    model = toy.aligner(toy.config())
    torch.save({"optimizer": Bomb(tmp_path / "boom")}, tmp_path / "state.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    for name in ("state.pt", "raw.pt"):
        with pytest.raises(ManifestError, match="cannot resume"):
            checkpoint.load_state(tmp_path / name, adamw(model, toy.config().optim))
    assert not (tmp_path / "boom").exists()


def test_state_restores_optimiser_generators_and_cursor(toy: Any, tmp_path: Path) -> None:
    model = toy.aligner(toy.config())
    optimizer = adamw(model, toy.config().optim)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    checkpoint.save_state(tmp_path / "s", optimizer, step=7, best=float("-inf"))
    drawn = torch.rand(3), np.random.rand(3), random.random()
    fresh = adamw(model, toy.config().optim)
    assert checkpoint.load_state(tmp_path / "s", fresh) == {"step": 7, "best": float("-inf")}
    assert torch.equal(torch.rand(3), drawn[0])
    assert (np.random.rand(3) == drawn[1]).all()
    assert random.random() == drawn[2]
    for before, after in zip(optimizer.state_dict()["state"].values(), fresh.state_dict()["state"].values(), strict=True):
        assert torch.equal(before["exp_avg_sq"], after["exp_avg_sq"])


def test_a_kill_never_mixes_the_weights_and_state_of_two_epochs(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy.aligner(toy.config())
    optimizer = adamw(model, toy.config().optim)
    last = tmp_path / "checkpoints/last"
    checkpoint.save_both(last, model, optimizer, step=1)
    before = (last / checkpoint.WEIGHTS).read_bytes()
    with torch.no_grad():
        model.log_scale += 1

    def killed(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save_both(last, model, optimizer, step=2)
    assert (last / checkpoint.WEIGHTS).read_bytes() == before
    assert checkpoint.load_state(last / checkpoint.STATE, optimizer) == {"step": 1}
    checkpoint.save_both(last, model, optimizer, step=3)
    assert (last / checkpoint.WEIGHTS).read_bytes() != before
    assert checkpoint.load_state(last / checkpoint.STATE, optimizer) == {"step": 3}
    assert names(tmp_path / "checkpoints") == ["last"]
