"""LoRA: which layers it adapts, and that the merged weights are the trained model without the library."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ccaco_cli.core.config import LossConfig, ModelConfig, TowerConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.experiments.run_folder import TrainOptions, load_run
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model import weights
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.low_rank import add_low_rank, linear_layers, merged_state
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.workflows.train import train
from tests.pretrained_models import OPEN_CLIP, TEXTS, hf_folder, open_clip_folder

BEST = "checkpoints/best/model.safetensors"
FAMILIES = ["vit", "siglip", "hf:clip"]


def build(path: Path, kind: str, **image: Any) -> tuple[Aligner, dict[str, Tower]]:
    family, _, name = kind.rpartition(":")
    folder = (hf_folder if family else open_clip_folder)(path / "model", name)
    tower = {"spec": f"{family or 'open_clip'}:{folder}", "head": "pretrained"}
    config = ModelConfig(image=TowerConfig(**tower | image), text=TowerConfig(**tower))  # type: ignore[call-arg, arg-type]
    aligner, towers = aligners.build(config, LossConfig(), ("image", "text"))
    return aligner.eval(), towers


def embeddings(aligner: Aligner, towers: dict[str, Tower]) -> list[torch.Tensor]:
    assert towers["image"].input_size is not None
    pixels = torch.arange(3 * 3 * towers["image"].input_size[0] ** 2) % 251
    inputs = {"pixels": pixels.view(3, 3, *towers["image"].input_size).to(torch.uint8)}
    with torch.no_grad():
        image, _ = aligner.encode("image", inputs)
        text, _ = aligner.encode("text", towers["text"].preprocess(TEXTS))
    return [image.z, text.z]


def test_attention_of_torch_is_one_layer_and_unused_linear_layers_are_none(tmp_path: Path) -> None:
    aligner, _ = build(tmp_path, "vit")
    names = linear_layers(aligner.encoder("image").tower)
    assert names[:3] == [f"body.transformer.resblocks.0.{layer}" for layer in ("attn", "mlp.c_fc", "mlp.c_proj")]
    assert len(names) == 3 * OPEN_CLIP["vit"]["vision_cfg"]["layers"]
    aligner, _ = build(tmp_path / "resnet", "resnet")
    assert linear_layers(aligner.encoder("image").tower) == []


def test_what_lora_cannot_do_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aligner, _ = build(tmp_path, "resnet")
    with pytest.raises(ConfigError, match=r"the image tower has no linear layers.*--lock-image"):
        add_low_rank(aligner, 4)
    aligner, _ = build(tmp_path / "vit", "vit")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"not installed.*ccaco\[finetune\]"):
        add_low_rank(aligner, 4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_merged_weights_are_the_trained_model_without_the_library(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    aligner, towers = build(tmp_path, kind)
    start, names = embeddings(aligner, towers), set(aligner.state_dict())
    add_low_rank(aligner, 2)
    aligner.eval()
    for before, now in zip(start, embeddings(aligner, towers), strict=True):
        assert torch.allclose(before, now, atol=1e-6), "an update starts at zero"
    trained = [name for name, p in aligner.named_parameters() if p.requires_grad and ".tower." in name]
    assert trained and all("lora_" in name for name in trained)
    with torch.no_grad():
        for name, parameter in aligner.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    state = {name: tensor.clone() for name, tensor in aligner.state_dict().items()}
    changed, merged = embeddings(aligner, towers), merged_state(aligner)
    assert set(merged) == names
    assert all(torch.allclose(tensor, state[name], atol=1e-5) for name, tensor in aligner.state_dict().items())
    plain, _ = build(tmp_path / "plain", kind)
    plain.load_state_dict(merged)
    for before, expected, now in zip(start, changed, embeddings(plain, towers), strict=True):
        assert torch.allclose(expected, now, atol=1e-5)
        assert not torch.allclose(before, now, atol=1e-3)


def test_a_run_with_lora_resumes_and_is_loaded_without_the_library(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    from ccaco_cli.core.training.checkpoint_saver import CheckpointOptions
    from ccaco_cli.core.training.loop import Trainer

    spec = f"open_clip:{open_clip_folder(tmp_path / 'vit')}"
    explicit = {"model.spec": spec, "optim.lora": 2, "optim.batch_size": 8, "optim.epochs": 2, "optim.lr": 3e-2}
    request = TrainRequest("scenes", explicit=explicit | {"model.width": 16, "device": "cpu", "loss.beta": 0.5})
    run = train(request, tmp_path / "whole", data_root=data_root)
    assert run.facts["recipe"]["name"] == "lora"
    step = Trainer._update

    def interrupted(self: Trainer, logged: Any) -> bool:
        if self.state.cursor.step == 2:
            raise KeyboardInterrupt
        return step(self, logged)

    often = CheckpointOptions(minutes=1e-9)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_update", interrupted)
        train(request, tmp_path / "parts", TrainOptions(saving=often), data_root=data_root)
    train(request, tmp_path / "parts", TrainOptions(resume=True, saving=often), data_root=data_root)
    complete, parts = (load_file(tmp_path / name / BEST) for name in ("whole", "parts"))
    assert all(torch.equal(complete[name], parts[name]) for name in complete)
    monkeypatch.setitem(sys.modules, "peft", None)
    aligner, _, config, _ = load_run(tmp_path / "whole")
    assert set(aligner.state_dict()) == set(complete)
    lines = (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    validated = [json.loads(line)["validation"]["R-sum"] for line in lines if "validation" in line]
    assert run.facts["metrics"]["val.cosine"]["R-sum"] == pytest.approx(max(validated), abs=2.0)
    assert weights.weights_of(aligner).keys() == complete.keys()
    assert config.optim.lora == 2
