"""Round trips: a model is exported, loaded by the code of the library that the format is of, and compared with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer

from ccaco_cli.core.encoding.encode import EncodeOptions
from ccaco_cli.core.encoding.samples import encode_samples
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.pretrained import LoadedModel, open_model
from ccaco_cli.core.export.export import ExportedModel, ExportRequest, export_model
from ccaco_cli.core.export.formats import FORMATS
from ccaco_cli.core.export.onnx_folder import CLEANING
from ccaco_cli.core.export.same_vectors import images
from ccaco_cli.core.retrieval.query import CLEAN
from tests.pretrained_models import HF, LOGIT_BIAS, OPEN_CLIP, TEXTS, hf_folder, open_clip_folder

IMAGE_TEXT = [kind for kind in HF if not kind.startswith("clap")]
CLOSE = 1e-5
# libraries warn of their own future, and of architectures without weights
pytestmark = pytest.mark.filterwarnings("ignore")


def vectors(model: LoadedModel, modality: str, samples: Sequence[Any]) -> Tensor:
    return encode_samples(
        model.aligner, model.towers[modality], samples, local_tokens=False, options=EncodeOptions()
    ).z.float()


def same(model: LoadedModel, image: Any, text: Any) -> None:
    """Vectors of another library, of the images and texts of these tests, equal those of a model."""
    for modality, samples, exported in (("image", images(), image), ("text", TEXTS, text)):
        unit = F.normalize(torch.as_tensor(exported).detach().float(), dim=-1)
        torch.testing.assert_close(unit, vectors(model, modality, samples), rtol=0, atol=CLOSE)


def export(model: str | Path, name: str, out: Path) -> ExportedModel:
    return export_model(ExportRequest(model, name, out))


@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_open_clip_loads_what_was_exported(kind: str, tmp_path: Path) -> None:
    spec = f"open_clip:{open_clip_folder(tmp_path / 'start', kind)}"
    exported = export(spec, "open_clip", tmp_path / "out")
    ours = open_model(spec, "cpu")
    name = f"local-dir:{tmp_path / 'out'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    with torch.no_grad():
        image = model.encode_image(torch.stack([preprocess(sample) for sample in images()]))
        text = model.encode_text(tokenizer(TEXTS))
    same(ours, image, text)
    assert float(model.logit_scale.exp().detach()) == pytest.approx(float(ours.aligner.logit_scale()), rel=1e-6)
    bias = getattr(model, "logit_bias", None)
    assert (None if bias is None else float(bias)) == (LOGIT_BIAS if kind == "siglip" else None)
    assert exported.spec == f"open_clip:{tmp_path / 'out'}"
    equal_again(ours, exported)


@pytest.mark.parametrize("kind", IMAGE_TEXT)
def test_transformers_loads_what_was_exported(kind: str, tmp_path: Path) -> None:
    spec = f"hf:{hf_folder(tmp_path / 'start', kind)}"
    exported = export(spec, "transformers", tmp_path / "out")
    ours = open_model(spec, "cpu")
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    image = model.get_image_features(
        **AutoImageProcessor.from_pretrained(tmp_path / "out")(images(), return_tensors="pt")
    )
    same(ours, image.pooler_output, hf_texts(model, tmp_path / "out", padded=kind == "siglip"))
    bias = getattr(model, "logit_bias", None)
    assert (None if bias is None else float(bias.detach())) == (LOGIT_BIAS if kind == "siglip" else None)
    scale = 1 / float(model.temperature) if kind == "align" else float(model.logit_scale.exp())
    assert scale == pytest.approx(float(ours.aligner.logit_scale()), rel=1e-6)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    if hasattr(processor, "image_processor"):
        inputs = processor(images=images(), return_tensors="pt")
        image = model.get_image_features(pixel_values=inputs["pixel_values"])
        torch.testing.assert_close(
            F.normalize(image.pooler_output, dim=-1), vectors(ours, "image", images()), rtol=0, atol=CLOSE
        )
    equal_again(ours, exported)


def test_transformers_loads_a_model_of_sounds(tmp_path: Path) -> None:
    spec = f"hf:{hf_folder(tmp_path / 'start', 'clap')}"
    exported = export(spec, "transformers", tmp_path / "out")
    ours = open_model(spec, "cpu")
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    text = F.normalize(hf_texts(model, tmp_path / "out", padded=False), dim=-1)
    torch.testing.assert_close(text, vectors(ours, "text", TEXTS), rtol=0, atol=CLOSE)
    published = AutoModel.from_pretrained(tmp_path / "start").state_dict()
    state = model.state_dict()
    assert state.keys() == published.keys()
    assert all(torch.equal(state[name], published[name]) for name in state if not name.startswith("logit_scale"))
    assert float(model.logit_scale_a) == pytest.approx(float(published["logit_scale_a"]), rel=1e-6)
    again = open_model(exported.spec, "cpu")
    torch.testing.assert_close(vectors(again, "text", TEXTS), vectors(ours, "text", TEXTS), rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    ("family", "kind"),
    [*(("open_clip", kind) for kind in OPEN_CLIP), *(("hf", kind) for kind in IMAGE_TEXT)],
)
def test_onnx_runtime_gives_the_same_vectors(family: str, kind: str, tmp_path: Path) -> None:
    make = open_clip_folder if family == "open_clip" else hf_folder
    spec = f"{family}:{make(tmp_path / 'start', kind)}"
    assert export(spec, "onnx", tmp_path / "out").spec == ""
    ours = open_model(spec, "cpu")
    settings = json.loads((tmp_path / "out/preprocessing.json").read_text())
    same(ours, onnx_images(tmp_path / "out", settings), onnx_texts(tmp_path / "out", settings))
    assert settings["logit_scale"] == pytest.approx(float(ours.aligner.logit_scale()), rel=1e-6)
    assert settings["logit_bias"] == (LOGIT_BIAS if kind == "siglip" else None)
    assert settings["text"]["context_length"] == ours.towers["text"].tokens


def test_sentence_transformers_loads_what_was_exported(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    spec = f"hf:{hf_folder(tmp_path / 'start', 'clip')}"
    exported = export(spec, "sentence-transformers", tmp_path / "out")
    ours = open_model(spec, "cpu")
    model = library.SentenceTransformer(str(tmp_path / "out"), device="cpu", trust_remote_code=False)
    image, text = model.encode(images()), model.encode(TEXTS)
    same(ours, image, text)
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, atol=1e-5)
    equal_again(ours, exported)


def test_an_encoder_of_transformers_keeps_its_published_name(tmp_path: Path) -> None:
    """An exported folder holds the config of such an encoder, and open_clip takes it from the hub by its name."""
    start = open_clip_folder(tmp_path / "start", "hf-bert")
    first = export(f"open_clip:{start}", "open_clip", tmp_path / "first")
    export(first.spec, "open_clip", tmp_path / "second")
    names = [
        json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]["hf_model_name"]
        for folder in (start, tmp_path / "first", tmp_path / "second")
    ]
    assert len(set(names)) == 1


def test_modules_of_sentence_transformers_are_its_own(tmp_path: Path) -> None:
    export(f"hf:{hf_folder(tmp_path / 'start', 'clip')}", "sentence-transformers", tmp_path / "out")
    modules = json.loads((tmp_path / "out/modules.json").read_text())
    assert [module["type"].rpartition(".")[0] for module in modules] == ["sentence_transformers.models"] * 2
    assert not list((tmp_path / "out").rglob("*.py"))


def test_no_file_names_a_folder_of_this_machine(tmp_path: Path) -> None:
    for family, make, name in (
        ("open_clip", open_clip_folder, "open_clip"),
        ("hf", hf_folder, "sentence-transformers"),
        ("hf", hf_folder, "onnx"),
    ):
        out = tmp_path / f"out-{name}"
        export(f"{family}:{make(tmp_path / family)}", name, out)
        for file in out.rglob("*"):
            if file.is_file() and file.suffix in (".json", ".md"):
                assert str(tmp_path) not in file.read_text(), file


def test_every_way_to_clean_a_text_is_described() -> None:
    assert CLEANING.keys() == CLEAN.keys()


def test_formats_that_can_hold_a_model_are_named(tmp_path: Path) -> None:
    spec = f"hf:{hf_folder(tmp_path / 'start', 'siglip')}"
    with pytest.raises(DataError) as raised:
        export(spec, "sentence-transformers", tmp_path / "out")
    assert raised.value.what.startswith("the format sentence-transformers cannot hold this model: its stock modules")
    assert raised.value.expected == "a format that can: transformers | onnx"
    assert raised.value.next == "--export transformers"
    assert not (tmp_path / "out").exists()
    assert set(FORMATS) == {"open_clip", "transformers", "onnx", "sentence-transformers"}


def equal_again(ours: LoadedModel, exported: ExportedModel) -> None:
    """An exported model that is loaded by its SPEC equals the model that was exported."""
    again = open_model(exported.spec, "cpu")
    same(again, vectors(ours, "image", images()), vectors(ours, "text", TEXTS))
    assert float(again.aligner.logit_scale()) == pytest.approx(float(ours.aligner.logit_scale()), rel=1e-6)
    biases = [model.aligner.logit_bias for model in (ours, again)]
    assert [None if bias is None else float(bias) for bias in biases] in ([None, None], [LOGIT_BIAS, LOGIT_BIAS])


def hf_texts(model: Any, folder: Path, *, padded: bool) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding="max_length" if padded else True, truncation=True, return_tensors="pt")
    masked = {} if padded else {"attention_mask": inputs["attention_mask"]}
    with torch.no_grad():
        return model.get_text_features(input_ids=inputs["input_ids"], **masked).pooler_output  # type: ignore[no-any-return]


def onnx_images(folder: Path, settings: dict[str, Any]) -> Any:
    """What preprocessing.json says, with Pillow and numpy alone (a resized tensor needs torchvision)."""
    import onnxruntime
    from torchvision.transforms import v2

    image = settings["image"]
    rows = []
    for sample in images():
        pixels = sample.convert("RGB")
        width, height = pixels.size
        target = image["resize"]
        if len(target) == 1:
            target = [int(target[0] * max(1, height / width)), int(target[0] * max(1, width / height))]
        if image["resize_tensor"]:
            tensor = v2.functional.pil_to_tensor(pixels)
            array = v2.functional.resize(tensor, target, v2.InterpolationMode(image["interpolation"])).numpy()
            array = array.transpose(1, 2, 0)
        else:
            resampling = Image.Resampling[image["interpolation"].upper()]
            array = np.asarray(pixels.resize(target[::-1], resampling))
        excess = [side - crop for side, crop in zip(array.shape[:2], image["size"], strict=True)]
        top, left = (part // 2 if image["crop_down"] else round(part / 2) for part in excess)
        array = array[top : top + image["size"][0], left : left + image["size"][1]]
        rows.append(((array / 255 - image["mean"]) / image["std"]).transpose(2, 0, 1))
    session = onnxruntime.InferenceSession(str(folder / "image.onnx"), providers=["CPUExecutionProvider"])
    return session.run(["image_embeds"], {"pixel_values": np.stack(rows).astype(np.float32)})[0]


def onnx_texts(folder: Path, settings: dict[str, Any]) -> Any:
    import onnxruntime
    from tokenizers import Tokenizer

    text = settings["text"]
    tokenizer = Tokenizer.from_file(str(folder / text["tokenizer"]))
    ids = [tokenizer.encode(CLEAN[text["clean"]](sample)).ids for sample in TEXTS]
    length = max(text["pad_to"], *map(len, ids))
    padded = np.array([row + [text["pad_id"]] * (length - len(row)) for row in ids])
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    session = onnxruntime.InferenceSession(str(folder / "text.onnx"), providers=["CPUExecutionProvider"])
    return session.run(["text_embeds"], {"input_ids": padded, "attention_mask": mask})[0]
