"""A run that learns answers, from end to end: training, stored answers, their table, and answers from the shell."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.questions import Question
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.reporting.report_tables import ReportRequest, table
from ccaco_cli.core.reporting.training_log import read_log
from ccaco_cli.core.scoring.answers import MajorityAnswers, load_answers, split_questions
from ccaco_cli.core.workflows.embed import EmbedRequest, embed
from ccaco_cli.core.workflows.train import train

DECODER = {"loss.gamma": 1.0, "model.decoder.layers": 1, "optim.epochs": 3, "model.decoder.max_words": 20}
QUESTION = "what colour is the cat?"


@pytest.fixture(scope="module")
def answering(data_root: Path, small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answering") / "answers"
    train(TrainRequest("scenes", explicit=small | DECODER), folder, data_root=data_root)
    return folder


@pytest.fixture(scope="module")
def pictures(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    split = shards.open(data_root / "scenes").split("test")
    files = [folder / f"{row}.jpg" for row in range(3)]
    for row, file in enumerate(files):
        file.write_bytes(split.media("image", [row])[0])
    return files


def test_both_losses_are_logged_and_fall(answering: Path) -> None:
    steps = [entry for entry in read_log(answering) if "answer" in entry]
    assert steps[-1]["answer"] < steps[0]["answer"] and steps[-1]["caption"] < steps[0]["caption"]
    assert {entry["answer_weight"] for entry in steps} == {1.0}


def test_without_questions_of_the_setting_only_captions_are_learned(
    data_root: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    settings = small | DECODER | {"loss.questions": 0, "optim.steps": 2}
    train(TrainRequest("scenes", explicit=settings), tmp_path / "captions", data_root=data_root)
    steps = [entry for entry in read_log(tmp_path / "captions") if "contrastive" in entry]
    assert all("caption" in entry and "answer" not in entry for entry in steps)


def test_each_answer_is_stored_and_the_table_needs_no_model(answering: Path, data_root: Path) -> None:
    stored = load_answers(answering, "test")
    questions = split_questions(shards.open(data_root / "scenes").split("test"))
    assert [(q.row, q.question, q.accepted) for q in stored] == [(row, q.text, q.answers) for row, q in questions]
    assert all(0 <= q.confidence <= 1 for q in stored)
    rows = {row["kind"]: row for row in (row.as_dict() for row in table(ReportRequest([answering]), "answers"))}
    assert list(rows) == [*sorted({q.kind for q in stored}), "all"]
    for kind, row in rows.items():
        part = [q for q in stored if kind in (q.kind, "all")]
        assert row["questions"] == len(part)
        assert row["answer_accuracy"] == pytest.approx(sum(q.answer == q.accepted[0] for q in part) / len(part))
        assert row["blind_accuracy"] == pytest.approx(sum(q.blind == q.accepted[0] for q in part) / len(part))
        assert row["chance"] == pytest.approx(sum(q.chance or 0 for q in part) / len(part))


def test_the_blind_baseline_reads_the_question_then_its_kind() -> None:
    training = [Question("where?", (place,), "place") for place in ("snow", "snow", "beach")]
    blind = MajorityAnswers([*training, *[Question("red?", ("yes",), "yes/no")] * 9])
    assert blind(Question("where?", ("beach",), "place")) == "snow"
    assert blind(Question("where is the dog?", ("beach",), "place")) == "snow"
    assert blind(Question("how many?", ("two",), "count")) == "yes"
    assert MajorityAnswers([])(Question("where?", ("beach",))) == ""


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_answers_from_the_shell_equal_those_of_the_evaluation(
    answering: Path, ccaco: Callable[..., Any], pictures: list[Path]
) -> None:
    stored = {(q.row, q.question): (q.answer, q.confidence) for q in load_answers(answering, "test") if q.row < 3}
    texts = sorted({question for _, question in stored})
    ask_options = [part for text in texts for part in ("--ask", text)]
    listed = ccaco("retrieve", *ask_options, "--image", *pictures, "--run", answering)
    assert listed.code == 0, listed.err
    rows = rows_of(listed.out)
    assert [(row["filepath"], row["question"]) for row in rows] == [(str(f), text) for f in pictures for text in texts]
    answers = {(pictures.index(Path(row["filepath"])), row["question"]): row for row in rows}
    for key, (answer, confidence) in stored.items():
        assert answers[key]["answer"] == answer
        assert float(answers[key]["confidence"]) == pytest.approx(confidence, abs=2e-3)
    piped = ccaco("retrieve", *ask_options, "-", "--run", answering, stdin="\n".join(map(str, pictures)))
    assert piped.out == listed.out
    as_json = ccaco("retrieve", "--ask", QUESTION, "-", "--run", answering, "-f", "json", stdin=str(pictures[0]))
    assert json.loads(as_json.out)[0].keys() == {"filepath", "question", "answer", "confidence"}


def test_an_index_answers_as_its_run(
    answering: Path, data_root: Path, ccaco: Callable[..., Any], pictures: list[Path], tmp_path: Path
) -> None:
    index = tmp_path / "answers.idx"
    embed(
        EmbedRequest(answering, "scenes", out=tmp_path / "test", index=index, device="cpu", precision="fp32"),
        data_root=data_root,
    )
    by_index, by_run = (
        ccaco("retrieve", "--ask", QUESTION, "--image", *pictures, *model)
        for model in (("--index", index), ("--run", answering))
    )
    assert by_index.code == 0, by_index.err
    for indexed, row in zip(rows_of(by_index.out), rows_of(by_run.out), strict=True):
        # the run may encode in 16 bits on some CPUs, and this index is of float32
        assert float(indexed.pop("confidence")) == pytest.approx(float(row.pop("confidence")), abs=1e-3)
        assert indexed == row


def test_data_without_questions_is_learned_the_same_to_the_bit(
    data_root: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    """The setting has no effect there, and there is no loss of answers."""
    split = shards.open(data_root / "scenes").split("train")
    rows = [["filepath", "title", "split"]]
    for row, data in enumerate(split.media("image", range(len(split)))):
        (tmp_path / f"{row}.jpg").write_bytes(data)
        part = "train" if row < 17 else "val" if row < 21 else "test"
        rows += [[f"{row}.jpg", text, part] for text in split.captions[5 * row : 5 * row + 5]]
    with (tmp_path / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    prepare("table", source_path=tmp_path / "photos.csv", out=tmp_path / "photos", write=WriteOptions(workers=0))
    weights = []
    for questions in (2, 0):
        settings = small | DECODER | {"loss.questions": questions, "optim.steps": 2}
        folder = tmp_path / f"run-{questions}"
        train(TrainRequest("photos", explicit=settings), folder, data_root=tmp_path)
        assert not any("answer" in entry for entry in read_log(folder))
        assert not (folder / "results" / "test.answers.json").exists()
        weights.append((folder / "checkpoints" / "best" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_wrong_use_is_refused_in_one_line(
    answering: Path, run: Path, ccaco: Callable[..., Any], pictures: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    cases: list[tuple[list[object], str]] = [
        ([QUESTION, "--run", answering], "no file to describe"),
        ([QUESTION, "--image", pictures[0]], "answers need one model"),
        ([QUESTION, "--image", pictures[0], "--run", run], "no text decoder"),
        ([QUESTION, "--image", broken, "--run", answering], "broken"),
        ([QUESTION, "--image", pictures[0], "--run", answering, "--beam", 2], "options of captions"),
        ([" ", "--image", pictures[0], "--run", answering], "an empty question"),
        (["colour " * 30, "--image", pictures[0], "--run", answering], "too long"),
    ]
    for arguments, message in cases:
        done = ccaco("retrieve", "--ask", *arguments)
        assert done.code == 2 and message in done.err and "Traceback" not in done.err, (arguments, done.err)
        assert not done.out
    some = ccaco("retrieve", "--ask", QUESTION, "--image", broken, pictures[0], "--run", answering)
    assert some.code == 2 and len(rows_of(some.out)) == 1 and str(broken) in some.err


def test_a_run_without_answers_is_refused(run: Path) -> None:
    with pytest.raises(DataError, match=r"no answers on test.*--gamma 1"):
        table(ReportRequest([run]), "answers")


def test_damaged_answers_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    for body in ("{", "[]", '{"questions": [{"id": 1}]}'):
        (tmp_path / "results" / "test.answers.json").write_text(body)
        with pytest.raises(DataError, match="unreadable answers"):
            load_answers(tmp_path, "test")
