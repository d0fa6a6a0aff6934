"""The gate before every request: its size, the Host header, the token, and the security headers of every answer."""

from __future__ import annotations

import hashlib
import hmac
import traceback
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ccaco_cli.core.errors import CcacoError
from ccaco_cli.view.serve.address import Address
from ccaco_cli.view.serve.limits import Limits
from ccaco_cli.view.serve.problems import HttpError, error_response
from ccaco_cli.view.serve.workers import RETRY_SECONDS
from ccaco_cli.view.streams import write_message

SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Gate:
    """ASGI middleware: refuses what no route should see, and turns every error into a JSON answer.

    Args:
        app: the routes.
        address: where the server listens; on the loopback address, a request must name this machine as its host
            (else a foreign page could reach the server under a name of its own: DNS rebinding).
        token: that requests must show; "" = none.
        limits: of one request, and of requests at one time.
    """

    def __init__(self, app: ASGIApp, address: Address, token: str, limits: Limits):
        self.app, self.address, self.token, self.limits = app, address, token, limits
        self.cookie = f"ccaco-{address.port}"  # cookies of one host are shared by all of its ports
        self._session = hmac.new(token.encode(), b"cookie", hashlib.sha256).hexdigest()
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        begun = False

        async def send_safely(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        self._running += 1
        try:
            refusal = self._refusal(scope)
            await (refusal or self.app)(scope, receive, send_safely)
        except CcacoError as error:
            if not begun:
                await error_response(error)(scope, receive, send_safely)
        except Exception:
            write_message(f"ccaco: error while answering {scope['path']!r}: {traceback.format_exc()}")
            if begun:
                return
            failure = HttpError(500, "the server failed on this request", next="its messages on stderr say more")
            await error_response(failure)(scope, receive, send_safely)
        finally:
            self._running -= 1

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that no route sees; None = it may pass. Raises HttpError."""
        headers = Headers(scope=scope)
        self._check_size(scope)
        self._check_host(headers)
        self._check_site(headers)
        if self._running > self.limits.requests:
            raise HttpError(
                503,
                "the server is busy",
                next=f"try again in {RETRY_SECONDS} seconds",
                headers={"retry-after": str(RETRY_SECONDS)},
            )
        return self._check_token(scope, headers) if self.token else None

    def _check_size(self, scope: Scope) -> None:
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > self.limits.header_bytes:
            expected = f"at most {self.limits.header_bytes:,} bytes"
            raise HttpError(431, "too many bytes of headers", where=f"{size:,} bytes", expected=expected)
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if size > self.limits.url_bytes:
            expected = f"at most {self.limits.url_bytes:,} bytes"
            raise HttpError(414, "an address that is too long", where=f"{size:,} bytes", expected=expected)

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if self.address.loopback and name.strip("[]").lower() not in self.address.host_names:
            raise HttpError(421, "this server has another name", where=f"Host: {host[:80]}", expected=self.address.url)

    def _check_site(self, headers: Headers) -> None:
        """Refuses what a page of another site requests; links that a user follows to the page may pass."""
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
            raise HttpError(403, "a request of another site", expected=f"the page at {self.address.url}")

    def _check_token(self, scope: Scope, headers: Headers) -> Response | None:
        """None where the request shows the token; one in the address becomes a cookie, and leaves the address."""
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(shown.strip(), self.token):
            return None
        if _equal(_cookie(headers, self.cookie), self._session):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=64)
        if any(name == "token" and _equal(value, self.token) for name, value in query):
            if scope["path"] != "/":
                return None
            response = RedirectResponse("/", 303)
            response.set_cookie(self.cookie, self._session, httponly=True, samesite="lax", path="/")
            return response
        raise HttpError(
            401,
            "this page needs its token",
            where=quote(scope["path"][:80]),
            expected="the address with ?token=... that the server printed, or the header Authorization: Bearer TOKEN",
            headers={"www-authenticate": 'Bearer realm="ccaco"'},
        )


def _equal(shown: str, secret: str) -> bool:
    """Compares in a time that does not tell how much of it is right."""
    return hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), secret.encode())


def _cookie(headers: Headers, name: str) -> str:
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""
