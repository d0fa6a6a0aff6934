"""Steers a text-to-image pipeline of ``diffusers`` by the gradient of a ccaco score (guidance after
arXiv:2302.07121).

usage: python examples/guided_diffusion.py PIPELINE RUN|SPEC "a prompt" OUT.png [--strength 0.02] [--steps 30]
for example: python examples/guided_diffusion.py ./stable-diffusion-v1-5 runs/photos "a dog chases a ball" dog.png
Needs ``pip install diffusers`` and the weights of a latent-diffusion pipeline. After each step the latents are decoded,
the picture is scored with the prompt (cosine and cross branch together), and the latents move uphill.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ccaco_cli
from ccaco_cli.core.types import Embedding, LocalTokens


@dataclass(frozen=True, eq=False)
class Guidance:
    """The callback of a pipeline that moves its latents towards a higher score.

    Attributes:
        model: of ``ccaco_cli.load(..., precision="fp32")``; aligns images and texts.
        text: the encoded prompt.
        tokens: its tokens for the cross branch; None where the score does not use it.
        strength: length of a step as a fraction of the length of the latents.
    """

    model: ccaco_cli.Model
    text: Embedding
    tokens: LocalTokens | None
    strength: float

    @classmethod
    def of(cls, model: ccaco_cli.Model, prompt: str, strength: float = 0.02) -> Guidance:
        """Encodes the prompt. Raises ValueError: the model aligns other modalities."""
        if model.modalities != ("image", "text"):
            raise ValueError(f"a model of image and text is needed, not of {' and '.join(model.modalities)}")
        with torch.no_grad():
            text, features = model.aligner.encode("text", model.towers["text"].preprocess([prompt]))
            tokens = model.aligner.local_tokens("text", features) if model.scorer.weight else None
        return cls(model, text, tokens, strength)

    def score(self, pictures: Tensor) -> Tensor:
        """Scores [B] of pictures [B, 3, H, W], 0..1, with the prompt, as ``Model.score``; differentiable."""
        aligner, tower = self.model.aligner, self.model.towers["image"]
        assert tower.input_size is not None
        pixels = F.interpolate(pictures, tower.input_size, mode="bicubic", antialias=True).clamp(0, 1) * 255
        # the tower itself: a locked one would compute without gradients
        embedding, features = aligner.encode("image", aligner.encoder("image").tower({"pixels": pixels}))
        cosine = embedding.z @ self.text.z[0]
        if self.tokens is None:
            return self.model.scorer(cosine)  # type: ignore[no-any-return]
        rows = torch.arange(len(pictures))
        pairs = torch.stack([rows, torch.zeros_like(rows)], 1).to(pictures.device)
        crossed = aligner.cross(aligner.local_tokens("image", features), self.tokens, pairs)
        return self.model.scorer(cosine, crossed.match_logit)  # type: ignore[no-any-return]

    def __call__(self, pipeline: Any, step: int, time: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """After each step of the pipeline: latents [B, C, h, w] a step uphill."""
        with torch.enable_grad():
            latents = tensors["latents"].detach().requires_grad_()
            decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
            pictures = (decoded.float() / 2 + 0.5).to(next(self.model.aligner.parameters()).device)
            (slope,) = torch.autograd.grad(self.score(pictures).sum(), latents)
        size = torch.linalg.vector_norm(latents, dim=(1, 2, 3), keepdim=True)
        length = torch.linalg.vector_norm(slope, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        return {"latents": (latents + self.strength * size * slope / length).detach()}


def main() -> None:
    """Draws a picture, and prints its score and that of the picture without guidance."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("pipeline", "model", "prompt", "out"):
        parser.add_argument(name)
    parser.add_argument("--strength", type=float, default=0.02, help="length of a step, as a fraction of the latents")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from diffusers import DiffusionPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = DiffusionPipeline.from_pretrained(options.pipeline).to(device)
    model = ccaco_cli.load(options.model, device, "fp32")
    guidance = Guidance.of(model, options.prompt, options.strength)
    for name, callback in (("without guidance", None), ("guided", guidance)):
        generator = torch.Generator(device).manual_seed(options.seed)
        picture = pipeline(
            options.prompt, num_inference_steps=options.steps, generator=generator, callback_on_step_end=callback
        ).images[0]
        print(f"{name}: score {model.score(picture, options.prompt)[0, 0]:.3f}")
    picture.save(options.out)


if __name__ == "__main__":
    main()
