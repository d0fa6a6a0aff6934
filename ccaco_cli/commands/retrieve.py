"""``ccaco retrieve``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ccaco_cli.commands import options


def retrieve(
    query: Annotated[list[str] | None, typer.Argument(help="Sentences, or - for one a line from stdin.", show_default=False)] = None,
    index: Annotated[Path, typer.Option("--index", "-i", help="An index that 'embed' made.")] = ...,  # type: ignore[assignment]
    image: Annotated[
        Path | None, typer.Option("--image", help="A picture instead of a sentence: finds captions.", show_default=False)
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Answers a query.")] = 10,
    rerank: Annotated[
        int | None,
        typer.Option("--rerank", min=0, help="Candidates that cross-attention reorders; 0 = none.", show_default="as in the run"),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Write the answers as a contact sheet (.png, .pdf, .svg).", show_default=False)
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option("--explain", metavar="FOLDER", help="Draw which words met which patches of each answer.", show_default=False),
    ] = None,
    explain_method: Annotated[
        str, typer.Option("--explain-method", help="attention, or gradient (attention weighted by what raised the score).")
    ] = "attention",
    shown: options.Shown = None,
) -> None:
    """Find what belongs to a sentence or a picture.

    \b
    Examples:
      ccaco retrieve "an orange cat napping" --index scenes.idx -k 5
      echo "a dog chasing a ball" | ccaco retrieve - --index scenes.idx --format csv
      ccaco retrieve "a red ball on a sofa" --index scenes.idx -k 3 --explain why
    """
    from ccaco_cli.core.errors import DataError
    from ccaco_cli.core.retrieval.index import Index
    from ccaco_cli.core.workflows import retrieve as workflow
    from ccaco_cli.view import figures, heat, progress, results

    if bool(query) == (image is not None):
        raise DataError(
            "nothing to look for" if not query else "two kinds of query",
            expected="sentences, -, or --image FILE",
            next="ccaco retrieve --help",
        )
    opened = Index(index)
    queries = sys.stdin if query == ["-"] else query or ()
    answers = (
        [(str(image), workflow.by_image(opened, image, k=k, rerank=rerank))]
        if image
        else workflow.by_text(opened, queries, k=k, rerank=rerank)
    )
    if save or explain:
        answers = list(answers)
        if save:
            figures.contact_sheet(save, answers)
    if explain:
        found = (one for q, hits in answers for one in workflow.explained(opened, image or q, hits, explain_method))
        with progress.bar("explain") as tell:
            heat.write(explain, found, sum(len(hits) for _, hits in answers), tell)
    results.show_answers(answers, shown)
