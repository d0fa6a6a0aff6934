from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ccaco_cli.core import config_io, manifest
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.experiments.grid import AblationRequest, Cell, all_cells, read_grid
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.experiments.run_folder import TrainOptions
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.reporting.rows import as_dicts
from ccaco_cli.core.workflows import ablate as module
from ccaco_cli.core.workflows.ablate import ablate

SKILL = {"ccaco": 3.0, "clip": 1.0, "-contrastive": 0.0}


class Trainer:
    """Stands in for ``train``: leaves a fabricated run, or dies, and keeps a list of what it was asked."""

    def __init__(self, fabricate: Any, data: Any) -> None:
        self.fabricate, self.data, self.dying, self.calls = fabricate, data, {}, []  # type: ignore[var-annotated]

    def __call__(self, request: TrainRequest, folder: Path, options: TrainOptions, **more: Any) -> None:
        config = request.resolve(self.data)
        self.calls.append((folder.name, (folder / "config.toml").exists(), options.resume))
        manifest.write_bytes(folder / "config.toml", config_io.to_toml(config).encode())
        more["on_progress"](1, 2, {"total": 1.0})
        if error := self.dying.get(folder.name):
            raise error
        settings = config_io.flatten(asdict(config))
        settings = {k: v for k, v in settings.items() if k not in ("arm", "seed", "dataset")}
        data = self.data.manifest.sha256
        skill = SKILL[config.arm]
        self.fabricate(
            folder.name, skill, arm=config.arm, seed=config.seed, config=settings, data=data, root=folder.parent
        )


@pytest.fixture
def data(tmp_path: Path) -> Any:
    manifest = Manifest(tmp_path, "dataset", {"protocol": "toy"})
    return SimpleNamespace(name="toy", modalities=("image", "text"), splits=("train", "val", "test"), manifest=manifest)


