"""Limits of what one request may cost, and the check of an uploaded picture."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image

from ccaco_cli.view.serve.problems import HttpError

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        header_bytes: of all headers of one request.
        url_bytes: of path and parameters.
        file_bytes: of an uploaded query.
        pixels: of an uploaded picture.
        waiting: jobs that may wait for a worker thread, in each lane.
        requests: requests that are answered at one time.
        connections: connections that may be open at one time.
        header_seconds: from the start of a connection to the end of its first headers.
        upload_seconds: for the body of one request.
        answer_seconds: for the work of one request, its time in the queue included.
        idle_seconds: how long a connection without a request stays open.
        end_seconds: how long running requests may take after Ctrl-C.
    """

    header_bytes: int = 16 << 10
    url_bytes: int = 24 << 10
    file_bytes: int = 64 * MIB
    pixels: int = 50_000_000
    waiting: int = 128
    requests: int = 400
    connections: int = 500
    header_seconds: float = 10.0
    upload_seconds: float = 60.0
    answer_seconds: float = 60.0
    idle_seconds: int = 15
    end_seconds: int = 5


def check_pixels(data: bytes, max_pixels: int) -> None:
    """Refuses a picture with too many pixels before they are decoded: its header says how many there are.

    A file that is no picture passes: the decoder says what is wrong with it.

    Raises:
        HttpError: 413.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = max_pixels + 1
    except Exception:  # Pillow raises many kinds of errors for a broken file
        return
    if pixels > max_pixels:
        raise HttpError(
            413,
            "too many pixels",
            where="the picture",
            expected=f"at most {max_pixels:,} pixels",
            next="send a smaller copy of the picture",
        )
