"""Shared fixtures: a tiny prepared ``scenes``, one run trained on it, its index, the CLI, toy models."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: small tensors only wait for each other

import numpy as np
import pytest
import torch
from hypothesis import settings

from ccaco_cli.app import main
from ccaco_cli.core.config import FusionConfig, LossConfig, ModelConfig, OptimConfig, RunConfig, TowerConfig
from ccaco_cli.core.data.loader import PairDataset, PairPlan
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import TextIds, Tower, TowerSpec
from ccaco_cli.core.types import Features, Words
from ccaco_cli.core.workflows.embed import EmbedRequest, embed
from ccaco_cli.core.workflows.train import train
from tests.manifests import edited

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")  # the same examples in every run; new ones: --hypothesis-profile default

PICTURES = 25
SMALL = {
    "model.width": 16,
    "model.image.size": 32,
    "optim.batch_size": 8,
    "optim.epochs": 2,
    "loss.cross_start": 0.0,
    "loss.cross_ramp": 0.0,
    "loss.beta": 0.5,
    "eval.shortlist": 8,
    "eval.shortlist_back": 8,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same random weights, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Settings of the smallest real run."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of prepared data sets that holds ``scenes``, 25 images per split (an even number would cut a pair)."""
    root = tmp_path_factory.mktemp("data")
    prepare(
        "scenes", out=root / "scenes", options=SourceOptions(limit=PICTURES, size=32), write=WriteOptions(workers=0)
    )
    return root


@pytest.fixture(scope="session")
def run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(TrainRequest("scenes", explicit=SMALL), folder, data_root=data_root)
    return folder


@pytest.fixture(scope="session")
def embedded(run: Path, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Embeddings of the test split in shards of 10, and the index beside them (``path.parent / "scenes.idx"``)."""
    folder = tmp_path_factory.mktemp("embeddings")
    embed(
        EmbedRequest(
            run,
            "scenes",
            out=folder / "test",
            index=folder / "scenes.idx",
            device="cpu",
            shard=10,
            precision="fp32",  # auto is bf16 on some CPUs
        ),
        data_root=data_root,
    )
    from ccaco_cli.core import manifest

    return manifest.open(folder / "test", kind="embeddings")


@pytest.fixture(scope="session")
def index(embedded: Manifest) -> Path:
    """The index of the test split."""
    return embedded.path.parent / "scenes.idx"


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def ccaco(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """``ccaco(*arguments, stdin="")``: the real script, in this process."""

    def call(*arguments: object, stdin: str | bytes = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["ccaco", *map(str, arguments)])
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        capsys.readouterr()
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call


class ToyTower(torch.nn.Module):
    """A learned matrix over the tokens it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)

    def forward(self, inputs: dict[str, torch.Tensor]) -> Features:
        tokens, mask = self.linear(inputs["tokens"]), inputs["mask"]
        return Features(tokens, mask, tokens[:, 0])


