"""A run with a decoder from end to end: training, stored captions, tables, and captions from the shell."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.data import shards
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.experiments import estimate
from ccaco_cli.core.experiments.arms import CHANGES, apply
from ccaco_cli.core.experiments.model_describer import ModelDescriber
from ccaco_cli.core.experiments.pair_scores import index_pair_model
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.experiments.run_folder import load_run
from ccaco_cli.core.model.generation import GenerationOptions
from ccaco_cli.core.reporting.report_tables import ReportRequest, table
from ccaco_cli.core.reporting.training_log import read_log
from ccaco_cli.core.retrieval.describe import answer_files, caption_files
from ccaco_cli.core.retrieval.exported_describer import exported_describer
from ccaco_cli.core.retrieval.open_index import open_index
from ccaco_cli.core.retrieval.query import Exported
from ccaco_cli.core.retrieval.rerank import Scorer
from ccaco_cli.core.scoring.captions import load_captions
from ccaco_cli.core.training.config_checks import check
from ccaco_cli.core.workflows.embed import EmbedRequest, embed
from ccaco_cli.core.workflows.train import train

CAPTION = {"loss.gamma": 1.0, "model.decoder.layers": 1, "optim.epochs": 3, "model.decoder.max_words": 20}


@pytest.fixture(scope="module")
def captioned(data_root: Path, small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioned") / "words"
    train(TrainRequest("scenes", explicit=small | CAPTION), folder, data_root=data_root)
    return folder


@pytest.fixture(scope="module")
def pictures(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    split = shards.open(data_root / "scenes").split("test")
    files = [folder / f"{row}.jpg" for row in range(5)]
    for row, file in enumerate(files):
        file.write_bytes(split.media("image", [row])[0])
    return files


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_loss_falls_and_the_captions_of_the_test_split_are_stored(captioned: Path) -> None:
    steps = [entry for entry in read_log(captioned) if "caption" in entry]
    assert steps[-1]["caption"] < steps[0]["caption"]
    assert {entry["gamma"] for entry in steps} == {1.0}
    stored = load_captions(captioned, "test")
    samples = stored.samples
    assert len(samples) == 25 and stored.beam == RunConfig().eval.beam == 4
    assert all(len(sample.references) == 5 and sample.nearest and sample.things for sample in samples)
    assert all(isinstance(sample.nearest_true, bool) for sample in samples)
    aligner, towers, _, _ = load_run(captioned, "cpu")
    assert aligner.decoder is not None and 20 < aligner.decoder.vocabulary_size < 200
    assert towers["text"].tokenizer is not None


def test_the_table_of_captions_is_made_without_the_model(captioned: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap", reason="needs the extra captions")
    rows = [row.as_dict() for row in table(ReportRequest([captioned], "test"), "captions")]
    total = {row["captions"]: row for row in rows if row["samples"] == "all"}
    assert set(total) == {"decoder", "nearest", "references"} and {row["n"] for row in total.values()} == {25}
    assert {name: row["beam"] for name, row in total.items()} == {"decoder": 4, "nearest": None, "references": None}
    assert 1 < total["references"]["things_named"] < 5 and 0 < total["references"]["relation_named"] < 1
    assert total["references"]["true_captions_accuracy"] is None and total["references"]["CIDEr-D"] is None
    assert total["nearest"]["CIDEr-D"] > 0 and 0 < total["nearest"]["ROUGE-L"] < 1
    by_things = [row for row in rows if row["samples"] != "all" and row["captions"] == "nearest"]
    assert sum(row["n"] for row in by_things) == 25
    mean = sum(row["n"] * row["true_captions_accuracy"] for row in by_things) / 25
    assert mean == pytest.approx(total["nearest"]["true_captions_accuracy"])


def test_a_run_without_a_decoder_is_refused(run: Path, ccaco: Callable[..., Any], pictures: list[Path]) -> None:
    with pytest.raises(DataError, match=r"no captions of test.*--gamma 1"):
        table(ReportRequest([run], "test"), "captions")
    done = ccaco("retrieve", "--caption", "--image", pictures[0], "--run", run)
    assert done.code == 2 and "no text decoder" in done.err and "--gamma 1" in done.err and not done.out


def test_captions_from_the_shell(captioned: Path, ccaco: Callable[..., Any], pictures: list[Path]) -> None:
    stored = [sample.caption for sample in load_captions(captioned, "test").samples[:5]]
    listed = ccaco("retrieve", "--caption", "--image", *pictures, "--run", captioned)
    assert listed.code == 0, listed.err
    rows = rows_of(listed.out)
    assert [row["filepath"] for row in rows] == [str(file) for file in pictures]
    assert [row["caption"] for row in rows] == stored
    piped = ccaco("retrieve", "--caption", "-", "--run", captioned, stdin="\n".join(map(str, pictures)) + "\n")
    assert piped.out == listed.out
    as_json = ccaco("retrieve", "--caption", "-", "--run", captioned, "-f", "json", stdin=str(pictures[0]))
    assert json.loads(as_json.out)[0]["caption"] == stored[0]
    as_table = ccaco("retrieve", "--caption", "--image", pictures[0], "--run", captioned, "-f", "table")
    assert stored[0].split()[0] in as_table.out


def test_beam_sampling_length_and_the_choice_among_drafts(
    captioned: Path, ccaco: Callable[..., Any], pictures: list[Path]
) -> None:
    def captions(*options: object) -> list[dict[str, str]]:
        done = ccaco("retrieve", "--caption", "--image", *pictures, "--run", captioned, *options)
        assert done.code == 0, done.err
        return rows_of(done.out)

    greedy, beam = captions("--beam", 1), captions("--beam", 4)
    assert captions() == beam, "as the test split was described"
    mean = [sum(float(row["log_prob"]) for row in rows) for rows in (greedy, beam)]
    assert mean[1] >= mean[0] - 0.5
    sampled = [captions("--sample", "--seed", seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    cold = captions("--sample", "--temperature", 0.01)
    assert [float(row["log_prob"]) for row in cold] == pytest.approx([float(r["log_prob"]) for r in greedy], abs=0.3)
    assert all(len(row["caption"].split()) <= 3 for row in captions("--max-words", 3))
    single, best = ([float(row["score"]) for row in captions("--sample", "--rerank", n)] for n in (1, 8))
    assert all(b >= a - 1e-4 for a, b in zip(single, best, strict=True))
    assert any(b > a + 1e-3 for a, b in zip(single, best, strict=True))


@pytest.fixture(scope="module")
def caption_index(captioned: Path, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caption-index")
    index = folder / "words.idx"
    request = EmbedRequest(captioned, "scenes", out=folder / "test", index=index, device="cpu", precision="fp32")
    embed(request, data_root=data_root)
    assert manifest.open(index, kind="index").facts["query"]["decoder"]["exported"]
    return index


def test_the_exported_decoder_writes_what_the_model_writes(caption_index: Path, data_root: Path) -> None:
    opened = open_index(caption_index)
    exported, model = exported_describer(opened, scores=True), ModelDescriber(index_pair_model(opened))
    assert exported is not None and exported.modality == model.modality == "image"
    images = shards.open(data_root / "scenes").split("test").media("image", range(20))
    for options, rerank in (
        (GenerationOptions(), 0),
        (GenerationOptions(beam=4), 0),
        (GenerationOptions(sample=True, seed=3), 4),
    ):
        pairs = zip(*(list(caption_files(d, images, options, rerank)) for d in (exported, model)), strict=True)
        for light, full in pairs:
            assert light.text == full.text
            assert light.log_prob == pytest.approx(full.log_prob, abs=1e-3)
            assert (light.score, full.score) == (None, None) or light.score == pytest.approx(full.score, abs=1e-2)
    questions = ["what colour is the cat?", "is there a dog?"]
    answers = [[a.text for a in answer_files(d, images[:5], questions)] for d in (exported, model)]
    assert answers[0] == answers[1] and len(answers[0]) == 10


def test_captions_by_an_index_import_no_torch(caption_index: Path, pictures: list[Path]) -> None:
    commands = (["--caption", "--rerank", "2"], ["--ask", "is there a dog?"])
    lines = [["retrieve", *c, "--image", str(pictures[0]), "--index", str(caption_index)] for c in commands]
    code = (
        "import sys; from ccaco_cli.app import main\n"
        f"for arguments in {lines!r}:\n"
        "    sys.argv = ['ccaco', *arguments, '--format', 'csv']\n"
        "    try: main()\n"
        "    except SystemExit as e: assert not e.code, e.code\n"
        "print('HEAVY', [m for m in ('torch', 'torchvision', 'transformers', 'open_clip') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout and done.stdout.count(str(pictures[0])) == 2


def test_a_score_that_was_not_exported_needs_the_model(caption_index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_index(caption_index)
    monkeypatch.setattr(opened, "scorer", Scorer("two-stage", 1.0, 0.5), raising=False)
    assert exported_describer(opened, scores=True) is not None
    monkeypatch.setattr(Exported, "has_matcher", False)
    assert exported_describer(opened, scores=True) is None
    assert exported_describer(opened, scores=False) is not None
    monkeypatch.setattr(opened, "scorer", Scorer("cosine"))
    assert exported_describer(opened, scores=True) is not None


def test_an_index_carries_the_decoder(
    captioned: Path, caption_index: Path, ccaco: Callable[..., Any], pictures: list[Path]
) -> None:
    by_index = ccaco("retrieve", "--caption", "--image", *pictures, "--index", caption_index)
    by_run = ccaco("retrieve", "--caption", "--image", *pictures, "--run", captioned)
    assert by_index.code == 0, by_index.err
    rows, rows_of_run = rows_of(by_index.out), rows_of(by_run.out)
    assert [row["caption"] for row in rows] == [row["caption"] for row in rows_of_run]
    # the index computes in the precision of its items, and the run in that which suits the CPU
    assert all(
        float(a["log_prob"]) == pytest.approx(float(b["log_prob"]), abs=0.02)
        for a, b in zip(rows, rows_of_run, strict=True)
    )


def test_wrong_use_is_refused_in_one_line(
    captioned: Path, ccaco: Callable[..., Any], pictures: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    cases: list[tuple[list[object], str]] = [
        (["--run", captioned], "no file to describe"),
        (["--image", pictures[0]], "captions need one model"),
        (["--audio", pictures[0], "--run", captioned], "--image FILE"),
        (["--image", tmp_path / "none.jpg", "--run", captioned], "none.jpg"),
        (["--image", broken, "--run", captioned], "broken"),
        (["--image", pictures[0], "--run", captioned, "--similar", pictures[1]], "exclude each other"),
        (["--image", pictures[0], "--run", captioned, "--beam", 2, "--sample"], "exclude each other"),
    ]
    for arguments, message in cases:
        done = ccaco("retrieve", "--caption", *arguments)
        assert done.code == 2 and message in done.err and "Traceback" not in done.err, (arguments, done.err)
        assert not done.out
    some = ccaco("retrieve", "--caption", "--image", broken, pictures[0], "--run", captioned)
    assert some.code == 2 and len(rows_of(some.out)) == 1 and str(broken) in some.err


def test_settings_that_do_not_fit_are_refused(data_root: Path) -> None:
    alone = override(RunConfig(), {"loss.alpha": 0.0, "loss.beta": 0.0, "loss.gamma": 1.0})
    with pytest.raises(ConfigError, match="align nothing"):
        check(alone)
    assert apply(RunConfig(), "+caption").loss.gamma == 1.0
    assert CHANGES["+caption"] == ("loss.gamma",)


def test_the_estimate_counts_the_decoder(data_root: Path, small: dict[str, Any]) -> None:
    def gflops(**settings: Any) -> float:
        explicit = small | {"optim.batch_size": 64} | settings
        rows = estimate.estimate(TrainRequest("scenes", explicit=explicit), data_root=data_root)
        return rows[0].gflops

    assert gflops(**CAPTION) > gflops(**CAPTION, **{"loss.questions": 0}) > gflops() > 0


def test_a_further_run_takes_the_decoder_over(
    captioned: Path, data_root: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    for gamma, has_decoder in ((1.0, True), (0.0, False)):
        settings = {"model.spec": str(captioned), "loss.gamma": gamma, "optim.steps": 1, "device": "cpu"}
        folder = tmp_path / f"further-{gamma:g}"
        train(TrainRequest("scenes", explicit=settings | {"optim.batch_size": 8}), folder, data_root=data_root)
        first = next(entry for entry in read_log(folder) if "contrastive" in entry)
        assert ("caption" in first) == has_decoder
        if has_decoder:
            before = [entry for entry in read_log(captioned) if "caption" in entry]
            assert first["caption"] < before[0]["caption"]
    assert manifest.exists(tmp_path / "further-0")


def test_locked_towers_with_cached_tokens_learn_captions(
    data_root: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    locked = {"model.image.lock": True, "model.text.lock": True, "optim.captions": 3, "optim.epochs": 6}
    folder = tmp_path / "locked"
    train(TrainRequest("scenes", explicit=small | CAPTION | locked), folder, data_root=data_root)
    steps = [entry for entry in read_log(folder) if "caption" in entry]
    epoch = len(steps) // 6
    first, last = (fmean(entry["caption"] for entry in part) for part in (steps[:epoch], steps[-epoch:]))
    assert last < first, "mean loss of an epoch"
    assert len(load_captions(folder, "test").samples) == 25
