"""Charts of results, drawn within ``style``: for papers and, as SVG in the colours of the page, for the report."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.losses.parts import LOSS_PARTS, TOTAL
from ccaco_cli.core.reporting.rows import ArmRow
from ccaco_cli.core.scoring.results import Result
from ccaco_cli.view import fonts
from ccaco_cli.view.tables import percent, short

COLOURS = ("#2f7ebc", "#c8581f", "#27915f", "#b5559c", "#8b7722", "#6b6fcf", "#c0485a", "#4f8a94")
"""Different to the colour-blind, with a contrast of 3 : 1 or more to white and to near-black."""
INK = "#010203"
"""Placeholder for the text colour of the page."""
MAX_POINTS = 300
"""Points of a training curve; longer curves are averaged in bins."""
OTHER_PANELS = ("logit_scale", "lr", "grad_norm")
"""Panels of training curves after the losses and their weights."""
KS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100)
"""Numbers of results at which recall is drawn."""


@contextmanager
def style(ink: str = "black") -> Iterator[Any]:
    """pyplot without a screen, with fonts and colours for print and page."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    text_colours = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor"), ink
    )
    settings: dict[str, Any] = {
        "font.size": 8,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 7,
        "lines.linewidth": 1.3,
        "svg.hashsalt": "ccaco",
    }
    with plt.rc_context(
        {**text_colours, **settings, "axes.prop_cycle": plt.cycler(color=COLOURS), "font.family": "sans-serif"}
    ):
        yield plt


def curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Training curves by step: losses, weights, learning rate, gradient norm, and validation metrics.

    Args:
        logs: run -> entries of its training log.
    """

    steps = {run: [entry for entry in entries if "validation" not in entry] for run, entries in logs.items()}
    logged = {
        key
        for entries in steps.values()
        for entry in entries[:1] + entries[-1:]
        for key, value in entry.items()
        if isinstance(value, int | float) and key not in ("step", "epoch")
    }
    ordered = (TOTAL, *LOSS_PARTS, *(part.weight_key for part in LOSS_PARTS.values()), *OTHER_PANELS)
    panels = [name for name in ordered if name in logged] + sorted(logged.difference(ordered))
    validations = {run: [entry for entry in entries if entry.get("validation")] for run, entries in logs.items()}
    metrics = list(
        dict.fromkeys(
            key
            for entries in validations.values()
            for entry in entries[:1]
            for key in entry["validation"]
            if key.endswith(("R-sum", "_R@1"))
        )
    )
    figure, axes = _grid(len(panels) + len(metrics))
    for axis, name in zip(axes, panels, strict=False):
        axis.set_title(name)
        for run, entries in steps.items():
            having = [entry for entry in entries if name in entry]
            axis.plot(*_binned([entry["step"] for entry in having], [entry[name] for entry in having]), label=run)
    for axis, name in zip(axes[len(panels) :], metrics, strict=False):
        axis.set_title(f"validation {short(name)}")
        scale = 100 if percent(name) else 1
        for run, entries in validations.items():
            values = [scale * entry["validation"].get(name, np.nan) for entry in entries]
            axis.plot([entry["step"] for entry in entries], values, marker="o", ms=2.5, label=run)
    if len(logs) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(logs)))
    return figure


def _grid(panels: int) -> tuple[Any, Any]:
    """A figure with at least this many axes, four in a row; the spare ones are blank."""
    import matplotlib.pyplot as plt

    columns = min(4, max(1, panels))
    lines = -(-max(1, panels) // columns)
    size = (2.3 * columns, 1.75 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[max(1, panels) :]:
        axis.axis("off")
    return figure, axes.flat


def _binned(x: Sequence[float], y: Sequence[float]) -> tuple[Any, Any]:
    """At most ``MAX_POINTS`` points: means of bins of equal size."""
    size = -(-len(x) // MAX_POINTS) or 1
    starts = range(0, len(x), size)
    return [np.mean(x[i : i + size]) for i in starts], [np.mean(y[i : i + size]) for i in starts]


def recall(results: Mapping[str, Result]) -> Any:
    """Recall against the number of results that are looked at, both directions.

    Bars at 1, 5 and 10 are 95 % intervals over images.

    Args:
        results: name of the curve -> result.
    """
    import matplotlib.pyplot as plt

    directions = list(next(iter(results.values())).evaluation.directions())
    figure, axes = plt.subplots(
        1, len(directions), figsize=(6.4, 2.7), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, direction in zip(axes[0], directions, strict=True):
        for (name, result), colour in zip(results.items(), COLOURS * len(results), strict=False):
            pools = result.evaluation.directions()[direction]
            ks = [k for k in KS if k <= pools[0].gallery]
            values = [100 * np.mean([pool.hits(k).mean() for pool in pools]) for k in ks]
            axis.plot(ks, values, color=colour, marker=".", label=name)
            for k in (1, 5, 10):
                if k <= pools[0].gallery:
                    estimate = significance.estimate([result.per_query(f"{direction}_R@{k}")])
                    axis.vlines(k, 100 * estimate.low, 100 * estimate.high, color=colour, linewidth=2.5, alpha=0.5)
        axis.plot(ks, [100 * k / pools[0].gallery for k in ks], ":", color="0.55", linewidth=1, label="chance")
        axis.set(xscale="log", xlabel="results k", title=direction.replace("_", " "), ylim=(0, 100))
        axis.set_xticks([1, 5, 10, 50], ["1", "5", "10", "50"])
        axis.minorticks_off()
    axes[0, 0].set_ylabel("R@k, %")
    axes[0, -1].legend(loc="lower right")
    return figure


def strata(rows_by_metric: Mapping[str, Sequence[ArmRow]]) -> Any:
    """Each metric against a stratum of the queries, one line for each arm. Bars are 95 % intervals.

    Args:
        rows_by_metric: metric -> rows of ``comparison.arm_rows``, one for each arm and value of the stratum.
    """
    import matplotlib.pyplot as plt

    count = len(rows_by_metric)
    figure, axes = plt.subplots(1, count, figsize=(2.4 * count, 2.9), squeeze=False, layout="constrained")
    for axis, (metric, rows) in zip(axes[0], rows_by_metric.items(), strict=True):
        stratum = next(row.stratum.name for row in rows if row.stratum)
        values = dict.fromkeys(row.stratum.value for row in rows if row.stratum)
        position = {value: number for number, value in enumerate(values)}
        arms = list(dict.fromkeys(row.arm for row in rows))
        scale, limit = (100, 100) if percent(metric) else (1, 600)
        for number, (arm, colour) in enumerate(zip(arms, COLOURS * len(arms), strict=False)):
            shift = 0.04 * (number - (len(arms) - 1) / 2)  # side by side, so that no bar hides another
            points = [
                (position[row.stratum.value] + shift, row.evidence)
                for row in rows
                if row.arm == arm and row.stratum and row.evidence
            ]
            x = [place for place, _ in points]
            axis.plot(x, [scale * evidence.value for _, evidence in points], color=colour, marker=".", label=arm)
            for place, evidence in points:
                if evidence.estimate:
                    low = max(0, scale * evidence.estimate.low)
                    high = min(limit, scale * evidence.estimate.high)
                    axis.vlines(place, low, high, color=colour, linewidth=2, alpha=0.5)
        axis.set_xticks(list(position.values()), [str(value) for value in position], parse_math=False)
        axis.set(title=short(metric), xlabel=stratum)
    axes[0, 0].set_ylabel("% (R-sum: sum of six recalls)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(arms)))
    return figure


def confusion(names: Sequence[str], fractions: Any) -> Any:
    """The confusion matrix of classes: rows are the class of the query, columns the class of the first result."""
    import matplotlib.pyplot as plt

    side = max(2.6, 0.34 * len(names) + 1.2)
    figure, axis = plt.subplots(figsize=(side + 0.7, side), layout="constrained")
    matrix = np.asarray(fractions)
    image = axis.imshow(100 * matrix, cmap="viridis", vmin=0, vmax=100)
    axis.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axis.set_yticks(range(len(names)), names, parse_math=False)
    axis.set(xlabel="class of the first result", ylabel="class of the query")
    if len(names) <= 12:
        for (i, j), value in np.ndenumerate(matrix):
            colour = "black" if value > 0.6 else "white"
            axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axis, label="%", shrink=0.8)
    return figure


def calibration(results: Mapping[str, Result]) -> Any:
    """Reliability curves: the share of true pairs against the mean probability of each interval, with the ideal.

    Raises:
        DataError: no result has measured its probabilities.
    """
    measured = {name: result.reliability for name, result in results.items() if result.reliability is not None}
    if not measured:
        raise DataError(
            "no probabilities to draw", where="--figure calibration", expected="runs that were scored on val and test"
        )
    figure, axes = _grid(1)
    axes[0].plot([0, 1], [0, 1], color="0.6", linewidth=0.8, label="ideal")
    for name, reliability in measured.items():
        points = [(part.predicted, part.observed) for part in reliability.bins if part.n]
        axes[0].plot(*zip(*points, strict=True), marker="o", ms=3, label=f"{name}, ECE {reliability.ece:.3f}")
    axes[0].set(xlabel="predicted probability", ylabel="share of true pairs", xlim=(0, 1), ylim=(0, 1))
    axes[0].legend(loc="best")
    return figure


def similarity(cosines: Any) -> Any:
    """Cosines of a few pairs: row i and column i are a true pair."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(3.9, 3.3), layout="constrained")
    image = axis.imshow(cosines, cmap="viridis")
    ticks = range(len(cosines))
    axis.set_xticks(ticks, [str(i + 1) for i in ticks], fontsize=6)
    axis.set_yticks(ticks, [str(i + 1) for i in ticks], fontsize=6)
    figure.colorbar(image, ax=axis, label="cosine", shrink=0.85)
    return figure


