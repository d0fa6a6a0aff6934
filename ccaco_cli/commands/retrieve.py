"""``ccaco retrieve``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ccaco_cli.commands import options


def retrieve(
    query: Annotated[
        list[str] | None, typer.Argument(help="Sentences, or - for one a line from stdin.", show_default=False)
    ] = None,
    index: Annotated[Path, typer.Option("--index", "-i", help="An index that 'embed' made.")] = ...,  # type: ignore[assignment]
    image: Annotated[
        Path | None,
        typer.Option("--image", help="A picture instead of a sentence: finds captions.", show_default=False),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(
            "--audio", help="A sound (of a film, its sound track): finds films, or captions.", show_default=False
        ),
    ] = None,
    video: Annotated[Path | None, typer.Option("--video", help="A film: finds sounds.", show_default=False)] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Answers a query.")] = 10,
    rerank: Annotated[
        int | None,
        typer.Option(
            "--rerank", min=0, help="Candidates that cross-attention reorders; 0 = none.", show_default="as in the run"
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", help="Write the answers as a contact sheet (.png, .pdf, .svg).", show_default=False),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(
            "--explain", metavar="FOLDER", help="Draw which words met which patches of each answer.", show_default=False
        ),
    ] = None,
    explain_method: Annotated[
        str,
        typer.Option("--explain-method", help="attention, or gradient (attention weighted by what raised the score)."),
    ] = "attention",
    verify: options.Verify = "quick",
    shown: options.Shown = None,
) -> None:
    """Find what belongs to a sentence, a picture, a sound or a film.

    \b
    Examples:
      ccaco retrieve "an orange cat napping" --index scenes.idx -k 5
      echo "a dog chasing a ball" | ccaco retrieve - --index scenes.idx --format csv
      ccaco retrieve "a red ball on a sofa" --index scenes.idx -k 3 --explain why
    """
    from ccaco_cli.core.errors import DataError
    from ccaco_cli.core.retrieval.index import Index
    from ccaco_cli.core.workflows import retrieve as workflow
    from ccaco_cli.view import figures, progress, results

    files = {
        modality: file for modality, file in (("image", image), ("audio", audio), ("video", video)) if file is not None
    }
    if bool(query) + len(files) != 1:
        raise DataError(
            "two kinds of query" if query or files else "nothing to look for",
            expected="sentences, -, or one of --image, --audio and --video FILE",
            next="ccaco retrieve --help",
        )
    opened = Index(index, verify)
    queries = sys.stdin if query == ["-"] else query or ()
    answers = (
        [(str(file), workflow.by_file(opened, modality, file, k=k, rerank=rerank)) for modality, file in files.items()]
        if files
        else workflow.by_text(opened, queries, k=k, rerank=rerank)
    )
    if save or explain:
        answers = list(answers)
        if save:
            figures.contact_sheet(save, answers)
    if explain:
        from ccaco_cli.core.reporting.hit_explanation import explained
        from ccaco_cli.view import heat

        asked = next(iter(files), "text")
        found = (
            one for q, hits in answers for one in explained(opened, asked, files.get(asked, q), hits, explain_method)
        )
        with progress.bar("explain") as tell:
            heat.write(explain, found, sum(len(hits) for _, hits in answers), tell)
    results.show_answers(answers, shown)
