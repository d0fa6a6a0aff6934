"""Text towers over captions of many scripts: vocabularies, layouts of published models, and where texts are cut."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from tokenizers import Tokenizer
from uniseg.graphemecluster import grapheme_cluster_boundaries

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.encoding.encode import EncodeOptions
from ccaco_cli.core.encoding.samples import encode_samples
from ccaco_cli.core.experiments.pretrained import open_model
from ccaco_cli.core.export.same_vectors import images
from ccaco_cli.core.model.towers import build
from ccaco_cli.core.model.towers.multilingual import multilingual_tokenizer
from ccaco_cli.core.model.towers.text_tokenizers import ClipTokens, HfTokens
from ccaco_cli.core.retrieval.query import CLEAN, token_ids
from tests.pretrained_models import HF_IDS, HF_TEXT, HF_VIT, randomise
from tests.scripts import CAPTIONS, ODD, TOKENIZERS, hf_tokenizer

TEXTS = [*CAPTIONS.values(), *ODD.values()]
CONTEXT = 40
KINDS: dict[str, Callable[[], Any]] = {
    "clip": lambda: ClipTokens(open_clip.SimpleTokenizer(), CONTEXT),
    "multilingual": lambda: ClipTokens(multilingual_tokenizer(), CONTEXT),
    **{kind: lambda kind=kind: HfTokens(hf_tokenizer(kind, CONTEXT), CONTEXT) for kind in TOKENIZERS},  # type: ignore[misc]
}


def test_each_character_in_use_is_one_token_of_the_multilingual_vocabulary() -> None:
    clip, multilingual = open_clip.SimpleTokenizer(), multilingual_tokenizer()
    assert multilingual.vocab_size == clip.vocab_size == len(multilingual.encoder)
    ratios = {
        language: [len(tokenizer.encode(text)) / len(text) for tokenizer in (clip, multilingual)]
        for language, text in CAPTIONS.items()
    }
    assert all(ratio <= 1 for _, ratio in ratios.values())
    assert ratios["zh"] == pytest.approx([2.42, 1], abs=0.01) and ratios["ja"][0] > 1.5
    assert ratios["en"][1] < 1.1 * ratios["en"][0]
    assert multilingual.decode(multilingual.encode("一只橘猫 naps")).replace(" ", "") == "一只橘猫naps"


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_not_cut_within_a_character(kind: str) -> None:
    tokenizer = KINDS[kind]()
    unlimited = tokenizer.with_context_length(2000)
    lengths, full = unlimited(TEXTS)["mask"].sum(1), [unlimited.token_spans(text) for text in TEXTS]
    definition, settings = tokenizer.portable()
    portable, shortened = Tokenizer.from_str(definition), 0
    for context_length in (19, 33, 34, 35):
        tokenizer = tokenizer.with_context_length(context_length)
        inputs = tokenizer(TEXTS)
        assert inputs["cut"].tolist() == (lengths > context_length).tolist()
        portable.enable_truncation(context_length)
        ids, mask = token_ids(portable, [CLEAN[settings["clean"]](text) for text in TEXTS], settings["pad_id"], 0)
        assert np.array_equal(mask, inputs["mask"]) and np.array_equal(ids[mask], inputs["ids"][inputs["mask"]])
        for row in inputs["cut"].nonzero()[:, 0].tolist():
            spans = tokenizer.token_spans(TEXTS[row])
            assert len(spans.spans) + 2 == mask[row].sum()
            text, end = full[row].text, spans.spans[-1][2]
            following = min((start for _, start, _ in full[row].spans if start >= end), default=len(text))
            assert text.startswith(spans.text[:end])
            shortened += int(mask[row].sum()) < context_length
            if TEXTS[row] != ODD["accents without end"]:  # its one character has more tokens than fit
                assert any(end <= place <= following for place in grapheme_cluster_boundaries(text)), text[:end]
                assert "\ufffd" not in tokenizer.decode(inputs["ids"][row][inputs["mask"][row]].tolist()[1:-1])
    assert shortened


@pytest.mark.parametrize("kind", KINDS)
def test_both_normal_forms_of_a_text_are_the_same_to_every_tokenizer(kind: str) -> None:
    tokenizer = KINDS[kind]().with_context_length(300)
    texts = [CAPTIONS[name] for name in ("vi", "de", "ko", "ja", "hi", "he")] + [ODD["decomposed"]]
    assert any(unicodedata.normalize("NFD", text) != unicodedata.normalize("NFC", text) for text in texts)
    composed, decomposed = (tokenizer([unicodedata.normalize(form, t) for t in texts]) for form in ("NFC", "NFD"))
    assert torch.equal(composed["ids"], decomposed["ids"]) and torch.equal(composed["mask"], decomposed["mask"])


def xlm_roberta(size: int) -> Any:
    # the positions of RoBERTa start behind those of its padding token
    return hf.XLMRobertaModel(hf.XLMRobertaConfig(**_sizes(size, CONTEXT + 2), **HF_IDS))


def minilm(size: int) -> Any:
    """paraphrase-multilingual-MiniLM: the layout of BERT with the tokenizer of XLM-R."""
    return hf.BertModel(hf.BertConfig(**_sizes(size, CONTEXT), pad_token_id=0))


def _sizes(vocabulary: int, positions: int = CONTEXT) -> dict[str, Any]:
    return {**HF_TEXT, "vocab_size": vocabulary, "max_position_embeddings": positions}


@pytest.mark.parametrize(
    ("model", "kind"), [(xlm_roberta, "xlm-roberta"), (minilm, "xlm-roberta"), (minilm, "chinese-bert")]
)
def test_multilingual_encoders_give_the_tokens_of_transformers(
    model: Callable[[int], Any], kind: str, tmp_path: Path
) -> None:
    tokenizer = hf_tokenizer(kind, CONTEXT)
    encoder = model(len(tokenizer)).eval()
    randomise(encoder)
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tower = build(TowerConfig(f"hf:{tmp_path}"), "text")
    inputs = tower.preprocess([*CAPTIONS.values()])
    with torch.no_grad():
        features = tower.module.eval()(inputs)
        for row, text in enumerate(CAPTIONS.values()):
            tokens = encoder(**tokenizer([text], truncation=True, return_tensors="pt")).last_hidden_state[0]
            if not inputs["cut"][row]:  # the character that the limit would split is left out
                torch.testing.assert_close(features.tokens[row, : len(tokens)], tokens, rtol=0, atol=1e-5)
                torch.testing.assert_close(features.pooled[row], tokens.mean(0), rtol=0, atol=1e-5)
    assert 0 < int(inputs["cut"].sum()) < len(CAPTIONS)


def chinese_clip(folder: Path) -> str:
    tokenizer = hf_tokenizer("chinese-bert", CONTEXT)
    config = hf.ChineseCLIPConfig(vision_config=HF_VIT, text_config=_sizes(len(tokenizer)), projection_dim=16)
    size = {"height": 32, "width": 32}
    _save(folder, hf.ChineseCLIPModel(config), tokenizer, hf.ChineseCLIPImageProcessor(size=size, do_center_crop=False))
    return "longest"


def siglip2(folder: Path) -> str:
    """The SigLIP 2 models of fixed size have the layout of SigLIP, and the tokenizer of Gemma."""
    tokenizer = hf_tokenizer("gemma", CONTEXT)
    text = {**_sizes(len(tokenizer)), **HF_IDS, "hidden_size": 32, "projection_size": 32}
    model = hf.SiglipModel(hf.SiglipConfig(vision_config=HF_VIT, text_config=text))
    _save(folder, model, tokenizer, hf.SiglipImageProcessor(size={"height": 32, "width": 32}))
    return "max_length"


def _save(folder: Path, model: Any, tokenizer: Any, processor: Any) -> None:
    randomise(model)
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)


@pytest.mark.parametrize("save", [chinese_clip, siglip2])
def test_multilingual_dual_encoders_give_the_library_s_vectors(save: Callable[[Path], str], tmp_path: Path) -> None:
    padding = save(tmp_path)
    opened = open_model(f"hf:{tmp_path}", "cpu")
    library, tokenizer = hf.AutoModel.from_pretrained(tmp_path).eval(), hf.AutoTokenizer.from_pretrained(tmp_path)
    texts = [text[:12] for text in CAPTIONS.values()]
    assert not opened.towers["text"].preprocess(texts)["cut"].any()
    inputs = tokenizer(texts, padding=padding, truncation=True, max_length=CONTEXT, return_tensors="pt")
    masked = {} if padding == "max_length" else {"attention_mask": inputs["attention_mask"]}
    pixels = hf.AutoImageProcessor.from_pretrained(tmp_path)(images(), return_tensors="pt")
    with torch.no_grad():
        expected = {
            "text": library.get_text_features(input_ids=inputs["input_ids"], **masked).pooler_output,
            "image": library.get_image_features(**pixels).pooler_output,
        }
    for modality, samples in (("image", images()), ("text", texts)):
        tower = opened.towers[modality]
        encoded = encode_samples(opened.aligner, tower, samples, local_tokens=False, options=EncodeOptions())
        unit = F.normalize(expected[modality], dim=-1)
        torch.testing.assert_close(encoded.z.float(), unit, rtol=0, atol=1e-5)
    assert encoded.z[0] @ encoded.z[1] < 0.999, "these texts could be mixed up"


def test_cached_tokens_of_another_vocabulary_are_not_read() -> None:
    preprocess = [repr(build(TowerConfig(spec), "text").preprocess) for spec in ("tiny", "tiny:multilingual")]
    assert preprocess[0] != preprocess[1], "their tokens would have one key in the cache of a data set"
