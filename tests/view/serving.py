"""What tests of the search page share: indexes of photos, and servers in a thread of the test."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ccaco_cli.core.retrieval.open_index import index_folder, open_index
from ccaco_cli.view.serve import address as addresses
from ccaco_cli.view.serve import app, server
from ccaco_cli.view.serve.api import Api
from ccaco_cli.view.serve.library import ServedIndex
from ccaco_cli.view.serve.limits import Limits


@dataclass(frozen=True)
class Served:
    """A server that runs in a thread."""

    port: int
    api: Api

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def get(self, path: str, **parameters: Any) -> tuple[int, Any]:
        """(status, JSON) of one request."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        return self.send("GET", f"{path}{query}")

    def send(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(content) if "json" in answer.headers.get_content_type() else content


@contextmanager
def serving(
    index: str | Path, *, limits: Limits = Limits(), originals: bool = False, token: str | None = None, host: str = ""
) -> Iterator[Served]:
    """Serves an index, its folder or the address of its database, at a free port."""
    listener, address = addresses.listen(f"{host}:0" if host else "0")
    library = ServedIndex(index_folder(index), lambda: open_index(index))
    api = Api(library, limits, originals)
    running = server.make_server(app.build(api, address, addresses.check_token(token, address), limits), limits)
    thread = threading.Thread(target=lambda: running.run(sockets=[listener]), daemon=True)
    thread.start()
    try:
        yield Served(address.port, api)
    finally:
        running.should_exit = True
        thread.join(30)
        api.close()
        listener.close()
        assert not thread.is_alive()
