"""Commands of next steps, as they are typed into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path


def quoted_path(path: Path | str) -> str:
    """A file name in quotes where a shell needs them; ``./`` stands before a leading dash, which starts an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def command_line(*words: object) -> str:
    """A ``ccaco`` command: words are quoted, and those that are a ``Path`` cannot be read as an option."""
    return " ".join(
        ["ccaco", *(quoted_path(word) if isinstance(word, Path) else shlex.quote(str(word)) for word in words)]
    )
