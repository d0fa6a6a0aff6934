"""Small towers without pretrained weights, of parts of open_clip and torchvision; they train in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import open_clip
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import LayerNorm, TextTransformer, Transformer, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.image_base import (
    ImageEncoding,
    ImageModule,
    ImagePreprocess,
    feature_map_tokens,
    image_tower,
)
from ccaco_cli.core.model.towers.multilingual import multilingual_tokenizer
from ccaco_cli.core.model.towers.open_clip import VitModule
from ccaco_cli.core.model.towers.open_clip_text import TextModule, text_tower
from ccaco_cli.core.model.towers.text_tokenizers import ClipTokens
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import RANDOM, nearest

SIZE, CONTEXT = 64, 48
PATCH, WIDTH, HEADS, LAYERS, TEXT_LAYERS = 4, 128, 4, 2, 1
MLP_RATIO = 2.0
WINDOWS = (3, 9)
"""Words that a convolution of the text tower joins; odd."""


class TinyImageModule(ImageModule):
    """A residual CNN with learned positions, one token per 16 x 16 pixels; ``tiny:hybrid`` adds a transformer.

    Patches of 4 x 4 pixels become channels at once: no pixel is lost before the first convolution, and no large map is
    computed. Positions are added before the last stage. Added to the tokens they would be a constant in their mean, and
    the pooled vector would not hold what is left of what. A final max pool joins four cells, because the cross branch
    compares every cell with every word.
    """

    def __init__(self, preprocess: ImagePreprocess, layers: int = 0):
        super().__init__(preprocess)
        self.stem = nn.Sequential(nn.PixelUnshuffle(PATCH), _convolution(3 * PATCH**2, WIDTH // 2))
        self.positional_embedding = nn.Parameter(
            torch.randn(1, WIDTH // 2, *(side // PATCH for side in preprocess.size)) * 0.1
        )
        self.trunk = nn.Sequential(_convolution(WIDTH // 2, WIDTH, stride=2), BasicBlock(WIDTH, WIDTH), nn.MaxPool2d(2))
        self.transformer = Transformer(WIDTH, layers, HEADS, mlp_ratio=MLP_RATIO)
        # a norm of each cell would give empty cells the length of the others, and a maximum over them would be noise
        self.ln_post = LayerNorm(WIDTH) if layers else nn.Identity()
        self.checkpointing = False

    def encode(self, pixels: Tensor) -> ImageEncoding:
        feature_map = self._run(self.stem, pixels) + self.positional_embedding
        tokens, pooled, grid = feature_map_tokens(self._run(self.trunk, feature_map))
        return self.ln_post(self.transformer(tokens)), pooled, grid

    def _run(self, stage: nn.Module, feature_map: Tensor) -> Tensor:
        recompute = self.checkpointing and torch.is_grad_enabled()
        output: Tensor = checkpoint(stage, feature_map, use_reentrant=False) if recompute else stage(feature_map)
        return output

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointing = self.transformer.grad_checkpointing = enable


class WordConvolutions(nn.Module):
    """Mixes each word with its neighbours: residual convolutions over some words at a time (after arXiv:1408.5882).

    Phrases such as "orange cat" are learned within a hundred steps by the window of three words, and what stands before
    and after a relation ("a dog to the left of a red ball") by that of nine. Attention alone takes thousands of steps
    to learn which words belong together; until then the tower is a bag of words that cannot tell two captions of the
    same words apart.
    """

    def __init__(self, width: int = WIDTH, windows: Sequence[int] = WINDOWS):
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm(width) for _ in windows)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, words, padding=words // 2) for words in windows)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states [B, L, W], mask [B, L] True = real (padding counts as zero) -> [B, L, W]."""
        real = mask.unsqueeze(-1).to(states.dtype)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            states = states + F.gelu(convolution((norm(states) * real).transpose(1, 2)).transpose(1, 2))
        return states


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def _vit(preprocess: ImagePreprocess) -> VitModule:
    size = preprocess.size[0]
    return VitModule(
        VisionTransformer(size, 8, WIDTH, 4, HEADS, MLP_RATIO, output_dim=WIDTH), preprocess, projected=False
    )


IMAGE_MODULES: dict[str, Callable[[ImagePreprocess], TinyImageModule | VitModule]] = {
    "": TinyImageModule,
    "hybrid": partial(TinyImageModule, layers=LAYERS),
    "vit": _vit,
}


TOKENIZERS: dict[str, Callable[[], open_clip.SimpleTokenizer]] = {
    "": open_clip.SimpleTokenizer,
    "multilingual": multilingual_tokenizer,
}


def build_image(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds ``tiny`` (a small ResNet), ``tiny:hybrid`` or ``tiny:vit``."""
    rebuilt = _check(spec, "image", IMAGE_MODULES)
    side = config.size or SIZE
    preprocess = ImagePreprocess((side, side), (side,), "bicubic", OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    module = IMAGE_MODULES[spec.name](preprocess)
    return image_tower(
        spec,
        module,
        preprocess,
        pretrained=False,
        facts=(spec.name,),
        save_assets=lambda folder: rebuilt,
    )


def build_text(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds ``tiny``, convolutions and attention over CLIP's tokens, or ``tiny:multilingual``, over characters too."""
    rebuilt = _check(spec, "text", TOKENIZERS)
    context_length = config.context_length or CONTEXT
    tokenizer = ClipTokens(TOKENIZERS[spec.name](), context_length)
    text = TextTransformer(
        context_length=context_length,
        vocab_size=tokenizer.tokenizer.vocab_size,
        width=WIDTH,
        heads=HEADS,
        layers=TEXT_LAYERS,
        mlp_ratio=MLP_RATIO,
        no_causal_mask=True,
        output_dim=None,
    )
    # open_clip starts word vectors at 0.02, where positions and attention outweigh them for hundreds of steps
    nn.init.normal_(text.token_embedding.weight)
    module = TextModule(text, hide_padding=True, mean=True, word_mixing=WordConvolutions())
    return text_tower(spec, module, tokenizer, pretrained=False, facts=(spec.name,), save_assets=lambda folder: rebuilt)


def _check(spec: TowerSpec, modality: str, names: Iterable[str]) -> str:
    """Returns the SPEC that rebuilds the tower. Raises TowerError: an unknown name, or a SPEC with weights."""
    if spec.name not in names:
        known = [f"tiny:{n}".rstrip(":") for n in names]
        raise TowerError(f"unknown tiny {modality} tower", where=spec, expected=nearest(str(spec), known))
    if spec.weights not in ("", RANDOM):
        raise TowerError("tiny towers have no published weights", where=spec, expected=f"tiny or tiny@{RANDOM}")
    return str(TowerSpec("tiny", spec.name, ""))
