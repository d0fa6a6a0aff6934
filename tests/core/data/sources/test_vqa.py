from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.questions import Question, read_questions
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.data.sources.vqa import SOURCE
from ccaco_cli.core.errors import DataError

PEOPLE = ["red"] * 8 + ["dark red", "pink"]


def write(root: Path, part: str, images: range, *, answered: bool = True) -> None:
    questions = [
        {"image_id": image, "question_id": 10 * image + n, "question": f"what colour {n}?"}
        for n in range(2)
        for image in images
    ]
    annotations = [
        {
            "question_id": question["question_id"],
            "image_id": question["image_id"],
            "answer_type": "other",
            "question_type": "what colour",
            "multiple_choice_answer": "red",
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(PEOPLE, 1)],
        }
        for question in questions
        if answered or question["question_id"] != 10 * images[0]
    ]
    save(root / f"v2_OpenEnded_mscoco_{part}2014_questions.json", {"questions": questions})
    save(root / f"v2_mscoco_{part}2014_annotations.json", {"annotations": annotations})
    (root / f"{part}2014").mkdir(exist_ok=True)
    for image in images:
        Image.new("RGB", (40, 40), (image, 0, 0)).save(root / f"{part}2014" / f"COCO_{part}2014_{image:012d}.jpg")


def save(file: Path, body: Any) -> None:
    file.write_text(json.dumps(body))


def test_published_layout(tmp_path: Path) -> None:
    write(tmp_path, "train", range(20))
    write(tmp_path, "val", range(20, 24))
    data = SOURCE.read(tmp_path, SourceOptions())
    records = list(data.records)
    assert data.counts == {"train": 18, "val": 2, "test": 4}
    record = next(record for record in records if record.split == "test")
    assert record.id == "val2014/COCO_val2014_000000000020.jpg"
    assert read_questions(record.meta) == [
        Question(f"what colour {n}?", tuple(PEOPLE), "other", voted=True) for n in range(2)
    ]
    # without COCO's captions, questions with their most frequent answer are the texts
    assert record.captions == ["what colour 0? red", "what colour 1? red"]


def test_texts_that_utf8_cannot_spell_are_cleaned(tmp_path: Path) -> None:
    write(tmp_path, "val", range(1))
    for file in tmp_path.glob("v2_*.json"):
        file.write_text(
            file.read_text().replace("what colour", r"what \ud800 colour").replace("dark red", r"dark\ud800  red")
        )
    (record,) = SOURCE.read(tmp_path, SourceOptions()).records
    question = read_questions(record.meta)[0]
    assert (question.text, question.answers[8]) == ("what colour 0?", "dark red")


def test_captions_of_coco_are_used_where_they_lie_beside(tmp_path: Path) -> None:
    write(tmp_path, "val", range(2))
    captions = [{"image_id": 1, "caption": "a red square"}, {"image_id": 7, "caption": "of another photo"}]
    save(tmp_path / "captions_val2014.json", {"annotations": captions})
    records = list(SOURCE.read(tmp_path, SourceOptions()).records)
    assert [record.captions for record in records] == [["what colour 0? red", "what colour 1? red"], ["a red square"]]


def test_prepared_with_rejects(tmp_path: Path) -> None:
    root = tmp_path / "vqa"
    root.mkdir()
    write(root, "val", range(6), answered=False)
    (root / "val2014" / f"COCO_val2014_{5:012d}.jpg").unlink()
    out = tmp_path / "out"
    prepared = prepare("vqa", source_path=root, out=out, write=WriteOptions(workers=0, max_rejects=0.5))
    assert prepared.facts["rejects"] == {"a question without answers": 1, "missing file": 1}
    assert "question 0" in (out / "rejects.csv").read_text()
    split = shards.open(out).split("test")
    assert len(split) == 4
    assert read_questions(split.meta(0))[1].answers == tuple(PEOPLE)


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("v2_OpenEnded_mscoco_val2014_questions.json", {"questions": [{"image_id": 1}]}, "not a file of VQA v2"),
        ("v2_OpenEnded_mscoco_val2014_questions.json", {"questions": ["a"]}, "not a file of VQA v2"),
        ("v2_OpenEnded_mscoco_val2014_questions.json", [1], "other content"),
        ("v2_mscoco_val2014_annotations.json", {"annotations": [{"question_id": 1}]}, "not a file of VQA v2"),
        ("v2_mscoco_val2014_annotations.json", {"annotations": [3]}, "not a file of VQA v2"),
        ("captions_val2014.json", {"annotations": [{}]}, "not a file of VQA v2"),
    ],
)
def test_another_content_is_one_line(tmp_path: Path, name: str, body: Any, message: str) -> None:
    write(tmp_path, "val", range(2))
    save(tmp_path / name, body)
    with pytest.raises(DataError, match=message):
        SOURCE.read(tmp_path, SourceOptions())


def test_a_missing_or_broken_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no VQA questions"):
        SOURCE.read(tmp_path, SourceOptions())
    write(tmp_path, "val", range(2))
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text("{")
    with pytest.raises(DataError, match="not a JSON file"):
        SOURCE.read(tmp_path, SourceOptions())
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(DataError, match="have no answers"):
        SOURCE.read(tmp_path, SourceOptions())
