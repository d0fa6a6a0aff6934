"""A pretrained dual encoder gives the embeddings of its own library, with its tokenizer and preprocessing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor

from ccaco_cli.core.config import LossConfig, ModelConfig, TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model.towers import build, dual_encoders, library_checks, open_clip_text
from ccaco_cli.core.model.towers.image_base import ImagePreprocess
from ccaco_cli.core.model.towers.tower import Tower
from tests.pretrained_models import (
    CONTEXT,
    HF,
    LOGIT_BIAS,
    LOGIT_SCALE,
    OPEN_CLIP,
    OPEN_CLIP_WEIGHTS,
    TEXTS,
    hf_folder,
    open_clip_folder,
)

LIMIT = 1e-5
SIZES = ((120, 80), (200, 301), (64, 64), (30, 20), (400, 90), (77, 75), (150, 64))
IMAGE_TEXT = [kind for kind in HF if not kind.startswith("clap")]


@dataclass
class Library:
    """Normalised embeddings of a library's own code, and its scale and bias."""

    images: Callable[[list[Any]], Tensor]
    texts: Callable[[list[str]], Tensor]
    scale: float
    bias: float | None


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    coarse = [generator.integers(0, 256, (side // 8 + 2, side // 8 + 2, 3), dtype=np.uint8) for side, _ in SIZES]
    return [Image.fromarray(c).resize(size, Image.Resampling.BICUBIC) for c, size in zip(coarse, SIZES, strict=True)]


def open_clip_library(folder: Path) -> Library:
    logging.disable(logging.WARNING)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    logging.disable(logging.NOTSET)
    model.eval()
    bias = None if model.logit_bias is None else float(model.logit_bias)
    return Library(
        lambda images: model.encode_image(torch.stack([transform(image) for image in images]), normalize=True),
        lambda texts: model.encode_text(tokenizer(texts), normalize=True),
        float(model.logit_scale.exp()),
        bias,
    )


def hf_library(folder: Path, kind: str) -> Library:
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    audio = kind.startswith("clap")
    processor = (transformers.AutoFeatureExtractor if audio else transformers.AutoImageProcessor).from_pretrained(
        folder
    )

    def images(samples: list[Any]) -> Tensor:
        if audio:
            inputs = processor(samples, sampling_rate=48_000, return_tensors="pt")
            inputs["is_longer"] = torch.zeros(len(samples), 1, dtype=torch.bool)  # the fused extractor draws one
            return F.normalize(model.get_audio_features(**inputs).pooler_output, dim=-1)
        return F.normalize(model.get_image_features(**processor(samples, return_tensors="pt")).pooler_output, dim=-1)

    def texts(captions: list[str]) -> Tensor:
        padding = "max_length" if kind == "siglip" else True
        inputs = tokenizer(captions, padding=padding, truncation=True, max_length=CONTEXT, return_tensors="pt")
        names = ("input_ids",) if kind == "siglip" else ("input_ids", "attention_mask")
        return F.normalize(model.get_text_features(**{name: inputs[name] for name in names}).pooler_output, dim=-1)

    scale = 1 / float(model.temperature) if hasattr(model, "temperature") else None
    log_scale = getattr(model, "logit_scale_a", None) if audio else getattr(model, "logit_scale", None)
    bias = getattr(model, "logit_bias", None)
    return Library(images, texts, scale or float(log_scale.exp()), None if bias is None else float(bias))  # type: ignore[union-attr]


def load(
    spec: str, modalities: tuple[str, str] = ("image", "text"), **settings: Any
) -> tuple[aligners.Aligner, dict[str, Tower]]:
    towers = {m: TowerConfig(spec=spec, head="pretrained", **settings) for m in modalities}
    aligner, built = aligners.build(ModelConfig(spec=spec, **towers), LossConfig(), modalities)
    return aligner.eval(), built


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def trimmed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Token ids as the loader cuts them to the longest text of a batch."""
    longest = int(inputs["mask"].any(0).nonzero().max()) + 1
    return {name: inputs[name][:, :longest] for name in ("ids", "mask")}


def check(aligner: aligners.Aligner, towers: dict[str, Tower], library: Library, samples: list[Any]) -> None:
    """Both sides, every cosine, every logit and single texts equal those of the library."""
    first = aligner.modalities[0]
    inputs = MODALITIES[first].collate([towers[first].preprocess(sample) for sample in samples])
    if first == "image":
        inputs = {"pixels": torch.stack([towers[first].preprocess(sample) for sample in samples])}
    embedding, features = aligner.encode(first, inputs)
    texts, text_features = aligner.encode("text", towers["text"].preprocess(TEXTS))
    raw = [getattr(sample, "wave", sample) for sample in samples]
    expected_first, expected_texts = library.images(raw), library.texts(TEXTS)
    assert expected_texts[0] @ expected_texts[1] < 0.999, "these texts could be mixed up"
    torch.testing.assert_close(embedding.z, expected_first, atol=LIMIT, rtol=0)
    torch.testing.assert_close(texts.z, expected_texts, atol=LIMIT, rtol=0)
    torch.testing.assert_close(embedding.z @ texts.z.T, expected_first @ expected_texts.T, atol=LIMIT, rtol=0)
    for row, text in enumerate(TEXTS):  # alone, and so with other padding than in the batch
        alone, _ = aligner.encode("text", trimmed(towers["text"].preprocess([text])))
        torch.testing.assert_close(alone.z[0], expected_texts[row], atol=LIMIT, rtol=0)
    assert float(aligner.logit_scale()) == pytest.approx(library.scale, rel=1e-6)
    assert (None if aligner.logit_bias is None else float(aligner.logit_bias)) == library.bias
    for result, modality in ((features, first), (text_features, "text")):
        assert result.tokens.shape[2] == towers[modality].width and result.tokens.isfinite().all()


@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_open_clip(kind: str, tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path / kind, kind)
    library = open_clip_library(folder)
    check(*load(f"open_clip:{folder}"), library, pictures())
    assert library.scale == pytest.approx(np.exp(LOGIT_SCALE), rel=1e-6)
    assert library.bias == (LOGIT_BIAS if kind == "siglip" else None)


def test_open_clip_weights_by_file(tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path / "vit")
    check(*load(f"open_clip:{folder}@{folder / OPEN_CLIP_WEIGHTS}"), open_clip_library(folder), pictures())


@pytest.mark.parametrize("kind", IMAGE_TEXT)
def test_transformers(kind: str, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / kind, kind)
    check(*load(f"hf:{folder}"), hf_library(folder, kind), pictures())


class Wave:
    """A recording that is decoded."""

    def __init__(self, seconds: float):
        self.wave = (
            np.random.default_rng(round(100 * seconds)).normal(0, 0.2, round(48_000 * seconds)).astype(np.float32)
        )

    def samples(self, rate: int, seconds: float) -> Any:
        assert rate == 48_000
        return self.wave[: round(rate * seconds)]


@pytest.mark.parametrize("kind", ["clap", "clap-fusion"])
def test_clap_on_clips_up_to_its_length(kind: str, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / kind, kind)
    waves = [Wave(seconds) for seconds in (1.0, 0.7, 0.15, 0.2)]
    check(*load(f"hf:{folder}", ("audio", "text")), hf_library(folder, kind), waves)


def test_a_longer_clip_is_cut_at_its_start_and_not_at_random(tmp_path: Path) -> None:
    _, towers = load(f"hf:{hf_folder(tmp_path / 'clap', 'clap')}", ("audio", "text"))
    long, short = Wave(1.7), Wave(1.0)
    short.wave = long.wave[:48_000]
    first, second = (towers["audio"].preprocess(wave) for wave in (long, short))
    assert torch.equal(first, second) and first.dtype == torch.float32


@pytest.mark.parametrize("family", ["open_clip", "hf"])
def test_another_image_size_is_the_library_s(family: str, tmp_path: Path) -> None:
    size = 48
    if family == "open_clip":
        folder = open_clip_folder(tmp_path / "m")
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", force_image_size=size)
        expected = model.eval().encode_image(torch.stack([transform(image) for image in pictures()]), normalize=True)
    else:
        folder = hf_folder(tmp_path / "m", "clip")
        model = transformers.AutoModel.from_pretrained(folder).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        pixels = processor(
            pictures(), size={"shortest_edge": size}, crop_size={"height": size, "width": size}, return_tensors="pt"
        )
        output = model.get_image_features(**pixels, interpolate_pos_encoding=True)
        expected = F.normalize(output.pooler_output, dim=-1)
    tower = build(TowerConfig(f"{family}:{folder}", head="pretrained", size=size), "image")
    pooled = tower.module.eval()({"pixels": torch.stack([tower.preprocess(image) for image in pictures()])}).pooled
    torch.testing.assert_close(F.normalize(pooled, dim=-1), expected, atol=LIMIT, rtol=0)


@pytest.mark.parametrize("kind", ["vit", "hf-bert"])
def test_a_shorter_context_only_cuts_texts(kind: str, tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path / "m", kind)
    expected = open_clip_library(folder).texts(TEXTS)
    tower = build(TowerConfig(f"open_clip:{folder}", head="pretrained", context_length=12), "text")
    inputs = tower.preprocess(TEXTS)
    assert tower.tokens == 12 and inputs["cut"].tolist() == [False, True, False, False, False]
    pooled = F.normalize(tower.module.eval()({k: inputs[k] for k in ("ids", "mask")}).pooled, dim=-1)
    torch.testing.assert_close(pooled[~inputs["cut"]], expected[~inputs["cut"]], atol=LIMIT, rtol=0)


@pytest.mark.parametrize(
    ("kind", "modality", "settings", "message"),
    [
        ("vit", "text", {"context_length": 40}, r"at most 20 tokens.*context_length = 40"),
        ("siglip", "text", {"context_length": 8}, r"padded to 16 tokens.*expected 0 or 16"),
        ("vit", "image", {"tiles": "2x2"}, r"not in tiles.*leave out --tile"),
    ],
)
def test_settings_that_would_change_the_embeddings_are_refused(
    kind: str, modality: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    spec = f"open_clip:{open_clip_folder(tmp_path / 'm', kind)}"
    with pytest.raises(TowerError, match=message):
        build(TowerConfig(spec, head="pretrained", **settings), modality)


@pytest.mark.parametrize("kind", ["siglip", "hf-bert", "vit"])
def test_saved_assets_rebuild_both_sides_without_the_first_folder(kind: str, tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path / "first", kind)
    _, towers = load(f"open_clip:{folder}")
    expected = open_clip_library(folder)
    specs = {m: tower.save_assets(tmp_path / "assets" / m) for m, tower in towers.items()}
    folder.rename(tmp_path / "away")
    (tmp_path / "assets").rename(tmp_path / "moved")
    samples = {"image": pictures(), "text": TEXTS}
    for modality, spec in specs.items():
        tower = build(TowerConfig(spec.replace("/assets/", "/moved/"), head="pretrained"), modality)
        tower.module.load_state_dict(towers[modality].module.state_dict())
        if modality == "image":
            inputs = {"pixels": torch.stack([tower.preprocess(image) for image in samples["image"]])}
        else:
            inputs = {k: v for k, v in tower.preprocess(TEXTS).items() if k != "cut"}
        z = F.normalize(tower.module.eval()(inputs).pooled, dim=-1)
        wanted = expected.images(pictures()) if modality == "image" else expected.texts(TEXTS)
        torch.testing.assert_close(z, wanted, atol=LIMIT, rtol=0)


@pytest.mark.parametrize("kind", ["vit", "siglip"])
@pytest.mark.parametrize("head", ["pretrained", "adapter"])
def test_the_cache_of_locked_towers_keeps_the_embeddings(kind: str, head: str, tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path / "m", kind)
    spec, library = f"open_clip:{folder}", open_clip_library(folder)
    towers = {m: TowerConfig(spec=spec, head=head, lock=True, cache_tokens=1) for m in ("image", "text")}
    aligner, built = aligners.build(ModelConfig(spec=spec, **towers), LossConfig(), ("image", "text"))
    aligner.eval()
    features = aligner.encoder("image").features(
        {"pixels": torch.stack([built["image"].preprocess(image) for image in pictures()])}
    )
    assert features.tokens.dtype == torch.float16 and features.pooled.dtype == torch.float32
    embedding, _ = aligner.encode("image", features)
    torch.testing.assert_close(embedding.z, library.images(pictures()), atol=LIMIT, rtol=0)


def test_both_sides_come_from_one_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"open_clip": open_clip_folder(tmp_path / "o"), "hf": hf_folder(tmp_path / "h")}
    loads: list[str] = []
    for owner, name in ((open_clip, "create_model"), (transformers.AutoModel, "from_pretrained")):
        original = getattr(owner, name)

        def counted(*arguments: Any, _original: Any = original, _name: str = name, **options: Any) -> Any:
            loads.append(_name)
            return _original(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)
    for family, folder in folders.items():
        load(f"{family}:{folder}")
    assert loads == ["create_model", "from_pretrained"]


# Mutations: each is a way to be silently wrong, and each turns the checks above red.


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Turns off the comparison at build time, so that ``check`` has to notice by itself."""
    monkeypatch.setattr(library_checks, "LIMIT", np.inf)
    monkeypatch.setattr(library_checks, "PIXEL_LIMIT", np.inf)
    return monkeypatch


def assert_red(spec: str, library: Library) -> None:
    aligner, towers = load(spec)
    with pytest.raises(AssertionError):
        check(aligner, towers, library, pictures())


def change_preprocess(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    original = ImagePreprocess.__init__

    def changed(self: ImagePreprocess, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        for name, value in changes.items():
            object.__setattr__(self, name, value)

    monkeypatch.setattr(ImagePreprocess, "__init__", changed)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("vit", {"interpolation": "bilinear"}),
        ("vit", {"crop_down": True}),
        ("vit", {"resize": (32, 32)}),
        ("clip", {"interpolation": "bilinear"}),
        ("clip", {"resize_tensor": False}),
        ("clip", {"crop_down": False}),
    ],
)
def test_another_resize_is_noticed(
    kind: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "vit":
        folder = open_clip_folder(tmp_path / "m", kind)
        spec, library = f"open_clip:{folder}", open_clip_library(folder)
    else:
        folder = hf_folder(tmp_path / "m", kind)
        spec, library = f"hf:{folder}", hf_library(folder, kind)
    change_preprocess(monkeypatch, **changes)
    if "resize_tensor" not in changes:  # of a level or less: below the limit of the comparison at build time
        with pytest.raises(TowerError, match="gives other results here than in its own library"):
            load(spec)
    monkeypatch.setattr(library_checks, "LIMIT", np.inf)
    monkeypatch.setattr(library_checks, "PIXEL_LIMIT", np.inf)
    assert_red(spec, library)


def test_forgotten_scale_and_bias_are_noticed(tmp_path: Path, unchecked: pytest.MonkeyPatch) -> None:
    folder = open_clip_folder(tmp_path / "m", "siglip")
    spec, library = f"open_clip:{folder}", open_clip_library(folder)
    original = aligners._joint_space
    for scale, bias in ((library.scale, None), (library.scale, 0.0), (1 / 0.07, LOGIT_BIAS)):
        unchecked.setattr(
            aligners, "_joint_space", lambda *a, s=scale, b=bias: type(original(*a))(original(*a).size, s, b)
        )
        assert_red(spec, library)


def test_swapped_projections_are_noticed(tmp_path: Path, unchecked: pytest.MonkeyPatch) -> None:
    folder = hf_folder(tmp_path / "m", "vision-text-dual-encoder")
    library = hf_library(folder, "vision-text-dual-encoder")
    aligner, towers = load(f"hf:{folder}")
    image, text = (towers[m].module.body for m in ("image", "text"))
    shared = min(image.visual_projection.weight.shape[1], text.text_projection.weight.shape[1])
    swapped = text.text_projection.weight[:, :shared].clone()
    text.text_projection.weight[:, :shared] = image.visual_projection.weight[:, :shared]
    image.visual_projection.weight[:, :shared] = swapped
    with pytest.raises(AssertionError):
        check(aligner, towers, library, pictures())


def test_missing_quick_gelu_is_noticed(tmp_path: Path, unchecked: pytest.MonkeyPatch) -> None:
    folder = open_clip_folder(tmp_path / "m", "vit-quick-avg")
    library, original = open_clip_library(folder), open_clip.create_model

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        options["force_quick_gelu"] = False
        return original(name, *arguments, quick_gelu=False, **options)

    unchecked.setattr(open_clip, "create_model", without)
    assert_red(f"open_clip:{folder}", library)


@pytest.mark.parametrize("change", ["hidden padding", "short padding", "no end of text"])
def test_masked_padding_of_siglip_is_noticed(change: str, tmp_path: Path, unchecked: pytest.MonkeyPatch) -> None:
    folder = open_clip_folder(tmp_path / "m", "siglip")
    library, original = open_clip_library(folder), open_clip_text.TextModule.__init__

    def changed(self: Any, text: Any, **options: Any) -> None:
        if change == "hidden padding":
            options["hide_padding"] = True
        original(self, text, **options)
        if change == "short padding":
            self.pad_id = None

    if change == "no end of text":
        encode = open_clip_text.ClipTokens._encode_hub

        def without_end(self: Any, texts: list[str]) -> Any:
            longer = self.tokenizer(texts, self.context_length + 1)[:, :-1]
            return longer, *encode(self, texts)[1:]

        unchecked.setattr(open_clip_text.ClipTokens, "_encode_hub", without_end)
    unchecked.setattr(open_clip_text.TextModule, "__init__", changed)
    with pytest.raises((AssertionError, TowerError)):  # short padding is refused when the tower is built
        check(*load(f"open_clip:{folder}"), library, pictures())


def test_every_family_is_tested() -> None:
    assert set(dual_encoders.DUAL_ENCODERS) == {kind for kind in HF if kind != "clap-fusion"}
