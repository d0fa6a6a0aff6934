from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.pairs import Split
from ccaco_cli.core.errors import CcacoError, ConfigError, DataError
from ccaco_cli.core.experiments import arms
from ccaco_cli.core.experiments.grid import AblationRequest
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.experiments.run_folder import TrainOptions
from ccaco_cli.core.reporting import domain_tables, report_tables
from ccaco_cli.core.reporting.rows import as_dicts
from ccaco_cli.core.scoring import results
from ccaco_cli.core.types import PairRecord
from ccaco_cli.core.workflows import report
from ccaco_cli.core.workflows.ablate import ablate
from ccaco_cli.core.workflows.train import train

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230)}
COUNTS = {"train": 12, "val": 6, "test": 6}
BEST = "checkpoints/best/model.safetensors"


def picture(colour: str, domain: str, seed: int) -> bytes:
    """A square of one colour on a ground that tells the domain."""
    ground = {"paper": 255, "slate": 40, "felt": 128}[domain]
    array = np.full((32, 32, 3), ground) + np.random.default_rng(seed).integers(-20, 20, (32, 32, 3))
    array[8:24, 8:24] = COLOURS[colour]
    out = io.BytesIO()
    Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def records(describe: Callable[[str, str, int, str], dict[str, Any]]) -> list[PairRecord]:
    """``told``: (split, domain, number, colour) -> whatever differs from the plain truth."""
    rows = []
    for split, n in COUNTS.items():
        for domain in ("paper", "slate", "felt"):
            for i in range(n):
                colour = list(COLOURS)[i % 3]
                id = f"{split}-{domain}-{i}"
                truth = {"group": id, "captions": [f"a {colour} square", f"square {i} is {colour}"], "label": colour}
                seed = len(rows)
                media = {"image": picture(colour, domain, seed)}
                rows.append(
                    PairRecord(
                        id=id, split=split, media=media, domain=domain, **(truth | describe(split, domain, i, colour))
                    )
                )
    return rows


def write(root: Path, describe: Callable[[str, str, int, str], dict[str, Any]] = lambda *_: {}, **more: Any) -> Path:
    facts = {"protocol": "squares", "source": {"template": "a {} square"}}
    info = shards.DatasetInfo("squares", ("image", "text"), facts=facts, **more)
    shards.write(records(describe), root / "squares", info, shards.WriteOptions(workers=0))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def settings(small: dict[str, Any]) -> dict[str, Any]:
    return small | {"domain.target": "felt", "optim.batch_size": 8, "optim.epochs": 2, "loss.beta": 0.0}


