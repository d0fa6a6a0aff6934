"""The parameters of requests: one declaration each, from which they are read, checked and described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from ccaco_cli.core.errors import CcacoError, nearest
from ccaco_cli.core.text_input import check_utf8, is_blank
from ccaco_cli.view.serve.problems import HttpError


@dataclass(frozen=True)
class Parameter:
    """One parameter of the address of a request.

    Attributes:
        name: in the address.
        kind: int | float | str, the type of its value.
        help: what it says, one sentence.
        default: value where it is left out.
        required: it must be there, and a text must not be blank.
        minimum, maximum: range of a number; for a text, ``maximum`` is its length in characters.
        choices: allowed texts; () = any.
    """

    name: str
    kind: type
    help: str
    default: Any = None
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> Any:
        """The value that a request sent. Raises HttpError: 400, another type, or out of range."""
        if self.kind is str:
            return self._read_text(text)
        try:
            value = self.kind(text)
        except (ValueError, OverflowError):
            raise self._refusal("not a number" if self.kind is float else "not a whole number", text) from None
        if not (self.minimum is None or value >= self.minimum) or not (self.maximum is None or value <= self.maximum):
            raise self._refusal("a number out of range", text)
        return value

    def _read_text(self, text: str) -> str:
        if len(text) > (self.maximum or 0):
            raise self._refusal("a text that is too long", f"{len(text):,} characters")
        check_utf8(text, f"parameter {self.name}")
        if self.required and is_blank(text):
            raise self._refusal("an empty text", repr(text))
        if self.choices and text not in self.choices:
            raise self._refusal("no such choice", text)
        return text.strip()

    def _refusal(self, problem: str, value: str) -> HttpError:
        return HttpError(400, problem, where=f"{self.name} = {value[:80]}", expected=self._expected())

    def _expected(self) -> str:
        if self.choices:
            return " | ".join(self.choices)
        if self.kind is str:
            return f"1 to {self.maximum:,} characters"
        return f"a number from {self.minimum:,g} to {self.maximum:,g}"

    def schema(self) -> dict[str, Any]:
        """The parameter as OpenAPI describes it."""
        schema: dict[str, Any] = {"type": {int: "integer", float: "number", str: "string"}[self.kind]}
        if self.kind is str:
            schema |= {"maxLength": self.maximum} | ({"minLength": 1} if self.required else {})
        else:
            schema |= {"minimum": self.minimum, "maximum": self.maximum}
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.default not in (None, ""):
            schema["default"] = self.default
        return {"name": self.name, "in": "query", "required": self.required, "description": self.help, "schema": schema}


TEXT = Parameter("text", str, "What to search for.", required=True, maximum=1000)
MODALITY = Parameter("modality", str, "Modality of the uploaded file, such as image.", required=True, maximum=20)
TARGET = Parameter("target", str, "Modalities of the items that are searched, separated by commas.", "", maximum=80)
WHERE = Parameter("where", str, "Filter of the items: an expression over their columns.", "", maximum=4000)
PLUS = Parameter("plus", str, "A text that is added to the query with half its weight.", "", maximum=1000)
MINUS = Parameter("minus", str, "A text that is taken away from the query with half its weight.", "", maximum=1000)
HITS = Parameter("k", int, "Hits to return.", 24, minimum=1, maximum=240)
RERANK = Parameter(
    "rerank", int, "Items that cross-attention reorders; left out: as in the run.", minimum=0, maximum=1000
)
DEDUP = Parameter(
    "dedup", float, "Cosine from which hits are near-duplicates and become one; 0 = off.", 0.0, minimum=0, maximum=1
)
METHOD = Parameter(
    "method", str, "How relevance is computed.", "attention", maximum=20, choices=("attention", "gradient")
)
SEARCH = (TARGET, WHERE, PLUS, MINUS, HITS, RERANK, DEDUP)
"""Parameters that every search has."""


def read(query: str, parameters: Sequence[Parameter]) -> Mapping[str, Any]:
    """The values of a request by name.

    Args:
        query: the part of its address after the question mark.
    Raises:
        HttpError: 400; a parameter that is missing, unknown, repeated or not valid.
    """
    known = {parameter.name: parameter for parameter in parameters}
    texts: dict[str, str] = {}
    for name, text in _pairs(query):
        if name not in known:
            expected = ", ".join(known) or "no parameter"
            raise HttpError(400, "no such parameter", where=name[:80], expected=expected, next=nearest(name, known))
        if name in texts:
            raise HttpError(400, "a parameter that is repeated", where=name, expected="once")
        texts[name] = text
    for parameter in parameters:
        if parameter.required and parameter.name not in texts:
            raise HttpError(400, "a parameter is missing", where=parameter.name, expected=parameter.help)
    return {name: _read(known[name], texts[name]) if name in texts else known[name].default for name in known}


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape", max_num_fields=64)
    except ValueError:
        raise HttpError(400, "too many parameters", expected="at most 64") from None
    return [(name, text) for name, text in pairs if name != "token"]  # which is of the gate


def _read(parameter: Parameter, text: str) -> Any:
    try:
        return parameter.read(text)
    except HttpError:
        raise
    except CcacoError as error:
        raise HttpError(400, error.what, where=parameter.name, expected=error.expected) from None
