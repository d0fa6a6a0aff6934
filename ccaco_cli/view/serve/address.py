"""Where the page is served: HOST:PORT, the listening socket, and the token of hosts that other machines reach."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import secrets
import socket
from dataclasses import dataclass

from ccaco_cli.core.errors import ConfigError

LOOPBACK = "127.0.0.1"
EXPECTED = "[HOST:]PORT, such as 8000, 127.0.0.1:8000 or [::1]:8000; PORT 0 takes any free port"
TOKEN = re.compile(r"[\x21-\x7e]{16,256}")
_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/@?#]+):)?(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: as it was named, without brackets.
        port: 0 = any free port.
        loopback: whether only this machine reaches it.
    """

    host: str
    port: int
    loopback: bool = True

    @property
    def url(self) -> str:
        """Address of the page for a browser on this machine."""
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    @property
    def host_names(self) -> frozenset[str]:
        """Host headers, without their port, of requests that were meant for a server on the loopback address."""
        return frozenset({"localhost", LOOPBACK, "::1", self.host.lower()})


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of [HOST:]PORT; the host is the loopback address where none is named.

    Raises:
        ConfigError: the text has another form, or a port above 65535.
    """
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or int(match["port"]) > 65535:
        raise ConfigError("no address to serve at", where=f"--serve {text}", expected=EXPECTED)
    return (match["host"] or LOOPBACK).strip("[]"), int(match["port"])


def listen(text: str) -> tuple[socket.socket, Address]:
    """Listens at [HOST:]PORT.

    Returns:
        The socket, and the address with the port that it has.
    Raises:
        ConfigError: no such form or host, a port that is taken, or one that needs more rights.
    """
    host, port = parse_address(text)
    where = f"--serve {text}"
    try:
        resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise ConfigError(f"no such host ({reason})", where=where, expected=EXPECTED) from None
    family, kind, protocol, _, address = min(resolved, key=lambda entry: entry[0] != socket.AF_INET)
    server = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port is free at once after a restart
        server.bind(address)
        server.listen(1024)
    except OSError as error:
        server.close()
        raise _refusal(error, where, port) from None
    bound_host, bound_port = server.getsockname()[:2]
    return server, Address(host, bound_port, ipaddress.ip_address(bound_host.partition("%")[0]).is_loopback)


def _refusal(error: OSError, where: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            "this port is taken",
            where=where,
            expected="a free port",
            next="--serve 0: any free port",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(
            "this port needs more rights", where=where, expected="a port from 1024 to 65535", next="--serve 8000"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError("this machine does not have this address", where=where, expected=EXPECTED)
    return ConfigError(f"cannot listen at this address ({error.strerror or error})", where=where, expected=EXPECTED)


def check_token(token: str | None, address: Address) -> str:
    """The token that requests must show; "" = none, which is allowed on the loopback address only.

    Args:
        token: of the user; None = a random one is made where one is needed.
    Raises:
        ConfigError: the token is too short, or holds characters that a header cannot.
    """
    if token is None:
        return "" if address.loopback else secrets.token_urlsafe(32)
    if not TOKEN.fullmatch(token):
        raise ConfigError(
            "this token cannot protect the page",
            where="--token",
            expected="16 to 256 visible ASCII characters without spaces",
            next='--token "$(openssl rand -hex 24)", or leave --token out: one is made',
        )
    return token
