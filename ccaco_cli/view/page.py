"""The report as one HTML file that loads nothing from the network and works on a phone and without a mouse."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from ccaco_cli import __version__
from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation.metric_table import Unit, find_metric
from ccaco_cli.core.losses.parts import LOSS_PARTS, TOTAL
from ccaco_cli.core.reporting.choice_examples import ChoiceExample, ChoicePicture
from ccaco_cli.core.reporting.page import HeatMapExample, ModelDetails, PageData, SummaryMetric
from ccaco_cli.core.reporting.rows import Cells, FaithfulnessRow, ReportRow
from ccaco_cli.core.retrieval.explain import Explanation
from ccaco_cli.core.words import detect_language
from ccaco_cli.view import charts, layouts
from ccaco_cli.view.heat import overlay
from ccaco_cli.view.tables import percent, short
from ccaco_cli.view.tables import text as as_text

COST = ("run", "arm", "seed", "parameters", "steps", "seconds", "samples/s", "memory_MiB")
HEAT_MAP_SIDE = 176
CHOICE_MAP_SIDE = 112


def refuse(path: Path) -> None:
    """Raises DataError: the file is not an .html file (checked before the work, not after it)."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise DataError("the report page is a file of HTML", where=path, expected="FILE.html")


def write(path: Path, page: PageData) -> None:
    """Writes the page to a file, atomically."""
    manifest.write_bytes(path, render(page).encode())


def render(page: PageData) -> str:
    """The page as text; everything that users or data sets wrote is escaped."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("ccaco_cli.view"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"short": short, "cell": as_text, "written": _written}
    model = page.model
    with charts.style(charts.INK):
        drawn = _charts(page)
    return environment.get_template("page.html").render(
        page=page,
        version=__version__,
        now=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        tiles=[_tile(metric) for metric in page.summary],
        runs=results_table(page.runs, hidden=hidden_columns()),
        arms=results_table(page.arms),
        cost=html_table([{name: row.as_dict().get(name) for name in COST} for row in page.runs]),
        charts=drawn,
        model=model,
        gallery=model and _gallery(model),
        batch=model and _batch(model),
        faithfulness=model and _faithfulness(model.faithfulness, by_word=False),
        faithfulness_by_word=model and _faithfulness(model.faithfulness, by_word=True),
        examples=[_example(example) for example in model.examples] if model else [],
        choices=[_choice(example) for example in model.choices] if model else [],
    )


def _written(text: str) -> Markup:
    """Attributes of an element whose text somebody wrote: its direction, and its language where its script tells it."""
    language = "" if text.isascii() else detect_language(text)
    return Markup(' dir="auto" lang="{}"' if language else ' dir="auto"').format(language)


def results_table(rows: Sequence[ReportRow], hidden: Sequence[str] = ()) -> dict[str, Any] | None:
    """Report rows as an ``html_table``; columns in which all rows agree are left out and named in ``shared``."""
    laid = [layouts.layout_of(row).cells(row) for row in rows]
    shared = layouts.shared_values(laid)
    shown = [{k: v for k, v in cells.items() if k not in shared and k not in hidden} for cells in laid]
    table = html_table(shown)
    return table and table | {"shared": "; ".join(layouts.shared_titles(laid))}


def html_table(rows: Sequence[Cells]) -> dict[str, Any] | None:
    """A table for the template; None without rows.

    Best and second best are marked by value, in columns of metrics in which rows differ.

    Returns:
        {"columns": [(name, is a number)], "rows": [[(name, value, mark)]]}; mark: best | second | "".
    """
    if not rows:
        return None
    names = [
        name
        for name in dict.fromkeys(name for cells in rows for name in cells)
        if any(cells.get(name) not in (None, "") for cells in rows)
    ]
    names.sort(key=lambda name: name not in ("run", "arm"))  # the first column is the heading of the row
    marks: dict[str, list[float]] = {}
    for name in names:
        values = {cells[name] for cells in rows if isinstance(cells.get(name), float | int)}
        metric = find_metric(name)
        if len(rows) > 1 and metric and metric.unit in (Unit.FRACTION, Unit.PERCENT_SUM) and len(values) > 1:
            marks[name] = sorted(values, reverse=True)[:2]
    numbers = {name: all(isinstance(cells.get(name), int | float | None) for cells in rows) for name in names}

    def mark(name: str, value: Any) -> str:
        best = marks.get(name, [])
        return ("best", "second")[best.index(value)] if value in best else ""

    return {
        "columns": [(name, numbers[name]) for name in names],
        "rows": [[(name, cells.get(name), mark(name, cells.get(name))) for name in names] for cells in rows],
    }


def _tile(metric: SummaryMetric) -> dict[str, str]:
    scale, unit = (100, " %") if percent(metric.metric) else (1, "")
    return {
        "name": _metric_name(metric.metric),
        "value": f"{scale * metric.value:.1f}{unit}",
        "interval": f"{scale * metric.low:.1f} – {scale * metric.high:.1f}",
        "covers": metric.covers,
    }


def _metric_name(metric: str) -> str:
    """``text_to_image_R@1`` -> ``text → image R@1``."""
    source, to, target = metric.partition("_to_")
    return f"{source} → {target.replace('_', ' ', 1)}" if to else metric.removesuffix("_accuracy").replace("_", " ")


def hidden_columns() -> tuple[str, ...]:
    """Columns of runs that the page shows elsewhere: costs in a table of their own, losses as charts."""
    return (*COST[3:], *(f"loss_{name}" for name in (TOTAL, *LOSS_PARTS)))


def _charts(page: PageData) -> dict[str, str]:
    drawn = {}
    if any(page.logs.values()):
        drawn["curves"] = charts.inline(
            charts.curves(page.logs), "Training curves: losses, weights and validation metrics by step"
        )
    if page.recalls:
        drawn["recall"] = charts.inline(
            charts.recall(page.recalls), "Share of queries with a correct result among the first k, both directions"
        )
    if any(result.reliability for result in page.recalls.values()):
        drawn["calibration"] = charts.inline(
            charts.calibration(page.recalls), "Share of true pairs against the predicted probability, by interval"
        )
    if model := page.model:
        names = model.modalities
        drawn["similarity"] = charts.inline(
            charts.similarity(model.similarity[2]), f"Cosines between {names[1]} (rows) and {names[0]} (columns)"
        )
        rows, points_a, points_b = model.embedding_map
        row_class = [model.classes[1][row] for row in rows] if model.classes else None
        drawn["map"] = charts.inline(
            charts.embedding_map(points_a, points_b, names, row_class),
            f"Map of the shared space: embeddings of {names[0]} and {names[1]} in two dimensions",
        )
        if model.confusion:
            drawn["confusion"] = charts.inline(
                charts.confusion(*model.confusion),
                "Share of queries by class of the query and class of the first result",
            )
    return drawn


def _gallery(model: ModelDetails) -> dict[str, Any]:
    """The data that the gallery's script reads."""
    first = model.modalities[0]
    directions = [
        {
            "name": ranked.direction.replace("_to_", " → "),
            "querySide": 0 if ranked.direction.startswith(f"{first}_to_") else 1,
            "queries": ranked.queries.tolist(),
            "rank": [round(float(rank), 1) for rank in ranked.rank],
            "top": ranked.top.tolist(),
            "score": [[round(float(s), 3) for s in row] for row in ranked.score],
            "correct": ranked.correct.astype(int).tolist(),
        }
        for ranked in model.ranked
    ]
    pictures = [thumbnail and base64.b64encode(thumbnail).decode() for thumbnail in model.thumbnails]
    return {
        "directions": directions,
        "pictures": pictures,
        "labels": list(map(list, model.labels)),
        "ids": list(model.ids),
    }


