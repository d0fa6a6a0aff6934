"""A connection to a Milvus database through ``pymilvus``, whose errors become one line each."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core.errors import CcacoError, ConfigError, DataError, FilterError
from ccaco_cli.core.retrieval.address import TOKEN, DatabaseAddress
from ccaco_cli.core.retrieval.milvus_fields import KEY, VECTOR, Fields
from ccaco_cli.core.retrieval.vectors import Array

CONNECT_SECONDS, CALL_SECONDS, BUILD_SECONDS = 5.0, 120.0, 3600.0
"""Time limits: to reach a server, of one call, and of building an index."""
LOCK_SECONDS = 10.0
"""How long to wait for another process that has opened an embedded database."""
WHERE = "a boolean expression of Milvus, such as year >= 2020 and folder like '%/beach/%'"
_MODEL = "ccaco.model"
"""Property of a collection that names the model of its vectors."""
_open_files: Counter[str] = Counter()
"""Embedded databases that this process has opened, with the number of their clients."""


def _pymilvus() -> Any:
    try:
        import pymilvus
    except ImportError:
        raise ConfigError(
            "an index in Milvus needs a package that is not installed",
            where="pymilvus",
            expected="the extra milvus",
            next="pip install 'ccaco[milvus]'",
        ) from None
    for name in ("pymilvus", "milvus_lite", "grpc._server"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # they log tracebacks of errors that are handled here
    return pymilvus


@contextmanager
def refusals(
    where: object, problem: str = "Milvus refuses this", expected: str | None = None, kind: type[CcacoError] = DataError
) -> Iterator[None]:
    """Turns every error of a block into one line."""
    try:
        yield
    except CcacoError:
        raise
    except Exception as error:  # pymilvus and grpc raise many kinds
        raise kind(f"{problem} ({_first_line(error)})", where=where, expected=expected) from None


def _first_line(error: BaseException) -> str:
    """The message of an error without its drawing of the expression, and with the name that Milvus suggests."""
    lines = [line.strip() for line in str(getattr(error, "message", error)).splitlines() if line.strip(" ^")]
    hints = [
        line for line in lines[1:] if line.startswith(("did you mean", "available", "expected", "example", "left"))
    ]
    return "; ".join([*lines[:1], *hints])[:400] or type(error).__name__


class Client:
    """A connection, which is closed at the end of a ``with`` block."""

    def __init__(self, address: DatabaseAddress, milvus: Any):
        self.address, self.milvus, self.closed = address, milvus, False

    @classmethod
    def connect(cls, address: DatabaseAddress, *, create: bool = False) -> Client:
        """Opens a database.

        Args:
            create: make an embedded database that is not there.
        Raises:
            DataError: no such database or server, or another process holds it.
            ConfigError: pymilvus is not installed.
        """
        client = _pymilvus().MilvusClient
        if address.embedded:
            return cls(address, _open_file(client, address, create))
        with refusals(address, "this Milvus server cannot be reached", "a server that runs, and its token"):
            token = os.environ.get(TOKEN, "")
            milvus = client(address.uri, token=token, timeout=CONNECT_SECONDS)
            milvus.list_collections(timeout=CONNECT_SECONDS)  # a wrong token is refused here
            return cls(address, milvus)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection. The last one of an embedded database gives the file free."""
        if self.closed:
            return
        self.closed = True
        self.milvus.close()
        if self.address.embedded:
            _release_file(self.address.uri)

    def exists(self, collection: str) -> bool:
        with refusals(self.address):
            return bool(self.milvus.has_collection(collection, timeout=CALL_SECONDS))

    def count(self, collection: str) -> int:
        """Rows of a collection, which is made ready for searches."""
        self.load(collection)
        with refusals(self.address):
            rows = self.milvus.query(
                collection, filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=CALL_SECONDS
            )
            return int(rows[0]["count(*)"])

    def contains(self, collection: str, keys: Array) -> Array:
        """[n] bool: which of some keys have a row."""
        with refusals(self.address):
            rows = self.milvus.get(
                collection, ids=keys.tolist(), output_fields=[KEY], consistency_level="Strong", timeout=CALL_SECONDS
            )
        return np.isin(keys, [row[KEY] for row in rows])

    def vectors(self, collection: str, keys: Array) -> Array:
        """[n, E] float32: the vectors of some keys. Raises DataError: a key has no row."""
        with refusals(self.address):
            rows = self.milvus.get(
                collection,
                ids=keys.tolist(),
                output_fields=[KEY, VECTOR],
                consistency_level="Strong",
                timeout=CALL_SECONDS,
            )
        stored = {row[KEY]: row[VECTOR] for row in rows}
        if lost := sum(key not in stored for key in keys.tolist()):
            raise DataError(
                f"{lost} of {len(keys)} rows are no longer in the collection {collection!r}",
                where=self.address,
                expected="the rows that the companion folder names",
                next="the same command again: the index was updated meanwhile; or ccaco embed with --rebuild",
            )
        return np.array([stored[key] for key in keys.tolist()], np.float32)

    def keys(self, collection: str) -> Iterator[Array]:
        """All keys of a collection, in parts."""
        with refusals(self.address):
            parts = self.milvus.query_iterator(
                collection, batch_size=10_000, output_fields=[KEY], consistency_level="Strong", timeout=CALL_SECONDS
            )
            while rows := parts.next():
                yield np.array([row[KEY] for row in rows], np.int64)
            parts.close()

    def insert(self, collection: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Inserts rows; those whose key is there are replaced."""
        if rows:
            with refusals(self.address, "Milvus does not take these rows", "free disk space, and a server that runs"):
                self.milvus.upsert(collection, list(rows), timeout=CALL_SECONDS)

    def delete(self, collection: str, keys: Array) -> None:
        """Deletes rows by key."""
        for first in range(0, len(keys), 10_000):
            with refusals(self.address):
                self.milvus.delete(collection, ids=keys[first : first + 10_000].tolist(), timeout=CALL_SECONDS)

    def flush(self, collection: str) -> None:
        """Writes to disk what was inserted."""
        with refusals(self.address, "Milvus cannot write these rows to disk", "free disk space"):
            self.milvus.flush(collection, timeout=BUILD_SECONDS)

    def load(self, collection: str) -> None:
        """Makes a collection ready for searches."""
        with refusals(self.address):
            self.milvus.load_collection(collection, timeout=BUILD_SECONDS)

    def search(
        self, collection: str, queries: Array, limit: int, where: str, params: Mapping[str, int]
    ) -> list[tuple[Array, Array]]:
        """Returns (cosines, keys) of each query, best first, at most ``limit`` of them."""
        if where:
            refused = refusals(f"--where {where!r}", "Milvus refuses this condition", WHERE, FilterError)
        else:
            refused = refusals(self.address, "Milvus cannot search this collection")
        with refused:
            answers = self.milvus.search(
                collection,
                data=list(queries),
                anns_field=VECTOR,
                limit=limit,
                filter=where,
                search_params={"metric_type": "IP", "params": dict(params)},
                consistency_level="Strong",
                timeout=CALL_SECONDS,
            )
            return [
                (
                    np.array([hit["distance"] for hit in hits], np.float32),
                    np.array([hit.get(KEY, hit.get("id")) for hit in hits], np.int64),
                )
                for hits in answers
            ]

    def check_model(self, collection: str, model: Mapping[str, str], width: int) -> None:
        """Raises DataError: the collection is missing, holds vectors of another model, or was not made by ccaco."""
        if not self.exists(collection):
            raise DataError(
                f"this database has no collection {collection!r}",
                where=self.address,
                expected="the collection that belongs to its companion folder",
                next="ccaco embed again with --rebuild",
            )
        with refusals(self.address):
            facts = self.milvus.describe_collection(collection, timeout=CALL_SECONDS)
        stored = _stored_model(facts)
        widths = [field["params"].get("dim") for field in facts["fields"] if field["name"] == VECTOR]
        if stored.get("sha256") != model["sha256"] or [int(w) for w in widths] != [width]:
            other = stored.get("name")
            raise DataError(
                f"the collection {collection!r} holds vectors of "
                + (f"another model, {other!r}" if other else "something else than ccaco"),
                where=self.address,
                expected=f"vectors of {model['name']!r}",
                next="another --index, or ccaco embed with --rebuild, which replaces the collection",
            )

    def prepare(
        self,
        collection: str,
        fields: Fields,
        width: int,
        index: tuple[str, Mapping[str, int]],
        model: Mapping[str, str],
        replace: bool,
    ) -> None:
        """Makes a collection ready for insertions: keeps one of this form, or makes it.

        Args:
            index: type and parameters of the vector index.
            replace: replace a collection of another model or with other columns; else it is refused.
        """
        if self.exists(collection):
            if not replace:
                self.check_model(collection, model, width)
            if self._fits(collection, fields, width, index[0], model):
                self.load(collection)
                return
            if not replace:
                raise DataError(
                    f"the collection {collection!r} has other columns or another type of index",
                    where=self.address,
                    expected=f"the columns {', '.join(fields.columns.values())} and the index {index[0]}",
                    next="the same command with --rebuild, which replaces the collection",
                )
            with refusals(self.address):
                self.milvus.drop_collection(collection, timeout=CALL_SECONDS)
        pymilvus = _pymilvus()
        name, params = index
        schema = pymilvus.MilvusClient.create_schema(
            auto_id=False, enable_dynamic_field=False, description=json.dumps({_MODEL: dict(model)})
        )
        schema.add_field(KEY, pymilvus.DataType.INT64, is_primary=True)
        schema.add_field(VECTOR, pymilvus.DataType.FLOAT_VECTOR, dim=width)
        fields.add_to(schema)
        indexes = self.milvus.prepare_index_params()
        indexes.add_index(VECTOR, index_type=name, metric_type="IP", params=dict(params))
        with refusals(self.address, f"Milvus cannot make the collection {collection!r}"):
            self.milvus.create_collection(
                collection,
                schema=schema,
                index_params=indexes,
                properties={_MODEL: json.dumps(dict(model))},
                consistency_level="Strong",
                timeout=BUILD_SECONDS,
            )
        self.load(collection)

    def _fits(self, collection: str, fields: Fields, width: int, index: str, model: Mapping[str, str]) -> bool:
        """Whether a collection has this model, at least these fields, and this index."""
        with refusals(self.address):
            facts = self.milvus.describe_collection(collection, timeout=CALL_SECONDS)
            built = self.milvus.describe_index(collection, VECTOR, timeout=CALL_SECONDS) or {}
        kinds = {field["name"]: field["type"].name for field in facts["fields"]}
        wanted = {KEY: "INT64", VECTOR: "FLOAT_VECTOR"} | fields.names_and_kinds()
        widths = [int(field["params"]["dim"]) for field in facts["fields"] if field["name"] == VECTOR]
        same_model = _stored_model(facts).get("sha256") == model["sha256"]
        return same_model and wanted.items() <= kinds.items() and widths == [width] and built.get("index_type") == index


def _stored_model(facts: Mapping[str, Any]) -> dict[str, str]:
    """The model in the properties of a collection or in its description; {} = a collection that ccaco did not make."""
    for text in (facts.get("properties", {}).get(_MODEL), facts.get("description")):
        try:
            stored = json.loads(text or "")
        except ValueError:
            continue
        model = stored.get(_MODEL, stored) if isinstance(stored, dict) else {}
        if isinstance(model, dict) and "sha256" in model:
            return {key: str(value) for key, value in model.items()}
    return {}


class _LastError(logging.Handler):
    """Keeps the error that Milvus Lite logs when it cannot open a file: its caller learns only that it failed."""

    error: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.error = record.exc_info[1] if record.exc_info else None


def _open_file(client: Any, address: DatabaseAddress, create: bool) -> Any:
    file = Path(os.path.abspath(address.uri))
    if not file.exists() and not create:
        raise DataError(
            "no database here",
            where=address.uri,
            expected="a database of Milvus Lite",
            next=f"ccaco embed --run RUN --dataset NAME --index {address}",
        )
    if file.exists() and not file.is_dir():
        raise DataError(
            "not a database of this Milvus Lite",
            where=address.uri,
            expected="the folder FILE.db that milvus-lite 3 writes (older versions wrote one file)",
            next="another --index",
        )
    last = _LastError()
    logger = logging.getLogger("milvus_lite.server_manager")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.ERROR)
    logger.addHandler(last)
    logger.propagate = False
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                milvus = client(str(file), timeout=CONNECT_SECONDS)
                _open_files[str(file)] += 1
                return milvus
            except Exception as error:
                cause = last.error or error
                if type(cause).__name__ != "DataDirLockedError":
                    raise DataError(
                        f"this database cannot be opened ({_first_line(cause)})",
                        where=address.uri,
                        expected="a database of Milvus Lite that can be read and written",
                    ) from None
                if time.monotonic() > deadline:
                    raise DataError(
                        "another process has opened this database",
                        where=address.uri,
                        expected="one process at a time, as Milvus Lite works",
                        next="wait for it, or use a Milvus server",
                    ) from None
                time.sleep(0.2)
    finally:
        logger.removeHandler(last)
        logger.setLevel(level)
        logger.propagate = propagate


def _release_file(uri: str) -> None:
    file = os.path.abspath(uri)
    _open_files[file] -= 1
    if _open_files[file] <= 0:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(file)
