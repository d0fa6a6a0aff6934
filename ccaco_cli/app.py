"""The Typer app: six commands; an error that a user can act on is one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ccaco_cli import __version__
from ccaco_cli.commands import ablate, embed, prepare, report, retrieve, train
from ccaco_cli.core import interrupts
from ccaco_cli.core.errors import CcacoError, Interrupted
from ccaco_cli.core.escape import printable
from ccaco_cli.core.runtime import launcher_rank

app = typer.Typer(
    name="ccaco",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help starts in half the time: Rich alone takes 0.2 s to import
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here: ccaco train --dataset scenes --name first, then ccaco report runs/first",
)


def _ends_well(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose interruptions have our exit codes: Typer would say 1 when ``| head`` has seen enough, and nothing at Ctrl-C."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with interrupts.raise_on_sigterm():
                command(*args, **kwargs)
        except KeyboardInterrupt as end:
            asked = end if isinstance(end, Interrupted) else Interrupted()
            if not launcher_rank()[0]:
                print(f"ccaco: interrupted; {asked.saved}", file=sys.stderr)
            raise typer.Exit(asked.code) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None

    return run


for command in (prepare.prepare, train.train, ablate.ablate, embed.embed, retrieve.retrieve, report.report):
    app.command()(_ends_well(command))


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Cross-modal alignment from raw data to a trustworthy table: contrastive and cross-attention in one model."""


def main() -> None:
    """The ``ccaco`` script. Exit codes: 0 done, 1 a gate failed, 2 bad input, 130 interrupted, 143 ended by SIGTERM."""
    if "WORLD_SIZE" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch warns, once a process, of what we do on purpose
    if launcher_rank()[0]:  # of several processes the first one speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    try:
        app()
    except CcacoError as error:
        if error.rank or not launcher_rank()[0]:
            print(f"ccaco: {f'process {error.rank}: ' if error.rank else ''}{printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # no permission, a full disk, a folder where a file should be
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mend = "; expected free disk space; next: the same command, which goes on from what is whole" if full else ""
        print(
            printable(f"ccaco: {error.strerror or error}: {error.filename or 'while reading or writing'}{mend}"),
            file=sys.stderr,
        )
        sys.exit(2)
