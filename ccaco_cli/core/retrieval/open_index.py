"""Opens an index: a folder, or a Milvus database with the companion folder of its index."""

from __future__ import annotations

from pathlib import Path

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError, ManifestError
from ccaco_cli.core.retrieval.address import DatabaseAddress, is_address, parse
from ccaco_cli.core.retrieval.index import Index

MAKE = "ccaco embed --run RUN --dataset NAME --index {address}"


def index_folder(text: str | Path) -> Path:
    """The folder of an index: its own, or the companion folder of a Milvus address."""
    return parse(str(text)).folder if is_address(text) else Path(text)


def column_names(text: str | Path) -> list[str]:
    """Names of the columns of the items of an index, without opening anything else; [] where there is no index."""
    import pyarrow as pa

    names: dict[str, None] = {}
    folder = index_folder(text)
    if manifest.exists(folder):
        generation = manifest.read_json(folder / manifest.NAME)["facts"]["generation"]
        for file in sorted((folder / str(generation)).glob("*/items.arrow")):
            names |= dict.fromkeys(pa.ipc.open_file(pa.memory_map(str(file))).schema.names)
    return [name for name in names if name != "thumbnail"]


def open_index(text: str | Path, verify: str = manifest.QUICK) -> Index:
    """Opens an index.

    Args:
        text: folder of an index, ``milvus:FILE.db`` or ``milvus:http://HOST:19530#COLLECTION``.
        verify: quick | full: whether every file of the folder is hashed first.
    Raises:
        ManifestError: no index, or one that was altered.
        DataError: the database is not there, or holds vectors that the companion folder does not describe.
        ConfigError: another form of address.
    """
    if not is_address(text):
        return Index(Path(text), verify)
    address = parse(str(text))
    make = MAKE.format(address=address)
    if address.embedded and not Path(address.uri).exists():
        raise DataError("no database here", where=address.uri, expected="a database of Milvus Lite", next=make)
    if not manifest.exists(address.folder):
        raise ManifestError(
            "the companion folder of this database is missing or incomplete",
            where=address.folder,
            expected="the folder with items, tokens and model that ccaco embed writes",
            next=make,
        )
    index = Index(address.folder, verify)
    _check_companion(index, address)
    return index


def _check_companion(index: Index, address: DatabaseAddress) -> None:
    """Raises DataError: the folder describes the vectors of another database."""
    if index.manifest.facts.get("database") != address.facts:
        raise DataError(
            "this folder is not the companion of the database",
            where=address.folder,
            expected=f"one made with --index {address}",
            next=f"ccaco retrieve --index {address.folder}, or another --index",
        )
