"""Text towers of open_clip: its own text transformers, and encoders of transformers within its models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.towers.hf import set_grad_checkpointing
from ccaco_cli.core.model.towers.library_checks import check_text_side
from ccaco_cli.core.model.towers.open_clip_models import OpenClipModel, load
from ccaco_cli.core.model.towers.pooling import Pooling
from ccaco_cli.core.model.towers.text_tokenizers import ClipTokens
from ccaco_cli.core.model.towers.tower import JointSpace, PositionRule, Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import RANDOM, fingerprint, hub_access
from ccaco_cli.core.types import Features

POOLED_AT_END = ("argmax", "eos")


class TextModule(nn.Module):
    """open_clip's TextTransformer: token states after its last norm.

    Args:
        text: the transformer.
        projected: pooled is the model's embedding [B, E]; else the projection is removed.
        hide_padding: mask padding in a bidirectional tower.
        pad_id: a published bidirectional tower (SigLIP) was trained to attend to padding, and may pool the last
            position: texts are padded with this id to the full length, whatever the length of the batch. None = causal,
            or ``hide_padding``.
        mean: pool by masked mean in place of the transformer's own pooling.
        word_mixing: applied to the word vectors [B, L, W] and the mask [B, L] before positions are added.
    """

    def __init__(
        self,
        text: TextTransformer,
        *,
        projected: bool = False,
        hide_padding: bool = False,
        pad_id: int | None = None,
        mean: bool = False,
        word_mixing: nn.Module | None = None,
    ):
        super().__init__()
        self.body, self.word_mixing = text, word_mixing
        self.hide_padding, self.mean, self.pad_id = hide_padding, mean, pad_id
        self.projected = projected
        if not projected:
            text.text_projection = None
        self.width, self.num_layers = text.width, len(text.transformer.resblocks)
        self.selected_layers: Sequence[int] = [self.num_layers]

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        ids, mask, text = inputs["ids"], inputs["mask"], self.body
        real_length = ids.shape[1]
        if self.pad_id is not None:
            ids = F.pad(ids, (0, text.num_pos - real_length), value=self.pad_id)
        length = ids.shape[1]
        attention_mask = None if text.attn_mask is None else text.attn_mask[:length, :length]
        states = text.token_embedding(ids)
        if self.word_mixing is not None:
            states = self.word_mixing(states, mask)
        states = states + text.positional_embedding[:length]
        if self.hide_padding:
            padding = torch.zeros(mask.shape, dtype=states.dtype, device=states.device).masked_fill(
                ~mask, float("-inf")
            )
            attention_mask = padding[:, None].expand(-1, length, -1).repeat_interleave(text.heads, 0)
        _, outputs = text.transformer.forward_intermediates(
            states, attention_mask, [layer - 1 for layer in self.selected_layers if layer]
        )
        selected = outputs if self.selected_layers[0] else [states, *outputs]
        final = [text.ln_final(state) for state in selected]
        states = torch.cat(final, -1)
        pooled_states = final[-1] if self.projected else states
        if self.mean:
            pooled = masked_mean(pooled_states, mask)
        else:
            pooled = text_global_pool(pooled_states, ids, text.pool_type, text.eos_id)
        if self.projected and text.text_projection is not None:
            matrix = isinstance(text.text_projection, nn.Parameter)  # else a layer, or one with low-rank updates
            pooled = pooled @ text.text_projection if matrix else text.text_projection(pooled)
        return Features(states[:, :real_length], mask, pooled)

    @property
    def pooled_from(self) -> Pooling:
        """How ``pooled`` follows from the tokens; that of a padded tower may come from a position of padding."""
        if self.projected:
            return "model"
        if self.mean:
            return "mean"
        rules: dict[str, Pooling] = {"first": "first", "argmax": "last", "eos": "last"}
        return rules.get(self.body.pool_type, "model")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.body.set_grad_checkpointing(enable)

    def select_hidden_states(self, layers: Sequence[int]) -> None:
        self.selected_layers = layers

    def extend_context(self, count: int, rule: PositionRule) -> None:
        text = self.body
        text.positional_embedding = nn.Parameter(rule(text.positional_embedding.detach(), count).contiguous())
        text.num_pos = text.context_length = count
        if text.attn_mask is not None:
            text.attn_mask = text.build_causal_mask()


class HfEncoderModule(nn.Module):
    """A text encoder of transformers within a model of open_clip: token states, and open_clip's pooling of them.

    Args:
        text: open_clip's wrapper of the encoder.
        projected: pooled is the model's embedding [B, E]; else the vector before the projection.
    """

    pooled_from: Pooling = "model"
    num_layers = 0
    select_hidden_states = extend_context = None

    def __init__(self, text: HFTextEncoder, *, projected: bool):
        super().__init__()
        self.body, self.projected, self.width = text, projected, int(text.config.hidden_size)
        if not projected:
            text.proj = nn.Identity()

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        ids, text = inputs["ids"], self.body
        attention_mask = (ids != text.config.pad_token_id).long()
        output = text.transformer(input_ids=ids, attention_mask=attention_mask)
        pooled = text.proj(text.pooler(output, attention_mask))
        return Features(output.last_hidden_state, inputs["mask"], pooled)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        set_grad_checkpointing(self.body.transformer, enable)


def text_tower(
    spec: TowerSpec,
    module: TextModule | HfEncoderModule,
    tokenizer: ClipTokens,
    *,
    pretrained: bool,
    facts: Sequence[object],
    save_assets: Callable[[Path], str],
    space: JointSpace | None = None,
) -> Tower:
    """Completes a text tower around a model of open_clip; ``facts`` name the architecture in the fingerprint."""
    return Tower(
        spec=spec,
        modality="text",
        module=module,
        preprocess=tokenizer,
        width=module.width,
        tokens=tokenizer.context_length,
        grid=None,
        pretrained=pretrained,
        fingerprint=fingerprint(module, spec.family, *facts, tokenizer, space),
        save_assets=save_assets,
        space=space,
        tokenizer=tokenizer,
        set_grad_checkpointing=module.set_grad_checkpointing,
        hidden_states=module.num_layers + 1,
        select_hidden_states=module.select_hidden_states,
        extend_context=module.extend_context,
        pooled_from=module.pooled_from,
    )


def build_text(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds the text tower of ``open_clip:NAME@TAG|FILE|none`` or ``open_clip:FOLDER[@FILE|none]``.

    FOLDER holds open_clip_config.json. Tokens are states after the last norm; pooled is the state that open_clip pools.
    ``save_assets`` writes open_clip_config.json, the hub tokenizer if there is one, and the config of an encoder of
    transformers.
    """
    loaded = load(spec, config, text_only=True)
    text, projected = loaded.model.text, config.projected
    with hub_access(spec):
        library_tokenizer = open_clip.get_tokenizer(loaded.name, context_length=loaded.context_length)
    if isinstance(text, HFTextEncoder):
        module: TextModule | HfEncoderModule = HfEncoderModule(text, projected=projected)
        trim = True
    elif isinstance(text, TextTransformer) and text.cls_emb is None:
        trim = text.attn_mask is not None and text.pool_type in POOLED_AT_END
        pad_id = getattr(getattr(library_tokenizer, "tokenizer", None), "pad_token_id", 0)
        module = TextModule(text, projected=projected, pad_id=None if trim else pad_id)
    else:
        raise TowerError(
            "this open_clip text tower is not supported",
            where=spec,
            expected="a CLIP text transformer, or an encoder of transformers",
            next="hf:NAME",
        )
    tokenizer = ClipTokens(library_tokenizer, loaded.context_length, trim=trim)
    _refuse_tokenizer(tokenizer, spec)
    if projected:
        check_text_side(spec, module, tokenizer, lambda texts: loaded.model.encode_text(library_tokenizer(texts)))
    if 0 < config.context_length < loaded.context_length:  # ``positions.extend_context`` extends to a longer one
        tokenizer = tokenizer.with_context_length(config.context_length)
        loaded = _shortened(loaded, module, config.context_length, spec)
    return text_tower(
        spec,
        module,
        tokenizer,
        pretrained=spec.weights != RANDOM,
        facts=(loaded.config["text_cfg"], loaded.config.get("quick_gelu", False)),
        save_assets=partial(loaded.save, getattr(library_tokenizer, "tokenizer", None)),
        space=JointSpace(loaded.config["embed_dim"], *loaded.scale) if projected else None,
    )