@pytest.fixture(scope="module")
def dann(root: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "dann"
    train(
        TrainRequest("squares", "+dann", explicit=settings | {"domain.oracle": True, "loss.beta": 0.5}),
        folder,
        data_root=root,
    )
    return folder


def steps(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_across_domains_is_complete(dann: Path) -> None:
    facts = manifest.open(dann, kind="run", verify=manifest.FULL).facts
    stages = {"cosine", "two-stage", "classes"}
    assert set(facts["metrics"]) == {f"{s}.{t}" for s in ("test", "test-source", "oracle") for t in stages} | {
        "val.cosine",
        "val.two-stage",
    }
    for name in ("test.cosine", "test-source.cosine", "oracle.cosine"):
        assert {"text_to_image_R@1", "class_accuracy", "mean_class_accuracy"} <= facts["metrics"][name].keys()
    assert {"accuracy/red", "accuracy/green", "accuracy/blue"} <= facts["metrics"]["test.classes"].keys()
    domain_facts = facts["domains"]
    assert (domain_facts["sources"], domain_facts["target"]) == (["paper", "slate"], "felt")
    assert (
        set(domain_facts["before"]["image"])
        == {"domain_accuracy", "proxy_a_distance"}
        == set(domain_facts["after"]["image"])
    )
    logged = [e for e in steps(dann) if "validation" not in e]
    assert all({"contrastive", "cross", "domain", "domain_accuracy", "total"} <= e.keys() for e in logged)
    for e in logged:
        expected = e["contrastive"] + 0.5 * e["cross"] + e["domain"] + e["separation_weight"] * e["separation"]
        assert e["total"] == pytest.approx(expected, abs=1e-4)
    assert all({"validation", "oracle"} <= e.keys() for e in steps(dann) if "validation" in e)
    stored = json.loads((dann / "results/test-source.cosine.json").read_text())
    assert stored["split"] == "test-source" and len(stored["per_query"]["image_to_text"][0]["rank"]) == 12
    assert (
        len(json.loads((dann / "results/oracle.cosine.json").read_text())["per_query"]["image_to_text"][0]["rank"]) == 6
    )


def garbage(split: str, domain: str, i: int, colour: str) -> dict[str, Any]:
    if domain != "felt" or split == "test":
        return {}
    return {
        "captions": [f"nonsense {i}"] * (1 + i % 3),
        "label": f"lie {i}",
        "group": f"{i // 2}",
        "family": f"kin {i % 4}",
    }


@pytest.mark.parametrize("arm", ["+both", "dann-classifier", "+adabn"])
def test_captions_labels_and_groups_of_the_target_are_never_read(
    root: Path, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    """Other captions, labels, groups and families of the target's training and validation rows: the same model, bit by
    bit; and to be sure, no text of them is ever asked for."""
    read: list[str] = []
    real = Split._column

    def spied(self: Split, name: str, rows: Any = None) -> Any:
        gradients = real(self, name, rows)
        if name == "captions":
            read.extend(text for row in gradients.to_pylist() for text in row)
        return gradients

    monkeypatch.setattr(Split, "_column", spied)
    lies = write(tmp_path / "lies", garbage)
    truth = train(TrainRequest("squares", arm, explicit=settings), tmp_path / "truth", data_root=root)
    lied = train(TrainRequest("squares", arm, explicit=settings), tmp_path / "lied", data_root=lies)
    assert (tmp_path / "truth" / BEST).read_bytes() == (tmp_path / "lied" / BEST).read_bytes()
    assert truth.facts["metrics"] == lied.facts["metrics"]
    assert read and not [text for text in read if text.startswith("nonsense")]


def test_the_oracle_chooses_its_own_checkpoint_and_nothing_else(
    root: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    first, second = (
        train(
            TrainRequest("squares", "+mmd", explicit=settings | {"domain.oracle": on}),
            tmp_path / str(on),
            data_root=root,
        )
        for on in (False, True)
    )
    assert (tmp_path / "False" / BEST).read_bytes() == (tmp_path / "True" / BEST).read_bytes()
    assert not (tmp_path / "False/checkpoints/oracle").exists()
    assert {k: v for k, v in second.facts["metrics"].items() if not k.startswith("oracle.")} == first.facts["metrics"]
    assert second.facts["fitted"]["oracle_epoch"] in (0, 1)
    assert first.facts["fitted"]["oracle_epoch"] == -1


def test_arms_share_their_batches_and_differ_in_what_they_learn(
    root: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    first, weights = {}, {}
    for arm in ("source-only", "+adabn", "+mmd"):
        train(TrainRequest("squares", arm, explicit=settings), tmp_path / arm, data_root=root)
        first[arm] = steps(tmp_path / arm)
        weights[arm] = (tmp_path / arm / BEST).read_bytes()
    assert [e["contrastive"] for e in first["source-only"][:3]] == [e["contrastive"] for e in first["+adabn"][:3]], (
        "AdaBN comes after training"
    )
    assert len(set(weights.values())) == 3
    assert "domain" in first["+mmd"][0] and "domain_accuracy" not in first["+mmd"][0]
    assert "domain" not in first["source-only"][0]


def test_interrupted_and_resumed_it_is_the_same_run(
    root: Path, settings: dict[str, Any], dann: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccaco_cli.core.training import checkpoint

    real, request = (
        checkpoint.save,
        TrainRequest("squares", "+dann", explicit=settings | {"domain.oracle": True, "loss.beta": 0.5}),
    )

    def killed(*arguments: Any, **more: Any) -> None:
        real(*arguments, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(request, tmp_path / "r", data_root=root)
    facts = train(request, tmp_path / "r", TrainOptions(resume=True), data_root=root)
    assert (tmp_path / "r" / BEST).read_bytes() == (dann / BEST).read_bytes()
    assert facts.facts["metrics"] == manifest.open(dann, kind="run").facts["metrics"]


def test_a_target_without_any_caption_trains(settings: dict[str, Any], tmp_path: Path) -> None:
    def bare(split: str, domain: str, i: int, colour: str) -> dict[str, Any]:
        return {"captions": [], "label": ""} if domain == "felt" else {}

    root = write(tmp_path, bare, unpaired=("felt",))
    facts = train(TrainRequest("squares", "+dann", explicit=settings), tmp_path / "r", data_root=root).facts
    assert {"val.cosine", "test-source.cosine"} <= set(facts["metrics"]) and not any(
        k.startswith("test.") for k in facts["metrics"]
    )
    assert facts["domains"]["after"]["image"]
    assert report.scored_split(facts["metrics"]) == "test-source"
    with pytest.raises(DataError, match=r"12 training samples have no caption: domain 'felt'.*--target-domain"):
        train(
            TrainRequest("squares", explicit={k: v for k, v in settings.items() if k != "domain.target"}),
            tmp_path / "s",
            data_root=root,
        )


def test_the_supervised_arms_have_classes_and_no_words(root: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    facts = train(
        TrainRequest("squares", "dann-classifier", explicit=settings | {"domain.oracle": True}),
        tmp_path / "r",
        data_root=root,
    ).facts
    assert set(facts["metrics"]) == {"test.classes", "test-source.classes", "oracle.classes"}
    assert facts["headline"] == "classes"
    assert {"label", "domain", "domain_accuracy", "total"} <= steps(tmp_path / "r")[0].keys()
    assert not {"contrastive", "cross"} & steps(tmp_path / "r")[0].keys()
    run = results.find_runs([tmp_path / "r"])
    per = results.load_result(run[0]).per_query("class_accuracy")
    assert per.mean == pytest.approx(facts["metrics"]["test.classes"]["class_accuracy"])
    assert len(per.cluster) == 6, "a picture each"
    rows = domain_tables.class_rows(run, "test")
    assert {row.label for row in rows} == set(COLOURS)
    assert np.mean([row.accuracy for row in rows]) == pytest.approx(
        facts["metrics"]["test.classes"]["mean_class_accuracy"]
    )


def test_the_table_sets_gain_beside_retention_and_the_oracle_apart(
    root: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    request = TrainRequest("squares", explicit=settings | {"optim.epochs": 1, "domain.oracle": True})
    ablation = ablate(AblationRequest(request, ["source-only", "+adabn"], 2), tmp_path / "a", data_root=root)
    assert not ablation.failures
    assert [row["verdict"] == "reference" for row in as_dicts(ablation.table)] == [True, False], (
        "source-only is what others are held against"
    )
    rows = domain_tables.domain_rows(results.find_runs([tmp_path / "a"]), "text_to_image_R@1", None)
    assert [row.arm for row in rows] == ["source-only", "+adabn"]
    base, other = as_dicts(rows)
    metrics = [manifest.open(tmp_path / f"a/+adabn-s{s}", kind="run").facts["metrics"] for s in (0, 1)]

    def mean(split: str) -> float:
        return float(np.mean([m[f"{split}.cosine"]["text_to_image_R@1"] for m in metrics]))

    assert (other["target"], other["source"]) == (mean("test"), mean("test-source"))
    assert other["oracle (chosen on the target)"] == mean("oracle")
    assert other["gain"] == pytest.approx(other["target"] - base["target"])
    assert other["retention"] == pytest.approx(other["source"] / base["source"]) if base["source"] else True
    assert (base["gain"], other["low"] <= other["target"] <= other["high"]) == (0, True)
    assert (
        report_tables.table(report_tables.ReportRequest([tmp_path / "a"], metric="text_to_image_R@1"), "domains")
        == rows
    )
    with pytest.raises(ConfigError, match="no such metric: recall"):
        domain_tables.domain_rows(results.find_runs([tmp_path / "a"]), "recall", None)
    with pytest.raises(DataError, match=r"reference arm: clip; expected source-only \| \+adabn"):
        domain_tables.domain_rows(results.find_runs([tmp_path / "a"]), "R-sum", "clip")


def test_what_needs_a_target_says_so(run: Path, dann: Path) -> None:
    for call in (
        lambda: domain_tables.domain_rows(results.find_runs([run]), "R-sum", None),
        lambda: report_tables.domain_embeddings(report_tables.ReportRequest([run])),
    ):
        with pytest.raises(DataError, match=r"no target domain.*--target-domain NAME"):
            call()
    with pytest.raises(DataError, match="classified nothing"):
        domain_tables.class_rows(results.find_runs([run]), "test")
    ((name, embeddings),) = report_tables.domain_embeddings(report_tables.ReportRequest([dann]))
    assert name == "dann" and set(embeddings["before"]["image"]["domain"]) == {"source", "target"}
    assert len(embeddings["after"]["image"]["points"]) == 24 + 12


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"domain.sides": "image,audio", "domain.loss": "mmd"}, r"no such side.*expected image,text"),
        ({"domain.sides": "text", "domain.sources": "paper", "domain.loss": "mmd"}, "two source domains or more"),
        ({"domain.loss": "mdm"}, r"domain\.loss.*none \| dann"),
        ({"domain.weight": -1.0}, r"domain\.weight.*0 to 1000000"),
        ({"domain.stats": "both"}, r"source \| target"),
        ({"domain.target": "silk"}, "no such domain"),
        ({"domain.stats": "target", "model.image.lock": True, "model.image.center": "off"}, "no running statistics"),
    ],
)
def test_what_cannot_work_leaves_nothing_behind(
    root: Path, settings: dict[str, Any], tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(CcacoError, match=words):
        train(TrainRequest("squares", explicit=settings | more), tmp_path / "r", data_root=root)
    assert not (tmp_path / "r").exists()


def test_texts_are_drawn_together_between_the_sources(root: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    more = {"domain.sides": "image,text", "domain.loss": "both"}
    train(TrainRequest("squares", explicit=settings | more | {"optim.steps": 2}), tmp_path / "r", data_root=root)
    assert {"domain", "domain_accuracy"} <= steps(tmp_path / "r")[0].keys()


def test_the_classifier_needs_labels(data_root: Path, small: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to classify"):
        train(TrainRequest("scenes", explicit=small | {"domain.classify": 1.0}), tmp_path / "r", data_root=data_root)


def test_further_arms_train(root: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    for arm in ("mmd-classifier", "adabn-classifier", "+both-cross"):  # the others are trained above
        assert arm in (*arms.SETS["domain"], *arms.SETS["classifiers"])
        train(
            TrainRequest("squares", arm, explicit=settings | {"optim.steps": 1, "loss.beta": 0.5}),
            tmp_path / "r",
            data_root=root,
        )
        shutil.rmtree(tmp_path / "r")
