"""Either side of an open_clip model: ViT, ModifiedResNet and timm image towers, and its own text transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import tokenizers
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor, nn

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.manifest import write_json
from ccaco_cli.core.model.towers.pictures import (
    Encoding,
    ImagePreprocess,
    PictureModule,
    map_tokens,
    own_pooled,
    picture_tower,
)
from ccaco_cli.core.model.towers.torchvision_timm import TimmModule
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import (
    RANDOM,
    fingerprint,
    first_line,
    hub,
    nearest,
    refuse_misfit,
    refuse_modality,
    weights_file,
)
from ccaco_cli.core.types import Features

CONFIG = "open_clip_config.json"  # the name and layout that open_clip itself publishes and reads
POOLED_AT_END = ("argmax", "eos")


class VitModule(PictureModule):
    """open_clip's VisionTransformer: [class token, patches] after its last norm; pooled as open_clip does, before the projection."""

    def __init__(self, vit: VisionTransformer, picture: ImagePreprocess):
        super().__init__(picture)
        self.body = vit
        vit.proj = None

    def encode(self, pixels: Tensor) -> Encoding:
        found = self.body.forward_intermediates(
            pixels,
            indices=1,
            normalize_intermediates=self.body.attn_pool is None,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        tokens = torch.cat([found["image_intermediates_prefix"][-1], found["image_intermediates"][-1]], 1)
        return tokens, own_pooled(found["image_features"], tokens), self.body.grid_size

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.body.set_grad_checkpointing(enable)


class ResNetModule(PictureModule):
    """open_clip's ModifiedResNet: its last map and the mean of it (its attention pool ends in the projection, so it is left out)."""

    def __init__(self, resnet: ModifiedResNet, picture: ImagePreprocess):
        super().__init__(picture)
        self.body = resnet
        resnet.attnpool = None

    def encode(self, pixels: Tensor) -> Encoding:
        return map_tokens(
            self.body.forward_intermediates(pixels, indices=1, intermediates_only=True)["image_intermediates"][-1]
        )


class TextModule(nn.Module):
    """open_clip's TextTransformer: token states after its last norm.

    hide_padding  bidirectional towers trained here ignore padding; a published one (SigLIP) was trained to look at it
    mean          pool by masked mean instead of the transformer's own way
    neighbours    what words do before positions are added: called with their vectors [B, L, W] and the mask [B, L]
    """

    def __init__(
        self,
        text: TextTransformer,
        *,
        hide_padding: bool = False,
        mean: bool = False,
        neighbours: nn.Module | None = None,
    ):
        super().__init__()
        self.body, self.neighbours = text, neighbours
        self.hide_padding, self.mean = hide_padding, mean
        text.text_projection = None
        self.layers = len(text.transformer.resblocks)
        self.depths = [self.layers]

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        ids, mask, text = inputs["ids"], inputs["mask"], self.body
        length = ids.shape[1]
        attend = None if text.attn_mask is None else text.attn_mask[:length, :length]
        states = text.token_embedding(ids)
        if self.neighbours is not None:
            states = self.neighbours(states, mask)
        states = states + text.positional_embedding[:length]
        if self.hide_padding:
            padding = torch.zeros(mask.shape, dtype=states.dtype, device=states.device).masked_fill(
                ~mask, float("-inf")
            )
            attend = padding[:, None].expand(-1, length, -1).repeat_interleave(text.heads, 0)
        _, after = text.transformer.forward_intermediates(
            states, attend, [number - 1 for number in self.depths if number]
        )
        found = after if self.depths[0] else [states, *after]
        states = torch.cat([text.ln_final(state) for state in found], -1)
        own = masked_mean(states, mask) if self.mean else text_global_pool(states, ids, text.pool_type, text.eos_id)
        return Features(states, mask, own)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.body.set_grad_checkpointing(enable)

    def lengthen(self, count: int, rule: Callable[[Tensor, int], Tensor]) -> None:
        """Room for ``count`` tokens, positions by ``rule`` (``positions.RULES``)."""
        text = self.body
        text.positional_embedding = nn.Parameter(rule(text.positional_embedding.detach(), count).contiguous())
        text.num_pos = text.context_length = count
        if text.attn_mask is not None:
            text.attn_mask = text.build_causal_mask()


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens. tokens [B, N, W], mask [B, N] True = real -> [B, W]."""
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


@dataclass(frozen=True)
class ClipTokens:
    """list[str] -> {"ids" int64 [n, L], "mask" bool [n, L], "cut" bool [n] True = was longer} by one of open_clip's tokenizers.

    trim  cut to the longest caption of the list: exact for causal towers, whose tokens never see what follows
    """

    tokenizer: Any
    context_length: int
    trim: bool = True

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        # one token more than there is room for tells what was cut; its last token is the end of text in any case
        ids = self.tokenizer(list(texts), self.context_length + 1)
        last, ids = ids[:, -1], ids[:, :-1]
        tokenizer = self.tokenizer
        simple = isinstance(tokenizer, open_clip.SimpleTokenizer)
        cut = last == tokenizer.eot_token_id if simple else last != tokenizer.tokenizer.pad_token_id
        ids[cut, -1] = last[cut]
        if simple:
            # Padding is 0, and so is "!": the last end-of-text tells where a caption ends, not the ids.
            after = (ids == self.tokenizer.eot_token_id).flip(1).int().argmax(1, keepdim=True)
            mask = torch.arange(ids.shape[1]) < ids.shape[1] - after
        else:
            mask = ids != self.tokenizer.tokenizer.pad_token_id
        longest = int(mask.sum(1).max()) if self.trim and len(texts) else ids.shape[1]
        return {"ids": ids[:, :longest], "mask": mask[:, :longest], "cut": cut}

    def words(self, text: str) -> list[tuple[str, list[int]]]:
        """The words of a text and the places of their tokens; tokens of no word (start, end) are left out."""
        if not isinstance(self.tokenizer, open_clip.SimpleTokenizer):
            return words_of(self.tokenizer.tokenizer, text, self.context_length)
        ids = self([text])
        found: list[tuple[str, list[int]]] = []
        piece: list[int] = []
        for place in range(1, int(ids["mask"].sum()) - 1):
            piece.append(place)
            if self.tokenizer.decoder[int(ids["ids"][0, place])].endswith("</w>"):
                found.append((self.tokenizer.decode(ids["ids"][0, piece].tolist()).strip(), piece))
                piece = []
        return found

    def portable(self) -> tuple[str, dict[str, Any]] | None:
        """(what ``tokenizers.Tokenizer.from_str`` reads, facts of ``query.json``), for queries without this library; None = no such way."""
        found = self.tokenizer
        clean = getattr(getattr(found, "clean_fn", None), "__name__", "")
        if (
            not isinstance(found, open_clip.SimpleTokenizer)
            or clean != "_clean_lower"
            or found.reduction_fn is not None
        ):
            return None
        start, end = ((name, found.encoder[name]) for name in ("<start_of_text>", "<end_of_text>"))
        made = tokenizers.Tokenizer(models.BPE(found.encoder, list(found.bpe_ranks), end_of_word_suffix="</w>"))
        split = pre_tokenizers.Split(tokenizers.Regex(found.pat.pattern), "removed", invert=True)
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        made.add_special_tokens([start[0], end[0]])
        made.post_processor = processors.TemplateProcessing(f"{start[0]} $A {end[0]}", special_tokens=[start, end])
        made.enable_truncation(self.context_length)
        return made.to_str(), {"clean": "clip", "pad_id": 0, "pad_to": 0 if self.trim else self.context_length}

    def __repr__(self) -> str:
        backend = getattr(self.tokenizer, "tokenizer", None)
        words = vocabulary(backend) if backend else ""
        return f"ClipTokens({type(self.tokenizer).__name__} {words} {self.context_length} {self.trim})"


def vocabulary(tokenizer: Any) -> str:
    """A hash of all that a transformers tokenizer knows."""
    told = (
        tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    )
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def words_of(tokenizer: Any, text: str, most: int) -> list[tuple[str, list[int]]]:
    """``ClipTokens.words`` of a tokenizer of transformers; [] for one that does not tell where its tokens come from."""
    found = tokenizer(text, truncation=True, max_length=most)
    if not tokenizer.is_fast:
        return []
    places: dict[int, list[int]] = {}
    for place, word in enumerate(found.word_ids()):
        if word is not None:
            places.setdefault(word, []).append(place)
    return [(text[slice(*found.word_to_chars(word))].strip(), at) for word, at in places.items()]


def build(spec: TowerSpec, modality: str, size: int, context_length: int) -> Tower:
    """``open_clip:NAME@TAG|FILE|none`` or ``open_clip:FOLDER[@FILE|none]`` (a folder with open_clip_config.json).

    Image towers give patch tokens at the model's own width (ViT: class token first) and its pooled vector before the projection where
    that has the tokens' width, else the mean. Text towers give token states after the last norm and the state that open_clip pools.
    ``save_assets`` writes open_clip_config.json (architecture, size, preprocessing) and the hub tokenizer if there is one.
    """
    refuse_modality(spec, modality, ("image", "text"))
    model, config = _create(spec, size, context_length)
    local = Path(spec.name).is_dir()
    pretrained = spec.weights != RANDOM
    assets = {"model_cfg": config, "preprocess_cfg": model.visual.preprocess_cfg}
    if modality == "image":
        picture = _picture(model.visual.preprocess_cfg, spec)
        return picture_tower(
            spec,
            _image_module(model.visual, picture, spec),
            picture,
            pretrained=pretrained,
            facts=(config["vision_cfg"], config.get("quick_gelu", False)),
            save_assets=partial(_save, assets, None),
        )
    text = model.text
    if not isinstance(text, TextTransformer) or text.cls_emb is not None:
        raise TowerError(
            "this open_clip text tower is not supported", where=spec, expected="a CLIP text transformer", next="hf:NAME"
        )
    with hub(spec):
        tokenizer = open_clip.get_tokenizer(
            f"local-dir:{spec.name}" if local else _clean(spec.name), context_length=text.context_length
        )
    tokens = ClipTokens(
        tokenizer, text.context_length, trim=text.attn_mask is not None and text.pool_type in POOLED_AT_END
    )
    module = TextModule(text)
    return Tower(
        spec=spec,
        modality="text",
        module=module,
        preprocess=tokens,
        width=text.width,
        tokens=text.context_length,
        grid=None,
        pretrained=pretrained,
        fingerprint=fingerprint(module, spec.family, config["text_cfg"], config.get("quick_gelu", False), tokens),
        save_assets=partial(_save, assets, getattr(tokenizer, "tokenizer", None)),
    )


def _create(spec: TowerSpec, size: int, context_length: int) -> tuple[Any, dict[str, Any]]:
    """The open_clip model and its resolved config (what ``save_assets`` writes)."""
    name, file = _clean(spec.name), weights_file(spec)
    if (Path(spec.name) / CONFIG).is_file():
        config = json.loads((Path(spec.name) / CONFIG).read_text("utf-8"))["model_cfg"]
        name, tags = f"local-dir:{spec.name}", []
    elif name not in (names := open_clip.list_models()):
        raise TowerError(
            "unknown open_clip model", where=spec, expected=f"{nearest(name, names)}, or a folder with {CONFIG}"
        )
    else:
        config, tags = deepcopy(open_clip.get_model_config(name)), open_clip.list_pretrained_tags_by_model(name)
        if not spec.weights:
            raise TowerError(
                "which weights is not said", where=spec, expected=f"@{RANDOM}, @FILE or @TAG, {nearest('', tags)}"
            )
    if file is None and spec.weights not in ("", RANDOM, *tags):
        raise TowerError(
            "unknown open_clip weights", where=spec, expected=nearest(spec.weights, [*tags, RANDOM]) + ", or a file"
        )
    tag = spec.weights if spec.weights in tags else None
    # OpenAI's weights want QuickGELU even under the plain name; open_clip only warns.
    config["quick_gelu"] = bool(
        config.get("quick_gelu") or (tag and open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    )
    if size:
        config["vision_cfg"]["image_size"] = size
    if context_length:  # a longer one is made of the tower's own, see ``positions``
        context_length = config["text_cfg"]["context_length"] = min(
            context_length, config["text_cfg"].get("context_length", 77)
        )
    with hub(spec):
        model = open_clip.create_model(
            name,
            tag,
            load_weights=not spec.weights or tag is not None,
            force_quick_gelu=config["quick_gelu"],
            force_custom_text=True,
            force_image_size=size or None,
            force_context_length=context_length or None,
            pretrained_text=False,
            require_pretrained=not spec.weights,
        )
    if file:
        try:
            keys = open_clip.load_checkpoint(model, str(file), strict=False)
        except Exception as error:  # conversion of foreign checkpoints fails in many ways, each meaning "does not fit"
            line = next((x for x in str(error).splitlines() if "size mismatch" in x), first_line(error)).strip()
            raise TowerError(
                f"weights do not fit this tower ({line})", where=file, expected=f"a state dict of open_clip's {name}"
            ) from error
        refuse_misfit(keys.missing_keys, keys.unexpected_keys, (), file)
    return model, config


def _image_module(visual: nn.Module, picture: ImagePreprocess, spec: TowerSpec) -> PictureModule:
    if isinstance(visual, VisionTransformer):
        return VitModule(visual, picture)
    if isinstance(visual, ModifiedResNet):
        return ResNetModule(visual, picture)
    if isinstance(visual, TimmModel):
        return TimmModule(visual.trunk, picture)
    raise TowerError(
        "this open_clip image tower is not supported",
        where=spec,
        expected="ViT, ModifiedResNet or timm",
        next="timm:NAME",
    )


def _picture(recipe: dict[str, Any], spec: TowerSpec) -> ImagePreprocess:
    side = recipe["size"]
    height, width = (side, side) if isinstance(side, int) else side
    if recipe["resize_mode"] == "longest" or (recipe["resize_mode"] == "shortest" and height != width):
        raise TowerError(
            "this open_clip preprocessing is not supported", where=spec, expected="a square crop or a squashed picture"
        )
    resize = (height,) if recipe["resize_mode"] == "shortest" else (height, width)
    return ImagePreprocess(
        (height, width), resize, recipe["interpolation"], tuple(recipe["mean"]), tuple(recipe["std"])
    )


def _save(assets: dict[str, Any], tokenizer: Any, folder: Path) -> str:
    write_json(folder / CONFIG, assets)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return f"open_clip:{folder}@{RANDOM}"


def _clean(name: str) -> str:
    return name.replace("/", "-")
