"""Guidance of a tiny random pipeline of diffusers by the score of a tiny run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import ccaco_cli

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
SCRIPT = Path(__file__).parents[2] / "examples/guided_diffusion.py"
PROMPT = "a red cat on a sofa"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("guided_diffusion", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclass looks its module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(run: Path) -> ccaco_cli.Model:
    return ccaco_cli.load(run, "cpu", "fp32")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    diffusers = pytest.importorskip("diffusers", reason="pip install diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    built = diffusers.StableDiffusionPipeline(
        vae=vae, unet=unet, scheduler=diffusers.DDIMScheduler(), text_encoder=None, tokenizer=None,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    built.set_progress_bar_config(disable=True)
    return built


def test_the_score_is_that_of_the_model(script: ModuleType, model: ccaco_cli.Model) -> None:
    side = model.towers["image"].input_size[0]
    picture = Image.effect_noise((side, side), 60).convert("RGB")
    guidance = script.Guidance.of(model, PROMPT)
    assert guidance.tokens is not None or not model.scorer.weight
    score = guidance.score(pil_to_tensor(picture)[None] / 255)
    assert score.item() == pytest.approx(model.score(picture, PROMPT)[0, 0], abs=0.02)


def test_a_step_leads_uphill(script: ModuleType, model: ccaco_cli.Model, pipeline: Any) -> None:
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    guidance = script.Guidance.of(model, PROMPT, strength=1e-3)

    def score(latents: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return guidance.score(pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample / 2 + 0.5)

    moved = guidance(pipeline, 0, 0, {"latents": latents})["latents"]
    assert (score(moved) > score(latents)).all()
    assert (moved - latents).flatten(1).norm(dim=1) / latents.flatten(1).norm(dim=1) == pytest.approx(1e-3, rel=1e-3)


def test_a_guided_picture_has_a_higher_score(script: ModuleType, model: ccaco_cli.Model, pipeline: Any) -> None:
    guidance, scores = script.Guidance.of(model, PROMPT, strength=0.1), []
    for callback in (None, guidance):
        picture = pipeline(
            prompt_embeds=torch.zeros(1, 4, 8), guidance_scale=1.0, num_inference_steps=4, output_type="pt",
            generator=torch.Generator().manual_seed(0), callback_on_step_end=callback,
        ).images  # fmt: skip
        with torch.no_grad():
            scores.append(guidance.score(picture).item())
    assert scores[1] > scores[0]


def test_a_model_of_other_modalities_is_refused(script: ModuleType, model: ccaco_cli.Model) -> None:
    class Other:
        modalities = ("audio", "text")

    with pytest.raises(ValueError, match="audio and text"):
        script.Guidance.of(Other(), PROMPT)
