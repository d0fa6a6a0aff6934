"""VQA v2: questions about COCO photos, with the answers of ten people (arXiv:1612.00837, visualqa.org)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccaco_cli.core.data.questions import QUESTIONS, Question, stored
from ccaco_cli.core.data.sources.fields import FieldReader
from ccaco_cli.core.data.sources.lists import hash_fraction, missing_part, read_json, revision_of
from ccaco_cli.core.data.sources.media_files import layout_error, locate
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

_LICENCE = "annotations CC BY 4.0; each photo has its own Flickr licence"
_EXPECTS = (
    "v2_OpenEnded_mscoco_val2014_questions.json and v2_mscoco_val2014_annotations.json (and those of train2014) beside "
    "val2014/ (and train2014/); captions_val2014.json there or in annotations/, if there are captions"
)
_PUBLISHED = {"train": 82_783, "val": 40_504}
"""Photos of each part."""


@dataclass
class _QuestionedPhoto:
    """The questions and captions of one photo; ``problem`` says why it cannot be used, ``detail`` which question."""

    questions: list[Question] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    problem: str = ""
    detail: str = ""


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is None or not root.is_dir():
        raise layout_error("vqa", "no VQA folder here", root, _EXPECTS)
    files = {part: _files(root, part) for part in ("train", "val")}
    files = {part: part_files for part, part_files in files.items() if part_files["questions"].is_file()}
    if not files:
        raise layout_error("vqa", "no VQA questions in this folder", root, _EXPECTS)
    parts = {part: _photos(**part_files) for part, part_files in files.items()}
    train = sorted((hash_fraction(str(key)), key) for key in parts.get("train", {}))
    held_out = {key for _, key in train[: max(1, len(train) // 10)]}

    def split_of(part: str, key: int) -> str:
        return "test" if part == "val" else "val" if key in held_out else "train"

    def records() -> Iterator[PairRecord]:
        for part, photos in parts.items():
            for key, photo in photos.items():
                id = f"{part}2014/COCO_{part}2014_{key:012d}.jpg"
                media = {"image": locate(id, root, options.media_root)}
                captions = photo.captions or [question.caption for question in photo.questions]
                meta = {QUESTIONS: stored(photo.questions)}
                yield PairRecord(
                    id, id, split_of(part, key), media, captions, meta=meta, problem=photo.problem, detail=photo.detail
                )

    read_files = [file for part_files in files.values() for file in part_files.values() if file is not None]
    suffix = missing_part({part: len(photos) for part, photos in parts.items()}, _PUBLISHED)
    rule = "train2014 -> train, less a tenth, by hash of the image id -> val; val2014 -> test"
    texts = "COCO's" if any(part_files["captions"] for part_files in files.values()) else "question and answer"
    return SourceData(
        records=records(),
        protocol=f"vqa-v2 ({rule}; captions: {texts}){suffix}",
        licence=_LICENCE,
        revision=revision_of(*read_files),
        text_files=tuple(read_files),
        counts=Counter(split_of(part, key) for part, photos in parts.items() for key in photos),
    )


def _files(root: Path, part: str) -> dict[str, Any]:
    """The files of one part; captions are None where there are none."""
    name = f"captions_{part}2014.json"
    return {
        "questions": root / f"v2_OpenEnded_mscoco_{part}2014_questions.json",
        "annotations": root / f"v2_mscoco_{part}2014_annotations.json",
        "captions": next((file for file in (root / name, root / "annotations" / name) if file.is_file()), None),
    }


def _photos(questions: Path, annotations: Path, captions: Path | None) -> dict[int, _QuestionedPhoto]:
    """Image id -> its questions with their answers, in the order of the file. Raises DataError: other content."""
    if not annotations.is_file():
        raise DataError("the questions have no answers", where=annotations, expected=_EXPECTS)
    answers = _answers(annotations)
    photos: dict[int, _QuestionedPhoto] = {}
    try:
        for entry in read_json(questions, "questions")["questions"]:
            photo, fields = photos.setdefault(_image_id(entry), _QuestionedPhoto()), FieldReader()
            text = fields.text(entry["question"], "question")
            kind, people = answers.get(entry["question_id"], ("", ()))
            if not people:
                fields.refuse("a question without answers")
            if fields.problem and not photo.problem:
                photo.problem, photo.detail = fields.problem, f"question {entry['question_id']}"
            elif people:
                photo.questions.append(Question(text, people, kind, voted=True))
    except (KeyError, TypeError) as error:
        raise _other_content(questions, error, "questions[].{image_id, question_id, question}") from None
    if captions is not None:
        _add_captions(photos, captions)
    return photos


def _answers(file: Path) -> dict[Any, tuple[str, tuple[str, ...]]]:
    """Id of the question -> type of its answer, and the answer of each person."""
    try:
        return {
            entry["question_id"]: (
                str(entry.get("answer_type", "")),
                tuple(text for reply in entry["answers"] if (text := str(reply["answer"]).strip())),
            )
            for entry in read_json(file, "annotations")["annotations"]
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise _other_content(file, error, "annotations[].{question_id, answers[].answer}") from None


def _add_captions(photos: dict[int, _QuestionedPhoto], file: Path) -> None:
    try:
        for entry in read_json(file, "annotations")["annotations"]:
            if _image_id(entry) in photos:
                photos[_image_id(entry)].captions += FieldReader().captions(entry["caption"])
    except (KeyError, TypeError) as error:
        raise _other_content(file, error, "annotations[].{image_id, caption}") from None


def _image_id(entry: dict[str, Any]) -> int:
    if not isinstance(entry["image_id"], int):
        raise TypeError("an image_id that is no integer")
    return entry["image_id"]


def _other_content(file: Path, error: Exception, expected: str) -> DataError:
    return DataError(f"not a file of VQA v2 ({error})", where=file, expected=expected)


SOURCE = Source("vqa", ("image", "text"), _EXPECTS, _read)