def _refuse_tokenizer(tokenizer: ClipTokens, spec: TowerSpec) -> None:
    """Raises TowerError: a tokenizer whose padding is not at the end of a text."""
    library = tokenizer.tokenizer
    hub_tokenizer = getattr(library, "tokenizer", None)
    if getattr(library, "tokenizer_mode", "") or getattr(hub_tokenizer, "padding_side", "right") != "right":
        raise TowerError(
            "the tokenizer of this model puts its padding before the end of a text",
            where=spec,
            expected="a model whose padding comes last",
            next="another text tower",
        )


def _shortened(
    loaded: OpenClipModel, module: TextModule | HfEncoderModule, count: int, spec: TowerSpec
) -> OpenClipModel:
    """Cuts the context of a text tower to ``count`` tokens; texts that fit give what they gave before.

    Raises:
        TowerError: a pretrained model that was trained to read padding up to its full length.
    """
    if isinstance(module, TextModule):
        if module.pad_id is not None and module.projected:
            raise TowerError(
                f"this pretrained model reads every text padded to {loaded.context_length} tokens",
                where=f"model.text.context_length = {count}, {spec}",
                expected=f"0 or {loaded.context_length}",
            )
        module.extend_context(count, lambda table, length: table[:length])
    text_config = {**loaded.config["text_cfg"], "context_length": count}
    return replace(loaded, config={**loaded.config, "text_cfg": text_config})
