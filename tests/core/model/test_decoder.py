"""The text decoder: causality, padding, gradients, generation, and eight pictures learned by heart."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ccaco_cli.core.config import DecoderConfig, LossConfig, ModelConfig, TowerConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.losses.caption import caption_loss
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model import towers
from ccaco_cli.core.model.decoder import IGNORED, TextDecoder
from ccaco_cli.core.model.generation import GenerationOptions
from ccaco_cli.core.model.layout import Layout
from ccaco_cli.core.model.towers.tower import TextIds
from ccaco_cli.core.types import Words

WIDTH, VOCABULARY = 16, 12
SMALL = DecoderConfig(layers=2, heads=2, dropout=0.0, word_dropout=0.0, max_words=8)
IDS = TextIds(VOCABULARY, 10, 11)


def decoder(ids: TextIds = IDS, config: DecoderConfig = SMALL) -> TextDecoder:
    built = TextDecoder(ids, WIDTH, config)
    built.add_words(range(VOCABULARY))
    return built.eval()


def memory(count: int = 3, tokens: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, tokens, WIDTH), torch.ones(count, tokens, dtype=torch.bool)


def texts(*rows: list[int], ids: TextIds = IDS) -> Words:
    """Texts with the start and the end of the tokenizer, padded with zeros."""
    first, last = ([] if i is None else [i] for i in (ids.start, ids.end))
    full = [first + row + last for row in rows]
    longest = max(map(len, full))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in full], dtype=torch.long)
    return Words(padded, torch.arange(longest) < torch.tensor([len(row) for row in full])[:, None])


@pytest.mark.parametrize("ids", [IDS, TextIds(VOCABULARY, None, 11), TextIds(VOCABULARY, None, None)])
def test_targets_are_the_words_and_the_end(ids: TextIds) -> None:
    built = decoder(ids)
    predicted = built(*memory(2), texts([3, 4, 5], [6], ids=ids))
    end = int(built.number[built.end])
    assert predicted.targets.tolist() == [[3, 4, 5, end], [6, end, IGNORED, IGNORED]]
    assert predicted.logits.shape == (2, 4, built.vocabulary_size)


def test_an_untrained_decoder_is_near_chance() -> None:
    built = decoder(config=DecoderConfig(dropout=0.0, word_dropout=0.0))
    predicted = built(*memory(3), texts([1, 2, 3, 4], [5, 6], [7, 8, 9]))
    loss = caption_loss(predicted.logits, predicted.targets).item()
    assert loss == pytest.approx(math.log(built.vocabulary_size), rel=0.3)


def test_a_later_word_never_changes_an_earlier_prediction() -> None:
    built, described = decoder(), memory(1)
    logits = built(*described, texts([1, 2, 3, 4, 5])).logits
    for place in range(5):
        changed = [1, 2, 3, 4, 5]
        changed[place] = 9
        again = built(*described, texts(changed)).logits
        assert torch.equal(again[:, : place + 1], logits[:, : place + 1])
        assert not torch.allclose(again[:, place + 1], logits[:, place + 1])


def test_padding_of_words_and_of_memory_changes_nothing() -> None:
    built, (tokens, mask) = decoder(), memory(2)
    alone = built(tokens[:1], mask[:1], texts([1, 2]))
    wider = torch.cat([tokens, torch.full((2, 3, WIDTH), 7.0)], 1), torch.nn.functional.pad(mask, (0, 3))
    batched = built(*wider, texts([1, 2], [3, 4, 5, 6]))
    assert torch.allclose(batched.logits[:1, :3], alone.logits, atol=1e-5)
    assert batched.targets[0].tolist() == [1, 2, 11, IGNORED, IGNORED]
    assert built.write(*wider)[0][0].ids == built.write(tokens[:1], mask[:1])[0][0].ids


def test_word_dropout_leaves_out_whole_words_but_no_prefix() -> None:
    built = TextDecoder(IDS, WIDTH, DecoderConfig(dropout=0.0, word_dropout=0.5, heads=2))
    words = Words(torch.zeros(40, 9, dtype=torch.long), torch.ones(40, 9, dtype=torch.bool), torch.full((40,), 3))
    before = built._shifted(words)[0]
    mask = built._word_mask(before, words)
    assert mask.shape == (*before.shape, 1) and set(mask.unique().tolist()) == {0.0, 1.0, 2.0}
    assert (mask[:, :4] == 1).all() and 0.3 < (mask[:, 4:] == 0).float().mean() < 0.7
    assert (built.eval()._word_mask(before, words) == 1).all()


def test_the_memory_of_a_grid_tells_where_a_token_is() -> None:
    token = torch.randn(1, 1, WIDTH).expand(1, 5, -1)
    placed = TextDecoder(IDS, WIDTH, SMALL, Layout(1, (2, 2))).prepare_memory(token)[0]
    assert torch.cdist(placed, placed).add(torch.eye(5)).min() > 0.1
    line = TextDecoder(IDS, WIDTH, SMALL).prepare_memory(token)[0]
    assert torch.equal(line, line[:1].expand(5, -1))
    odd = TextDecoder(IDS, 5, DecoderConfig(width=8), Layout(0, (2, 2))).prepare_memory(torch.randn(1, 4, 5))
    assert odd.shape == (1, 4, 5)


def test_several_texts_of_a_sample_equal_repeated_samples() -> None:
    built, (tokens, mask) = decoder(), memory(2)
    words, index = texts([1, 2], [3], [4, 5]), torch.tensor([1, 0, 1])
    assert torch.allclose(built(tokens, mask, words, index).logits, built(tokens[index], mask[index], words).logits)


def test_long_captions_are_cut_without_an_end() -> None:
    built = decoder(config=DecoderConfig(layers=1, heads=2, max_words=3))
    predicted = built(*memory(2), texts([1, 2, 3, 4, 5], [6, 7, 8]))
    assert predicted.targets.tolist() == [[1, 2, 3, IGNORED], [6, 7, 8, 11]]


def test_words_that_no_training_caption_has_are_neither_scored_nor_written() -> None:
    built = TextDecoder(IDS, WIDTH, SMALL).eval()
    built.add_words([2, 5])
    predicted = built(*memory(1), texts([2, 7, 5]))
    assert predicted.logits.shape[-1] == 4
    assert predicted.targets.tolist() == [[0, IGNORED, 1, 3]]
    loaded = TextDecoder(IDS, WIDTH, SMALL).eval()
    loaded.load_state_dict(built.state_dict())
    described = memory(1)
    assert torch.equal(loaded(*described, texts([2, 5])).logits, built(*described, texts([2, 5])).logits)
    drafts = built.write(*memory(3), options=GenerationOptions(sample=True, drafts=20))
    assert {word for draft in itertools.chain(*drafts) for word in draft.ids} <= {2, 5}


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    described, words = memory(2), texts([1, 2, 3], [4])
    built, gradients = decoder(), []
    for checkpointing in (False, True):
        built.checkpointing = checkpointing
        built.zero_grad()
        predicted = built(built.prepare_memory(described[0]), described[1], words)
        caption_loss(predicted.logits, predicted.targets).backward()
        gradients.append([p.grad.clone() for p in built.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(built.parameters()))
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_gradcheck() -> None:
    built = TextDecoder(
        TextIds(4, None, None), 4, DecoderConfig(layers=1, heads=2, dropout=0.0, word_dropout=0.0, max_words=4)
    ).double()
    built.add_words(range(4))
    words, mask = texts([1, 2], [3], ids=TextIds(4, None, None)), torch.tensor([[True, True], [True, False]])
    tokens = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: built(x, mask, words).logits, tokens)


def log_prob(built: TextDecoder, described: Any, text: list[int]) -> float:
    """Total log-probability of a text with its end, by teacher forcing; the start is never written."""
    predicted = built(*described, texts(text))
    logits = predicted.logits.index_fill(2, built.number[built.start], -math.inf)
    return float(logits.log_softmax(-1).gather(2, predicted.targets[..., None]).sum())


def test_generated_log_probabilities_equal_those_of_teacher_forcing() -> None:
    built = decoder()
    for options in (GenerationOptions(), GenerationOptions(beam=3, drafts=3), GenerationOptions(sample=True, drafts=4)):
        described = memory(1)
        for draft in built.write(*described, options=options)[0]:
            if len(draft.ids) < SMALL.max_words:
                total = log_prob(built, described, list(draft.ids))
                assert draft.log_prob == pytest.approx(total / (len(draft.ids) + 1), abs=1e-4)


def test_a_wide_beam_finds_the_best_of_all_texts() -> None:
    ids = TextIds(3, None, None)
    config = DecoderConfig(layers=1, heads=2, dropout=0.0, word_dropout=0.0, max_words=3)
    built = TextDecoder(ids, WIDTH, config).eval()
    built.add_words(range(3))
    described = memory(1)
    every = {}
    for length in range(3):
        for text in itertools.product(range(3), repeat=length):
            predicted = built(*described, texts(list(text), ids=ids))
            logits = predicted.logits.index_fill(2, built.number[built.start], -math.inf)
            every[text] = float(logits.log_softmax(-1).gather(2, predicted.targets[..., None]).mean())
    best = max(every, key=lambda text: every[text])
    options = GenerationOptions(beam=200, max_words=3, drafts=200)
    drafts = [draft for draft in built.write(*described, options=options)[0] if len(draft.ids) < 3]
    assert drafts[0].ids == best
    assert {draft.ids for draft in drafts} == set(every)


def test_generation_is_greedy_by_default_and_does_not_depend_on_the_batch() -> None:
    built, (tokens, mask) = decoder(), memory(4)
    for options in (GenerationOptions(), GenerationOptions(beam=3), GenerationOptions(sample=True, seed=5)):
        batched = built.write(tokens, mask, options=options)
        alone = [built.write(tokens[i : i + 1], mask[i : i + 1], options=options)[0] for i in range(4)]
        assert [[d.ids for d in drafts] for drafts in batched] == [[d.ids for d in drafts] for drafts in alone]
    sampled = [built.write(tokens, mask, options=GenerationOptions(sample=True, drafts=3, seed=s)) for s in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]
    single = built.write(tokens, mask, options=GenerationOptions(sample=True))
    assert all(draft[0] in drafts for draft, drafts in zip(single, sampled[0], strict=True))
    cold = built.write(tokens, mask, options=GenerationOptions(sample=True, temperature=1e-4))
    assert [d[0].ids for d in cold] == [d[0].ids for d in built.write(tokens, mask)]


@pytest.mark.parametrize("options", [GenerationOptions(max_words=3), GenerationOptions(beam=4, max_words=3)])
def test_prefixes_of_different_length_are_continued(options: GenerationOptions) -> None:
    built, (tokens, mask) = decoder(), memory(3)
    prefixes = [[1, 2, 3], [], [4]]
    batched = built.write(tokens, mask, prefixes, options)
    for i, prefix in enumerate(prefixes):
        alone = built.write(tokens[i : i + 1], mask[i : i + 1], [prefix], options)[0]
        assert [d.ids for d in batched[i]] == [d.ids for d in alone]
        assert all(len(draft.ids) <= 3 for draft in alone)
    with pytest.raises(ConfigError, match=r"too long for the decoder.*at most 7"):
        built.write(tokens[:1], mask[:1], [list(range(8))])


def model_of(gamma: float = 1.0, **text: Any) -> tuple[Any, Any]:
    side = TowerConfig(size=32, head_dropout=0.0)
    config = ModelConfig(
        width=32,
        image=side,
        text=TowerConfig(head_dropout=0.0, **text),
        decoder=DecoderConfig(dropout=0.0, word_dropout=0.0),
    )
    torch.manual_seed(0)
    return aligners.build(config, LossConfig(gamma=gamma), ("image", "text"))


def test_a_model_has_a_decoder_only_with_gamma_and_its_other_weights_are_the_same() -> None:
    with_decoder, without = model_of()[0], model_of(0.0)[0]
    assert without.decoder is None
    state = with_decoder.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in without.state_dict().items())
    assert {name.partition(".")[0] for name in state.keys() - without.state_dict().keys()} == {"decoder"}


def test_data_without_text_and_wrong_heads_are_refused_in_one_line() -> None:
    audio = {m: towers.build(TowerConfig(), m) for m in ("image", "audio")}
    with pytest.raises(ConfigError, match=r"captions cannot be learned without text.*image and audio.*--gamma 0"):
        aligners.Aligner(audio, ModelConfig(width=32), LossConfig(gamma=1.0))
    with pytest.raises(ConfigError, match=r"heads of the text decoder must divide"):
        TextDecoder(IDS, WIDTH, DecoderConfig(heads=3))


CAPTIONS = [
    "a red ball on a sofa",
    "an orange cat napping",
    "a dog left of a cat",
    "a cat left of a dog",
    "in the snow, a bird above a tree",
    "a fish",
    "a huge golden car next to a tiny green box",
    "a dog chasing a ball at night",
]


def test_eight_pictures_are_learned_by_heart_and_the_gradient_reaches_an_unlocked_tower() -> None:
    aligner, built = model_of()
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    tokenizer = built["text"].tokenizer
    encoded = tokenizer(CAPTIONS)
    words = Words(encoded["ids"], encoded["mask"])
    aligner.decoder.add_words(encoded["ids"][encoded["mask"]].unique())
    optimizer = torch.optim.AdamW(aligner.parameters(), lr=3e-3)
    for _ in range(120):
        features = aligner.encoder("image").features({"pixels": pixels})
        predicted = aligner.decoder(aligner.memory(features), features.mask, words)
        loss = caption_loss(predicted.logits, predicted.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tower = aligner.encoder("image").tower
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.stem.parameters())
    features = aligner.encoder("image").features({"pixels": pixels})
    for options in (GenerationOptions(), GenerationOptions(beam=4)):
        drafts = aligner.decoder.eval().write(aligner.memory(features), features.mask, options=options)
        assert [tokenizer.decode(d[0].ids) for d in drafts] == CAPTIONS


def test_tokenizers_of_every_family_declare_their_ids(tmp_path: Path) -> None:
    tiny = towers.build(TowerConfig(), "text").tokenizer
    assert tiny is not None
    ids = tiny.text_ids()
    encoded = tiny(["a dog, and a cat."])["ids"][0].tolist()
    assert (encoded[0], encoded[-1]) == (ids.start, ids.end) and max(encoded) < ids.count
    assert tiny.decode(encoded[1:-1]) == "a dog, and a cat."
