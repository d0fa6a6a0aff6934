"""The Typer app: six commands; an error that a user can act on is one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ccaco_cli import __version__
from ccaco_cli.commands import ablate, embed, prepare, report, retrieve, train
from ccaco_cli.commands.grouped_help import GroupedHelpCommand
from ccaco_cli.core import interrupts
from ccaco_cli.core.errors import CcacoError, Interrupted, LostProcess
from ccaco_cli.core.runtime import launcher_rank
from ccaco_cli.core.text_input import check_utf8
from ccaco_cli.view.streams import prepare_streams, write_message

app = typer.Typer(
    name="ccaco",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help appears in half the time: Rich alone takes 0.2 s to import
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here: ccaco train --dataset scenes --name first, then ccaco report runs/first",
)


def _with_exit_codes(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the exit codes of ``main``: Typer alone exits with 1 when it is interrupted."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with interrupts.raise_on_sigterm():
                command(*args, **kwargs)
        except KeyboardInterrupt as end:
            interruption = end if isinstance(end, Interrupted) else Interrupted()
            write_message(f"ccaco: interrupted; {interruption.saved}")
            raise typer.Exit(interruption.code) from None
        except BrokenPipeError:  # not of stdout, which ``streams`` handles; Typer would end silently
            raise LostProcess("a process that this one exchanges data with ended", next="the same command") from None

    return run


for command in (prepare.prepare, train.train, ablate.ablate, embed.embed, retrieve.retrieve, report.report):
    many_options = command in (train.train, ablate.ablate)
    app.command(cls=GroupedHelpCommand if many_options else TyperCommand)(_with_exit_codes(command))


def _print_version(requested: bool) -> None:
    if requested:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Align two modalities (image-text, video-audio, ...) with contrastive and cross-attention losses in one model."""


def main() -> None:
    """Runs the ``ccaco`` script. Exit codes: 0 done, 1 a gate failed, 2 bad input, 130 interrupted, 143 SIGTERM."""
    if "WORLD_SIZE" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch warns in each process about intended settings
    prepare_streams()
    if launcher_rank()[0]:  # only the main process prints
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    try:
        _check_arguments(sys.argv[1:])
        app()
    except CcacoError as error:
        write_message(f"ccaco: {f'process {error.rank}: ' if error.rank else ''}{error}", any_rank=bool(error.rank))
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        write_message(
            f"ccaco: not enough memory ({str(error).splitlines()[0] if str(error) else 'MemoryError'}); "
            "next: a smaller --batch-size or model, see ccaco train --estimate"
        )
        sys.exit(2)
    except OSError as error:  # no permission, a full disk, a folder where a file should be
        where = error.filename or "while reading or writing"
        if _is_full_disk(error):
            write_message(
                f"ccaco: {os.strerror(errno.ENOSPC)}: {where}; expected free disk space; next: repeat the command, "
                "finished parts are kept"
            )
        else:
            write_message(f"ccaco: {error.strerror or error}: {where}")
        sys.exit(2)


def _is_full_disk(error: OSError) -> bool:
    """True for a write that had no space; NumPy's error has no number, but says how much it has written."""
    is_short_write = re.fullmatch(r"\d+ requested and \d+ written", str(error)) is not None
    return is_short_write or error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_out_of_memory(error: Exception) -> bool:
    """True for a failed allocation; torch raises a RuntimeError for it."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )


def _check_arguments(words: Sequence[str]) -> None:
    """Refuses arguments that are not UTF-8, because no artefact can store them; names of files to read are accepted.

    Raises:
        DataError: names the argument and the byte.
    """
    for number, word in enumerate(words, 1):
        if not os.path.isfile(word.partition("=")[2] if word.startswith("--") and "=" in word else word):
            check_utf8(word, f"argument {number}, {word!r}")