def _batch(model: ModelDetails) -> list[dict[str, Any]]:
    """The true pairs of the similarity matrix, in its order."""
    items_a, items_b, _ = model.similarity
    return [
        {"picture": _data_uri(model.thumbnails[a]), "id": model.ids[a], "text": model.labels[1][b]}
        for a, b in zip(items_a, items_b, strict=True)
    ]


def _faithfulness(rows: Sequence[FaithfulnessRow], by_word: bool) -> dict[str, Any] | None:
    """Faithfulness over all words, or pointing by word; pointing in percent, gains in units of the match score."""
    table = []
    for row in rows:
        if bool(row.word) != by_word:
            continue
        pointing = row.measure == "pointing"
        scale = 100 if pointing else 1
        identity: Cells = {"word": row.word, "method": row.method}
        if not by_word:
            identity = {"method": row.method, "measure": "pointing, %" if pointing else f"{row.measure} gain"}
        interval = "" if row.low is None or row.high is None else f"{scale * row.low:.1f} – {scale * row.high:.1f}"
        cells = identity | {"value": round(scale * row.value, 2), "95 %": interval}
        cells |= {"random cell": round(scale * row.random, 2)}
        cells |= {"image centre": None if row.centre is None else round(scale * row.centre, 2)}
        table.append(cells | {"cases": row.cases, "against the better baseline": row.verdict})
    return html_table(table)


def _example(example: HeatMapExample) -> dict[str, Any]:
    trial = example.explanation.trial
    return {
        "text": example.text,
        "id": example.id,
        "maps": _maps(example.image, example.id, example.explanation, HEAT_MAP_SIDE),
        "match": f"{trial.score:.2f}",
        "deletion": f"{trial.deletion_gain:+.2f}",
        "insertion": f"{trial.insertion_gain:+.2f}",
    }


def _choice(example: ChoiceExample) -> dict[str, Any]:
    """A choice: for each caption, each picture with its score and the heat maps of the words."""
    outcome = "right" if example.outcome else "wrong"
    captions = [
        {
            "text": text,
            "number": number + 1,
            "pictures": [_scored_picture(picture, number) for picture in example.pictures],
        }
        for number, text in enumerate(example.captions)
    ]
    return {
        "title": f"{example.kind.replace('_', ' ')}: {outcome}",
        "share": f"{100 * example.share:.0f} % of these choices are {outcome}",
        "captions": captions,
    }


def _scored_picture(picture: ChoicePicture, caption: int) -> dict[str, Any]:
    """One picture with one of the two captions: ``preferred`` where this caption has the higher score."""
    explanation = picture.explanations[caption] if picture.explanations else None
    return {
        "id": picture.id,
        "maps": _maps(picture.image, picture.id, explanation, CHOICE_MAP_SIDE),
        "score": f"{picture.scores[caption]:.2f}",
        "preferred": picture.scores[caption] > picture.scores[1 - caption],
    }


def _maps(
    image: NDArray[np.uint8] | None, id: str, explanation: Explanation | None, side: int
) -> list[dict[str, str | None]]:
    """The model input and a heat map for each word, ``side`` pixels wide and high; [] without an image."""
    if image is None:
        return []
    size = (side, side)
    maps = [{"word": "model input", "picture": _webp_uri(Image.fromarray(image).resize(size)), "alt": id}]
    if explanation is not None:
        for word, heat in zip(explanation.words, explanation.heat, strict=True):
            picture = _webp_uri(overlay(image, heat).resize(size))
            maps.append({"word": word, "picture": picture, "alt": f"Heat map of “{word}” over {id}"})
    return maps


def _webp_uri(image: Image.Image) -> str | None:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70)
    return _data_uri(buffer.getvalue())


def _data_uri(webp: bytes | None) -> str | None:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}" if webp else None