def embedding_map(points_a: Any, points_b: Any, names: tuple[str, str], row_class: Sequence[str] | None) -> Any:
    """The shared space in two dimensions, coloured by class; a line joins each true pair.

    Args:
        points_a, points_b: [n, 2]; row i of both is pair i.
        names: of the modalities.
        row_class: [n], or None without classes.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
    lines = np.stack([points_a, points_b, np.full_like(points_a, np.nan)], 1).reshape(-1, 2)
    axis.plot(*lines.T, color="0.6", alpha=0.35, linewidth=0.4)
    classes = sorted(set(row_class)) if row_class else [""]
    for name, colour in zip(classes, COLOURS * len(classes), strict=False):
        chosen = np.array([value == name for value in row_class]) if row_class else np.ones(len(points_a), bool)
        style_a = {"s": 11, "marker": "o", "linewidths": 0, "label": name or names[0]}
        style_b = {"s": 13, "marker": "x", "linewidths": 0.8, "label": None if name else names[1]}
        axis.scatter(*points_a[chosen].T, color=colour, alpha=0.85, **style_a)
        axis.scatter(*points_b[chosen].T, color=colour, alpha=0.85, **style_b)
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(f"● {names[0]}   × {names[1]}")
    if len(classes) > 1:
        figure.legend(loc="outside right upper", ncols=1 + len(classes) // 24)
    return figure


def domains(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """The embeddings of source and target in the two dimensions of largest variance: before | after training.

    One row for each run and modality.

    Args:
        runs: (name, {"before", "after"} -> modality -> {"points", "domain", "proxy_a_distance", "domain_accuracy"}).
    Raises:
        DataError: there is nothing to draw.
    """
    import matplotlib.pyplot as plt

    lines = [(name, modality, stored) for name, stored in runs for modality in stored["after"]]
    if not lines:
        raise DataError(
            "no embeddings of two domains to draw", where="--figure domains", expected="a run with a target domain"
        )
    figure, axes = plt.subplots(len(lines), 2, figsize=(9, 4.2 * len(lines)), squeeze=False, layout="constrained")
    for (name, modality, stored), row in zip(lines, axes, strict=True):
        for axis, when in zip(row, ("before", "after"), strict=True):
            measured = stored[when][modality]
            for domain, colour, marker in (("source", COLOURS[0], "o"), ("target", COLOURS[1], "^")):
                points = [p for p, d in zip(measured["points"], measured["domain"], strict=True) if d == domain]
                style = {"s": 10, "alpha": 0.6, "linewidths": 0}
                axis.scatter(*zip(*points, strict=True), c=colour, marker=marker, label=domain, **style)
            distance = f"proxy A-distance {measured['proxy_a_distance']:.2f}"
            accuracy = f"domain accuracy {100 * measured['domain_accuracy']:.0f} %"
            title = f"{name}, {modality}, {when} training\n{distance}, {accuracy}"
            axis.set_title(title, parse_math=False)
            axis.set(xticks=[], yticks=[])
    axes[0, 0].legend(loc="best")
    return figure


def inline(figure: Any, alt: str) -> str:
    """A figure as SVG for a page: text stays text and takes the colour of the page.

    Args:
        figure: drawn with ``style(INK)``.
        alt: text for screen readers.
    """
    from markupsafe import escape

    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    fonts.save(figure, buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL).replace(
        INK, "currentColor"
    )
    prefix = f"f{zlib.crc32(alt.encode()):08x}-"  # matplotlib gives the elements of each figure of a page the same ids
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()  # type: ignore[union-attr]
    attributes = f'aria-label="{escape(alt)}" style="max-width:{float(width) * 1.45:.0f}px"'
    head = f'<svg role="img" {attributes} viewBox="0 0 {width} {height}"'
    return re.sub(
        r"^<svg[^>]*?(?= xmlns)",
        head,
        re.sub(r' (width|height)="[\d.]+pt"| version="[\d.]+"| viewBox="[^"]*"', "", text, count=4),
    )
