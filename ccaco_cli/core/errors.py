"""Errors that a user can act on: what happened, where, what was expected, and the next command to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CcacoError(Exception):
    """Base of every error that the commands print as one line on stderr, with exit code 2.

    Attributes:
        what: what happened, one clause without a full stop.
        where: the file, flag or key concerned.
        expected: what would have been right.
        next: a command or an edit that corrects it.
        rank: the process in which it happened, if there are several.
    """

    def __init__(self, what: str, *, where: object = None, expected: str | None = None, next: str | None = None):
        self.what, self.where, self.expected, self.next = what, where, expected, next
        self.rank = 0
        super().__init__(str(self))

    def __str__(self) -> str:
        text = _sentence(self.what) if self.where is None else f"{_sentence(self.what)}: {_clause(self.where)}"
        if self.expected:
            text += f"; expected {_sentence(self.expected)}"
        if self.next:
            text += f"; next: {_one_line(self.next)}"
        return text


def _one_line(text: str) -> str:
    """Joins lines. Spaces stay as they are, because a name or command with other spaces means another file."""
    return " ".join(text.splitlines())


def _sentence(text: str) -> str:
    return _clause(" ".join(text.split()))


def _clause(text: object, max_length: int = 500) -> str:
    """One line of limited length, because names in a hostile file can have any length."""
    clause = _one_line(str(text))
    return clause if len(clause) <= max_length else f"{clause[:max_length]}..."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """A next step for a name that does not exist: the known name that is most like it, or None."""
    near = difflib.get_close_matches(name, sorted(known), 1)
    return f"did you mean {near[0]}?" if near else None


class ConfigError(CcacoError):
    """A key, flag or value that is not allowed in the config."""


class DataError(CcacoError):
    """A data set, file or sample that cannot be used."""


class ManifestError(CcacoError):
    """An artefact that is missing, incomplete, changed or of another kind."""


class TowerError(CcacoError):
    """A tower SPEC that cannot be built, or weights that do not fit it."""


class LossInputError(CcacoError):
    """Invalid inputs of a loss (not finite, wrong shape)."""


class GateError(CcacoError):
    """A condition of ``report --fail-if`` that cannot be parsed."""


class LostProcess(CcacoError):
    """One of several processes ended or hangs, so the run cannot continue."""


class FilterError(CcacoError):
    """A condition on the columns of items that cannot be evaluated."""


class Interrupted(KeyboardInterrupt):
    """The process was interrupted (Ctrl-C, SIGTERM) and has saved its work.

    Attributes:
        code: exit code, 130 or 128 + the signal's number.
        saved: message for the user that says what is on disk now.
    """

    def __init__(self, code: int = 130, saved: str = "the same command goes on where it can"):
        self.code, self.saved = code, saved
        super().__init__(saved)
