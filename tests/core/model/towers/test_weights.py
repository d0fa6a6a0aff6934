"""Weights: what is read, what is refused, what is hashed, and what happens without a network."""

from __future__ import annotations

import logging
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers import build, weights
from ccaco_cli.core.model.towers.tower import TowerSpec


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('ran')",))


def test_reads_safetensors_and_torch_files_and_takes_wrappers_off(tmp_path: Path) -> None:
    state = Net().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        read = weights.read_state(tmp_path / name)
        assert read.keys() == state.keys()
        assert all(torch.equal(read[k], state[k]) for k in state)


@pytest.mark.parametrize("content", ["code", "text", "empty", "no tensors"])
def test_refuses_what_is_no_state_dict_and_runs_no_code(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.pt"
    if content == "code":
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
    elif content == "no tensors":
        torch.save({"a": 1}, path)
    else:
        path.write_text("" if content == "empty" else "not a checkpoint")
    with pytest.raises(TowerError, match=r"bad\.pt"):
        weights.read_state(path)
    path.rename(tmp_path / "bad.safetensors")
    with pytest.raises(TowerError, match=r"bad\.safetensors"):
        weights.read_state(tmp_path / "bad.safetensors")


def test_load_state_loads_every_key() -> None:
    torch.manual_seed(0)
    source, target = Net(), Net()
    weights.load_state(target, source.state_dict(), "x")
    assert torch.equal(source.body.weight, target.body.weight)


def test_load_state_names_the_keys_that_do_not_fit() -> None:
    state = Net().state_dict()
    missing = {k: v for k, v in state.items() if k != "body.bias"}
    with pytest.raises(TowerError, match=r"1 missing \(body\.bias\): some\.file"):
        weights.load_state(Net(), missing, "some.file")
    with pytest.raises(TowerError, match=r"1 unexpected \(extra\)"):
        weights.load_state(Net(), {**state, "extra": torch.ones(1)}, "x")
    with pytest.raises(TowerError, match=r"1 of another shape \(body\.weight \[5, 3\] for \[4, 3\]\)"):
        weights.load_state(Net(), {**state, "body.weight": torch.ones(5, 3)}, "x")


def test_load_state_forgives_the_classifier_only() -> None:
    state = Net().state_dict()
    other = {**state, "head.weight": torch.ones(9, 4), "head.more": torch.ones(1)}
    del other["head.bias"]
    weights.load_state(Net(), other, "x", ("head.",))
    with pytest.raises(TowerError):
        weights.load_state(Net(), other, "x")


def test_fingerprint_tells_weights_and_facts_apart() -> None:
    torch.manual_seed(0)
    a, b = Net(), Net()
    assert weights.fingerprint(a, "x") != weights.fingerprint(b, "x")
    b.load_state_dict(a.state_dict())
    assert weights.fingerprint(a, "x") == weights.fingerprint(b, "x")
    assert weights.fingerprint(a, "x") != weights.fingerprint(a, "y")
    with torch.no_grad():
        b.norm.running_mean[0] += 1e-6  # type: ignore[index]
    assert weights.fingerprint(a, "x") != weights.fingerprint(b, "x")


@pytest.mark.parametrize(
    ("spec", "modality"),
    [
        ("hf:no-such-owner/no-such-model", "text"),
        ("timm:resnet18.a1_in1k", "image"),
        ("open_clip:RN50@openai", "image"),
    ],
)
def test_without_a_network_it_fails_fast_in_one_line(
    spec: str, modality: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(weights, "is_reachable", lambda endpoint: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    before = constants.HF_HUB_OFFLINE
    build(TowerConfig("tiny"), "image")  # pays for the imports
    start = time.monotonic()
    with pytest.raises(TowerError, match="cannot be had") as caught:
        build(TowerConfig(spec), modality)
    assert time.monotonic() - start < 8
    assert "\n" not in str(caught.value)
    assert caught.value.next and caught.value.next.startswith(
        "hf:FOLDER" if spec.startswith("hf") else spec.split("@")[0]
    )
    assert capfd.readouterr().err == ""
    assert before == constants.HF_HUB_OFFLINE
    assert logging.root.manager.disable == 0


def test_reachable_trusts_proxies_and_else_tries_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.getproxies", dict)
    assert not weights.is_reachable("http://127.0.0.1:1", 0.5)
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://127.0.0.1:1"})
    assert weights.is_reachable("http://127.0.0.1:1", 0.5)


def test_a_weights_file_differs_from_a_tag(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.touch()
    assert weights.weights_file(TowerSpec("timm", "x", str(file))) == file
    assert weights.weights_file(TowerSpec("timm", "x", "a1_in1k")) is None
    assert weights.weights_file(TowerSpec("timm", "x", "none")) is None
    with pytest.raises(TowerError, match="no weights file here"):
        weights.weights_file(TowerSpec("timm", "x", str(tmp_path / "other.pth")))
