"""``ccaco retrieve``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ccaco_cli.commands import options
from ccaco_cli.commands.caption_options import (
    Ask,
    Beam,
    CaptionRequest,
    Captions,
    MaxWords,
    Sample,
    Seed,
    Temperature,
    write_captions,
)
from ccaco_cli.commands.pair_options import Calibrate, PairRoot, Pairs, Prior, require_index, score_table
from ccaco_cli.commands.parameters import Command, option, replace_parameter
from ccaco_cli.commands.retrieve_options import (
    AnswerFormat,
    Columns,
    Dedup,
    Format,
    Index,
    Language,
    Minus,
    MixWeight,
    OpenHits,
    Plus,
    Similar,
    Target,
    Where,
    ZeroByte,
)
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
    index: Index = "",
    k: Annotated[int, typer.Option("-k", min=1, max=10**6, help="Hits per query.")] = 10,
    rerank: Annotated[
        int | None,
        typer.Option(
            "--rerank",
            min=0,
            max=10**6,
            help="Candidates that cross-attention reranks; 0 means none. With --caption: drafts, of which the one with "
            "the best score is taken.",
            show_default="as in the run",
        ),
    ] = None,
    similar: Similar = None,
    target: Target = "",
    plus: Plus = None,
    minus: Minus = None,
    mix_weight: MixWeight = 1.0,
    where: Where = "",
    dedup: Dedup = 0.0,
    columns: Columns = None,
    zero_byte: ZeroByte = False,
    open_hits: OpenHits = False,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="FILE", help="Draw the hits as a contact sheet (.png, .pdf, .svg).", show_default=False
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(
            "--explain",
            metavar="FOLDER",
            help="Draw how words and patches of each hit match; with --pairs: -, which adds the column missing (words "
            "that are not shown).",
            show_default=False,
        ),
    ] = None,
    explain_method: Annotated[
        str,
        typer.Option("--explain-method", help="attention, or gradient (attention weighted by its gradient)."),
    ] = "attention",
    language: Language = "",
    serve: ServeAddress = None,
    serve_originals: ServeOriginals = False,
    token: ServeToken = None,
    caption: Captions = False,
    ask: Ask = None,
    beam: Beam = None,
    sample: Sample = False,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    max_words: MaxWords = 0,
    pairs: Pairs = None,
    model: options.ModelSource = None,
    calibrate: Calibrate = None,
    prior: Prior = 0.5,
    pair_root: PairRoot = None,
    device: options.Device = "auto",
    verify: options.Verify = "quick",
    output_format: Format = None,
) -> None:
    """Search an index by text, or by an image, audio or video file.

    \b
    Examples:
      ccaco retrieve "an orange cat napping" --index scenes.idx -k 5
      echo "a dog chasing a ball" | ccaco retrieve - --index scenes.idx --format csv
      ccaco retrieve "a red ball on a sofa" --index scenes.idx -k 3 --explain why
      ccaco retrieve --similar dog.jpg --plus "at night" --minus people --dedup 0.97 --index me.idx
      ccaco retrieve "a dog" --where "year >= 2020 and folder like '%/beach/%'" --columns path,year --index me.idx
      ccaco retrieve "a dog" -k 100 -0 --index me.idx | xargs -0 cp -t dogs/
      ccaco retrieve --caption --image dog.jpg cat.jpg --rerank 8 --run runs/first
      ccaco retrieve --ask "what colour is the dog?" --image dog.jpg --run runs/first
      ccaco retrieve --pairs pairs.csv --run runs/first --explain -
      ccaco retrieve --serve 8000 --index scenes.idx
    """
    from ccaco_cli.core.retrieval.open_index import open_index
    from ccaco_cli.core.retrieval.search import SearchOptions
    from ccaco_cli.core.text_input import read_lines
    from ccaco_cli.core.workflows import retrieve as workflow
    from ccaco_cli.view import answers, progress

    language = _language(language, explain is not None and not (caption or ask or pairs or serve is not None))
    if caption or ask:
        search = bool(similar or save or explain or open_hits or where or serve is not None or pairs or plus or minus)
        request = CaptionRequest(beam, sample, temperature, seed, max_words, rerank, tuple(ask or ()))
        return write_captions(files, query or (), (index, model), request, device, output_format, search)
    if pairs is not None:
        other = bool(query or files or similar or save or open_hits or where or serve is not None)
        how = (prior, pair_root, explain, device, output_format)
        return score_table(pairs, index, model, calibrate, *how, has_query=other)
    index = require_index(index)
    if serve is not None or serve_originals or token is not None:
        other = bool(query or files or similar or save or explain or open_hits)
        return serve_page(index, verify, (serve, token, serve_originals), other)
    texts = {"query": query or (), "--plus": plus or (), "--minus": minus or ()}
    _check_queries(texts, len(files) + (similar is not None))
    format = _format(output_format, zero_byte, columns)
    search_index = open_index(index, verify)
    added, removed = tuple(texts["--plus"]), tuple(texts["--minus"])
    search_options = SearchOptions(k, rerank, target, where, dedup, added, removed, mix_weight)
    modality, file = next(iter(files.items()), ("text", None))
    if similar is not None:
        file, modality = similar, workflow.media_modality(search_index, similar)
        search_options = replace(search_options, target=target or modality)
    targets = search_index.targets(modality, search_options.target)
    if (reason := search_index.cosine_alone(modality, targets)) and not rerank:
        progress.note(f"{reason}: the cosine alone ranks, without a match score")
    known = {name: None for side in targets for name in search_index.sides[side].items.schema.names} if columns else {}
    shown = answers.parse_columns(columns or (), tuple(known))
    query_hits: answers.Answers
    if file is not None:
        query_hits = [(str(file), workflow.by_file(search_index, modality, file, search_options))]
    else:
        lines = read_lines(sys.stdin.buffer, "stdin") if query == ["-"] else texts["query"]
        query_hits = workflow.by_text(search_index, lines, search_options)
    if where:
        query_hits = answers.note_empty_selection(query_hits, where)
    listed: list[tuple[str, Sequence[Any]]] = []
    if save or explain or open_hits:
        query_hits = listed = list(query_hits)
    if save:
        from ccaco_cli.view import figures

        figures.contact_sheet(save, listed)
    if explain:
        _explain(explain, listed, (search_index, modality, file, explain_method, language))
    if format == AnswerFormat.paths:
        answers.show_paths(query_hits, zero_byte)
    else:
        answers.show_answers(query_hits, format, shown, duplicates=bool(dedup), modalities=len(targets) > 1)
    if open_hits:
        from ccaco_cli.view import viewer

        viewer.open_hits(listed)


def _explain(folder: Path, answers: Sequence[tuple[str, Sequence[Any]]], how: tuple[Any, ...]) -> None:
    """Draws the heat maps of hits; of hits of several modalities, of those that have a match score with the query.

    Args:
        answers: (query, its hits).
        how: index, modality of the query, its file or None, method, and language of the texts.
    """
    from ccaco_cli.core.reporting.hit_explanation import explain_hits
    from ccaco_cli.core.words import missing_dictionary
    from ccaco_cli.view import heat, progress

    index, modality, file, method, language = how
    modalities = {hit.modality for _, hits in answers for hit in hits}
    other = sorted(m for m in modalities if {modality, m} != {*index.modalities})
    if 0 < len(other) < len(modalities):
        progress.note(f"{modality} and {' or '.join(other)} have no match score: these hits are not explained")
        answers = [(query, [hit for hit in hits if hit.modality not in other]) for query, hits in answers]
    texts = (str(hit.item.get("text") or "") if file else query for query, hits in answers for hit in hits)
    if package := next(filter(None, (missing_dictionary(text, language) for text in texts)), ""):
        progress.note(f"words are cut without a dictionary: {package} is not installed; pip install 'ccaco[languages]'")
    explanations = (
        explanation
        for text, hits in answers
        for explanation in explain_hits(index, modality, file or text, hits, method, language)
    )
    with progress.bar("explain") as report_progress:
        heat.write(folder, explanations, sum(len(hits) for _, hits in answers), report_progress)


def _language(language: str, explains: bool) -> str:
    """The language of explained texts; raises DataError: no code, ConfigError: no search is explained."""
    from ccaco_cli.core.data.caption_languages import language_code
    from ccaco_cli.core.errors import ConfigError

    if language and not explains:
        where = f"--language {language}"
        raise ConfigError("a language is of the words of --explain", where=where, expected=f"--explain FOLDER {where}")
    return language_code(language) if language else ""


def _check_queries(texts: Mapping[str, Sequence[str]], files: int) -> None:
    """Raises DataError: not exactly one kind of query, or a text that is empty.

    Args:
        texts: name of an option or of the argument -> its texts.
        files: number of files that are queries.
    """
    from ccaco_cli.core.errors import DataError
    from ccaco_cli.core.text_input import is_blank

    queries = texts["query"]
    if bool(queries) + files != 1:
        flags = ", ".join(f"--{name}" for name, modality in MODALITIES.items() if modality.query_help)
        raise DataError(
            "more than one kind of query" if queries or files else "no query",
            expected=f"sentences, -, or one of {flags}, --similar FILE",
            next="ccaco retrieve --help",
        )
    if "-" in queries and len(queries) > 1:
        raise DataError("sentences both from the command line and from stdin", expected="sentences, or - alone")
    for name, values in texts.items():
        if blank := [number for number, text in enumerate(values, 1) if is_blank(text)]:
            problem = f"query {blank[0]} is empty" if name == "query" else f"{name} is empty"
            raise DataError(problem, expected="a sentence", next="ccaco retrieve --help")


def _format(format: AnswerFormat | None, zero_byte: bool, columns: Sequence[str] | None) -> AnswerFormat | None:
    """The format of the answers; raises ConfigError: options that do not fit together."""
    from ccaco_cli.core.errors import ConfigError

    if zero_byte and format not in (None, AnswerFormat.paths):
        raise ConfigError("zero bytes end paths only", where=f"-0 --format {format}", expected="-0 --format paths")
    if zero_byte:
        format = AnswerFormat.paths
    if format == AnswerFormat.paths and columns:
        where = f"--format paths --columns {','.join(columns)}"
        raise ConfigError("paths are printed alone, without columns", where=where, expected="--format csv for columns")
    return format
