"""The options of ``ccaco retrieve --caption`` and ``--ask``, and what they do."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccaco_cli.core.modalities import MODALITIES

if TYPE_CHECKING:
    from ccaco_cli.core.retrieval.describe import Describer

Captions = Annotated[
    bool,
    typer.Option(
        "--caption",
        help="Write a caption of each file of --image, --audio or --video (further files follow it; - reads paths from "
        "stdin), by the text decoder of --run or --index.",
    ),
]
Ask = Annotated[
    list[str] | None,
    typer.Option(
        "--ask",
        metavar="QUESTION",
        help="Answer this question (repeatable) about each file of --image, --audio or --video (further files and - as "
        "for --caption), by the text decoder of --run or --index.",
        show_default=False,
    ),
]
Beam = Annotated[
    int | None,
    typer.Option(
        "--beam",
        min=1,
        max=1000,
        help="With --caption: texts that are followed at a time; 1: greedy.",
        show_default="as in the run",
    ),
]
Sample = Annotated[bool, typer.Option("--sample", help="With --caption: draw each word at random.")]
Temperature = Annotated[
    float,
    typer.Option("--temperature", min=0.01, max=100.0, help="With --sample: below 1 prefers probable words."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="With --sample: of the random numbers.")]
MaxWords = Annotated[
    int, typer.Option("--max-words", min=0, max=65_536, help="With --caption: tokens at most; 0: as many as it knows.")
]


@dataclass(frozen=True)
class CaptionRequest:
    """The options of ``retrieve --caption`` and ``--ask``; with ``questions`` they are answered, and else captions
    are written."""

    beam: int | None
    sample: bool
    temperature: float
    seed: int
    max_words: int
    rerank: int | None
    questions: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--ask" if self.questions else "--caption"

    def example(self, modality: str) -> str:
        """A command that works for a file of this modality."""
        question = ' "what colour is the dog?"' if self.questions else ""
        option = f"--{modality}"
        return f"ccaco retrieve {self.flag}{question} {option} FILE --run RUN"


def write_captions(
    files: Mapping[str, Path],
    further: Sequence[str],
    model: tuple[str, str | None],
    request: CaptionRequest,
    device: str,
    output_format: str | None,
    has_search: bool,
) -> None:
    """Writes captions of files, or answers questions about them, and prints them while they come.

    Args:
        files: modality -> the first file.
        further: further files, or "-": one path a line from stdin.
        model: index and run, of which one is named.
        has_search: whether the command also names a search.
    Raises:
        ConfigError: options that do not fit together, or a model without decoder.
        DataError: no file, or files that cannot be read; raised after the captions of the others.
    """
    from ccaco_cli.core.errors import ConfigError, DataError
    from ccaco_cli.core.model.generation import GenerationOptions
    from ccaco_cli.core.retrieval.describe import answer_files, caption_files
    from ccaco_cli.core.scoring.captions import evaluated_beam
    from ccaco_cli.core.text_input import read_lines
    from ccaco_cli.view import caption_table, progress

    index, run = model
    of_captions = request.sample or request.beam or request.max_words or request.rerank is not None
    if has_search or (request.sample and request.beam) or output_format == "paths":
        raise ConfigError(
            "options that exclude each other",
            where=request.flag,
            expected="no search beside it, one of --sample and --beam, and no --format paths",
            next=request.example("image"),
        )
    if request.questions and of_captions:
        raise ConfigError(
            "options of captions",
            where="--ask",
            expected="no --beam, --sample, --max-words and --rerank: an answer is the most probable one",
            next=request.example("image"),
        )
    if bool(index) == bool(run):
        raise ConfigError(
            "answers need one model" if request.questions else "captions need one model",
            where=request.flag,
            expected="one of --run RUN and --index NAME.idx",
            next=request.example("image"),
        )
    describer = _open_describer(index, run, device, scores=bool(request.rerank))
    described = describer.modality
    if len(files) > 1 or any(modality != described for modality in files) or not (files or further):
        raise DataError(
            "captions and answers are about files of one modality" if files or further else "no file to describe",
            where=" ".join(f"--{modality} {file}" for modality, file in files.items()) or request.flag,
            expected=f"--{described} FILE, or - for paths from stdin, as this model describes {described}",
            next=request.example(described),
        )
    if not MODALITIES[described].query_help:
        raise DataError(f"files of the modality {described} cannot be described", where=request.flag)

    def paths() -> Iterator[Path]:
        yield from files.values()
        for name in further:
            lines = read_lines(sys.stdin.buffer, "stdin") if name == "-" else [name]
            yield from (Path(line) for line in lines if line)

    beam = request.beam or evaluated_beam(describer.config)
    options = GenerationOptions(request.max_words, beam, request.sample, request.temperature, request.seed)
    listed: list[Path] = []

    def remembered() -> Iterator[Any]:
        for path in paths():
            listed.append(path)
            yield path

    with progress.bar(request.flag.removeprefix("--")):
        if request.questions:
            answers = answer_files(describer, remembered(), request.questions)
            problems = caption_table.show_answers(listed, request.questions, answers, output_format)
        else:
            captions = caption_files(describer, remembered(), options, request.rerank or 0)
            problems = caption_table.show(listed, captions, output_format, scored=bool(request.rerank))
    if problems:
        path, problem = problems[0]
        more = f" ({len(problems):,} of {len(listed):,} files)" if len(problems) > 1 else ""
        raise DataError(f"{problem}{more}", where=path, expected=f"a readable {described} file")


def _open_describer(index: str, run: str | None, device: str, *, scores: bool) -> Describer:
    """The decoder of a run, or that of an index: where it was exported, torch is not loaded."""
    from ccaco_cli.core.retrieval.exported_describer import exported_describer
    from ccaco_cli.core.retrieval.open_index import open_index

    opened = None if run else open_index(index)
    if opened is not None and (exported := exported_describer(opened, scores=scores)):
        return exported
    from ccaco_cli.core.experiments.model_describer import ModelDescriber
    from ccaco_cli.core.experiments.pair_scores import index_pair_model, open_pair_model

    return ModelDescriber(index_pair_model(opened) if opened is not None else open_pair_model(str(run), device))
