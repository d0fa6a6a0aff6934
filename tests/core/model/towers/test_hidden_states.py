"""Tokens of several layers, on small models in the layouts of their libraries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers import build
from ccaco_cli.core.model.towers.hidden_states import evenly_spaced_layers
from tests.core.model.towers.test_hf import SMALL, TEXTS, WORDS, save_tokenizer
from tests.core.model.towers.test_open_clip import TEXT, VIT, folder
from tests.towers import check_reduced_precision


def test_depths_are_evenly_spaced_and_end_with_the_last() -> None:
    assert [evenly_spaced_layers(states, 6) for states in (1, 2, 3, 4, 7)] == [
        [6],
        [0, 6],
        [0, 3, 6],
        [0, 2, 4, 6],
        [0, 1, 2, 3, 4, 5, 6],
    ]
    for layers in range(1, 25):
        for states in range(1, layers + 2):
            layers_used = evenly_spaced_layers(states, layers)
            assert layers_used == sorted(set(layers_used))
            assert (len(layers_used), layers_used[-1]) == (states, layers)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    hf.BertModel(
        hf.BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, **SMALL | {"num_hidden_layers": 4})
    ).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    return tmp_path


def test_words_hold_the_states_of_their_layers(bert: Path) -> None:
    plain, deep = (build(TowerConfig(f"hf:{bert}", states=states), "text") for states in (1, 3))
    assert (plain.width, deep.width) == (32, 96)
    assert plain.fingerprint != deep.fingerprint
    inputs = deep.preprocess(TEXTS)
    with torch.no_grad():
        features, last = (tower.module.eval()(inputs) for tower in (deep, plain))
        states = hf.AutoModel.from_pretrained(bert).eval()(
            input_ids=inputs["ids"], attention_mask=inputs["mask"].long(), output_hidden_states=True
        )
    torch.testing.assert_close(features.tokens[..., 64:], last.tokens)
    for number, part in ((0, slice(0, 32)), (2, slice(32, 64))):
        wanted = torch.nn.functional.layer_norm(states.hidden_states[number], (32,))
        torch.testing.assert_close(
            features.tokens[..., part][features.mask], wanted[features.mask], atol=1e-5, rtol=1e-5
        )
    torch.testing.assert_close(features.pooled[:, 64:], last.pooled)
    check_reduced_precision(deep, inputs)


def test_both_libraries_texts_are_padded_without_effect(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "oc").mkdir()
    for spec in (f"hf:{bert}", f"open_clip:{folder(tmp_path / 'oc', VIT, layers=4)}@none"):
        tower = build(TowerConfig(spec, states=3), "text")
        batched = tower.module.eval()(tower.preprocess(TEXTS))
        assert batched.tokens.shape[2] == tower.width == 3 * TEXT["width"]
        alone = tower.module(tower.preprocess(TEXTS[:1]))
        torch.testing.assert_close(alone.tokens[0], batched.tokens[0, : alone.tokens.shape[1]], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.pooled[0], batched.pooled[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "modality", "states", "message"),
    [
        ("tiny", "text", 3, "3 states do not fit.*model.text.states from 1 to 2"),
        ("tiny", "text", 0, "0 states do not fit"),
        ("torchvision:resnet18@none", "image", 2, "gives its last state only.*model.image.states = 1"),
        ("tiny", "audio", 2, "gives its last state only"),
    ],
)
def test_states_that_are_not_there(spec: str, modality: str, states: int, message: str) -> None:
    with pytest.raises(TowerError, match=message):
        build(TowerConfig(spec, states=states), modality)


def test_at_most_so_many_are_as_many_as_there_are() -> None:
    assert [
        build(TowerConfig("tiny", states=states), "text").width // build(TowerConfig("tiny"), "text").width
        for states in (-1, -2, -9)
    ] == [
        1,
        2,
        2,
    ]
    assert build(TowerConfig("tiny", states=-3), "image").width == build(TowerConfig("tiny"), "image").width
