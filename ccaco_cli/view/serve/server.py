"""Runs the server of a search page until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ccaco_cli.core import interrupts
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.view.serve import address as addresses
from ccaco_cli.view.serve import app
from ccaco_cli.view.serve.api import Api
from ccaco_cli.view.serve.gate import Gate
from ccaco_cli.view.serve.library import ServedIndex
from ccaco_cli.view.serve.limits import Limits
from ccaco_cli.view.serve.problems import HttpError, error_response
from ccaco_cli.view.streams import write_message


@dataclass(frozen=True)
class ServeRequest:
    """What is served, and to whom.

    Attributes:
        address: [HOST:]PORT.
        folder: of the manifest of the index.
        token: that requests must show; None = a random one where the host needs one.
        originals: whether the files of the items are sent too.
    """

    address: str
    folder: Path
    token: str | None = None
    originals: bool = False


def serve(request: ServeRequest, opening: Callable[[], Index], limits: Limits = Limits()) -> None:
    """Serves the page of an index; returns by an exception only.

    Args:
        request: what is served, and to whom.
        opening: opens the index; called again when it has changed.
        limits: of one request, and of requests at one time.
    Raises:
        ConfigError: the address or the token cannot be used.
        CcacoError: the index cannot be opened.
        Interrupted: Ctrl-C or SIGTERM, after the requests that were running.
    """
    listener, address = addresses.listen(request.address)
    with listener:
        token = addresses.check_token(request.token, address)
        library = ServedIndex(request.folder, opening)
        api = Api(library, limits, request.originals)
        server = make_server(app.build(api, address, token, limits), limits)
        _announce(address, token, request, library)
        server.run(sockets=[listener])
        api.close()
    raise interrupts.interrupted(server.stop_signal or signal.SIGINT, "the page is no longer served")


def make_server(application: Gate, limits: Limits) -> Server:
    """A server of an application; ``run(sockets=[...])`` serves until a signal comes."""
    config = uvicorn.Config(
        application,
        http=_protocol(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # its own messages are no sentences for users
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.end_seconds,
        h11_max_incomplete_event_size=limits.header_bytes + limits.url_bytes,
    )
    return Server(config)


def _announce(address: addresses.Address, token: str, request: ServeRequest, library: ServedIndex) -> None:
    """Says on stderr where the page is, and what it sends."""
    items = ", ".join(f"{len(side.items):,} {m} items" for m, side in library.current().index.sides.items())
    write_message(f"ccaco: serving {request.folder} ({items}) at {address.url}{f'?token={token}' if token else ''}")
    if not address.loopback:
        write_message("ccaco: other machines reach this page, unencrypted; who has the token can search all items")
    if request.originals:
        write_message("ccaco: original files are sent too (--serve-originals)")
    write_message("ccaco: stop with Ctrl-C")


class Server(uvicorn.Server):
    """A server that ends at Ctrl-C and SIGTERM, and keeps the signal for the exit code.

    Attributes:
        stop_signal: number of the signal; 0 = none yet.
    """

    stop_signal = 0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Inside the block signals end the server; uvicorn would raise them again in the event loop afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in interrupts.SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends the server; a second signal does not wait for running requests."""
        self.stop_signal = self.stop_signal or sig
        super().handle_exit(sig, frame)
        self.force_exit = self.force_exit or len(self._captured_signals) > 1


def _protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol with limits on connections and on the time that headers may take, and JSON errors."""

    class LimitedProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                self.connections.discard(self)
                transport.abort()
                return
            self._headers_due = self.loop.call_later(limits.header_seconds, self._end_without_request)

        def connection_lost(self, exc: Exception | None) -> None:
            if hasattr(self, "_headers_due"):
                self._headers_due.cancel()
            super().connection_lost(exc)

        def _end_without_request(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.close()
                return
            expected = f"HTTP/1.1, at most {limits.header_bytes:,} bytes of headers"
            body = bytes(error_response(HttpError(400, "this is no valid HTTP request", expected=expected)).body)
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
            self.transport.close()

    return LimitedProtocol
