"""Charts of results, for papers (PNG, PDF, SVG) and, as SVG that takes the colours of the page, for the report."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.reporting import comparison, inspection, page, report_tables
from ccaco_cli.core.reporting.report_tables import ReportRequest
from ccaco_cli.core.scoring import results
from ccaco_cli.core.types import OnProgress, no_progress
from ccaco_cli.view.tables import short

SUFFIXES = (".png", ".pdf", ".svg")
COLOURS = ("#2f7ebc", "#c8581f", "#27915f", "#b5559c", "#8b7722", "#6b6fcf", "#c0485a", "#4f8a94")
"""Told apart by the colour-blind, and 3 : 1 or more against white and near-black alike."""
INK = "#010203"
"""Stands for the page's own colour of text."""
POINTS = 300
"""Most points of a training curve; longer ones are averaged in bins."""
LOSSES = ("total", "contrastive", "cross", "domain")
SINGLE = ("alpha", "beta", "logit_scale", "lr", "grad_norm")
KS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100)


@contextmanager
def style(ink: str = "black") -> Iterator[Any]:
    """pyplot without a screen, with fonts and colours that suit print and page."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    inks = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor"), ink
    )
    rest = {
        "font.size": 8,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "none",
    }
    rest |= {
        "pdf.fonttype": 42,
        "legend.frameon": False,
        "legend.fontsize": 7,
        "lines.linewidth": 1.3,
        "svg.hashsalt": "ccaco",
    }
    with plt.rc_context({**inks, **rest, "axes.prop_cycle": plt.cycler(color=COLOURS), "font.family": "sans-serif"}):
        yield plt


def curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Training as it went: every loss, weight, rate and norm, and validation; run -> entries of ``metrics.jsonl``."""
    import matplotlib.pyplot as plt

    steps = {run: [entry for entry in entries if "validation" not in entry] for run, entries in logs.items()}
    named = {
        key
        for entries in steps.values()
        for entry in entries[:1] + entries[-1:]
        for key, v in entry.items()
        if isinstance(v, int | float)
    }
    named -= {"step", "epoch"}
    panels = [name for name in (*LOSSES, *SINGLE) if name in named] + sorted(named - {*LOSSES, *SINGLE})
    valid = {run: [entry for entry in entries if entry.get("validation")] for run, entries in logs.items()}
    figures = [
        key
        for entries in valid.values()
        for entry in entries[:1]
        for key in entry["validation"]
        if key.endswith(("R-sum", "_R@1"))
    ]
    figures = list(dict.fromkeys(figures))
    count = max(1, len(panels) + len(figures))
    columns = min(4, count)
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.3 * columns, 1.75 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[count:]:
        axis.axis("off")
    for axis, name in zip(axes.flat, panels, strict=False):
        axis.set_title(name)
        for run, entries in steps.items():
            axis.plot(
                *_binned([e["step"] for e in entries if name in e], [e[name] for e in entries if name in e]), label=run
            )
    for axis, name in zip(axes.flat[len(panels) :], figures, strict=False):
        axis.set_title(f"validation {short(name)}")
        scale = 1 if name == "R-sum" else 100
        for run, entries in valid.items():
            axis.plot(
                [e["step"] for e in entries],
                [scale * e["validation"].get(name, np.nan) for e in entries],
                marker="o",
                ms=2.5,
                label=run,
            )
    if len(logs) > 1:
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(logs)))
    return figure


