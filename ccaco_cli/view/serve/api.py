"""The JSON API: searches, items, columns and explanations of one index."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ccaco_cli import __version__
from ccaco_cli.core import runtime
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.retrieval.index import FOLDERS
from ccaco_cli.core.retrieval.search import Hit, SearchOptions, ask, similar_items
from ccaco_cli.view.serve import originals, parameters, uploads
from ccaco_cli.view.serve.columns import FIXED, json_value
from ccaco_cli.view.serve.library import OpenIndex, ServedIndex
from ccaco_cli.view.serve.limits import Limits
from ccaco_cli.view.serve.parameters import Parameter
from ccaco_cli.view.serve.problems import HttpError, json_response
from ccaco_cli.view.serve.workers import Lane

ROW = re.compile(r"[0-9]{1,12}")
JPEG = "image/jpeg"


class Api:
    """Answers the requests of the API.

    Args:
        library: the index.
        limits: of one request.
        serve_originals: whether the files themselves are sent, beside the thumbnails that the index stores.
    """

    def __init__(self, library: ServedIndex, limits: Limits, serve_originals: bool = False):
        self.library, self.limits, self.serve_originals = library, limits, serve_originals
        self._quick = Lane("text", limits.waiting)
        self._slow = Lane("media", limits.waiting)  # decoding and heat maps take seconds; texts need not wait for them

    def routes(self) -> list[Route]:
        """The addresses of the API."""
        item = "/api/items/{version}/{modality}/{row}"
        return [
            Route("/api/index", self.index),
            Route("/api/columns", self.columns),
            Route("/api/search", self.search, methods=["GET", "POST"]),
            Route(item, self.item),
            Route(f"{item}/thumbnail", self.thumbnail),
            Route(f"{item}/original", self.original),
            Route(f"{item}/similar", self.similar),
            Route(f"{item}/explanation", self.explanation, methods=["GET", "POST"]),
        ]

    def close(self) -> None:
        """Ends the worker threads."""
        self._quick.close()
        self._slow.close()

    async def index(self, request: Request) -> Response:
        """What is served: the model, the modalities, the number of items, and the limits."""
        _values(request, ())
        opened = self.library.current()
        index = opened.index
        files = [modality for modality in index.queries if MODALITIES[modality].query_help]
        return json_response(
            {
                "program": f"ccaco {__version__}",
                "version": opened.version,
                "name": index.manifest.path.name,
                "made_at": index.manifest.made_at,
                "dataset": index.manifest.facts.get("dataset"),
                "model": index.manifest.facts.get("run"),
                "modalities": list(index.modalities),
                "items": {modality: len(side.items) for modality, side in index.sides.items()},
                "searches_all": FOLDERS in index.manifest.facts,
                "file_queries": files,
                "suffixes": {modality: list(MODALITIES[modality].suffixes) for modality in files},
                "text_queries": "text" in index.queries,
                "explains": opened.explains,
                "filter_language": "milvus" if index.manifest.facts.get("database") else "sql",
                "originals": self.serve_originals,
                "limits": {
                    "text_characters": parameters.TEXT.maximum,
                    "where_characters": parameters.WHERE.maximum,
                    "k": parameters.HITS.maximum,
                    "file_bytes": self.limits.file_bytes,
                    "pixels": self.limits.pixels,
                },
            }
        )

    async def columns(self, request: Request) -> Response:
        """The columns of the items that can be filtered by."""
        values = _values(request, (parameters.TARGET,))
        opened = self.library.current()
        sides = tuple(opened.index.sides)
        default = sides if FOLDERS in opened.index.manifest.facts else sides[:1]
        targets = tuple(values["target"].split(",")) if values["target"] else default
        for target in targets:
            opened.side(target)
        described = await self._quick.run(lambda: opened.columns(targets), self.limits.answer_seconds)
        return json_response({"version": opened.version, "target": ",".join(targets), "columns": described})

    async def search(self, request: Request) -> Response:
        """The best items for a text, or for an uploaded file."""
        return await (self._search_file if request.method == "POST" else self._search_text)(request)

    async def _search_text(self, request: Request) -> Response:
        values = _values(request, (parameters.TEXT, *parameters.SEARCH))
        opened, options = self.library.current(), _options(values)
        begun = time.perf_counter()
        work = functools.partial(ask, opened.index, "text", options=options)
        key = (opened.version, options)
        hits = await self._quick.run_joined(work, values["text"], key, self.limits.answer_seconds)
        return self._answer(opened, "text", options, hits, begun)

    async def _search_file(self, request: Request) -> Response:
        values = _values(request, (parameters.MODALITY, *parameters.SEARCH))
        opened, modality = self.library.current(), values["modality"]
        data, options = await self._upload(request, opened, modality), _options(values)
        begun = time.perf_counter()
        call = functools.partial(ask, opened.index, modality, [data], options)
        (hits,) = await self._slow.run(_on_all_cores(call), self.limits.answer_seconds)
        return self._answer(opened, modality, options, hits, begun)

    async def item(self, request: Request) -> Response:
        """The columns of one item."""
        _values(request, ())
        opened, modality, row = self._place(request)
        return json_response(
            {"version": opened.version, **self._item(opened, modality, row, opened.item(modality, row))}
        )

    async def thumbnail(self, request: Request) -> Response:
        """The small picture of one item that the index stores."""
        _values(request, ())
        opened, modality, row = self._place(request)
        data = opened.item(modality, row).get("thumbnail")
        if not data:
            raise HttpError(404, "this item has no thumbnail", where=f"{modality} {row}")
        unchanging = {"cache-control": "private, max-age=86400, immutable"}
        return Response(data, media_type=JPEG, headers=unchanging)

    async def original(self, request: Request) -> Response:
        """The file of one item, where the server was started with --serve-originals."""
        _values(request, ())
        opened, modality, row = self._place(request)
        if not self.serve_originals:
            raise HttpError(
                403,
                "this server sends no original files",
                expected="a thumbnail",
                next="start it with --serve-originals",
            )
        return await originals.response(opened.item(modality, row), request.headers.get("range", ""))

    async def similar(self, request: Request) -> Response:
        """The items of the same modality that are closest to one item."""
        values = _values(request, (parameters.WHERE, parameters.HITS, parameters.DEDUP))
        opened, modality, row = self._place(request)
        opened.item(modality, row)
        options = SearchOptions(k=values["k"], target=modality, where=values["where"], dedup=values["dedup"])
        begun = time.perf_counter()
        call = functools.partial(similar_items, opened.index, modality, row, options)
        hits = await self._quick.run(call, self.limits.answer_seconds)
        return self._answer(opened, modality, options, hits, begun)

    async def explanation(self, request: Request) -> Response:
        """Heat maps of one item for a text, or of an uploaded file for one item."""
        if request.method != "POST":
            values = _values(request, (parameters.TEXT, parameters.METHOD))
            return await self._explain(request, "text", values["text"], values["method"])
        values = _values(request, (parameters.MODALITY, parameters.METHOD))
        opened, _, _ = self._place(request)
        data = await self._upload(request, opened, values["modality"])
        return await self._explain(request, values["modality"], data, values["method"])

    async def _explain(self, request: Request, query_modality: str, query: str | bytes, method: str) -> Response:
        from ccaco_cli.view.serve import pictures  # imports torch, which a text search does without

        opened, modality, row = self._place(request)
        item = opened.item(modality, row)
        hit = Hit(rank=1, row=row, score=0.0, cosine=0.0, match=None, item=item, modality=modality)
        call = functools.partial(pictures.explanation, opened.index, query_modality, query, hit, method)
        return json_response(_finite(await self._slow.run(_on_all_cores(call), self.limits.answer_seconds)))

    async def _upload(self, request: Request, opened: OpenIndex, modality: str) -> bytes:
        """The body of a request, as a query of a modality."""
        accepted = [m for m in opened.index.queries if MODALITIES[m].query_help]
        if modality not in accepted:
            raise HttpError(
                400,
                "files of this modality cannot be queries here",
                where=f"modality = {modality}",
                expected=" | ".join(accepted) or "a text",
            )
        return await uploads.read(request, modality, self.limits)

    def _place(self, request: Request) -> tuple[OpenIndex, str, int]:
        """The generation, modality and row that an address names."""
        places = request.path_params
        if not ROW.fullmatch(places["row"]):
            raise HttpError(404, "no such item", where=places["row"][:40], expected="the number of a row")
        return self.library.of_version(places["version"]), places["modality"], int(places["row"])

    def _answer(
        self, opened: OpenIndex, modality: str, options: SearchOptions, hits: Sequence[Hit], begun: float
    ) -> Response:
        return json_response(
            {
                "version": opened.version,
                "modality": modality,
                "target": ",".join(opened.index.targets(modality, options.target)),
                "seconds": round(time.perf_counter() - begun, 4),
                "hits": [_numbers(hit) | {"item": self._item(opened, hit.modality, hit.row, hit.item)} for hit in hits],
            }
        )

    def _item(self, opened: OpenIndex, modality: str, row: int, item: Mapping[str, Any]) -> dict[str, Any]:
        """An item for the client: its texts and columns, and the addresses of its pictures."""
        address = f"/api/items/{opened.version}/{modality}/{row}"
        text = item.get("text")
        return {
            "modality": modality,
            "row": row,
            "id": item["id"],
            "text": list(text) if isinstance(text, list) else text,
            "columns": {name: json_value(value) for name, value in item.items() if name not in FIXED},
            "url": address,
            "thumbnail": f"{address}/thumbnail" if item.get("thumbnail") else None,
            "original": f"{address}/original" if self.serve_originals and item.get("path") else None,
        }


def _values(request: Request, allowed: Sequence[Parameter]) -> Mapping[str, Any]:
    return parameters.read(request.url.query, allowed)


def _options(values: Mapping[str, Any]) -> SearchOptions:
    settings = {name: values[name] for name in ("k", "rerank", "target", "where", "dedup")}
    texts = {name: (values[name],) if values[name] else () for name in ("plus", "minus")}
    return SearchOptions(**(settings | texts))


def _on_all_cores(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call that uses torch, with one thread for each core: the default ignores the limits of containers."""

    def limited() -> Any:
        runtime.limit_threads()
        return call()

    return limited


def _numbers(hit: Hit) -> dict[str, Any]:
    """The fields of a hit except those of its item."""
    fields = {
        f.name: getattr(hit, f.name) for f in dataclasses.fields(hit) if f.name not in ("item", "row", "modality")
    }
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in fields.items()}


def _finite(value: Any) -> Any:
    """JSON types without NaN and infinity."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return json_value(value)
