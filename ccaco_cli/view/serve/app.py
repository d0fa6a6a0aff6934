"""The page, its API and the gate before them as one ASGI application."""

from __future__ import annotations

from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ccaco_cli.core.errors import CcacoError
from ccaco_cli.view.serve.address import Address
from ccaco_cli.view.serve.api import Api
from ccaco_cli.view.serve.gate import Gate
from ccaco_cli.view.serve.limits import Limits
from ccaco_cli.view.serve.openapi import description
from ccaco_cli.view.serve.problems import HttpError, error_response, json_response

PAGE = {
    "/": ("serve/templates/page.html", "text/html"),
    "/style.css": ("serve/templates/page.css", "text/css"),
    "/language.css": ("templates/language.css", "text/css"),
    "/language.js": ("templates/language.js", "text/javascript"),
    "/script.js": ("serve/templates/page.js", "text/javascript"),
}
"""Address -> file of ``ccaco_cli.view`` and its type."""


def build(api: Api, address: Address, token: str, limits: Limits) -> Gate:
    """The application.

    Args:
        api: of the index.
        address: where it is served.
        token: that requests must show; "" = none.
        limits: of one request, and of requests at one time.
    """
    routes = [*map(_page_route, PAGE), Route("/openapi.json", _openapi), *api.routes()]
    handlers = {HTTPException: _http_exception, CcacoError: _refused, Exception: _failed}
    return Gate(Starlette(routes=routes, exception_handlers=handlers), address, token, limits)


def _page_route(path: str) -> Route:
    name, media_type = PAGE[path]
    content = files("ccaco_cli.view").joinpath(name).read_bytes()

    async def send(request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    return Route(path, send)


async def _openapi(request: Request) -> Response:
    return json_response(description())


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, CcacoError)
    return error_response(error)


async def _failed(request: Request, error: Exception) -> Response:
    """The answer to a request on which the program failed; the gate reports the error, which is raised again."""
    return error_response(HttpError(500, "the server failed on this request", next="its messages on stderr say more"))


async def _http_exception(request: Request, error: Exception) -> Response:
    """Errors of the router: no such address, or another method."""
    assert isinstance(error, HTTPException)
    reasons = {404: "no such address", 405: "this address has no such method"}
    reason = reasons.get(error.status_code, error.detail)
    methods = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))  # a set's own order changes
    expected = methods if error.status_code == 405 else "an address of /openapi.json"
    where = f"{request.method} {request.url.path[:80]}"
    return error_response(HttpError(error.status_code, reason, where=where, expected=expected, headers=error.headers))
