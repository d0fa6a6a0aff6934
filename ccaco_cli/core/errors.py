"""Errors a user can act on: each says what happened, where, what was expected, and the next command to type."""

from __future__ import annotations


class CcacoError(Exception):
    """Base of every error that reaches the shell as one line on stderr and exit code 2.

    what      what happened, one clause without a full stop
    where     the file, flag or key concerned
    expected  what would have been right
    next      a command or an edit that mends it
    """

    def __init__(self, what: str, *, where: object = None, expected: str | None = None, next: str | None = None):
        self.what, self.where, self.expected, self.next = what, where, expected, next
        self.rank = 0  # of several processes, the one that it happened to
        super().__init__(str(self))

    def __str__(self) -> str:
        text = _clause(self.what) if self.where is None else f"{_clause(self.what)}: {_clause(self.where)}"
        if self.expected:
            text += f"; expected {_clause(self.expected)}"
        if self.next:
            text += f"; next: {self.next}"
        return " ".join(text.split())


def _clause(text: object, most: int = 500) -> str:
    """Names out of a hostile file can be of any length."""
    found = str(text)
    return found if len(found) <= most else f"{found[:most]}..."


class ConfigError(CcacoError):
    """A key, flag or value that no config field takes."""


class DataError(CcacoError):
    """A data set, file or sample that cannot be used."""


class ManifestError(CcacoError):
    """An artefact that is missing, incomplete, altered or of another kind."""


class TowerError(CcacoError):
    """A tower SPEC that cannot be built, or weights that do not fit it."""


class LossInputError(CcacoError):
    """Tensors that a loss cannot take (not finite, wrong shape)."""


class GateError(CcacoError):
    """A condition of ``report --fail-if`` that cannot be read."""


class LostProcess(CcacoError):
    """One of several processes ended or hangs, so the others cannot go on."""


class Interrupted(KeyboardInterrupt):
    """Somebody asked this process to end (Ctrl-C, SIGTERM), and it could first put its work in order.

    code   exit code: 130, or 128 + the signal's number
    saved  what lies on disk now, for the person at the terminal
    """

    def __init__(self, code: int = 130, saved: str = "the same command goes on where it can"):
        self.code, self.saved = code, saved
        super().__init__(saved)
