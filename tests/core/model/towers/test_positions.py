from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers import build
from ccaco_cli.core.model.towers.positions import RULES, interpolate, repeat, stretch
from tests.core.model.towers.test_hf import SMALL, WORDS, save_tokenizer

LONG = " ".join(["a dog runs through the snow"] * 12)


def test_the_rules_by_hand() -> None:
    table = torch.arange(5.0)[:, None].repeat(1, 2)
    assert interpolate(table, 9)[:, 0].tolist() == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4])
    assert repeat(table, 12)[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    long = torch.arange(77.0)[:, None]
    stretched = stretch(long, 248)[:, 0]
    assert stretched[:21].tolist() == list(range(21)), "what short captions have trained stays"
    assert (len(stretched), float(stretched[-1])) == (248, 76)
    assert (stretched.diff() > 0).all()


@pytest.fixture(params=["bert", "roberta"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    classes = {"bert": (hf.BertModel, hf.BertConfig), "roberta": (hf.RobertaModel, hf.RobertaConfig)}[request.param]
    positions = {"bert": 24, "roberta": 26}[request.param]  # RoBERTa's first two stand for padding
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0} if request.param == "roberta" else {}
    classes[0](
        classes[1](vocab_size=len(WORDS), max_position_embeddings=positions, **SMALL, **special)
    ).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    return tmp_path


@pytest.mark.parametrize("rule", RULES)
def test_a_transformers_tower_reads_past_its_length(encoder: Path, rule: str) -> None:
    text_tower = build(TowerConfig(f"hf:{encoder}"), "text")
    assert text_tower.preprocess([LONG, "a dog"])["cut"].tolist() == [True, False]
    tower = build(TowerConfig(f"hf:{encoder}", context_length=100, positions=rule), "text")
    inputs = tower.preprocess([LONG, "a dog"])
    assert tower.tokens == 100
    assert inputs["cut"].tolist() == [False, False]
    assert inputs["mask"].sum(1).tolist() == [74, 4]
    features = tower.module.eval()(inputs)
    assert features.tokens.isfinite().all()
    changed = inputs | {"ids": inputs["ids"].clone()}
    changed["ids"][0, 70] = 12
    assert not torch.allclose(tower.module(changed).pooled[0], features.pooled[0], atol=1e-6), "the last words count"
    if rule != "interpolate":
        short = text_tower.module.eval()(text_tower.preprocess(["a dog"]))
        torch.testing.assert_close(features.tokens[1, :4], short.tokens[0], atol=1e-5, rtol=1e-5)
    assert tower.fingerprint != text_tower.fingerprint
    rebuilt = build(TowerConfig(tower.save_assets(encoder / "kept"), context_length=100, positions=rule), "text")
    rebuilt.module.load_state_dict(tower.module.state_dict())


def test_an_open_clip_tower_reads_past_77() -> None:
    torch.manual_seed(0)
    text_tower = build(TowerConfig("open_clip:ViT-S-32-alt@none"), "text")
    tower = build(TowerConfig("open_clip:ViT-S-32-alt@none", context_length=300), "text")
    text = "a dog runs through the snow " * 30
    assert text_tower.preprocess([text, "a dog"])["cut"].tolist() == [True, False]
    inputs = tower.preprocess([text, "a dog"])
    assert inputs["cut"].tolist() == [False, False] and inputs["mask"].sum(1).tolist() == [182, 4]
    assert (text_tower.tokens, tower.tokens) == (77, 300)
    assert tower.module.body.attn_mask.shape == (300, 300)
    assert tower.module.eval()(inputs).tokens.isfinite().all()


def test_a_caption_that_just_fits_is_not_cut() -> None:
    tower = build(TowerConfig("tiny", context_length=8), "text")
    encoded = tower.preprocess(["a dog runs through the snow", "a dog runs through the snow now", "!"])
    assert encoded["cut"].tolist() == [False, True, False]
    assert encoded["mask"].sum(1).tolist() == [8, 8, 3]
    assert encoded["ids"][0, -1] == encoded["ids"][1, -1] == tower.preprocess.tokenizer.eot_token_id


def test_unknown_rules_are_refused(encoder: Path) -> None:
    with pytest.raises(TowerError, match=r"stretch \| interpolate \| repeat"):
        build(TowerConfig(f"hf:{encoder}", context_length=100, positions="guess"), "text")
