"""Original files of items (``--serve-originals``): only paths in the index, and only unchanged regular files."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import AsyncIterator, Mapping
from datetime import UTC
from typing import Any

import anyio
import anyio.to_thread
from starlette.responses import Response, StreamingResponse

from ccaco_cli.view.serve.problems import HttpError

PART = 1 << 18
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
TYPES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "image/jpeg"),
    ".png": "image/png",
    ".apng": "image/apng",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".avif": "image/avif",
    ".wav": "audio/wav",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".aac": "audio/aac",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
    ".mov": "video/quicktime",
}
"""Endings of files that a browser shows; another file is offered for download. None of them can hold a script."""


async def response(item: Mapping[str, Any], byte_range: str = "") -> Response:
    """The file of an item, or a part of it.

    Args:
        item: with ``path``, and ``size``, ``modified`` and ``sha256`` as far as the index holds them.
        byte_range: the header ``Range``, which players of sounds and films send.
    Raises:
        HttpError: 404, the item has no file, or it is gone; 409, it is not the file that was indexed; 416.
    """
    path = item.get("path")
    if not path:
        raise HttpError(404, "this item has no file", where=str(item["id"])[:200], expected="an item with a path")
    number, size = await anyio.to_thread.run_sync(_open, item)
    try:
        first, last = _range(byte_range, size)
    except HttpError:
        os.close(number)
        raise
    media_type = TYPES.get(os.path.splitext(path)[1].lower())
    headers = {"content-length": str(last - first), "cache-control": "private, no-cache", "accept-ranges": "bytes"}
    if last - first < size:
        headers["content-range"] = f"bytes {first}-{last - 1}/{size}"
    if media_type is None:
        headers["content-disposition"] = "attachment"
    status = 206 if last - first < size else 200
    parts = _parts(number, first, last)
    return StreamingResponse(parts, status, headers, media_type or "application/octet-stream")


def _range(text: str, size: int) -> tuple[int, int]:
    """(first, end) of the bytes that are sent; all of them for a header that is no single range (RFC 9110, 14.2)."""
    match = _RANGE.fullmatch(text.strip())
    if match is None or not (match[1] or match[2]):
        return 0, size
    first = int(match[1]) if match[1] else max(0, size - int(match[2]))
    last = min(size, int(match[2]) + 1) if match[1] and match[2] else size
    if first >= last:
        headers = {"content-range": f"bytes */{size}"}
        raise HttpError(416, "a range outside the file", where=text[:80], expected=f"0-{size - 1}", headers=headers)
    return first, last


def _open(item: Mapping[str, Any]) -> tuple[int, int]:
    """Opens the file of an item if it is the one that was indexed. Returns its number and size."""
    try:
        number = os.open(item["path"], os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe must not wait for a writer
    except (OSError, ValueError):
        raise HttpError(404, "this file is no longer there", next="update the index") from None
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode) or not _unchanged(number, status, item):
        os.close(number)
        raise HttpError(409, "this is not the file that was indexed", next="update the index")
    return number, status.st_size


def _unchanged(number: int, status: os.stat_result, item: Mapping[str, Any]) -> bool:
    """Whether size and time are those of the index; where the time differs, the content decides."""
    size, modified, digest = item.get("size"), item.get("modified"), item.get("sha256")
    if size is not None and status.st_size != size:
        return False
    if modified is None or int(status.st_mtime) == int(modified.replace(tzinfo=UTC).timestamp()):
        return True
    if digest is None:
        return False
    with os.fdopen(os.dup(number), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == str(digest)


async def _parts(number: int, first: int, last: int) -> AsyncIterator[bytes]:
    """Bytes of an open file, which is closed at the end, also where the client has gone."""
    try:
        while first < last:
            part = await anyio.to_thread.run_sync(os.pread, number, min(PART, last - first), first)
            if not part:
                return
            first += len(part)
            yield part
    finally:
        os.close(number)
