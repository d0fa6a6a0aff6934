"""Samples that are arrays of numbers: point clouds, sensor series, embeddings of other models.

A sample is [N, W], N rows of W numbers; [W] is one row. Files are ``.npy``, or ``.npz`` with one array; nothing is ever
unpickled. A data set stores each sample as ``.npy`` of float32, so that a reader meets one layout.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from ccaco_cli.core.data import cache
from ccaco_cli.core.data.checks import MAX_FILE_BYTES, CheckedBytes
from ccaco_cli.core.errors import DataError

if TYPE_CHECKING:
    from ccaco_cli.core.data.pairs import PreparedData

Array = np.ndarray[Any, Any]
NPY, ZIP = b"\x93NUMPY", b"PK"
"""First bytes of a ``.npy`` file and of a ``.npz`` file."""
NUMBERS = "fiub"
"""Kinds of dtype that are numbers: floats, integers and booleans."""
ROWS_AT_ONCE = 1024
"""Samples that are in memory at a time while the statistics are computed."""
COLOUR_COLUMNS = 6
"""Columns of a point cloud with colours: x, y, z, red, green, blue; colours in 0..1."""
GROUND = (236, 236, 236)
"""Colour behind a cloud: points can be white."""
DOT = 0.02
"""Side of a drawn point as a share of the picture."""


def decode(data: bytes) -> Array:
    """One sample from the bytes of a ``.npy`` or ``.npz`` file.

    Returns:
        [N, W] float32, finite, N and W at least 1.
    Raises:
        DataError: no array file, a damaged or incomplete one, an array of objects or of anything but numbers, other
            axes, no rows, several arrays, or a number that is not finite in float32.
    """
    return as_rows(_read_npy(_npz_member(data) if data.startswith(ZIP) else data))


def as_rows(array: Array) -> Array:
    """[N, W] or [W] of any kind of number -> [N, W] float32. Raises DataError as ``decode``."""
    if array.dtype.kind not in NUMBERS:
        raise DataError("array of other values than numbers", where=array.dtype, expected="float, integer or boolean")
    if array.ndim not in (1, 2):
        raise DataError("array of other axes", where=f"shape {list(array.shape)}", expected="[N, W], or [W]")
    if not array.size:
        raise DataError("empty array", where=f"shape {list(array.shape)}", expected="at least one row and one column")
    with np.errstate(over="ignore"):
        rows: Array = np.ascontiguousarray(np.atleast_2d(array), np.float32)
    if not np.isfinite(rows).all():
        raise DataError("array with NaN or infinite numbers", expected="numbers that float32 can hold")
    return rows


def from_values(values: Any) -> bytes:
    """Lists of numbers, or of lists, as a column of a table holds them -> bytes of a ``.npy`` file, not yet checked."""
    try:
        with np.errstate(over="ignore"):
            return encode(np.asarray(values, np.float64))
    except (ValueError, TypeError, OverflowError):
        raise DataError("array of other values than numbers, or of rows of different length") from None


def encode(rows: Array) -> bytes:
    """The bytes of a ``.npy`` file; equal arrays give equal bytes."""
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(rows, np.float32), allow_pickle=False)
    return out.getvalue()


def check(data: bytes, rules: Any, modality: str = "array") -> CheckedBytes:
    """Reads an array and stores it as float32; its measures are named by the modality."""
    rows = decode(data)
    count, width = rows.shape
    return encode(rows), {f"{modality}_rows": count, f"{modality}_columns": width}, {"rows": count, "columns": width}


def _read_npy(data: bytes) -> Array:
    """The array of a ``.npy`` file. The size in its header is compared with the file before any memory is taken."""
    if not data.startswith(NPY):
        raise DataError("not an array file", expected="a .npy file, or a .npz file with one array")
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:  # 3.0 has names of fields that are not ASCII, which are no numbers
            raise DataError("array of other values than numbers", where=f"version {version}")
        shape, fortran_order, dtype = read_header[version](stream)
    except DataError:
        raise
    except Exception as error:  # numpy evaluates the header as a literal, which fails in many ways
        raise DataError("damaged array file", where=" ".join(str(error).split())[:100]) from None
    if dtype.hasobject:
        raise DataError("array of Python objects, which would have to be unpickled", expected="an array of numbers")
    promised, stored = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if promised != stored:
        where = f"its header promises {promised:,} bytes, and it holds {stored:,}"
        raise DataError("incomplete array file", where=where)
    flat = np.frombuffer(data, dtype, math.prod(shape), stream.tell())
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _npz_member(data: bytes) -> bytes:
    """The one ``.npy`` file of a ``.npz`` file; no more is unpacked than a sample may have."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) != 1:
                names = ", ".join(member.filename for member in members[:4]) or "none"
                raise DataError("array file without exactly one array", where=names, expected="one array a sample")
            with archive.open(members[0]) as member:
                unpacked = member.read(MAX_FILE_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, OSError, EOFError, ValueError) as error:
        raise DataError("damaged array file", where=" ".join(str(error).split())[:100]) from None
    if len(unpacked) > MAX_FILE_BYTES:
        raise DataError("file too large", expected=f"at most {MAX_FILE_BYTES} bytes")
    return unpacked


