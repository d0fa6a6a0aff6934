from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F

from ccaco_cli.core.config_io import override
from ccaco_cli.core.errors import CcacoError, ConfigError, DataError
from ccaco_cli.core.experiments.pretrained import open_model
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.export import export as exporting
from ccaco_cli.core.export import hub, open_clip_folder
from ccaco_cli.core.export.export import ExportRequest, export_model, notes
from ccaco_cli.core.export.same_vectors import images
from ccaco_cli.core.model.aligner import build as build_aligner
from ccaco_cli.core.training import loop
from ccaco_cli.core.workflows.train import train
from tests.pretrained_models import TEXTS
from tests.pretrained_models import open_clip_folder as small_open_clip

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_open_clip(tmp_path_factory.mktemp("start") / "small")


@pytest.fixture(scope="module")
def tuned(start: Path, small: dict[str, Any], data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained from a pretrained model, all of it, with a cross branch, and far enough to differ."""
    settings = {key: value for key, value in small.items() if not key.startswith("model.image")}
    settings |= {"model.spec": f"open_clip:{start}", "optim.lr": 1e-3, "optim.warmup": 0.0}
    for side in ("model.image", "model.text"):
        settings |= {f"{side}.head": "pretrained", f"{side}.lock": False}
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    with pytest.MonkeyPatch.context() as patch:  # the start could win on this little data
        patch.setattr(loop.Trainer, "validate_start", lambda training: training.state.start_clock())
        train(TrainRequest("scenes", explicit=settings), folder, data_root=data_root)
    return folder


def open_clip_vectors(folder: Path) -> tuple[Any, Any, Any]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        image = model.eval().encode_image(torch.stack([preprocess(sample) for sample in images()]), normalize=True)
        return model, image, model.encode_text(tokenizer(TEXTS), normalize=True)


def test_a_fine_tuned_run_gives_its_own_vectors(tuned: Path, start: Path, tmp_path: Path) -> None:
    exported = export_model(ExportRequest(tuned, "open_clip", tmp_path / "out"))
    model, image, text = open_clip_vectors(tmp_path / "out")
    ours = open_model(tuned, "cpu")
    for modality, samples, vectors in (("image", images(), image), ("text", TEXTS, text)):
        tower = ours.towers[modality]
        batch = tower.preprocess(samples) if modality == "text" else pixels(tower, samples)
        with torch.no_grad():
            z = ours.aligner.encode(modality, batch)[0].z
        torch.testing.assert_close(vectors, z, rtol=0, atol=1e-5)
    assert float(model.logit_scale.exp()) == pytest.approx(float(ours.aligner.logit_scale()), rel=1e-6)
    assert exported.has_cross_branch
    _, image_before, text_before = open_clip_vectors(start)
    changed = [float((after - before).abs().max()) for after, before in ((image, image_before), (text, text_before))]
    assert all(change > 1e-3 for change in changed)


def pixels(tower: Any, samples: Any) -> Any:
    return {"pixels": torch.stack([tower.preprocess(sample) for sample in samples])}


def test_a_run_with_new_heads_goes_to_onnx_only(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        export_model(ExportRequest(run, "transformers", tmp_path / "out"))
    assert "its image tower is of the family tiny" in raised.value.what
    assert (raised.value.expected, raised.value.next) == ("a format that can: onnx", "--export onnx")
    assert not list(tmp_path.iterdir())
    exported = export_model(ExportRequest(run, "onnx", tmp_path / "out"))
    assert exported.difference < 1e-5


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model.image.head": "new", "model.text.head": "new"}, "its image side has a new head"),
        ({"model.image.head": "adapter"}, "its image side has an adapter"),
        ({"loss.alpha": 0.0}, "it was trained without the contrastive half (loss.alpha = 0)"),
        ({"model.image.tiles": "2x2"}, "it encodes large images in tiles"),
    ],
)
def test_what_a_dual_encoder_cannot_hold(
    settings: dict[str, Any], reason: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(f"open_clip:{start}", "cpu")
    model = model._replace(config=override(model.config, settings))
    monkeypatch.setattr(exporting, "open_model", lambda *arguments: model)
    with pytest.raises(DataError) as raised:
        export_model(ExportRequest("x", "open_clip", tmp_path / "out"))
    assert reason in raised.value.what
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["image", "text", "logit_scale"])
def test_an_export_that_differs_is_refused_and_leaves_nothing(
    part: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutations of the exporter: the weights of a projection, and the scale."""
    save = open_clip_folder.save_weights
    names = {"image": "visual.proj", "text": "text_projection", "logit_scale": "logit_scale"}

    def damaged(path: Path, model: Any, **options: Any) -> None:
        with torch.no_grad():
            model.get_parameter(names[part]).mul_(1.01).add_(0.01)
        save(path, model, **options)

    monkeypatch.setattr(open_clip_folder, "save_weights", damaged)
    with pytest.raises(DataError) as raised:
        export_model(ExportRequest(f"open_clip:{start}", "open_clip", tmp_path / "out"))
    assert f"the exported model differs from this model ({part.replace('_', ' ')} by" in raised.value.what
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(
    error: BaseException, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(open_clip_folder, "save_weights", fail)
    with pytest.raises(type(error)):
        export_model(ExportRequest(f"open_clip:{start}", "open_clip", tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_has_left_is_replaced(start: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp/old").touch()
    export_model(ExportRequest(f"open_clip:{start}", "open_clip", tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out/old").exists()


def test_a_folder_that_exists_is_refused(start: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="something is there already"):
        export_model(ExportRequest(f"open_clip:{start}", "open_clip", tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"format": "keras"}, "open_clip | transformers | onnx | sentence-transformers"),
        ({"license": "do as you like"}, "no identifier of a licence"),
        ({"repository": "a/b/c"}, "no name of a repository"),
    ],
)
def test_bad_requests(more: dict[str, str], words: str, tmp_path: Path) -> None:
    request = {"model": "open_clip:gone", "format": "onnx", "out": tmp_path / "out"} | more
    with pytest.raises(ConfigError) as raised:
        export_model(ExportRequest(**request))  # type: ignore[arg-type]
    assert words in str(raised.value)
    assert not list(tmp_path.iterdir())


class FakeApi:
    """Records what a hub is asked to do."""

    calls: list[tuple[str, Any]]
    refuse: str = ""

    def __getattr__(self, name: str) -> Callable[..., str]:
        def call(*arguments: Any, **options: Any) -> str:
            if name == self.refuse:
                raise PermissionError(f"403 Forbidden: no rights to {name}.\nmore lines")
            type(self).calls.append((name, arguments or options))
            return "https://hub.example/me/small"

        return call


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    FakeApi.calls, FakeApi.refuse = [], ""
    monkeypatch.setattr(hub.huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(hub, "is_reachable", lambda endpoint: True)
    return FakeApi


def test_an_export_is_uploaded_with_its_card(start: Path, tmp_path: Path, fake_hub: type[FakeApi]) -> None:
    request = ExportRequest(f"open_clip:{start}", "open_clip", tmp_path / "out", "apache-2.0", "me/small")
    exported = export_model(request)
    assert [name for name, _ in fake_hub.calls] == ["whoami", "create_repo", "upload_folder"]
    assert fake_hub.calls[2][1]["repo_id"] == "me/small"
    assert fake_hub.calls[2][1]["folder_path"] == tmp_path / "out"
    card = (tmp_path / "out/README.md").read_text()
    assert 'license: "apache-2.0"' in card
    assert 'create_model_and_transforms("hf-hub:me/small")' in card
    assert "uploaded: https://hub.example/me/small" in notes(exported, request)


def test_a_hub_out_of_reach_is_one_line_before_anything_is_written(
    start: Path, tmp_path: Path, fake_hub: type[FakeApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "is_reachable", lambda endpoint: False)
    with pytest.raises(DataError) as raised:
        export_model(ExportRequest(f"open_clip:{start}", "onnx", tmp_path / "out", repository="me/small"))
    assert raised.value.what == "the hub cannot be reached"
    assert "\n" not in str(raised.value)
    assert not fake_hub.calls and not list(tmp_path.iterdir())


def test_no_token_is_one_line_before_anything_is_written(start: Path, tmp_path: Path, fake_hub: type[FakeApi]) -> None:
    fake_hub.refuse = "whoami"
    with pytest.raises(DataError) as raised:
        export_model(ExportRequest(f"open_clip:{start}", "onnx", tmp_path / "out", repository="me/small"))
    assert (raised.value.expected, raised.value.next) == (
        "a token that may write",
        "hf auth login, then the same command",
    )
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_an_upload_that_fails_keeps_the_export(start: Path, tmp_path: Path, fake_hub: type[FakeApi]) -> None:
    fake_hub.refuse = "upload_folder"
    with pytest.raises(CcacoError) as raised:
        export_model(ExportRequest(f"open_clip:{start}", "open_clip", tmp_path / "out", repository="me/small"))
    assert raised.value.what.startswith("the folder is exported, but not uploaded (403 Forbidden: no rights to upload")
    assert raised.value.next == f"hf upload me/small {tmp_path / 'out'}"
    assert (tmp_path / "out/open_clip_model.safetensors").exists()


def test_a_learned_bias_is_exported_where_the_format_has_one(start: Path, tmp_path: Path) -> None:
    model = open_model(f"open_clip:{start}", "cpu")
    model.aligner.logit_bias = torch.nn.Parameter(torch.tensor(-3.0))
    (tmp_path / "out").mkdir()
    open_clip_folder.write(model, tmp_path / "out")
    read = open_clip_folder.read(tmp_path / "out")
    assert (read.logit_bias, math.log(read.logit_scale)) == (-3.0, pytest.approx(3.3, rel=1e-6))
    unit = F.normalize(read.encode["text"](TEXTS), dim=-1)
    torch.testing.assert_close(unit.detach(), open_clip_vectors(tmp_path / "out")[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["open_clip", "onnx"])
def test_a_shorter_context_is_exported(name: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(f"open_clip:{start}", "cpu")
    config = override(model.config, {"model.text.context_length": 8})
    aligner, towers = build_aligner(config.model, config.loss, model.aligner.modalities)
    short = model._replace(aligner=aligner.eval(), towers=towers, config=config)
    monkeypatch.setattr(exporting, "open_model", lambda *arguments: short)
    assert export_model(ExportRequest("x:x", name, tmp_path / "out")).difference < 1e-5
    if name == "open_clip":
        assert open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(TEXTS).shape[1] == 8
