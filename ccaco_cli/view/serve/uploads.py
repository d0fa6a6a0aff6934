"""Uploaded queries: the body of a request, read within its limits, and refused where it is no medium."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import ClientDisconnect, Request

from ccaco_cli.view.serve.limits import MIB, Limits, check_pixels
from ccaco_cli.view.serve.problems import HttpError

STATUSES = ("408", "413")
"""Of a refused upload, beside those that every request has."""
BODY = {"application/octet-stream": {"schema": {"type": "string", "contentEncoding": "binary"}}}
"""The body of a request with an upload, as OpenAPI describes it."""
REST_BYTES = 64 * MIB
REST_SECONDS = 5.0
"""What of a body that is too large is read and dropped: a client that still sends does not read the answer."""


async def read(request: Request, modality: str, limits: Limits) -> bytes:
    """The body of a request.

    Raises:
        HttpError: 400, an empty body; 408, too slow; 413, too many bytes or pixels.
    """
    try:
        async with asyncio.timeout(limits.upload_seconds):
            data = await _body(request, limits.file_bytes)
    except TimeoutError:
        raise HttpError(
            408,
            "the upload took too long",
            expected=f"at most {limits.upload_seconds:g} seconds",
            next="a smaller file",
            headers={"connection": "close"},
        ) from None
    except ClientDisconnect:
        raise HttpError(400, "the upload was interrupted") from None
    if not data:
        raise HttpError(400, "an empty upload", expected=f"the bytes of one {modality} file as the body of the request")
    if modality == "image":
        check_pixels(data, limits.pixels)
    return data


async def _body(request: Request, max_bytes: int) -> bytes:
    length = request.headers.get("content-length", "")
    data = bytearray()
    too_large = length.isascii() and length.isdecimal() and int(length) > max_bytes
    if not too_large:
        stream = request.stream()
        async for part in stream:
            data += part
            too_large = len(data) > max_bytes
            if too_large:
                break
    if too_large:
        del data
        await _drop(request)
        raise HttpError(
            413,
            "this file is too large",
            expected=f"at most {max_bytes / MIB:g} MiB",
            next="send a smaller copy of it",
            headers={"connection": "close"},
        )
    return bytes(data)


async def _drop(request: Request) -> None:
    """Reads and drops what a client still sends, within limits."""
    end, dropped = time.monotonic() + REST_SECONDS, 0
    while dropped < REST_BYTES:
        try:
            message = await asyncio.wait_for(request.receive(), max(0.0, end - time.monotonic()))
        except TimeoutError:
            return
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        dropped += len(message.get("body", b""))