def measure(data: PreparedData, modality: str) -> dict[str, Any]:
    """The settings of a tower that follow from the training split, computed once for a data set.

    Returns:
        ``columns`` (W), ``rows`` (the most of a sample), and ``mean`` and ``std`` of each column over all rows, with
        six digits; the std of a constant column is 1.
    """
    split = data.split("train")

    def compute() -> dict[str, Array]:
        longest, count, total, squares = 0, 0, np.zeros(1), np.zeros(1)
        for first in range(0, len(split), ROWS_AT_ONCE):
            samples = split.media(modality, range(first, min(first + ROWS_AT_ONCE, len(split))))
            decoded = [decode(sample) for sample in samples]
            longest = max(longest, *map(len, decoded))
            rows = np.concatenate(decoded).astype(np.float64)
            # the moments of each part around its own mean: sums of squares alone would cancel for a large mean
            mean, deviation = rows.mean(0), ((rows - rows.mean(0)) ** 2).sum(0)
            shift, both = mean - total, count + len(rows)
            squares = squares + deviation + shift**2 * count * len(rows) / both
            total, count = total + shift * len(rows) / both, both
        return {"rows": np.array(longest), "mean": total, "std": np.sqrt(squares / count)}

    name = cache.key(data=data.manifest.sha256, split=split.key, modality=modality, made="moments of columns, 1")
    stored = cache.arrays(data.manifest.path / "cache" / name, compute)
    mean = tuple(float(f"{value:.6g}") for value in stored["mean"].tolist())
    std = tuple(float(f"{value:.6g}") or 1.0 for value in stored["std"].tolist())
    return {"columns": len(mean), "rows": int(stored["rows"]), "mean": mean, "std": std}


def picture(data: bytes, side: int) -> Image.Image:
    """Draws an array, ``side`` pixels wide: points of 3 columns or more as a cloud that is seen from the front and a
    little from above, one or two columns as curves, and single rows as bars."""
    rows = decode(data)
    count, width = rows.shape
    if count > 1 and width >= 3:
        return _draw_cloud(rows, side)
    return _draw_lines(rows.T if count > 1 else rows, side, bars=count == 1)


def _draw_cloud(rows: Array, side: int) -> Image.Image:
    """Near points cover far ones. x points to the right, z up, and y away from the viewer."""
    x, y, z = (rows[:, :3] - rows[:, :3].mean(0)).T
    across, up = x, 0.94 * z + 0.34 * y
    extent = max(float(np.abs(np.stack([across, up])).max()), 1e-6)
    has_colour = rows.shape[1] >= COLOUR_COLUMNS and (rows[:, 3:6].min() >= 0) and (rows[:, 3:6].max() <= 1)
    depth = (y - y.min()) / max(float(np.ptp(y)), 1e-6)
    colours = rows[:, 3:6] if has_colour else np.repeat(0.2 + 0.5 * depth[:, None], 3, 1)
    image = Image.new("RGB", (side, side), GROUND)
    draw, half = ImageDraw.Draw(image), max(0.5, DOT * side / 2)
    places = np.stack([across / extent, -up / extent], 1) * 0.46 * side + side / 2
    for point in np.argsort(-y, kind="stable"):
        left, top = places[point] - half
        fill = tuple(int(255 * channel) for channel in colours[point])
        draw.rectangle((left, top, left + 2 * half, top + 2 * half), fill=fill)
    return image


def _draw_lines(series: Array, side: int, *, bars: bool) -> Image.Image:
    """[C, N]: each row as a curve over the width of the picture, or its numbers as bars from their zero line."""
    image = Image.new("RGB", (side, side // 2), "white")
    draw = ImageDraw.Draw(image)
    low, high = min(0.0, float(series.min())), max(0.0, float(series.max()))
    scale = (side // 2 - 3) / max(high - low, 1e-30)
    for number, values in enumerate(series):
        chosen = values[np.linspace(0, len(values) - 1, min(len(values), side)).astype(int)]
        across = (np.arange(len(chosen)) + 0.5) * side / len(chosen)
        down = (high - chosen.astype(np.float64)) * scale + 1
        shade = (60 + 60 * (number % 3), 90, 200 - 60 * (number % 3))
        if bars:
            half = max(0.5, 0.4 * side / len(chosen))
            zero = high * scale + 1
            for x, y in zip(across, down, strict=True):
                draw.rectangle((x - half, min(y, zero), x + half, max(y, zero)), fill=shade)
        else:
            draw.line([(float(x), float(y)) for x, y in zip(across, down, strict=True)], fill=shade, width=1)
    return image
