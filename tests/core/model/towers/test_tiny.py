"""The tiny towers: deterministic, deaf to padding, able to learn who is where."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.model.towers import build
from ccaco_cli.core.model.towers.tiny import WordConvolutions
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval.explain import content_word_spans
from tests.towers import check_reduced_precision

TEXTS = ["a dog", "an orange cat napping on a sofa! wow!!", "a very " + "very " * 60 + "long caption"]


@pytest.fixture(scope="module")
def text() -> Tower:
    torch.manual_seed(0)
    tower = build(TowerConfig("tiny"), "text")
    tower.module.eval()
    return tower


def pixels(seed: int, size: int = 64, count: int = 4) -> dict[str, torch.Tensor]:
    pictures = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return {"pixels": pictures}


def test_words_know_their_tokens(text: Tower) -> None:
    tokens = text.tokenizer.token_spans("An orange xylophonist, napping!")  # type: ignore[union-attr]
    assert tokens.text == "an orange xylophonist, napping!"
    length = int(text.preprocess(["An orange xylophonist, napping!"])["mask"].sum())
    assert [position for position, _, _ in tokens.spans] == list(range(1, length - 1))
    assert "".join(tokens.text[start:end] for _, start, end in tokens.spans) == tokens.text.replace(" ", "")
    spans = content_word_spans(text, "An orange xylophonist, napping!")
    assert [word for word, _ in spans] == ["orange", "xylophonist", "napping"] and len(spans[1][1]) > 1


@pytest.mark.parametrize("caption", ["一只橘猫在沙发上打盹", "cafe\u0301 नमस्ते", "🐱 und 👨‍👩‍👧"])
def test_a_token_that_is_part_of_a_character_belongs_to_it(text: Tower, caption: str) -> None:
    tokens = text.tokenizer.token_spans(caption)  # type: ignore[union-attr]
    covered = {place for _, start, end in tokens.spans for place in range(start, end)}
    assert covered == {place for place, character in enumerate(tokens.text) if not character.isspace()}
    assert all(end == start + 1 or tokens.text[start:end].strip() for _, start, end in tokens.spans)
    shown = {position for _, positions in content_word_spans(text, caption) for position in positions}
    assert shown <= {position for position, _, _ in tokens.spans}


@pytest.mark.parametrize(
    ("spec", "size", "grid", "extra"),
    [("tiny", 0, (4, 4), 0), ("tiny", 96, (6, 6), 0), ("tiny:hybrid", 48, (3, 3), 0), ("tiny:vit", 64, (8, 8), 1)],
)
def test_image_tower(spec: str, size: int, grid: tuple[int, int], extra: int) -> None:
    torch.manual_seed(0)
    tower = build(TowerConfig(spec, size=size), "image")
    features = tower.module(pixels(1, size or 64))
    assert tower.grid == grid and tower.tokens == grid[0] * grid[1] + extra
    assert features.tokens.shape == (4, tower.tokens, tower.width) and features.pooled.shape == (4, tower.width)
    assert features.mask.dtype == torch.bool and features.mask.all()
    assert features.tokens.isfinite().all() and not tower.pretrained
    assert tower.preprocess(Image.new("L", (90, 70))).shape == (3, size or 64, size or 64)
    assert tower.save_assets(Path("nowhere")) == spec
    check_reduced_precision(tower, pixels(1, size or 64))


@pytest.mark.parametrize(("spec", "modality"), [("tiny", "image"), ("tiny:vit", "image"), ("tiny", "text")])
def test_one_seed_one_tower(spec: str, modality: str) -> None:
    built = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        built.append(build(TowerConfig(spec), modality))
    assert built[0].fingerprint == built[1].fingerprint != built[2].fingerprint
    for a, b in zip(built[0].module.parameters(), built[1].module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_size_and_context_change_the_fingerprint() -> None:
    torch.manual_seed(0)
    a = build(TowerConfig("tiny"), "text").preprocess
    torch.manual_seed(0)
    b = build(TowerConfig("tiny", context_length=16), "text").preprocess
    assert repr(a) != repr(b)


def test_text_inputs(text: Tower) -> None:
    encoded = pickle.loads(pickle.dumps(text.preprocess))(TEXTS)
    assert encoded["ids"].dtype == torch.int64 and encoded["mask"].dtype == torch.bool
    assert encoded["ids"].shape == encoded["mask"].shape == (3, 48)
    assert encoded["mask"].sum(1).tolist() == [4, 12, 48]
    assert text.preprocess(TEXTS[:1])["ids"].shape == (1, 4)
    assert text.preprocess([""])["mask"].tolist() == [[True, True]]
    check_reduced_precision(text, encoded)


def test_exclamation_marks_are_words_and_not_padding(text: Tower) -> None:
    assert text.preprocess(["a dog ! ! !"])["mask"].sum() == 7
    with torch.no_grad():
        plain, loud = (text.module(text.preprocess([t])).pooled for t in ("a dog", "a dog !"))
    assert not torch.allclose(plain, loud, atol=1e-3)


def test_padding_changes_nothing(text: Tower) -> None:
    with torch.no_grad():
        batched = text.module(text.preprocess(TEXTS))
        for row, caption in enumerate(TEXTS):
            alone = text.module(text.preprocess([caption]))
            torch.testing.assert_close(batched.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                batched.tokens[row, : alone.tokens.shape[1]], alone.tokens[0], atol=1e-5, rtol=1e-5
            )


def test_word_order_matters_to_pooled(text: Tower) -> None:
    with torch.no_grad():
        pooled = text.module(text.preprocess(["a dog chasing a ball", "a ball chasing a dog"])).pooled
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3


@pytest.mark.parametrize("spec", ["tiny", "tiny:hybrid", "tiny:vit"])
def test_positions_reach_the_pooled_vector(spec: str) -> None:
    """A thing moved within a picture changes the mean of the tokens more with learned positions than with the same one
    everywhere."""
    torch.manual_seed(0)
    module = build(TowerConfig(spec), "image").module.eval()
    picture = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    picture[0, :, 16:32, 16:32] = picture[1, :, 32:48, 32:48] = 255

    def change() -> float:
        with torch.no_grad():
            mean_token = module({"pixels": picture}).tokens.mean(1)
        return float((mean_token[0] - mean_token[1]).norm())

    for block in module.modules():  # blocks start as the identity; let them do something
        if hasattr(block, "bn3"):
            torch.nn.init.ones_(block.bn3.weight)  # type: ignore[union-attr, arg-type]
    learned = change()
    position = next(p for n, p in module.named_parameters() if n.endswith("positional_embedding"))
    with torch.no_grad():
        position.zero_()
    assert learned > change() + 1e-3


def test_building_leaves_running_statistics_alone() -> None:
    state = build(TowerConfig("tiny"), "image").module.state_dict()
    tracked = [v for k, v in state.items() if k.endswith("num_batches_tracked")]
    assert tracked and all(v == 0 for v in tracked)


@pytest.mark.parametrize(("spec", "modality"), [("tiny", "image"), ("tiny:hybrid", "image"), ("tiny", "text")])
def test_every_parameter_learns_and_checkpointing_changes_nothing(spec: str, modality: str) -> None:
    torch.manual_seed(0)
    tower = build(TowerConfig(spec), modality)
    inputs = pixels(2) if modality == "image" else tower.preprocess(TEXTS[:2])
    grads = []
    for on in (False, True):
        tower.module.zero_grad()
        tower.module.set_grad_checkpointing(on)  # type: ignore[operator]
        tower.module(inputs).tokens[..., ::2].square().sum().backward()
        grads.append([p.grad.clone() for p in tower.module.parameters() if p.grad is not None])
    assert len(grads[0]) == len(list(tower.module.parameters()))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_words_take_in_their_neighbours_and_padding_is_none() -> None:
    torch.manual_seed(0)
    module = WordConvolutions(8, (3, 5)).eval()
    states = torch.randn(1, 12, 8)
    mask = torch.arange(12)[None] < 9
    plain = module(states, mask)
    other = states.clone()
    other[0, 4] = torch.randn(8)
    assert (module(other, mask) != plain).any(2).nonzero()[:, 1].tolist() == [1, 2, 3, 4, 5, 6, 7], (
        "windows of three and five words reach three words away"
    )
    other = states.clone()
    other[0, 9:] = 100
    torch.testing.assert_close(module(other, mask)[:, :9], plain[:, :9])
    torch.testing.assert_close(module(states[:, :9], mask[:, :9]), plain[:, :9])
