"""The OpenAPI description of the JSON API, made from the declarations of its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ccaco_cli import __version__
from ccaco_cli.view.serve import parameters, uploads
from ccaco_cli.view.serve.parameters import Parameter

_STATUS = {
    "400": "A parameter or an upload that cannot be used.",
    "401": "The token is missing or wrong.",
    "403": "A request of another site, or an original file that is not served.",
    "404": "There is no such item.",
    "408": "The upload took too long.",
    "409": "The file is not the one that was indexed.",
    "410": "The index has changed; search again.",
    "413": "The upload has too many bytes or pixels.",
    "416": "The range lies outside the file.",
    "503": "Too many requests wait; the header Retry-After says when to try again.",
    "504": "The request took too long.",
}
_BASE = ("400", "401", "503", "504")


def description() -> dict[str, Any]:
    """The API as an OpenAPI 3.1 document."""
    searched = {"200": _json("The hits, best first.", "Answer")}
    item = "/api/items/{version}/{modality}/{row}"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Search of an index",
            "version": __version__,
            "description": "Searches one index. Where the server has a token, send it as Authorization: Bearer TOKEN.",
        },
        "security": [{}, {"token": []}],
        "paths": {
            "/api/index": {
                "get": _operation("index", "What is served, and its limits.", (), {"200": _json("", "Index")})
            },
            "/api/columns": {
                "get": _operation(
                    "columns",
                    "The columns of the items: their types, ranges and frequent values.",
                    (parameters.TARGET,),
                    {"200": _json("The columns.", "Columns")},
                    ("404",),
                )
            },
            "/api/search": {
                "get": _operation(
                    "searchByText",
                    "The best items for a text.",
                    (parameters.TEXT, *parameters.SEARCH),
                    searched,
                ),
                "post": _upload(
                    "searchByFile",
                    "The best items for a file, whose bytes are the body of the request.",
                    parameters.SEARCH,
                    searched,
                ),
            },
            item: _item_path(_operation("item", "The columns of one item.", (), {"200": _json("It.", "Item")}, _ITEM)),
            f"{item}/thumbnail": _item_path(
                _operation("thumbnail", "The small picture that the index stores.", (), _media("image/jpeg"), _ITEM)
            ),
            f"{item}/original": _item_path(
                _operation(
                    "original",
                    "The file itself, if the server was started with --serve-originals.",
                    (),
                    _media("application/octet-stream"),
                    (*_ITEM, "403", "409", "416"),
                )
            ),
            f"{item}/similar": _item_path(
                _operation(
                    "similar",
                    "The items of the same modality that are closest to this one.",
                    (parameters.WHERE, parameters.HITS, parameters.DEDUP),
                    searched,
                    _ITEM,
                )
            ),
            f"{item}/explanation": _item_path(
                _operation(
                    "explainText",
                    "Heat maps: which parts of the item match each word of a text.",
                    (parameters.TEXT, parameters.METHOD),
                    {"200": _json("The maps and numbers.", "Explanation")},
                    _ITEM,
                ),
                _upload(
                    "explainFile",
                    "Heat maps of an uploaded file for the words of the item.",
                    (parameters.METHOD,),
                    {"200": _json("The maps and numbers.", "Explanation")},
                    _ITEM,
                ),
            ),
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


_ITEM = ("404", "410")


def _operation(
    name: str,
    summary: str,
    taken: Sequence[Parameter],
    answers: dict[str, Any],
    errors: Sequence[str] = (),
) -> dict[str, Any]:
    refused = {status: _json(_STATUS[status], "Problem") for status in sorted({*_BASE, *errors})}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [parameter.schema() for parameter in taken],
        "responses": answers | refused,
    }


def _upload(
    name: str, summary: str, taken: Sequence[Parameter], answers: dict[str, Any], errors: Sequence[str] = ()
) -> dict[str, Any]:
    """An operation whose body is a file of a modality."""
    operation = _operation(name, summary, (parameters.MODALITY, *taken), answers, (*errors, *uploads.STATUSES))
    return operation | {"requestBody": {"required": True, "content": uploads.BODY}}


def _item_path(get: dict[str, Any], post: dict[str, Any] | None = None) -> dict[str, Any]:
    places = [
        {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}},
        {"name": "modality", "in": "path", "required": True, "schema": {"type": "string"}},
        {"name": "row", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}},
    ]
    return {"parameters": places, "get": get} | ({"post": post} if post else {})


def _json(text: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": text or schema, "content": content}


def _media(media_type: str) -> dict[str, Any]:
    return {"200": {"description": "The bytes.", "content": {media_type: {}}}}


def _object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


_TEXT, _NUMBER, _WHOLE, _FLAG = ({"type": name} for name in ("string", "number", "integer", "boolean"))
_ADDRESS = {"type": ["string", "null"], "description": "Address on this server; null = there is none."}
_VALUE = {"type": ["string", "number", "boolean", "null"]}
_SCHEMAS: dict[str, Any] = {
    "Problem": _object(
        ("what", "where", "expected", "next"),
        what=_TEXT,
        **{name: {"type": ["string", "null"]} for name in ("where", "expected", "next")},
    ),
    "Item": _object(
        ("modality", "row", "id", "columns", "url"),
        version=_TEXT,
        modality=_TEXT,
        row=_WHOLE,
        id=_TEXT,
        text={"type": ["string", "array", "null"], "items": _TEXT},
        columns={"type": "object", "additionalProperties": _VALUE},
        url=_TEXT,
        thumbnail=_ADDRESS,
        original=_ADDRESS,
    ),
    "Hit": _object(
        ("rank", "score", "cosine", "item"),
        rank=_WHOLE,
        score={"type": "number", "description": "What ranks the hits."},
        cosine=_NUMBER,
        match={"type": ["number", "null"], "description": "Match logit of cross-attention, if it scored the item."},
        duplicates={"type": "integer", "description": "Further items that this hit stands for (dedup)."},
        item={"$ref": "#/components/schemas/Item"},
    ),
    "Answer": _object(
        ("version", "modality", "target", "seconds", "hits"),
        version=_TEXT,
        modality=_TEXT,
        target=_TEXT,
        seconds=_NUMBER,
        hits={"type": "array", "items": {"$ref": "#/components/schemas/Hit"}},
    ),
    "Column": _object(
        ("name", "type", "missing"),
        name=_TEXT,
        type={"enum": ["integer", "number", "boolean", "date", "text"]},
        missing=_WHOLE,
        minimum=_VALUE,
        maximum=_VALUE,
        values={"type": "array", "items": _object(("value", "count"), value=_VALUE, count=_WHOLE)},
    ),
    "Columns": _object(
        ("version", "target", "columns"),
        version=_TEXT,
        target=_TEXT,
        columns={"type": "array", "items": {"$ref": "#/components/schemas/Column"}},
    ),
    "Index": _object(
        ("version", "name", "modalities", "items", "limits"),
        program=_TEXT,
        version=_TEXT,
        name=_TEXT,
        made_at=_TEXT,
        dataset={"type": ["string", "null"]},
        model={"type": ["string", "null"]},
        modalities={"type": "array", "items": _TEXT},
        items={"type": "object", "additionalProperties": _WHOLE},
        searches_all={"type": "boolean", "description": "Without target, items of all modalities are searched."},
        suffixes={"type": "object", "additionalProperties": {"type": "array", "items": _TEXT}},
        file_queries={"type": "array", "items": _TEXT},
        text_queries=_FLAG,
        explains=_FLAG,
        filter_language={"enum": ["sql", "milvus"]},
        originals=_FLAG,
        limits={"type": "object", "additionalProperties": _NUMBER},
    ),
    "Explanation": _object(
        ("method", "match", "words", "input"),
        method=_TEXT,
        match=_NUMBER,
        weight=_NUMBER,
        words={
            "type": "array",
            "items": _object(
                ("word", "heat", "picture"),
                word=_TEXT,
                heat={"type": "array", "items": {"type": "array", "items": _NUMBER}},
                picture={"type": "string", "description": "Data URI of a WebP picture."},
            ),
        },
        input={"type": "string", "description": "Data URI of what the model sees."},
        deletion_gain=_NUMBER,
        insertion_gain=_NUMBER,
    ),
}
