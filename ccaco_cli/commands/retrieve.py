"""``ccaco retrieve``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ccaco_cli.commands import options
from ccaco_cli.commands.parameters import Command, option, replace_parameter
from ccaco_cli.commands.serve_options import ServeAddress, ServeOriginals, ServeToken, serve_page
from ccaco_cli.core.modalities import MODALITIES


def _query_options(command: Command) -> Command:
    """Replaces the parameter ``files`` by one option per modality whose files can be queries: modality -> file."""
    options = [
        option(name, Path, f"--{name}", metavar="FILE", help=modality.query_help, show_default=False)
        for name, modality in MODALITIES.items()
        if modality.query_help
    ]
    return replace_parameter(
        command, "files", options, lambda values: {name: file for name, file in values.items() if file is not None}
    )


@_query_options
def retrieve(
    files: Mapping[str, Path],
    query: Annotated[
        list[str] | None, typer.Argument(help="Sentences, or - to read one per line from stdin.", show_default=False)
    ] = None,
    index: Annotated[
        str,
        typer.Option(
            "--index",
            "-i",
            metavar="FOLDER",  # a Path would change an address
            help="Index built by 'ccaco embed': a folder, milvus:FILE.db or milvus:http://HOST:19530#COLLECTION.",
        ),
    ] = ...,  # type: ignore[assignment]
    k: Annotated[int, typer.Option("-k", min=1, max=10**6, help="Hits per query.")] = 10,
    rerank: Annotated[
        int | None,
        typer.Option(
            "--rerank",
            min=0,
            max=10**6,
            help="Candidates that cross-attention reranks; 0 means none.",
            show_default="as in the run",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="FILE", help="Draw the hits as a contact sheet (.png, .pdf, .svg).", show_default=False
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(
            "--explain", metavar="FOLDER", help="Draw how words and patches of each hit match.", show_default=False
        ),
    ] = None,
    explain_method: Annotated[
        str,
        typer.Option("--explain-method", help="attention, or gradient (attention weighted by its gradient)."),
    ] = "attention",
    serve: ServeAddress = None,
    serve_originals: ServeOriginals = False,
    token: ServeToken = None,
    verify: options.Verify = "quick",
    output_format: options.OutputFormat = None,
) -> None:
    """Search an index by text, or by an image, audio or video file.

    \b
    Examples:
      ccaco retrieve "an orange cat napping" --index scenes.idx -k 5
      echo "a dog chasing a ball" | ccaco retrieve - --index scenes.idx --format csv
      ccaco retrieve "a red ball on a sofa" --index scenes.idx -k 3 --explain why
      ccaco retrieve --serve 8000 --index scenes.idx
    """
    from ccaco_cli.core.errors import DataError
    from ccaco_cli.core.retrieval.open_index import open_index
    from ccaco_cli.core.retrieval.search import SearchOptions
    from ccaco_cli.core.text_input import is_blank, read_lines
    from ccaco_cli.core.workflows import retrieve as workflow
    from ccaco_cli.view import answers, figures, progress

    if serve is not None or serve_originals or token is not None:
        return serve_page(index, verify, (serve, token, serve_originals), bool(query or files or save or explain))
    if bool(query) + len(files) != 1:
        flags = ", ".join(f"--{name}" for name, modality in MODALITIES.items() if modality.query_help)
        raise DataError(
            "more than one kind of query" if query or files else "no query",
            expected=f"sentences, -, or one of {flags} FILE",
            next="ccaco retrieve --help",
        )
    if query and "-" in query and len(query) > 1:
        raise DataError("sentences both from the command line and from stdin", expected="sentences, or - alone")
    if blank := [number for number, text in enumerate(query or (), 1) if is_blank(text)]:
        raise DataError(f"query {blank[0]} is empty", expected="a sentence", next="ccaco retrieve --help")
    search_index = open_index(index, verify)
    search_options = SearchOptions(k, rerank)
    queries = read_lines(sys.stdin.buffer, "stdin") if query == ["-"] else query or ()
    query_hits = (
        [
            (str(file), workflow.by_file(search_index, modality, file, search_options))
            for modality, file in files.items()
        ]
        if files
        else workflow.by_text(search_index, queries, search_options)
    )
    if save or explain:
        query_hits = list(query_hits)
        if save:
            figures.contact_sheet(save, query_hits)
    if explain:
        from ccaco_cli.core.reporting.hit_explanation import explain_hits
        from ccaco_cli.view import heat

        modality = next(iter(files), "text")
        explanations = (
            explanation
            for text, hits in query_hits
            for explanation in explain_hits(search_index, modality, files.get(modality, text), hits, explain_method)
        )
        with progress.bar("explain") as report_progress:
            heat.write(explain, explanations, sum(len(hits) for _, hits in query_hits), report_progress)
    answers.show_answers(query_hits, output_format)
