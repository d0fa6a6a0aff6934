"""Scores of given pairs, and the filter of training pairs that uses them."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import ccaco_cli
from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.checks import UNLIKELY
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation.calibration import Calibration
from ccaco_cli.core.experiments import pair_scores
from ccaco_cli.core.experiments.pair_filter import PairFilter
from ccaco_cli.core.experiments.pair_scores import Pair, PairModel, PairOptions, index_pair_model, open_pair_model
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.rerank import COSINE, Scorer
from ccaco_cli.core.types import PairRecord
from ccaco_cli.core.workflows.retrieve import by_pairs
from tests.manifests import edited
from tests.recordings import film, sound, tone

WORDS = ("a red cat", "two dogs on a sofa")


@pytest.fixture(scope="module")
def photos(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six photos of the test split, their captions, a broken file and a table of all of them."""
    folder = tmp_path_factory.mktemp("photos")
    split = shards.open(data_root / "scenes").split("test")
    rows = []
    for row, data in enumerate(split.media("image", range(6))):
        (folder / f"{row}.png").write_bytes(data)
        rows.append((f"{row}.png", split.captions[split.caption_start[row]]))
    (folder / "broken.png").write_bytes(b"no picture")
    rows += [
        ("broken.png", "a cat"),
        ("absent.png", "a cat"),
        ("0.png", " "),
        ("../outside.png", "a cat"),
        ("0.png", WORDS[0]),
    ]
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filepath", "title"), *rows])
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> PairModel:
    return open_pair_model(run, "cpu", precision="fp32")


def test_scores_are_those_of_the_python_api(run: Path, model: PairModel, photos: Path) -> None:
    rows = list(by_pairs(model, photos / "pairs.csv", PairOptions()))
    files, texts = [photos / row.pair.path for row in rows[:6]], [row.pair.caption for row in rows[:6]]
    python = ccaco_cli.load(run, "cpu", "fp32")
    assert [row.score.cosine for row in rows[:6]] == pytest.approx(
        np.diag(python.similarity(python.encode(images=files), python.encode(texts=texts))).tolist(), abs=1e-4
    )
    assert [row.score.match for row in rows[:6]] == pytest.approx(python.match(files, texts).tolist(), abs=1e-3)
    assert [row.score.score for row in rows[:6]] == pytest.approx(
        np.diag(python.score(files, texts)).tolist(), abs=1e-3
    )
    stored = manifest.open(run, kind="run").facts["calibration"][python.scorer.kind]
    wanted = Calibration.from_dict(stored).probability([row.score.score for row in rows[:6]])
    assert [row.score.probability for row in rows[:6]] == pytest.approx(wanted.tolist())


