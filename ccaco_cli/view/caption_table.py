"""Prints captions and answers while they are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccaco_cli.view import tables
from ccaco_cli.view.streams import write_result

if TYPE_CHECKING:
    from ccaco_cli.core.model.generation import Answer
    from ccaco_cli.core.retrieval.describe import Caption

ROWS_AT_ONCE = 64


def show(
    paths: Sequence[Path], captions: Iterable[Caption], format: str | None, *, scored: bool
) -> list[tuple[Path, str]]:
    """Prints one row for each file that could be described.

    Args:
        paths: of the files; may grow while captions come.
        scored: show the score of the caption that was chosen.
    Returns:
        The files that could not be described, and why.
    """
    names = ("filepath", "caption", "log_prob", *(("score",) if scored else ()))
    problems: list[tuple[Path, str]] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number, caption in enumerate(captions):
            if caption.problem:
                problems.append((paths[number], caption.problem))
                continue
            cells = {
                "filepath": str(paths[number]),
                "caption": caption.text,
                "log_prob": round(caption.log_prob or 0.0, 4),
            }
            yield cells | ({"score": round(caption.score, 4)} if scored and caption.score is not None else {})

    _print(rows(), names, format)
    return problems


def show_answers(
    paths: Sequence[Path], questions: Sequence[str], answers: Iterable[Answer], format: str | None
) -> list[tuple[Path, str]]:
    """Prints one row for each file that could be read and each question.

    Args:
        paths: of the files; may grow while answers come.
        answers: file by file, each with one answer to each question.
    Returns:
        The files that could not be read, and why.
    """
    problems: list[tuple[Path, str]] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number, answer in enumerate(answers):
            path, question = paths[number // len(questions)], number % len(questions)
            if not answer.problem:
                confidence = round(answer.confidence or 0.0, 4)
                cells = {"question": questions[question], "answer": answer.text, "confidence": confidence}
                yield {"filepath": str(path), **cells}
            elif question == 0:
                problems.append((path, answer.problem))

    _print(rows(), ("filepath", "question", "answer", "confidence"), format)
    return problems


def _print(rows: Iterator[dict[str, Any]], names: Sequence[str], format: str | None) -> None:
    format = format or tables.default_format()
    if format == "json":
        for part in tables.json_parts(rows, names):
            if not write_result(part):
                break
    elif format in ("csv", "table"):
        header = True
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            if not tables.show(batch, names, format, header=header):
                break
            header = False
    else:
        tables.show(list(rows), names, format)