def _binned(x: Sequence[float], y: Sequence[float]) -> tuple[Any, Any]:
    """At most ``POINTS`` points: means of bins of equal size."""
    size = -(-len(x) // POINTS) or 1
    cut = [(np.mean(x[i : i + size]), np.mean(y[i : i + size])) for i in range(0, len(x), size)]
    return ([a for a, _ in cut], [b for _, b in cut])


def recall(found: Mapping[str, Any]) -> Any:
    """Recall against how many answers are read, both ways; run -> ``Result``. Bars at 1, 5 and 10 are 95 % intervals over pictures."""
    import matplotlib.pyplot as plt

    directions = list(next(iter(found.values())).evaluation.directions())
    figure, axes = plt.subplots(
        1, len(directions), figsize=(6.4, 2.7), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, direction in zip(axes[0], directions, strict=True):
        for (name, one), colour in zip(found.items(), COLOURS * len(found), strict=False):
            pools = one.evaluation.directions()[direction]
            ks = [k for k in KS if k <= pools[0].gallery]
            values = [100 * np.mean([pool.hits(k).mean() for pool in pools]) for k in ks]
            axis.plot(ks, values, color=colour, marker=".", label=name)
            for k in (1, 5, 10):
                if k <= pools[0].gallery:
                    seen = significance.estimate([one.per_query(f"{direction}_R@{k}")])
                    axis.vlines(k, 100 * seen.low, 100 * seen.high, color=colour, linewidth=2.5, alpha=0.5)
        axis.plot(ks, [100 * k / pools[0].gallery for k in ks], ":", color="0.55", linewidth=1, label="chance")
        axis.set(xscale="log", xlabel="answers read", title=direction.replace("_", " "), ylim=(0, 100))
        axis.set_xticks([1, 5, 10, 50], ["1", "5", "10", "50"])
        axis.minorticks_off()
    axes[0, 0].set_ylabel("found, %")
    axes[0, -1].legend(loc="lower right")
    return figure


def strata(found: Mapping[str, Sequence[Mapping[str, Any]]], by: str) -> Any:
    """Each metric against a stratum of the queries, a line an arm; metric -> rows of ``comparison.arms``. Bars are 95 % intervals."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(2.4 * len(found), 2.9), squeeze=False, layout="constrained")
    for axis, (metric, rows) in zip(axes[0], found.items(), strict=True):
        places = {value: place for place, value in enumerate(dict.fromkeys(row[by] for row in rows))}
        arms = list(dict.fromkeys(row["arm"] for row in rows))
        scale, most = (1, 600) if metric == "R-sum" else (100, 100)
        for number, (arm, colour) in enumerate(zip(arms, COLOURS * len(arms), strict=False)):
            mine = [row for row in rows if row["arm"] == arm]
            x = [
                places[row[by]] + 0.04 * (number - (len(arms) - 1) / 2) for row in mine
            ]  # side by side, so that no bar hides another
            axis.plot(x, [scale * row["value"] for row in mine], color=colour, marker=".", label=arm)
            for at, row in zip(x, mine, strict=True):
                if row["low"] is not None:
                    axis.vlines(
                        at,
                        max(0, scale * row["low"]),
                        min(most, scale * row["high"]),
                        color=colour,
                        linewidth=2,
                        alpha=0.5,
                    )
        axis.set_xticks(list(places.values()), [str(value) for value in places], parse_math=False)
        axis.set(title=short(metric), xlabel=by)
    axes[0, 0].set_ylabel("%, of R-sum the sum")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(arms)))
    return figure


def confusion(names: Sequence[str], table: Any) -> Any:
    """Shares of queries about one class (rows) that found another first (columns)."""
    import matplotlib.pyplot as plt

    side = max(2.6, 0.34 * len(names) + 1.2)
    figure, axis = plt.subplots(figsize=(side + 0.7, side), layout="constrained")
    shown = axis.imshow(100 * np.asarray(table), cmap="viridis", vmin=0, vmax=100)
    axis.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axis.set_yticks(range(len(names)), names, parse_math=False)
    axis.set(xlabel="found first", ylabel="asked for")
    if len(names) <= 12:
        for (i, j), value in np.ndenumerate(np.asarray(table)):
            axis.text(
                j,
                i,
                f"{100 * value:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="black" if value > 0.6 else "white",
            )
    figure.colorbar(shown, ax=axis, label="%", shrink=0.8)
    return figure


def similarity(table: Any) -> Any:
    """Cosines of a small batch: row i and column i are a true pair."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(3.9, 3.3), layout="constrained")
    shown = axis.imshow(table, cmap="viridis")
    ticks = range(len(table))
    axis.set_xticks(ticks, [str(i + 1) for i in ticks], fontsize=6)
    axis.set_yticks(ticks, [str(i + 1) for i in ticks], fontsize=6)
    figure.colorbar(shown, ax=axis, label="cosine", shrink=0.85)
    return figure


def plane(points_a: Any, points_b: Any, names: tuple[str, str], of_row: Sequence[str] | None) -> Any:
    """The shared space on a plane: items of both modalities, coloured by class; a line joins each true pair."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
    axis.plot(
        *np.stack([points_a, points_b, np.full_like(points_a, np.nan)], 1).reshape(-1, 2).T,
        color="0.6",
        alpha=0.35,
        linewidth=0.4,
    )
    classes = sorted(set(of_row)) if of_row else [""]
    for name, colour in zip(classes, COLOURS * len(classes), strict=False):
        mine = np.array([value == name for value in of_row]) if of_row else np.ones(len(points_a), bool)
        axis.scatter(
            *points_a[mine].T, s=11, color=colour, marker="o", linewidths=0, alpha=0.85, label=name or names[0]
        )
        axis.scatter(
            *points_b[mine].T,
            s=13,
            color=colour,
            marker="x",
            linewidths=0.8,
            alpha=0.85,
            label=None if name else names[1],
        )
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(f"● {names[0]}   × {names[1]}")
    if len(classes) > 1:
        figure.legend(loc="outside right upper", ncols=1 + len(classes) // 24)
    return figure


def _curves(asked: ReportRequest, on_progress: OnProgress) -> Any:
    return curves({run.name: page.log(run.path) for run in results.find(asked.paths) if run.path.is_dir()})


def _recall(asked: ReportRequest, on_progress: OnProgress) -> Any:
    return recall({run.name: results.result(run, asked.split) for run in results.find(asked.paths)})


def _strata(asked: ReportRequest, on_progress: OnProgress) -> Any:
    if asked.by is None:
        raise DataError(
            "by what shall the queries be divided",
            where="--figure strata",
            expected="a stratum",
            next="add --by things",
        )
    runs = results.find(asked.paths)
    pools = results.by_pool(runs, asked.split)
    (_, pool), shared = max(
        pools.items(), key=lambda item: len({one.run.label for one in item[1]})
    )  # the one that most arms have
    a, b = shared[0].evaluation.names
    wanted = [f"{b}_to_{a}_R@1", f"{a}_to_{b}_R@1", "R-sum"]
    wanted += ["binding_accuracy"] if all(one.items.get("binding") for one in shared) else []
    found = {}
    for metric in wanted:
        rows = comparison.arms(runs, split=asked.split, metric=metric, reference=asked.reference, by=asked.by)
        found[metric] = [row for row in rows if row["pool"] == pool]
    return strata(found, asked.by)


def _confusion(asked: ReportRequest, on_progress: OnProgress) -> Any:
    return confusion(*inspection.confusion(_looked(asked, on_progress)))


def _map(asked: ReportRequest, on_progress: OnProgress) -> Any:
    looked = _looked(asked, on_progress)
    rows, one, other = inspection.plane(looked)
    try:
        of_row = [inspection.classes(looked)[1][row] for row in rows]
    except DataError:
        of_row = None
    return plane(one, other, looked.data.modalities, of_row)


def domains(looks: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """The embeddings of source and target in the plane of largest variance, one row a run and modality: before | after training.

    looks   run -> {"before", "after"} -> modality -> {"points", "domain", "proxy_a_distance", "domain_accuracy"}
    Raises  DataError: nothing to draw
    """
    import matplotlib.pyplot as plt

    lines = [(name, modality, of_run) for name, of_run in looks for modality in of_run["after"]]
    if not lines:
        raise DataError(
            "no embeddings of two domains to draw", where="--figure domains", expected="a run with a target domain"
        )
    figure, axes = plt.subplots(len(lines), 2, figsize=(9, 4.2 * len(lines)), squeeze=False, layout="constrained")
    for (name, modality, of_run), row in zip(lines, axes, strict=True):
        for axis, when in zip(row, ("before", "after"), strict=True):
            seen = of_run[when][modality]
            for domain, colour, marker in (("source", COLOURS[0], "o"), ("target", COLOURS[1], "^")):
                points = [p for p, d in zip(seen["points"], seen["domain"], strict=True) if d == domain]
                axis.scatter(
                    *zip(*points, strict=True), s=10, c=colour, marker=marker, alpha=0.6, linewidths=0, label=domain
                )
            told = f"proxy A-distance {seen['proxy_a_distance']:.2f}, domains told apart {100 * seen['domain_accuracy']:.0f} %"
            axis.set_title(f"{name}, {modality}, {when} training\n{told}", parse_math=False)
            axis.set_xticks([])
            axis.set_yticks([])
    axes[0, 0].legend(loc="best")
    return figure


def _domains(asked: ReportRequest, on_progress: OnProgress) -> Any:
    return domains(report_tables.looks(asked))


def _looked(asked: ReportRequest, on_progress: OnProgress) -> inspection.LoadedRun:
    found = results.find(asked.paths)
    if len(found) != 1:
        raise DataError(
            f"{len(found)} runs, but this figure is of one model",
            where=", ".join(map(str, asked.paths)),
            expected="one run",
        )
    return inspection.open_run(found[0], asked.split, on_progress)


FIGURES: dict[str, Callable[[ReportRequest, OnProgress], Any]] = {
    "curves": _curves,
    "recall": _recall,
    "strata": _strata,
    "confusion": _confusion,
    "map": _map,
    "domains": _domains,
}
"""Kind of ``--figure`` -> what draws it; call within ``style``."""


def save(kind: str, path: Path, asked: ReportRequest, on_progress: OnProgress = no_progress) -> None:
    """Draws a figure of ``FIGURES`` for a paper. Raises DataError: no such kind or suffix, or nothing to draw."""
    if kind not in FIGURES:
        raise DataError("no such figure", where=kind, expected=" | ".join(FIGURES))
    if path.suffix.lower() not in SUFFIXES:
        raise DataError("no such kind of picture", where=path, expected=" | ".join(SUFFIXES))
    with style() as plt:
        figure = FIGURES[kind](asked, on_progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200)
        plt.close(figure)


def inline(figure: Any, alt: str) -> str:
    """A figure drawn with ``style(INK)`` as SVG for a page: text stays text and takes the page's colour; ``alt`` is read aloud."""
    import matplotlib.pyplot as plt
    from markupsafe import escape

    out = io.StringIO()
    figure.savefig(
        out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    plt.close(figure)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL).replace(
        INK, "currentColor"
    )
    own = f"f{zlib.crc32(alt.encode()):08x}-"  # several figures share a page, and matplotlib gives each the same ids
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()  # type: ignore[union-attr]
    head = f'<svg role="img" aria-label="{escape(alt)}" style="max-width:{float(width) * 1.45:.0f}px" viewBox="0 0 {width} {height}"'
    return re.sub(
        r"^<svg[^>]*?(?= xmlns)",
        head,
        re.sub(r' (width|height)="[\d.]+pt"| version="[\d.]+"| viewBox="[^"]*"', "", text, count=4),
    )