def test_one_row_for_each_row_in_order(model: PairModel, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(by_pairs(model, photos / "pairs.csv", PairOptions()))
    assert [row.pair.path for row in rows] == [
        *(f"{i}.png" for i in range(6)), "broken.png", "absent.png", "0.png", "../outside.png", "0.png",
    ]  # fmt: skip
    problems = ["not a picture", "missing file", "no caption", "outside the source folder"]
    assert [row.score.problem for row in rows] == [*[""] * 6, *problems, ""]
    assert all((row.score.cosine is None) == bool(row.score.problem) for row in rows)
    monkeypatch.setattr(pair_scores, "PAIRS", 3)  # batches do not change a score, padding neither
    again = list(by_pairs(model, photos / "pairs.csv", PairOptions()))
    for row, small in zip(rows, again, strict=True):
        assert row.pair == small.pair and row.score.problem == small.score.problem
        if row.score.score is not None:
            assert small.score.score == pytest.approx(row.score.score, abs=1e-3)


def test_few_rows_are_in_memory_and_each_picture_is_encoded_once(
    model: PairModel, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_scores, "PAIRS", 4)
    drawn, encoded = [0], list[int]()

    def pairs() -> Any:
        for _ in range(40):
            drawn[0] += 1
            yield Pair(photos / "0.png", WORDS[0])

    plain = PairModel._encode
    monkeypatch.setattr(PairModel, "_encode", lambda *a: encoded.append(len(a[2].samples)) or plain(*a))
    scores = model.score(pairs())
    next(scores)
    assert drawn[0] <= 12  # the batch that is scored and those that are read ahead
    assert len([1, *scores]) == 40 and set(encoded) == {1}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_table_format(model: PairModel, photos: Path, suffix: str) -> None:
    table = photos / f"few{suffix}"
    rows = [{"filepath": "0.png", "title": WORDS[0]}, {"filepath": "1.png", "title": WORDS[1]}]
    if suffix in (".csv", ".tsv"):
        separator = "\t" if suffix == ".tsv" else ","
        table.write_text("".join(separator.join(line) + "\n" for line in (rows[0], *(r.values() for r in rows))))
    elif suffix == ".json":
        table.write_text(json.dumps([{"image": r["filepath"], "caption": r["title"]} for r in rows]))
    elif suffix == ".jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), table)
    scored = list(by_pairs(model, table, PairOptions()))
    assert [(row.pair.path, row.pair.caption, row.score.problem) for row in scored] == [
        ("0.png", WORDS[0], ""), ("1.png", WORDS[1], ""),
    ]  # fmt: skip


@pytest.mark.parametrize("text, problem", [
    ("filepath\n0.png\n", "no column 'title'"), ("title\na cat\n", "not one column 'filepath'"),
    ("filepath,title\n", "the table has no rows"),
])  # fmt: skip
def test_tables_that_are_refused(model: PairModel, photos: Path, text: str, problem: str) -> None:
    (photos / "bad.csv").write_text(text)
    with pytest.raises(DataError, match=problem):
        list(by_pairs(model, photos / "bad.csv", PairOptions()))


def test_a_prior_moves_probabilities_and_not_scores(model: PairModel, photos: Path) -> None:
    even, rare = (list(model.score([Pair(photos / "0.png", WORDS[0])], PairOptions(prior)))[0] for prior in (0.5, 0.01))
    assert even.score == rare.score and even.probability and rare.probability and rare.probability < even.probability
    with pytest.raises(ConfigError, match="out of range"):
        PairOptions(1.0)


def test_an_index_scores_as_its_run(index: Path, model: PairModel, photos: Path) -> None:
    of_index = index_pair_model(Index(index))
    assert of_index.calibration == model.calibration and of_index.word_threshold == model.word_threshold
    pair = [Pair(photos / "0.png", WORDS[0])]
    (ours,), (of_run,) = list(of_index.score(pair)), list(model.score(pair))
    assert ours.score == pytest.approx(of_run.score, abs=1e-3)


def test_missing_words_are_the_least_attended_ones(
    model: PairModel, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cosines = {"red": 0.1, "cat": 0.9, "sofa": 0.2}

    def attended(aligner: Any, a: Any, b: Any) -> Any:
        spans = dict(pair_scores.content_word_spans(model.towers["text"], "a red cat on a sofa"))
        values = pair_scores.torch.zeros(b.mask.shape)
        for word, cosine in cosines.items():
            values[:, spans[word]] = cosine
        return values

    monkeypatch.setattr(pair_scores, "attended_cosines", attended)
    halfway = PairModel(**{**model.__dict__, "word_threshold": 0.5})
    (score,) = halfway.score([Pair(photos / "0.png", "a red cat on a sofa")], PairOptions(missing=True))
    assert score.missing == ("red", "sofa")
    without = PairModel(**{**model.__dict__, "word_threshold": None})
    with pytest.raises(ConfigError, match="does not tell which words are shown"):
        list(without.score([Pair(photos / "0.png", "a cat")], PairOptions(missing=True)))


def test_the_command(ccaco: Callable[..., Any], run: Path, index: Path, photos: Path) -> None:
    done = ccaco("retrieve", "--pairs", photos / "pairs.csv", "--run", run, "--explain", "-", "--device", "cpu")
    assert done.code == 0
    rows = list(csv.DictReader(io.StringIO(done.out)))
    header = ["filepath", "title", "cosine", "match", "score", "probability", "missing", "problem"]
    assert list(rows[0]) == header and len(rows) == 11
    assert rows[6]["problem"] == "not a picture" and rows[6]["score"] == ""
    assert "row 7: not a picture: broken.png" in done.err
    assert "11 pairs: 7 scored, 4 rejected (not a picture 1, missing file 1" in done.err
    assert "probability: calibrated on val (" in done.err
    of_index = ccaco("retrieve", "--pairs", photos / "pairs.csv", "--index", index, "--format", "json")
    assert of_index.code == 0 and [row["filepath"] for row in json.loads(of_index.out)] == [r["filepath"] for r in rows]


@pytest.mark.parametrize("arguments, problem", [
    ((), "no index"), (("--pairs", "x.csv"), "pairs need one model"),
    (("--pairs", "x.csv", "--run", "r", "--index", "i"), "pairs need one model"),
    (("--pairs", "x.csv", "--index", "i", "--calibrate", "d"), "an index has the calibration of its run"),
    (("--pairs", "x.csv", "--run", "r", "--explain", "why"), "heat maps are drawn for the hits"),
    (("a dog", "--pairs", "x.csv", "--run", "r"), "pairs and a search at the same time"),
])  # fmt: skip
def test_options_that_do_not_fit(ccaco: Callable[..., Any], arguments: tuple[str, ...], problem: str) -> None:
    done = ccaco("retrieve", *arguments)
    assert (done.code, done.out) == (2, "") and problem in done.err and done.err.count("\n") == 1


def test_a_run_without_a_calibration_says_how_to_get_one(
    ccaco: Callable[..., Any], run: Path, photos: Path, data_root: Path, tmp_path: Path
) -> None:
    older = tmp_path / "older"
    shutil.copytree(run, older)
    with edited(older) as body:  # as runs of earlier versions are
        for key in ("calibration", "word_threshold"):
            del body["facts"][key]
    done = ccaco("retrieve", "--pairs", photos / "pairs.csv", "--run", older, "--device", "cpu")
    assert done.code == 0 and "no probability" in done.err and "--calibrate DATASET" in done.err
    assert next(csv.DictReader(io.StringIO(done.out)))["probability"] == ""
    with pytest.raises(ConfigError, match="no calibrated probability"):
        PairFilter(open_pair_model(older, "cpu"), 0.5, 0.5)
    fitted = open_pair_model(older, "cpu", "scenes", data_root=data_root)
    wanted = Calibration.from_dict(manifest.open(run, kind="run").facts["calibration"][fitted.scorer.kind])
    assert fitted.calibration and fitted.calibration.split == "val of scenes"
    assert fitted.calibration.slope == pytest.approx(wanted.slope, rel=1e-3)


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_sounds_and_films_with_texts(modality: str, tmp_path: Path) -> None:
    config = override(RunConfig(), {"model.width": 16, "loss.beta": 0.5, f"model.{modality}.spec": "tiny"})
    aligner, towers = aligners.build(config.model, config.loss, (modality, "text"))
    described = Manifest(Path("untrained"), "model", {})
    model = PairModel(aligner.eval(), towers, Scorer.of(COSINE), None, None, described, has_cross=True)
    file = tmp_path / "recording"
    file.write_bytes(sound(tone(1.0, 16_000), 16_000) if modality == "audio" else film())
    (tmp_path / "text.wav").write_bytes(b"no recording")
    table = tmp_path / "pairs.jsonl"
    rows = [{"filepath": name, "title": "a dog barks"} for name in ("recording", "text.wav", "recording")]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, broken, again = (row.score for row in by_pairs(model, table, PairOptions()))
    assert first.problem == again.problem == "" and first.cosine == again.cosine and first.match is not None
    assert broken.problem and broken.cosine is None and first.probability is None


class FixedScores:
    """A pair model whose probabilities are written in the captions: "0.7 a dog"."""

    modalities = ("image", "text")
    calibration = Calibration(1.0, 0.0, 0.5, 1)

    class manifest:
        path, sha256 = Path("runs/fixed"), "0" * 64

    class scorer:
        kind = "cosine"

    def score(self, pairs: Any, options: PairOptions) -> Any:
        for pair in pairs:
            number = pair.b.split()[0] if pair.b.strip() else ""
            if number == "broken":
                yield pair_scores.PairScore(problem="broken image")
            elif number == "nan":
                yield pair_scores.PairScore(problem=pair_scores.NOT_FINITE)
            else:
                yield (
                    pair_scores.PairScore(0.0, None, 0.0, float(number))
                    if number
                    else pair_scores.PairScore(problem="no caption")
                )


def records() -> list[PairRecord]:
    common: Any = {"group": "g", "media": {"image": Path("/x/1.png")}}
    return [
        PairRecord("0", split="train", captions=["0.9 a", "0.2 b"], **common),
        PairRecord("1", split="train", captions=["0.1 a"], **common),
        PairRecord("2", split="test", captions=["0.1 a"], **common),
        PairRecord("3", split="train", captions=["broken a"], **common),
        PairRecord("4", split="train", captions=["nan a", "0.5 b", ""], **common),
        PairRecord("5", split="train", captions=["0.9 a"], problem="bad row", **common),
        PairRecord("6", split="train", captions=[], **common),
    ]


def test_what_a_filter_keeps() -> None:
    chosen = PairFilter(FixedScores(), 0.5, 0.5)  # type: ignore[arg-type]
    out = list(chosen.select(records(), ("image", "text"), ()))
    assert [(r.id, r.problem, list(r.captions)) for r in out] == [
        ("0", UNLIKELY, ["0.2 b"]), ("0", "", ["0.9 a"]),
        ("1", UNLIKELY, ["0.1 a"]),
        ("2", "", ["0.1 a"]),  # only train is filtered
        ("3", "", ["broken a"]),  # the checks of prepare have their own reason
        ("4", UNLIKELY, ["nan a"]), ("4", "", ["0.5 b", ""]),
        ("5", "bad row", ["0.9 a"]), ("6", "", []),
    ]  # fmt: skip
    assert out[0].detail == "probability 0.2000: 0.2 b"
    pairs = sum(len(r.captions) for r in records())
    assert sum(len(r.captions) for r in out) == pairs  # counts add up
    with pytest.raises(DataError, match="aligns other modalities"):
        chosen.select([], ("audio", "text"), ())
    with pytest.raises(ConfigError, match="out of range"):
        PairFilter(FixedScores(), 1.0, 0.5)  # type: ignore[arg-type]


def calibrated(run: Path, folder: Path) -> Path:
    """A copy of a run whose probabilities differ from pair to pair: its own are all 1/2 where it learned nothing."""
    shutil.copytree(run, folder)
    with edited(folder) as body:
        for fit in body["facts"]["calibration"].values():
            fit["slope"], fit["offset"] = 3.0, 0.0
    return folder


def test_prepare_with_a_filter(ccaco: Callable[..., Any], run: Path, photos: Path, tmp_path: Path) -> None:
    lines = ["filepath,title,split", *(f"{i}.png,caption {i},train" for i in range(6)), "5.png,a dog,train"]
    (photos / "train.csv").write_text("".join(f"{line}\n" for line in lines))
    run = calibrated(run, tmp_path / "calibrated")
    model = open_pair_model(run, "cpu")  # in the precision of the command
    pairs = [Pair(photos / f"{i}.png", f"caption {i}") for i in range(6)] + [Pair(photos / "5.png", "a dog")]
    wanted = np.array([score.probability for score in model.score(pairs)])
    threshold = round(float(np.median(wanted)), 6)
    done = ccaco(
        "prepare", "table", "--source", photos / "train.csv", "--out", tmp_path / "kept", "--workers", 0,
        "--keep-above", threshold, "--by", run, "--device", "cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    data = shards.open(tmp_path / "kept")
    with (tmp_path / "kept" / "rejects.csv").open() as file:
        rejects = list(csv.DictReader(file))
    assert len(data.split("train").captions) + len(rejects) == 7 and 0 < len(rejects) < 7
    assert len(rejects) == int((wanted < threshold).sum())
    assert {row["reason"] for row in rejects} == {UNLIKELY} and "probability 0." in rejects[0]["where"]
    stored = data.manifest.config["filter"]
    assert (stored["sha256"], stored["keep_above"]) == (manifest.open(run, kind="run").sha256, threshold)
    assert f"filter: {len(rejects)} of 7 pairs of train have a probability below" in done.err


def test_a_filter_needs_both_options(ccaco: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    for arguments in (("--keep-above", 0.5), ("--by", run), ("--calibrate", "scenes")):
        done = ccaco("prepare", "scenes", "--limit", 4, "--out", tmp_path / "x", *arguments)
        assert (
            done.code == 2 and "a filter needs a model and a probability" in done.err and not list(tmp_path.iterdir())
        )
