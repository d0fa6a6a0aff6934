"""The address of an index whose vectors lie in a Milvus database: ``milvus:FILE.db`` or
``milvus:http://HOST:19530#COLLECTION``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ccaco_cli.core.errors import ConfigError

SCHEME = "milvus:"
EXPECTED = "milvus:FILE.db or milvus:http://HOST:19530#COLLECTION"
TOKEN = "CCACO_MILVUS_TOKEN"
"""Environment variable with the token (or USER:PASSWORD) of a server, which neither a command line nor a manifest
shows."""
_COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}", re.ASCII)  # of Milvus
_DEFAULT = "ccaco"


@dataclass(frozen=True)
class DatabaseAddress:
    """Where the vectors of an index lie, and its companion folder with everything else.

    Attributes:
        uri: file of an embedded database (Milvus Lite), or address of a server.
        collection: start of the names of its collections, one for each modality.
        folder: of the companion: items, tokens, thumbnails and model.
    """

    uri: str
    collection: str
    folder: Path

    @property
    def embedded(self) -> bool:
        """Whether the database is a file that this process opens."""
        return "://" not in self.uri

    @property
    def facts(self) -> dict[str, str | None]:
        """For the manifest of the companion. A file has no name there: both may be moved and renamed together."""
        return {"uri": None if self.embedded else self.uri, "collection": self.collection}

    def __str__(self) -> str:
        return f"{SCHEME}{self.uri}" + ("" if self.embedded else f"#{self.collection}")


def of_companion(folder: Path, facts: Mapping[str, str | None]) -> DatabaseAddress:
    """The address whose companion lies in ``folder`` and has these ``DatabaseAddress.facts``."""
    uri = facts["uri"]
    return DatabaseAddress(str(folder.with_suffix("")) if uri is None else uri, str(facts["collection"]), folder)


def is_address(text: str | Path) -> bool:
    """Whether an ``--index`` names a Milvus database."""
    return str(text).startswith(SCHEME)


def parse(text: str) -> DatabaseAddress:
    """Reads an address.

    The companion of ``FILE.db`` is ``FILE.db.idx`` beside it. The companion of a server's collection is
    ``COLLECTION.idx`` in the working directory, or in the folder that stands before the name:
    ``#/srv/COLLECTION``.

    Raises:
        ConfigError: another form, or a name that Milvus does not allow.
    """
    place = text.removeprefix(SCHEME)
    if "://" not in place:
        if not place.endswith(".db") or place == ".db" or "#" in place:
            raise ConfigError("not the address of a Milvus database", where=text, expected=EXPECTED)
        file = Path(place)
        return DatabaseAddress(str(file), _DEFAULT, file.with_name(f"{file.name}.idx"))
    uri, _, name = place.partition("#")
    try:
        server = urlsplit(uri)
        valid = server.scheme in ("http", "https", "tcp") and bool(server.hostname) and server.port != 0
    except ValueError:  # a port that is no number
        valid = False
    folder = Path(name)
    if not valid or not _COLLECTION.fullmatch(folder.name):
        raise ConfigError(
            "not the address of a Milvus collection",
            where=text,
            expected=f"{EXPECTED}, a name of letters, digits and underscores",
        )
    if server.username or server.password:
        raise ConfigError(
            "a password does not belong on the command line",
            where=f"{SCHEME}{server.scheme}://***@{server.hostname}",
            expected=f"the variable {TOKEN}=USER:PASSWORD in the environment",
        )
    return DatabaseAddress(uri, folder.name, folder.with_name(f"{folder.name}.idx"))


def index_place(text: str | None) -> tuple[Path | None, DatabaseAddress | None]:
    """The folder that ``--index`` names, its own or the companion of a database, and the address of the database."""
    if text is None:
        return None, None
    address = parse(text) if is_address(text) else None
    return (Path(text) if address is None else address.folder), address
