"""The report as one self-contained HTML file: no network, light and dark, readable on a phone, usable without a mouse."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from ccaco_cli import __version__
from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.reporting.page import Inside, Page
from ccaco_cli.view import charts, results
from ccaco_cli.view.heat import overlay
from ccaco_cli.view.tables import percent, short
from ccaco_cli.view.tables import text as as_text

COST = ("run", "arm", "seed", "parameters", "steps", "seconds", "samples/s", "memory_MiB")


def refuse(path: Path) -> None:
    """Raises DataError: not an .html file (said before the work, not after)."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise DataError("the report page is a file of HTML", where=path, expected="FILE.html")


def write(path: Path, page: Page) -> None:
    """Renders the page to a file, whole or not at all."""
    manifest.write_bytes(path, render(page).encode())


def render(page: Page) -> str:
    """The page as text; everything that users or data sets wrote is escaped."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    shelf = Environment(
        loader=PackageLoader("ccaco_cli.view"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shelf.globals |= {"short": short, "cell": cell}
    inside = page.inside
    with charts.style(charts.INK):
        drawn = _charts(page)
    return shelf.get_template("page.html").render(
        page=page,
        version=__version__,
        now=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        tiles=[_tile(one) for one in page.headline],
        runs=table(page.runs, hidden=(*COST[3:], "loss_total", "loss_contrastive", "loss_cross")),
        arms=table(page.arms),
        cost=grid([{k: row.get(k) for k in COST} for row in page.runs]),
        charts=drawn,
        inside=inside,
        gallery=inside and _gallery(inside),
        batch=inside and _batch(inside),
        faith=inside and _faith(inside.faith, words=False),
        faith_words=inside and _faith(inside.faith, words=True),
        examples=[_example(one) for one in inside.examples] if inside else [],
    )


def cell(name: str, value: Any) -> str:
    """A value as people read it, in a table of the page."""
    return as_text(name, value)


def table(rows: Sequence[Mapping[str, Any]], hidden: Sequence[str] = ()) -> dict[str, Any] | None:
    """Rows of results as ``grid``, in the columns that the terminal shows too; what all rows share is said once, in ``said``."""
    laid = [{k: v for k, v in row.items() if k not in hidden} for row in results.laid(rows, "markdown")]
    same = {n: v.pop() for n in results.SAID_ONCE if len(v := {row.get(n) for row in laid} - {None, ""}) == 1}
    found = grid([{k: v for k, v in row.items() if k not in same} for row in laid])
    return found and found | {"said": "; ".join(results.SAID_ONCE[n].format(v) for n, v in same.items())}


def grid(laid: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A table for the template: {"columns": [(name, is a number)], "rows": [[(name, value, mark)]]}; mark: best, second or nothing.

    Best and second best are marked by value, in columns of metrics that more than one row has.
    """
    if not laid:
        return None
    names = [
        n
        for n in dict.fromkeys(name for row in laid for name in row)
        if any(row.get(n) not in (None, "") for row in laid)
    ]
    names.sort(key=lambda name: name not in ("run", "arm"))  # the first column is the row's heading
    marks: dict[str, list[float]] = {}
    for name in names:
        values = {row[name] for row in laid if isinstance(row.get(name), float | int)}
        if len(laid) > 1 and (percent(name) or name == "R-sum") and len(values) > 1:
            marks[name] = sorted(values, reverse=True)[:2]
    numbers = {name: all(isinstance(row.get(name), int | float | None) for row in laid) for name in names}

    def mark(name: str, value: Any) -> str:
        best = marks.get(name, [])
        return ("best", "second")[best.index(value)] if value in best else ""

    return {
        "columns": [(name, numbers[name]) for name in names],
        "rows": [[(name, row.get(name), mark(name, row.get(name))) for name in names] for row in laid],
    }


def _tile(one: Any) -> dict[str, str]:
    scale = 100 if percent(one.metric) else 1
    unit = " %" if percent(one.metric) else ""
    said = f"{scale * one.low:.1f} – {scale * one.high:.1f}"
    return {
        "name": _spoken(one.metric),
        "value": f"{scale * one.value:.1f}{unit}",
        "interval": said,
        "covers": one.covers,
    }


def _spoken(metric: str) -> str:
    """``text_to_image_R@1`` -> ``text → image R@1``."""
    head, to, rest = metric.partition("_to_")
    return f"{head} → {rest.replace('_', ' ', 1)}" if to else metric.removesuffix("_accuracy").replace("_", " ")


