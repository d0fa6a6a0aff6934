"""Small towers trained from scratch on a CPU in minutes, made of open_clip's and torchvision's own parts; no download."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import open_clip
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import LayerNorm, TextTransformer, Transformer, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.open_clip import ClipTokens, TextModule, VitModule
from ccaco_cli.core.model.towers.pictures import Encoding, ImagePreprocess, PictureModule, map_tokens, picture_tower
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import RANDOM, fingerprint, nearest, refuse_modality

SIZE, CONTEXT = 64, 48
PATCH, WIDTH, HEADS, LAYERS, TEXT_LAYERS = 4, 128, 4, 2, 1
MLP_RATIO = 2.0


class TinyModule(PictureModule):
    """A residual CNN with learned positions; tokens are the cells of a 16th of the side. ``tiny:hybrid`` adds a transformer over them.

    Patches of 4 x 4 pixels become channels at once: nothing is thrown away before the first convolution has seen it, and no large map
    is computed. Positions go in before the last stage: added to the tokens themselves they would be a constant of their mean, and tell
    the pooled vector nothing of who is left of whom. Four cells become one at the end: the cross branch looks at every one for every word.
    """

    def __init__(self, picture: ImagePreprocess, layers: int = 0):
        super().__init__(picture)
        self.stem = nn.Sequential(nn.PixelUnshuffle(PATCH), _convolution(3 * PATCH**2, WIDTH // 2))
        self.positional_embedding = nn.Parameter(
            torch.randn(1, WIDTH // 2, *(side // PATCH for side in picture.size)) * 0.1
        )
        self.trunk = nn.Sequential(_convolution(WIDTH // 2, WIDTH, stride=2), BasicBlock(WIDTH, WIDTH), nn.MaxPool2d(2))
        self.transformer = Transformer(WIDTH, layers, HEADS, mlp_ratio=MLP_RATIO)
        # a norm of each cell would make the empty ones as loud as the things, and a maximum over them noise
        self.ln_post = LayerNorm(WIDTH) if layers else nn.Identity()
        self.checkpointing = False

    def encode(self, pixels: Tensor) -> Encoding:
        maps = self._stage(self.stem, pixels) + self.positional_embedding
        tokens, pooled, grid = map_tokens(self._stage(self.trunk, maps))
        return self.ln_post(self.transformer(tokens)), pooled, grid

    def _stage(self, stage: nn.Module, maps: Tensor) -> Tensor:
        again = self.checkpointing and torch.is_grad_enabled()
        found: Tensor = checkpoint(stage, maps, use_reentrant=False) if again else stage(maps)
        return found

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointing = self.transformer.grad_checkpointing = enable


class Neighbours(nn.Module):
    """Every word takes in the words beside it: residual convolutions over three words at a time (after arXiv:1408.5882).

    "orange cat" becomes one thing within a hundred steps. Attention alone takes thousands to find out which words belong together: until
    then the tower is a bag of words, and tells no picture from its twin.
    """

    def __init__(self, width: int = WIDTH, layers: int = LAYERS):
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm(width) for _ in range(layers))
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(layers))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states [B, L, W], mask [B, L] True = real (padding counts as nothing) -> [B, L, W]"""
        real = mask.unsqueeze(-1).to(states.dtype)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            states = states + F.gelu(convolution((norm(states) * real).transpose(1, 2)).transpose(1, 2))
        return states


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def _vit(picture: ImagePreprocess) -> PictureModule:
    size = picture.size[0]
    return VitModule(VisionTransformer(size, 8, WIDTH, 4, HEADS, MLP_RATIO, output_dim=WIDTH), picture)


IMAGE: dict[str, Callable[[ImagePreprocess], PictureModule]] = {
    "": TinyModule,
    "hybrid": partial(TinyModule, layers=LAYERS),
    "vit": _vit,
}


def build(spec: TowerSpec, modality: str, size: int, context_length: int) -> Tower:
    """``tiny`` (image: small ResNet; text: convolutions and attention over CLIP's tokens), ``tiny:hybrid`` and ``tiny:vit`` (image)."""
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
        picture = ImagePreprocess((side, side), (side,), "bicubic", OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        return picture_tower(
            spec,
            IMAGE[spec.name](picture),
            picture,
            pretrained=False,
            facts=(spec.name,),
            save_assets=lambda folder: rebuilt,
        )
    context = context_length or CONTEXT
    tokens = ClipTokens(open_clip.SimpleTokenizer(), context)
    text = TextTransformer(
        context_length=context,
        vocab_size=tokens.tokenizer.vocab_size,
        width=WIDTH,
        heads=HEADS,
        layers=TEXT_LAYERS,
        mlp_ratio=MLP_RATIO,
        no_causal_mask=True,
        output_dim=None,
    )
    # open_clip starts words at 0.02, where positions and attention drown them for hundreds of steps
    nn.init.normal_(text.token_embedding.weight)
    module = TextModule(text, hide_padding=True, mean=True, neighbours=Neighbours())
    return Tower(
        spec=spec,
        modality="text",
        module=module,
        preprocess=tokens,
        width=WIDTH,
        tokens=context,
        grid=None,
        pretrained=False,
        fingerprint=fingerprint(module, "tiny", spec.name, tokens),
        save_assets=lambda folder: rebuilt,
    )
