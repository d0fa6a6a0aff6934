"""Text towers of transformers, and loading its models: any AutoModel with ``last_hidden_state``, hub or folder."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as hf_logging

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.towers.dual_encoders import BODY, dual_encoder_scale, load_once, one_side
from ccaco_cli.core.model.towers.image_base import (
    pooled_if_token_width,
)
from ccaco_cli.core.model.towers.pooling import Pooling, last_token
from ccaco_cli.core.model.towers.positions import extend_embeddings, learned_positions
from ccaco_cli.core.model.towers.probing import evaluation
from ccaco_cli.core.model.towers.text_tokenizers import HfTokens
from ccaco_cli.core.model.towers.tower import JointSpace, PositionRule, Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import (
    RANDOM,
    check_state_keys,
    fingerprint,
    hub_access,
    hub_name,
    hub_revision,
    load_state,
    read_state,
    weights_file,
)
from ccaco_cli.core.types import Features

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.spm", "*.vocab", "*.txt", "*.tiktoken")
"""Names of the files of which at least one holds the vocabulary of a tokenizer."""
NO_LIMIT = 1 << 20
"""Tokenizers without a limit report 1e30 tokens."""
PADDED_TEXT = ("siglip_text_model", "siglip2_text_model")
"""Models that were trained to attend to padding, and that pool the last position of the full length."""
UNUSED = ("pooler.", "decoder.")
"""Parts of a model whose weights may be missing: published encoders of T5 have no decoder."""
CAUSAL = 1e-5
"""Largest relative change of the earlier tokens of a causal model when the last token of a text changes."""


@dataclass(frozen=True)
class TextPooling:
    """How a transformers text encoder is padded and pooled.

    Attributes:
        pooled_from: the rule for pooled; ``model``: its own pooled output.
        full_length: pad every text to this many tokens, without a mask; 0 = to the longest text of the batch.
        pad_id: of padding.
        use_pooler: take the model's own pooled output, where it has one of the tokens' width.
    """

    pooled_from: Pooling = "mean"
    full_length: int = 0
    pad_id: int = 0
    use_pooler: bool = False


class HfTextModule(nn.Module):
    """Token states of a transformers text encoder; pooled is the masked mean, the last real token or the model's own.

    Args:
        model: the transformers model; with ``projected`` a dual encoder without its other side.
        pooling: how texts are padded and pooled.
        projected: pooled is the embedding [B, E] of a dual encoder.
    """

    def __init__(self, model: Any, pooling: TextPooling, *, projected: bool = False):
        super().__init__()
        self.body, self.pooling, self.projected = model, pooling, projected
        self.num_layers: int = getattr(self.encoder.config, "num_hidden_layers", 0)
        self.selected_layers: Sequence[int] = [self.num_layers]

    @property
    def encoder(self) -> Any:
        """The text encoder."""
        return self.body.text_model if self.projected else self.body

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        ids, mask, lower_layers = inputs["ids"], inputs["mask"], self.selected_layers[:-1]
        pooling, length, attention_mask = self.pooling, ids.shape[1], {"attention_mask": mask.long()}
        if pooling.full_length:
            ids, attention_mask = F.pad(ids, (0, pooling.full_length - length), value=pooling.pad_id), {}
        encode = self.body.get_text_features if self.projected else self.body
        output = encode(input_ids=ids, output_hidden_states=bool(lower_layers), **attention_mask)
        tokens = output.last_hidden_state
        if lower_layers:  # many models normalise the states of the last layer only
            states = (F.layer_norm(output.hidden_states[layer], tokens.shape[-1:]) for layer in lower_layers)
            tokens = torch.cat([*states, tokens], -1)
        if self.projected:
            return Features(tokens[:, :length], mask, output.pooler_output)
        pooled = pooled_if_token_width(output.pooler_output, tokens) if pooling.use_pooler else None
        if pooling.full_length and pooled is None:
            pooled = tokens[:, -1]
        tokens = tokens[:, :length]
        if pooled is None:
            pooled = last_token(tokens, mask) if pooling.pooled_from == "last" else masked_mean(tokens, mask)
        return Features(tokens, mask, pooled)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        set_grad_checkpointing(self.body, enable)

    def select_hidden_states(self, layers: Sequence[int]) -> None:
        self.selected_layers = layers

    def extend_context(self, count: int, rule: PositionRule) -> None:
        extend_embeddings(self.encoder, count, rule)
        if self.pooling.full_length:
            self.pooling = replace(self.pooling, full_length=count)


def build_text(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds the text tower of ``hf:NAME[@REVISION|FILE|none]`` or ``hf:FOLDER[@FILE|none]``.

    Tokens are ``last_hidden_state``, of an encoder-decoder those of its encoder. Pooled is their masked mean (as of
    sentence encoders), of causal models the last real token, of CLIP-like models their own. ``save_assets`` writes the
    config and the tokenizer.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork of loader workers
    projected = config.projected
    hf_config, hf_tokenizer, model = load_pretrained(spec, AutoTokenizer, projected=projected)
    scale = dual_encoder_scale(model, spec, "text") if projected else None
    body, clip_like = (one_side(model, "text"), True) if projected else encoder_of(model, "text")
    hf_tokenizer.padding_side = hf_tokenizer.truncation_side = "right"
    if hf_tokenizer.pad_token is None:  # padding is masked, so that any token can stand for it
        hf_tokenizer.pad_token = hf_tokenizer.eos_token or hf_tokenizer.unk_token or hf_tokenizer.bos_token
    if hf_tokenizer.pad_token is None:
        raise TowerError(
            "the tokenizer of this model has no padding token", where=spec, expected="a pad_token or an eos_token in it"
        )
    encoder = body.text_model if projected else body
    limits = [
        hf_tokenizer.model_max_length,
        getattr(encoder.config, "max_position_embeddings", NO_LIMIT),
        learned_positions(encoder) or NO_LIMIT,
        config.context_length or NO_LIMIT,
    ]
    tokenizer = HfTokens(hf_tokenizer, int(min(limit for limit in limits if limit > 0)))  # XLNet's is -1: none
    module = HfTextModule(body, TextPooling(), projected=projected)
    width, pooled_width, causal = _measure_text(module, tokenizer)
    if encoder.config.model_type in PADDED_TEXT:
        full_length = learned_positions(encoder) or tokenizer.context_length
        module.pooling = TextPooling("model", full_length, hf_tokenizer.pad_token_id, use_pooler=True)
    else:
        rule: Pooling = "last" if causal and not projected else "model" if clip_like else "mean"
        module.pooling = TextPooling(rule, use_pooler=clip_like)
    space = JointSpace(pooled_width, *scale) if scale else None
    return Tower(
        spec=spec,
        modality="text",
        module=module,
        preprocess=tokenizer,
        width=width,
        tokens=tokenizer.context_length,
        grid=None,
        pretrained=spec.weights != RANDOM,
        fingerprint=fingerprint(module, spec.family, architecture_json(body.config), tokenizer, space),
        save_assets=partial(save_components, [hf_config.save_pretrained, hf_tokenizer.save_pretrained]),
        space=space,
        tokenizer=tokenizer,
        set_grad_checkpointing=module.set_grad_checkpointing,
        hidden_states=module.num_layers + 1,
        select_hidden_states=module.select_hidden_states,
        extend_context=module.extend_context,
        pooled_from=module.pooling.pooled_from,
    )


def _measure_text(module: HfTextModule, tokenizer: HfTokens) -> tuple[int, int, bool]:
    """Encodes a text of a few words to learn the widths of tokens and of pooled, and whether the model is causal: then
    the last token of a text has no effect on the earlier ones."""
    ids = tokenizer(["a dog runs"])["ids"]
    changed = ids.clone()
    changed[0, -1] = ids[0, 0]
    if torch.equal(changed, ids):  # a tokenizer that knows no words
        changed[0, -1] = (ids[0, -1] + 1) % len(tokenizer.tokenizer)
    both, mask = torch.cat([ids, changed]), torch.ones_like(ids, dtype=torch.bool).expand(2, -1)
    with evaluation(module):
        features = module({"ids": both, "mask": mask})
    tokens = features.tokens
    earlier, changed_earlier = tokens[:, :-1]
    change = (earlier - changed_earlier).norm(dim=-1) / earlier.norm(dim=-1).clamp_min(1e-12)
    causal = ids.shape[1] > 1 and bool((change < CAUSAL).all())
    return tokens.shape[2], features.pooled.shape[1], causal


def encoder_of(model: Any, modality: str) -> tuple[Any, bool]:
    """Returns the encoder of one modality, and whether the model is CLIP-like (has one for each modality)."""
    clip_like = hasattr(model, BODY[modality])
    body = getattr(model, BODY[modality]) if clip_like else model
    if "decoder_input_ids" in inspect.signature(body.forward).parameters:  # an encoder-decoder such as T5
        body = body.get_encoder()
    if "add_pooling_layer" in inspect.signature(type(body).__init__).parameters:
        body.pooler = None  # it was trained on other tasks, and would get no gradient here
    return body, clip_like


def load_pretrained(spec: TowerSpec, auto_processor: Any, *, projected: bool = False) -> tuple[Any, Any, Any]:
    """Loads ``hf:NAME|FOLDER[@REVISION|FILE|none]``.

    Args:
        auto_processor: the Auto class of the preprocessing (AutoTokenizer, AutoImageProcessor, AutoFeatureExtractor).
        projected: both sides are taken from one load of the model within ``sharing_loads``.
    Returns:
        (config, processor, model) of transformers.
    """
    name, file = hub_name(spec), weights_file(spec)
    revision = hub_revision(spec, file)
    with hub_access(spec):
        config = AutoConfig.from_pretrained(name, revision=revision)
        if type(config) not in MODEL_MAPPING:
            raise TowerError(
                f"transformers has no encoder for a {config.model_type} model", where=spec, expected="an AutoModel"
            )
        if auto_processor is AutoTokenizer:
            _require_tokenizer(Path(name))
        processor = auto_processor.from_pretrained(name, revision=revision)
        load = partial(_load_model, spec, name, config, revision, file)
        model = load_once(str(spec), load) if projected else load()
    return config, processor, model


def _require_tokenizer(folder: Path) -> None:
    """Raises TowerError: a folder without a tokenizer, of which transformers makes one that knows no words."""
    if folder.is_dir() and not any(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)):
        raise TowerError(
            "no tokenizer here",
            where=folder,
            expected="tokenizer.json, or the vocabulary of the model, beside its config.json",
            next="save it there: AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)",
        )


def architecture_json(config: Any) -> str:
    """The config of a transformers model, without name and versions, as it enters a fingerprint."""
    volatile = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    architecture = {k: v for k, v in config.to_dict().items() if k not in volatile}
    return json.dumps(architecture, sort_keys=True, default=str)


def _load_model(spec: TowerSpec, name: str, config: Any, revision: str, file: Path | None) -> Any:
    if file or spec.weights == RANDOM:
        model = AutoModel.from_config(config)
        if file:
            load_state(model, read_state(file), file, UNUSED)
        return model
    verbosity, progress_bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        model, info = AutoModel.from_pretrained(name, revision=revision, output_loading_info=True, dtype=torch.float32)
    finally:
        hf_logging.set_verbosity(verbosity)
        if progress_bar:
            hf_logging.enable_progress_bar()
    # transformers fills missing weights with random numbers and reports it in a log line only
    check_state_keys([k for k in info["missing_keys"] if "pooler." not in k and not k.startswith(UNUSED)], (), (), spec)
    return model


def set_grad_checkpointing(model: Any, enable: bool) -> None:
    """Turns gradient checkpointing of a transformers model on or off (the method was renamed within transformers 5)."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_{'enable' if enable else 'disable'}")()


def save_components(savers: list[Callable[[Path], Any]], folder: Path) -> str:
    """``Tower.save_assets`` of transformers towers: runs every saver on the folder and returns the SPEC."""
    folder.mkdir(parents=True, exist_ok=True)
    for save in savers:
        save(folder)
    return f"hf:{folder}@{RANDOM}"
