"""Errors that a user can act on: what happened, where, what was expected, and the next command to type."""

from __future__ import annotations


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
        text = _clause(self.what) if self.where is None else f"{_clause(self.what)}: {_clause(self.where)}"
        if self.expected:
            text += f"; expected {_clause(self.expected)}"
        if self.next:
            text += f"; next: {self.next}"
        return " ".join(text.split())


def _clause(text: object, max_length: int = 500) -> str:
    """Shortens a clause, because names in a hostile file can have any length."""
    clause = str(text)
    return clause if len(clause) <= max_length else f"{clause[:max_length]}..."


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


class Interrupted(KeyboardInterrupt):
    """The process was interrupted (Ctrl-C, SIGTERM) and has saved its work.

    Attributes:
        code: exit code, 130 or 128 + the signal's number.
        saved: message for the user that says what is on disk now.
    """

    def __init__(self, code: int = 130, saved: str = "the same command goes on where it can"):
        self.code, self.saved = code, saved
        super().__init__(saved)
