"""Tar shards that are read as a stream: addresses (``https://``, ``s3://``, ``memory://``) and commands (``pipe:``).

Nothing is stored but what a record needs. A stream that ends early is an error of the transport and stops the run; it
is never taken for the end of a shard.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, Protocol

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import without_secrets

PIPE = "pipe:"
TIMEOUT = 60.0
"""Seconds without a byte after which a server counts as lost."""
ATTEMPTS = 3
"""How often an address is opened before it counts as unreachable."""
_BLOCK = 1 << 20
_RETRY_SECONDS = 1.0
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_EXPECTED = "an address that can be read, to its end"
_RESUME = "the same command: finished parts are kept"


def is_address(text: str) -> bool:
    """Whether a ``--source`` is the address of a shard or a command, and no path."""
    return text.startswith(PIPE) or bool(_ADDRESS.match(text))


def public(address: str) -> str:
    """An address without passwords and signatures, as errors and manifests show it."""
    return without_secrets(address if address.startswith(PIPE) else address.partition("?")[0])


class ShardStream(Protocol):
    """The bytes of one shard."""

    def read(self, size: int = -1) -> bytes: ...

    def finish(self) -> None:
        """Reads what is left. Raises DataError: the bytes ended before the shard did."""
        ...


@dataclass(frozen=True)
class TarShard:
    """One shard.

    Attributes:
        path: its name and folder: of the file, or within the address.
        address: of a stream; "" = a local file.
    """

    path: PurePath
    address: str = ""

    @property
    def file(self) -> Path | None:
        """The local file, or None for a stream."""
        return None if self.address else Path(self.path)

    @contextmanager
    def stream(self) -> Iterator[ShardStream]:
        """Opens a stream. Raises DataError: it cannot be opened."""
        if self.address.startswith(PIPE):
            opened: contextlib.AbstractContextManager[ShardStream] = _command(self.address.removeprefix(PIPE))
        else:
            opened = _remote(self.address)
        with opened as stream:
            yield stream


def shards_of(addresses: list[str]) -> list[TarShard]:
    """The shards of some addresses; one with ``*`` stands for all that match."""
    shards: list[TarShard] = []
    for address in addresses:
        if address.startswith(PIPE):
            shards.append(TarShard(_path_in_command(address, len(shards)), address))
        elif "*" in address and not address.startswith(("http://", "https://")):
            shards += [TarShard(_path(match), match) for match in _matches(address)]
        else:
            shards.append(TarShard(_path(address), address))
    return shards


def _path(address: str) -> PurePosixPath:
    return PurePosixPath("/", address.partition("?")[0].partition("://")[2])


def _path_in_command(command: str, number: int) -> PurePosixPath:
    """The last word of a command that names a tar file; else a number."""
    words = [word for word in re.split(r"[\s'\"=<>|;]+", command) if ".tar" in word or word.endswith(".tgz")]
    name = words[-1].partition("?")[0].rpartition("://")[2] if words else f"pipe-{number:05d}.tar"
    return PurePosixPath("/", name.removeprefix(PIPE).lstrip("/"))


def _matches(pattern: str) -> list[str]:
    system, path = _file_system(pattern)
    with _transport_errors(pattern):
        matches = [str(system.unstrip_protocol(match)) for match in sorted(system.glob(path))]
    if not matches:
        raise DataError("no shard matches this pattern", where=public(pattern), expected="tar shards")
    return matches


class _Counted:
    """A stream that counts its bytes.

    Attributes:
        size: the bytes that it should have; None = not known.
    """

    def __init__(self, file: BinaryIO, address: str, size: int | None, check: Callable[[], str] = lambda: ""):
        self.file, self.address, self.size, self.check, self.count = file, address, size, check, 0

    def read(self, size: int = -1) -> bytes:
        with _transport_errors(self.address):
            data = self.file.read(size)
        self.count += len(data)
        return data

    def finish(self) -> None:
        while self.read(_BLOCK):
            pass
        problem = self.check()
        if not problem and self.size is not None and self.count < self.size:
            problem = f"it ended after {self.count:,} of {self.size:,} bytes"
        if not problem and not self.count:
            problem = "it is empty"
        if problem:
            raise _broken(self.address, problem)


def _broken(address: str, problem: str) -> DataError:
    failure = "this command failed" if address.startswith(PIPE) else "this shard cannot be read"
    return DataError(f"{failure} ({problem})", where=public(address), expected=_EXPECTED, next=_RESUME)


@contextmanager
def _transport_errors(address: str) -> Iterator[None]:
    """Turns every error of a connection into one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # file systems of fsspec raise kinds of their own
        raise _broken(address, " ".join(f"{type(error).__name__}: {error}".split())[:200]) from None


@contextmanager
def _remote(address: str) -> Iterator[ShardStream]:
    opener = _open_http if address.startswith(("http://", "https://")) else _open_file
    with _transport_errors(address):
        for attempt in range(ATTEMPTS):
            try:
                file, size = opener(address)
                break
            except Exception as error:
                if attempt == ATTEMPTS - 1 or not _is_temporary(error):
                    raise
                time.sleep(_RETRY_SECONDS * 4**attempt)
    with contextlib.closing(file):
        yield _Counted(file, address, size)


def _is_temporary(error: Exception) -> bool:
    """Whether a second attempt may succeed."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code == 429 or error.code >= 500
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError)


def _open_http(address: str) -> tuple[Any, int | None]:
    """The body of an answer, and its length where the server gives it."""
    try:
        response = urllib.request.urlopen(address, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        raise
    length = response.headers.get("Content-Length")
    return response, None if length is None else int(length)


def _open_file(address: str) -> tuple[Any, int | None]:
    """A file of a file system of fsspec, and its size where the system knows it."""
    system, path = _file_system(address)
    return system.open(path, "rb"), system.info(path).get("size")


def _file_system(address: str) -> tuple[Any, str]:
    import fsspec

    protocol = address.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(address)
        return system, str(path)
    except ImportError as error:
        package = re.search(r"[Ii]nstall (\S+)", str(error))
        raise DataError(
            f"{protocol}:// needs a package that is not installed",
            where=public(address),
            expected=" ".join(str(error).split())[:120],
            next=f"pip install {package[1] if package else 'fsspec[full]'}",
        ) from None
    except ValueError:
        raise DataError(
            "an address of an unknown kind",
            where=public(address),
            expected="http://, https://, s3://, gs://, file:// or another protocol of fsspec, or pipe:COMMAND",
        ) from None


@contextmanager
def _command(command: str) -> Iterator[ShardStream]:
    """The output of a shell command. A command whose output is not needed any more is ended."""
    shell = shutil.which("bash")
    words = [shell, "-o", "pipefail", "-c", command] if shell else ["sh", "-c", command]
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            start_new_session=os.name == "posix",
        )
        assert process.stdout is not None

        def check() -> str:
            code = process.wait()
            if not code:
                return ""
            messages.seek(0)
            lines = messages.read()[-2000:].decode("utf-8", "replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            return f"exit code {code}{': ' if last else ''}{last[:150]}"

        try:
            yield _Counted(process.stdout, PIPE + command, None, check)  # type: ignore[arg-type]
        finally:
            process.stdout.close()
            if process.poll() is None:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a command and the processes that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
