"""Answers that say what is wrong: JSON with the four parts of an error, and an HTTP status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.responses import Response

from ccaco_cli.core.errors import CcacoError, ManifestError


class HttpError(CcacoError):
    """A request that is refused, or that failed.

    Attributes:
        status: HTTP status code.
        headers: of the response, such as ``retry-after``.
    """

    def __init__(
        self,
        status: int,
        problem: str,
        *,
        where: object = None,
        expected: str | None = None,
        next: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        self.status, self.headers = status, dict(headers or {})
        super().__init__(problem, where=where, expected=expected, next=next)


def status_of(error: CcacoError) -> int:
    """HTTP status of an error: its own, 500 for a damaged index, and 400 for anything else, which the client sent."""
    if isinstance(error, HttpError):
        return error.status
    return 500 if isinstance(error, ManifestError) else 400


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response; NaN and infinity are not allowed in ``value``."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(body.encode("utf-8", "replace"), status, headers=dict(headers or {}), media_type="application/json")


def error_response(error: CcacoError) -> Response:
    """The JSON response of an error: what, where, expected, next.

    A path is cut to its last part, because a client need not learn where the server's files lie.
    """
    where = error.where.name if isinstance(error.where, Path) else error.where
    body = {
        "what": error.what,
        "where": None if where is None else " ".join(str(where).split())[:500],
        "expected": error.expected,
        "next": None if isinstance(error, ManifestError) else error.next,
    }
    return json_response(body, status_of(error), error.headers if isinstance(error, HttpError) else None)
