"""The options of ``ccaco retrieve`` that serve a page instead of one search."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

ServeAddress = Annotated[
    str | None,
    typer.Option(
        "--serve",
        metavar="[HOST:]PORT",
        help="Serve a page to search in, and its JSON API, until Ctrl-C. Without HOST only this machine reaches it.",
        show_default=False,
    ),
]
ServeOriginals = Annotated[
    bool, typer.Option("--serve-originals", help="With --serve: also send the files themselves, not only thumbnails.")
]
ServeToken = Annotated[
    str | None,
    typer.Option(
        "--token",
        help="With --serve: what requests must show (or the variable CCACO_TOKEN). Without it, one is made where HOST "
        "lets other machines in.",
        show_default=False,
    ),
]


def serve_page(index: Path | str, verify: str, settings: tuple[str | None, str | None, bool], has_query: bool) -> None:
    """Serves the page of an index; ends by an exception.

    Args:
        index: as it is opened by other searches.
        verify: quick | full.
        settings: address, token, and whether original files are sent.
        has_query: whether the command also names a query or another output.
    Raises:
        ConfigError: options that do not fit together, an extra that is not installed, or as ``server.serve``.
    """
    from ccaco_cli.core.errors import ConfigError

    address, token, originals = settings
    if address is None:
        where = "--serve-originals" if originals else "--token"
        raise ConfigError("this option belongs to --serve", where=where, next="ccaco retrieve --serve 8000 --index IDX")
    if has_query:
        raise ConfigError(
            "a page and one search at the same time",
            where=f"--serve {address}",
            expected="--serve and --index without a query, --save and --explain",
            next=f"ccaco retrieve --serve {address} --index {index}",
        )
    try:
        from ccaco_cli.view.serve.server import ServeRequest, serve
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ccaco_cli"):
            raise
        raise ConfigError(
            f"the search page needs {error.name}, which is not installed",
            where=f"--serve {address}",
            next="pip install 'ccaco[serve]'",
        ) from None
    from ccaco_cli.core.retrieval.open_index import index_folder, open_index

    token = token or os.environ.get("CCACO_TOKEN") or None
    serve(ServeRequest(address, index_folder(index), token, originals), lambda: open_index(index, verify))