class ToyColumn:
    """``Column`` of random tokens; ``counts`` items a row, of ragged length."""

    def __init__(self, rows: int, counts: int, tokens: int, width: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.row, self.start = np.repeat(np.arange(rows), counts), np.arange(rows + 1) * counts
        self.length: Any = rng.integers(1, tokens + 1, len(self.row))
        mask = np.arange(tokens) < self.length[:, None]
        shared_signal = np.random.default_rng(99).normal(size=(rows, 1, 4))[self.row]  # what both sides say of a row
        noise = rng.normal(size=(len(self.row), tokens, width - 4))
        caption_tokens = np.concatenate([np.broadcast_to(shared_signal, (len(self.row), tokens, 4)), noise], -1)
        self.tokens, self.mask = (
            torch.from_numpy(caption_tokens).float() * torch.from_numpy(mask)[..., None],
            torch.from_numpy(mask),
        )

    def inputs(self, items: Any) -> dict[str, torch.Tensor]:
        return {"tokens": self.tokens[items], "mask": self.mask[items]}


class ToyTokenizer:
    """The ids of twenty words, with a start and an end."""

    def text_ids(self) -> TextIds:
        return TextIds(20, 18, 19)


def toy_words(items: Any) -> Words:
    """Captions of one to four words, which follow from the number of the item."""
    lengths = torch.from_numpy(np.asarray(items) % 4 + 3)
    place = torch.arange(int(lengths.max()))
    ids = (torch.from_numpy(np.asarray(items))[:, None] * 3 + place * 5) % 18
    ids = torch.where(place == lengths[:, None] - 1, 19, torch.where(place == 0, 18, ids))
    return Words(ids, place < lengths[:, None])


class Toy:
    """A model of two small matrices and 24 rows of data: every part of training and retrieval in milliseconds."""

    ROWS = 24

    def config(self, **settings: Any) -> RunConfig:
        """``RunConfig`` with dotted names written with double underscores: ``optim__lr=0.1``."""
        from ccaco_cli.core.config_io import override

        side = TowerConfig(head_dropout=0.1, input_dropout=0.0, center="on", pool="mean")
        model = ModelConfig(width=8, image=side, text=side, fusion=FusionConfig(kind="attended"))
        loss = LossConfig(beta=0.5, cross="infonce", cross_start=0.0, cross_ramp=0.0, cross_batch=8)
        optim = OptimConfig(
            epochs=3, batch_size=8, accum_freq=1, lr=1e-2, warmup=0.1, grad_clip=1.0, patience=0, precision="fp32"
        )
        return override(
            RunConfig(model=model, loss=loss, optim=optim), {k.replace("__", "."): v for k, v in settings.items()}
        )

    def aligner(self, config: RunConfig) -> Aligner:
        torch.manual_seed(config.seed)
        towers = {m: self.tower(m, width) for m, width in (("image", 6), ("text", 10))}
        aligner = Aligner(towers, config.model, config.loss)
        if aligner.decoder is not None:
            aligner.decoder.add_words(range(18))
        return aligner

    def tower(self, modality: str, width: int) -> Tower:
        return Tower(
            TowerSpec("tiny", "", ""),
            modality,
            ToyTower(width),
            lambda x: x,
            width,
            9,
            None,
            False,
            "f",
            lambda folder: "tiny",
            tokenizer=ToyTokenizer() if modality == "text" else None,  # type: ignore[arg-type]
        )

    def columns(self, rows: int = ROWS) -> tuple[ToyColumn, ToyColumn]:
        return ToyColumn(rows, 1, 5, 6, seed=1), ToyColumn(rows, 2, 7, 10, seed=2)

    def data(self, config: RunConfig, rows: int = ROWS) -> tuple[PairDataset, PairPlan]:
        a, b = self.columns(rows)
        plan = PairPlan(
            a, b, np.arange(rows) // 2, config.optim.batch_size, config.seed, captions=config.optim.captions
        )
        words = toy_words if config.loss.gamma else None
        return PairDataset(a, b, np.arange(rows), np.zeros(rows, np.int64), words), plan


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy()


class Fabricate:
    """Finished runs without a model: folders as ``train`` leaves them, with random per-query ranks around a skill."""

    PICTURES, CAPTIONS = 60, 2

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(
        self, name: str, skill: float, *, arm: str = "ccaco", seed: int = 0, stage: str = "two-stage", **more: Any
    ) -> Path:
        """Writes a run. ``skill`` is added to the score of the right answer; equal seeds share their noise.

        ``more``: dataset, data, facts, strata, config (dotted settings), small (adds the stage ``small``), root.
        """
        from dataclasses import asdict

        from ccaco_cli.core import manifest
        from ccaco_cli.core.config import RunConfig
        from ccaco_cli.core.config_io import override

        folder = more.get("root", self.root) / name
        dataset, data = more.get("dataset", "toy"), more.get("data", "d" * 64)
        generated = self.evaluation(skill, seed, self.PICTURES)
        results = {f"test.{stage}": generated, f"val.{stage}": self.evaluation(skill, seed + 100, self.PICTURES)}
        if more.get("small"):
            results["test.small"] = self.evaluation(skill, seed, 20, "first-20")
        for key, measured in results.items():
            split, _, how = key.partition(".")
            body = {
                "split": split,
                "stage": how,
                "arm": arm,
                "seed": seed,
                "dataset": dataset,
                "data": data,
                "weight": 0.5,
            }
            rows = measured.pools[0][0]
            body |= {**measured.as_dict(), "strata": {k: list(v)[:rows] for k, v in more.get("strata", {}).items()}}
            body |= {"per_item": more.get("items", {})}
            manifest.write_json(folder / "results" / f"{key}.json", body)
        config = override(RunConfig(dataset=dataset, arm=arm, seed=seed), more.get("config", {}))
        fitted = {
            "steps": 100,
            "seconds": 10.0 + seed,
            "samples_per_second": 5.0,
            "memory": 50.0,
            "best": 1.0,
            "best_epoch": 0,
        }
        facts = {
            "name": name,
            "arm": arm,
            "seed": seed,
            "fitted": fitted,
            "headline": stage,
            "weight": 0.5,
            "parameters": 7,
        }
        facts |= {
            "metrics": {k: v.metrics for k, v in results.items()},
            "warnings": [],
            "modalities": ["image", "text"],
            **more.get("facts", {}),
        }
        (folder / "metrics.jsonl").write_text('{"step": 1, "contrastive": 2.0, "total": 2.5}\n')
        manifest.write(folder, "run", facts=facts, config=asdict(config))
        with edited(folder) as body:
            body["inputs"] = {"dataset": {"path": f"data/{dataset}", "sha256": data}}
        return folder

    def evaluation(self, skill: float, seed: int, pictures: int, protocol: str = "full") -> Any:
        from dataclasses import replace

        from ccaco_cli.core.evaluation.metrics import ranks
        from ccaco_cli.core.evaluation.protocols import evaluate

        rng = np.random.default_rng(seed)
        picture, caption = np.arange(self.PICTURES), np.repeat(np.arange(self.PICTURES), self.CAPTIONS)
        score = rng.normal(size=(len(picture), len(caption))) + skill * (picture[:, None] == caption)
        score, group_a, group_b = (
            score[:pictures, : pictures * self.CAPTIONS],
            picture[:pictures],
            caption[: pictures * self.CAPTIONS],
        )
        both = ranks(lambda rows: score[rows], group_a, group_b), ranks(lambda rows: score.T[rows], group_b, group_a)
        return replace(evaluate("full", group_a, group_b, lambda pool: both), protocol=protocol)


@pytest.fixture
def fabricate(tmp_path: Path) -> Fabricate:
    return Fabricate(tmp_path / "runs")