@pytest.fixture
def trainer(fabricate: Any, data: Any, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    fake_trainer = Trainer(fabricate, data)
    monkeypatch.setattr(module, "train", fake_trainer)
    monkeypatch.setattr(module, "prepared", lambda dataset, *arguments: Path(dataset))
    monkeypatch.setattr(module.shards, "open", lambda path: fake_trainer.data)
    return fake_trainer


TOY = TrainRequest("toy", explicit={"device": "cpu"})


def cells(data: Any, arms: list[str], seeds: int = 1, **grid: list[Any]) -> list[Cell]:
    return all_cells(AblationRequest(TOY, arms, seeds, {k.replace("__", "."): v for k, v in grid.items()}), data)


def test_a_grid_multiplies_the_arms(data: Any) -> None:
    configs = cells(data, ["ccaco"], 2, loss__beta=[0.1, 1], optim__lr=[1e-3])
    assert [cell.name for cell in configs] == [
        f"ccaco,beta={beta},lr=0.001-s{seed}" for seed in (0, 1) for beta in ("0.1", "1")
    ]
    assert [(cell.config.loss.beta, cell.config.seed) for cell in configs] == [(0.1, 0), (1.0, 0), (0.1, 1), (1.0, 1)]
    both = cells(data, ["ccaco"], 1, model__image__pool=["mean", "cls"], model__text__pool=["mean"])
    assert [cell.label for cell in both] == [
        "ccaco,model.image.pool=mean,model.text.pool=mean",
        "ccaco,model.image.pool=cls,model.text.pool=mean",
    ]


def test_an_arm_that_sets_the_key_itself_is_not_multiplied(data: Any) -> None:
    assert [cell.label for cell in cells(data, ["clip", "ccaco", "clip"], loss__beta=[0.1, 0.5])] == [
        "clip",
        "ccaco,beta=0.1",
        "ccaco,beta=0.5",
    ]


def test_names_are_safe_for_folders(data: Any) -> None:
    (cell,) = cells(data, ["ccaco"], model__image__spec=["timm:resnet50@../a b/c"])
    assert cell.name == "ccaco,spec=timm_resnet50_.._a_b_c-s0"
    with pytest.raises(ConfigError, match="two cells would have one name"):
        cells(data, ["ccaco"], model__image__spec=["timm:a", "timm/a"])


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"loss__beta": 0.5}, "0.5 is no list"),
        ({"loss__beta": []}, "no list"),
        ({"seed": [1, 2]}, "cannot vary"),
        ({"loss__bta": [1]}, r"unknown config key.*beta"),
        ({"loss__beta": ["x"]}, "does not fit"),
    ],
)
def test_a_grid_that_does_not_fit(data: Any, grid: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cells(data, ["ccaco"], 1, **grid)


def test_a_grid_file(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text('[grid]\nloss.beta = [0, 0.1]\nloss.cross = ["mse"]\n')
    assert read_grid(file) == {"loss.beta": [0, 0.1], "loss.cross": ["mse"]}
    for text in ("", "loss.beta = 1\n", "[grid]\nloss.beta = [1]\n[optim]\nlr = 1\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="one table and nothing else"):
            read_grid(file)


def test_it_ends_with_the_evidence_and_a_manifest(trainer: Trainer, tmp_path: Path) -> None:
    folder = tmp_path / "abl"
    ablation = ablate(AblationRequest(TOY, ["ccaco", "clip"], 2), folder)
    assert [(row["arm"], row["seeds"], row["verdict"]) for row in as_dicts(ablation.table)] == [
        ("ccaco", 2, "reference"),
        ("clip", 2, "worse"),
    ]
    assert [row["run"] for row in as_dicts(ablation.rows)] == ["ccaco-s0", "clip-s0", "ccaco-s1", "clip-s1"]
    stored = manifest.open(folder, kind="ablation")
    assert [(c["name"], c["label"], c["arm"], c["seed"]) for c in stored.facts["cells"]] == [
        (f"{arm}-s{seed}", arm, arm, seed) for seed in (0, 1) for arm in ("ccaco", "clip")
    ]
    assert [c["run"] for c in stored.facts["cells"]] == [
        manifest.open(folder / c["name"], kind="run").sha256 for c in stored.facts["cells"]
    ]
    assert stored.inputs["dataset"]["sha256"] == trainer.data.manifest.sha256

    trainer.calls.clear()
    again = ablate(AblationRequest(TOY, ["ccaco", "clip"], 2, reference="clip", metric="image_to_text_R@1"), folder)
    assert trainer.calls == []
    assert [row["verdict"] for row in as_dicts(again.table)] == ["better", "reference"]


def test_killed_in_the_middle_it_finishes_the_rest_only(trainer: Trainer, tmp_path: Path) -> None:
    reference = ablate(AblationRequest(TOY, ["ccaco", "clip"], 2), tmp_path / "whole").table
    folder = tmp_path / "abl"
    trainer.calls.clear()
    trainer.dying["clip-s0"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        ablate(AblationRequest(TOY, ["ccaco", "clip"], 2), folder)
    assert not manifest.exists(folder), "what is not complete has no manifest"
    trainer.dying.clear()
    ablation = ablate(AblationRequest(TOY, ["ccaco", "clip"], 2), folder)
    assert trainer.calls == [
        ("ccaco-s0", False, True),
        ("clip-s0", False, True),
        ("clip-s0", True, True),  # goes on from where it was
        ("ccaco-s1", False, True),
        ("clip-s1", False, True),
    ]
    assert ablation.table == reference


def test_failed_cells_are_kept_in_view_and_retried_from_the_start(trainer: Trainer, tmp_path: Path) -> None:
    folder = tmp_path / "abl"
    trainer.dying = {"clip-s0": RuntimeError("out of\nmemory"), "-contrastive-s0": ConfigError("no", where="x")}
    ablation = ablate(AblationRequest(TOY, ["ccaco", "clip", "-contrastive"], 1), folder)
    assert ablation.failures == {"clip-s0": "RuntimeError: out of memory", "-contrastive-s0": "no: x"}
    assert [(row["arm"], row["seeds"], row["failed"], row["verdict"]) for row in as_dicts(ablation.table)] == [
        ("ccaco", 1, 0, "reference"),
        ("clip", 0, 1, "failed"),
        ("-contrastive", 0, 1, "failed"),
    ]
    assert "RuntimeError" in json.loads((folder / "clip-s0" / module.FAILED).read_text())["traceback"]
    assert [c.get("error") for c in manifest.open(folder, kind="ablation").facts["cells"]] == [
        None,
        *ablation.failures.values(),
    ]
    trainer.dying.clear()
    trainer.calls.clear()
    assert ablate(AblationRequest(TOY, ["ccaco", "clip", "-contrastive"], 1), folder).failures == {}
    assert trainer.calls == [("clip-s0", False, True), ("-contrastive-s0", False, True)]


def test_everything_failed(trainer: Trainer, tmp_path: Path) -> None:
    trainer.dying = {"clip-s0": RuntimeError("x")}
    ablation = ablate(AblationRequest(TOY, ["clip"], 1), tmp_path / "abl")
    assert (ablation.rows, [row["verdict"] for row in as_dicts(ablation.table)]) == ([], ["failed"])


def test_another_config_or_data_set_is_trained_anew(trainer: Trainer, data: Any, tmp_path: Path) -> None:
    folder = tmp_path / "abl"
    ablate(AblationRequest(TOY, ["ccaco", "clip"], 1), folder)
    trainer.calls.clear()
    ablate(
        AblationRequest(TrainRequest("toy", explicit={"device": "cpu", "loss.beta": 0.25}), ["ccaco", "clip"], 1),
        folder,
    )
    assert trainer.calls == [("ccaco-s0", False, True)], "clip has no beta of its own"
    trainer.calls.clear()
    trainer.dying["clip-s0"] = KeyboardInterrupt()
    data.manifest = Manifest(tmp_path, "dataset", {"protocol": "toy", "rows": 2})
    with pytest.raises(KeyboardInterrupt):
        ablate(
            AblationRequest(TrainRequest("toy", explicit={"device": "cpu", "loss.beta": 0.25}), ["ccaco", "clip"], 1),
            folder,
        )
    data.manifest = Manifest(tmp_path, "dataset", {"protocol": "toy", "rows": 3})
    trainer.dying.clear()
    ablate(
        AblationRequest(TrainRequest("toy", explicit={"device": "cpu", "loss.beta": 0.25}), ["ccaco", "clip"], 1),
        folder,
    )
    assert trainer.calls == [(name, False, True) for name in ("ccaco-s0", "clip-s0") * 2], (
        "half a run on other data is not continued"
    )


@pytest.mark.parametrize(
    ("arms", "more", "message"),
    [
        (
            ["ccaco"],
            {"grid": {"optim.epochs": [1, 2]}},
            r"differ in step budget: ccaco,epochs=1 \(optim.epochs = 1\); ccaco,epochs=2",
        ),
        (["ccaco"], {"grid": {"eval.select": ["R-sum", "image_to_text_mAP"]}}, "selection rule"),
        (["ccaco"], {"metric": "text_to_image_R1"}, "no such .*metric"),
        (["ccaco"], {"reference": "clip"}, "reference is none of the arms: clip; expected ccaco"),
        (["ccaco", "clap"], {}, "unknown arm"),
        ([], {}, "no arms"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_trained(
    trainer: Trainer, tmp_path: Path, arms: list[str], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ablate(AblationRequest(TOY, arms, 1, **more), tmp_path / "abl")
    assert trainer.calls == []
    assert not (tmp_path / "abl").exists()


def test_progress_tells_the_time_left_over_all_cells(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def timed(request: TrainRequest, folder: Path, options: TrainOptions, **more: Any) -> None:
        now[0] += 50.0  # half the steps take 50 s of 110
        trainer(request, folder, options, **more)
        now[0] += 60.0

    monkeypatch.setattr(module, "train", timed)
    progress: list[tuple[str, Any]] = []
    ablate(
        AblationRequest(TOY, ["ccaco", "clip"], 1),
        tmp_path / "abl",
        on_progress=lambda d, t, f: progress.append((f.get("cell", f"{d}/{t}"), f.get("left"))),
    )
    assert progress == [("ccaco-s0 (1 of 2)", 150.0), ("1/2", 110.0), ("clip-s0 (2 of 2)", 50.0), ("2/2", 0)]


def test_one_process_a_device(trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is real, its processes are threads here: what counts is that every cell runs once and failures come
    back.
    """
    from concurrent.futures import ThreadPoolExecutor

    trained: list[Any] = []
    monkeypatch.setattr(
        module,
        "ProcessPoolExecutor",
        lambda n, context, initializer, initargs: ThreadPoolExecutor(n, "x", initializer, initargs),
    )
    monkeypatch.setattr(module, "_assign_device", lambda free: trained.append(free.get()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    trainer.dying = {"clip-s1": RuntimeError("x")}
    ablation = ablate(
        AblationRequest(TrainRequest("toy", explicit={"device": "auto"}), ["ccaco", "clip"], 2), tmp_path / "abl"
    )
    assert sorted(name for name, *_ in trainer.calls) == ["ccaco-s0", "ccaco-s1", "clip-s0", "clip-s1"]
    assert ablation.failures == {"clip-s1": "RuntimeError: x"}
    assert {place["CUDA_VISIBLE_DEVICES"] for place in trained} <= {"3", "7"}
    assert [row["seeds"] for row in as_dicts(ablation.table)] == [2, 1]


@pytest.mark.parametrize(("jobs", "threads"), [(1, "6"), (2, "3"), (4, "1"), (9, "1")])
def test_jobs_share_the_cores(jobs: int, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.runtime, "cpu_cores", lambda: 6)
    assert module._devices("cpu", jobs) == [{"OMP_NUM_THREADS": threads}] * jobs
