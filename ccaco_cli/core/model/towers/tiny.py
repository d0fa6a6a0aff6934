"""Small towers trained from scratch on a CPU in minutes, made of open_clip's own parts; no download."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import LayerNorm, TextTransformer, Transformer, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.open_clip import ClipTokens, TextModule, VitModule
from ccaco_cli.core.model.towers.pictures import Encoding, Picture, PictureModule, map_tokens, picture_tower
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import RANDOM, fingerprint, nearest, refuse_modality

SIZE, CONTEXT = 64, 48
CHANNELS, WIDTH, HEADS, LAYERS = 16, 192, 4, 2
TEXT_WIDTH = 128
MLP_RATIO = 2.0


class TinyModule(PictureModule):
    """Stem and first three stages of open_clip's ModifiedResNet, with learned positions; ``tiny:hybrid`` adds a transformer over its cells.

    Positions go in before the third stage: added to the tokens themselves they would be a constant of their mean, and tell the pooled
    vector nothing of who is left of whom.
    """

    def __init__(self, picture: Picture, layers: int = 0):
        super().__init__(picture)
        trunk = ModifiedResNet([1, 1, 1, 1], output_dim=1, heads=1, image_size=picture.size[0], width=CHANNELS)
        trunk.layer4 = trunk.attnpool = None
        self.trunk = trunk.eval()  # so that measuring leaves its running statistics alone
        self.checkpointing = False
        with torch.no_grad():
            cells = self.lower(torch.zeros(1, 3, *picture.size)).shape[1:]
        self.trunk.train()
        self.positional_embedding = nn.Parameter(torch.randn(1, *cells) * 0.1)
        self.project = nn.Conv2d(CHANNELS * 16, WIDTH, 1)
        self.transformer = Transformer(WIDTH, layers, HEADS, mlp_ratio=MLP_RATIO)
        self.ln_post = LayerNorm(WIDTH)
        self.to(memory_format=torch.channels_last)  # a third faster on CPUs

    def lower(self, pixels: Tensor) -> Tensor:
        maps = pixels
        for stage in (self.trunk.stem, self.trunk.layer1, self.trunk.layer2):
            again = self.checkpointing and torch.is_grad_enabled()
            maps = checkpoint(stage, maps, use_reentrant=False) if again else stage(maps)
        return maps

    def encode(self, pixels: Tensor) -> Encoding:
        maps = self.lower(pixels.contiguous(memory_format=torch.channels_last)) + self.positional_embedding
        tokens, pooled, grid = map_tokens(self.project(self.trunk.layer3(maps)))
        return self.ln_post(self.transformer(tokens)), pooled, grid

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointing = self.transformer.grad_checkpointing = enable


def _vit(picture: Picture) -> PictureModule:
    size = picture.size[0]
    return VitModule(VisionTransformer(size, 8, WIDTH, 4, HEADS, MLP_RATIO, output_dim=WIDTH), picture)


IMAGE: dict[str, Callable[[Picture], PictureModule]] = {"": TinyModule, "hybrid": partial(TinyModule, layers=LAYERS), "vit": _vit}


def build(spec: TowerSpec, modality: str, size: int, context_length: int) -> Tower:
    """``tiny`` (image: small ResNet; text: bidirectional transformer on CLIP's vocabulary), ``tiny:hybrid`` and ``tiny:vit`` (image)."""
    refuse_modality(spec, modality, ("image", "text"))
    known = IMAGE if modality == "image" else {"": None}
    if spec.name not in known:
        names = [f"tiny:{n}".rstrip(":") for n in known]
        raise TowerError(f"unknown tiny {modality} tower", where=spec, expected=nearest(str(spec), names))
    if spec.weights not in ("", RANDOM):
        raise TowerError("tiny towers have no published weights", where=spec, expected=f"tiny or tiny@{RANDOM}")
    rebuilt = str(TowerSpec("tiny", spec.name, ""))
    if modality == "image":
        side = size or SIZE
        picture = Picture((side, side), (side,), "bicubic", OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        return picture_tower(
            spec, IMAGE[spec.name](picture), picture, pretrained=False, facts=(spec.name,), save_assets=lambda folder: rebuilt
        )
    context = context_length or CONTEXT
    tokens = ClipTokens(open_clip.SimpleTokenizer(), context)
    text = TextTransformer(
        context_length=context,
        vocab_size=tokens.tokenizer.vocab_size,
        width=TEXT_WIDTH,
        heads=HEADS,
        layers=LAYERS,
        mlp_ratio=MLP_RATIO,
        no_causal_mask=True,
        output_dim=None,
    )
    module = TextModule(text, hide_padding=True, mean=True)
    return Tower(
        spec=spec,
        modality="text",
        module=module,
        preprocess=tokens,
        width=TEXT_WIDTH,
        tokens=context,
        grid=None,
        pretrained=False,
        fingerprint=fingerprint(module, "tiny", spec.name, tokens),
        save_assets=lambda folder: rebuilt,
    )