def _charts(page: Page) -> dict[str, str]:
    found = {}
    if any(page.logs.values()):
        found["curves"] = charts.inline(
            charts.curves(page.logs), "Training curves: losses, weights and validation figures by step"
        )
    if page.recalls:
        found["recall"] = charts.inline(
            charts.recall(page.recalls), "Share of queries answered among the first k answers, both directions"
        )
    if inside := page.inside:
        names = inside.modalities
        found["similarity"] = charts.inline(
            charts.similarity(inside.similarity[2]), f"Cosines between {names[1]} (rows) and {names[0]} (columns)"
        )
        rows, one, other = inside.plane
        of_row = [inside.classes[1][row] for row in rows] if inside.classes else None
        found["plane"] = charts.inline(
            charts.plane(one, other, names, of_row), f"{names[0]} and {names[1]} of the shared space on a plane"
        )
        if inside.confusion:
            found["confusion"] = charts.inline(
                charts.confusion(*inside.confusion), "Share of queries by class asked for and class found first"
            )
    return found


def _gallery(inside: Inside) -> dict[str, Any]:
    """What the gallery's script reads."""
    directions = [
        {
            "name": one.direction.replace("_to_", " → "),
            "asks": 0 if one.direction.startswith(f"{inside.modalities[0]}_to_") else 1,
            "items": one.items.tolist(),
            "rank": [round(float(rank), 1) for rank in one.rank],
            "top": one.top.tolist(),
            "score": [[round(float(s), 3) for s in row] for row in one.score],
            "right": one.right.astype(int).tolist(),
        }
        for one in inside.answers
    ]
    pictures = [picture and base64.b64encode(picture).decode() for picture in inside.pictures]
    return {
        "directions": directions,
        "pictures": pictures,
        "labels": list(map(list, inside.labels)),
        "ids": list(inside.ids),
    }


def _batch(inside: Inside) -> list[dict[str, Any]]:
    """The true pairs of the similarity matrix, in its order."""
    one, other, _ = inside.similarity
    return [
        {"picture": _uri(inside.pictures[i]), "id": inside.ids[i], "said": inside.labels[1][j]}
        for i, j in zip(one, other, strict=True)
    ]


def _faith(rows: Sequence[Mapping[str, Any]], words: bool) -> dict[str, Any] | None:
    """Faithfulness and pointing over all, or pointing by word; pointing in percent, gains in units of the match score."""
    laid = []
    for row in rows:
        if bool(row["word"]) != words:
            continue
        scale = 100 if row["measure"] == "pointing" else 1
        number = {
            k: None if row[k] is None else round(scale * row[k], 2)
            for k in ("value", "low", "high", "random", "centre")
        }
        between = "" if number["low"] is None else f"{number['low']:.1f} – {number['high']:.1f}"
        unit = "pointing, %" if row["measure"] == "pointing" else f"{row['measure']} gain"
        head = {"word": row["word"], "method": row["method"]} if words else {"method": row["method"], "measure": unit}
        laid.append(head | {"value": number["value"], "95 %": between})
        laid[-1] |= {
            "random": number["random"],
            "middle": number["centre"],
            "cases": row["cases"],
            "against the best baseline": row["verdict"],
        }
    return grid(laid)


def _example(one: Any) -> dict[str, Any]:
    trial = one.why.trial
    maps = []
    if one.picture is not None:
        maps.append(
            {"word": "as seen", "picture": _webp(Image.fromarray(one.picture).resize((176, 176))), "alt": one.id}
        )
        for word, heat in zip(one.why.words, one.why.heat, strict=True):
            shown = overlay(one.picture, heat).resize((176, 176))
            maps.append({"word": word, "picture": _webp(shown), "alt": f"Heat map of “{word}” over {one.id}"})
    facts = {
        "match": f"{trial.score:.2f}",
        "deletion": f"{trial.deletion_gain:+.2f}",
        "insertion": f"{trial.insertion_gain:+.2f}",
    }
    return {"said": one.said, "id": one.id, "maps": maps} | facts


def _webp(image: Image.Image) -> str | None:
    out = io.BytesIO()
    image.save(out, "WEBP", quality=70)
    return _uri(out.getvalue())


def _uri(picture: bytes | None) -> str | None:
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}" if picture else None
