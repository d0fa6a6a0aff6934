from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.reporting.report_tables import ReportRequest
from ccaco_cli.view import chart_files, charts


@pytest.mark.parametrize(
    "kind", [kind for kind in chart_files.FIGURES if kind != "domains"]
)  # that needs a run across domains
def test_every_figure_of_a_run(kind: str, run: Path, tmp_path: Path) -> None:
    chart_files.save(kind, tmp_path / "new/figure.png", ReportRequest([run], by="things"))
    pixels = np.asarray(Image.open(tmp_path / "new/figure.png").convert("L"))
    assert pixels.shape[1] > 400 and pixels.std() > 5


@pytest.mark.parametrize(("suffix", "head"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_figures_for_papers(suffix: str, head: bytes, fabricate: Callable[..., Path], tmp_path: Path) -> None:
    runs = [fabricate("a", 1.0), fabricate("b", 2.0, arm="clip")]
    file = tmp_path / f"recall.{suffix}"
    chart_files.save("recall", file, ReportRequest(runs))
    assert file.read_bytes().startswith(head)


def test_what_cannot_be_drawn_says_so(fabricate: Callable[..., Path], tmp_path: Path) -> None:
    first, second = fabricate("a", 1.0), fabricate("b", 2.0)
    for kind, file, runs, words in (
        ("pie", "x.png", [first], "no such figure: pie"),
        ("recall", "x.gif", [first], ".png"),
        ("map", "x.png", [first, second], "2 runs, but this figure is of one model"),
        ("strata", "x.png", [first], "add --by things"),
    ):
        with pytest.raises(DataError, match=words):
            chart_files.save(kind, tmp_path / file, ReportRequest(runs))
        assert not (tmp_path / file).exists()


def embedding_facts(distance: float) -> dict[str, object]:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(30, 2)), rng.normal(size=(30, 2)) + distance]).tolist()
    colours = {
        "points": points,
        "domain": ["source"] * 30 + ["target"] * 30,
        "proxy_a_distance": 1.234,
        "domain_accuracy": 0.8,
    }
    return {"before": {"image": colours}, "after": {"image": colours}}


def test_a_row_a_run_and_both_domains_in_it() -> None:
    with charts.style() as plt:
        first, second = (
            charts.domains([("dann", embedding_facts(9.0))]),
            charts.domains([("a_b$", embedding_facts(9.0)), ("dann", embedding_facts(0.0))]),
        )
        assert second.get_figheight() == 2 * first.get_figheight()
        (source, target), title = first.axes[1].collections, first.axes[1].get_title()
        assert target.get_offsets().mean() - source.get_offsets().mean() == pytest.approx(9.0, abs=1)
        assert title == "dann, image, after training\nproxy A-distance 1.23, domain accuracy 80 %"
        second.canvas.draw()  # a name that is no formula
        plt.close("all")
        with pytest.raises(DataError, match="no embeddings of two domains"):
            charts.domains([("r", {"before": {}, "after": {}})])


def test_svg_for_a_page_takes_its_colour_and_speaks() -> None:
    with charts.style(charts.INK):
        text = charts.inline(charts.similarity(np.eye(3)), 'cosines of "a" & <b>')
    root = ElementTree.fromstring(text)
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == 'cosines of "a" & <b>'
    assert "currentColor" in text and charts.INK not in text
    assert "viewBox" in root.attrib and "height" not in root.attrib
    assert not re.findall(r'href="(?!#|data:)', text)
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    assert ids and set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= ids
    with charts.style(charts.INK):
        assert not ids & set(re.findall(r'\bid="([^"]+)"', charts.inline(charts.similarity(np.eye(3)), "another")))


def test_long_curves_are_averaged() -> None:
    x, y = charts._binned(range(1, 1001), [1.0] * 500 + [3.0] * 500)
    assert len(x) <= charts.MAX_POINTS and np.mean(y) == pytest.approx(2.0)
    assert charts._binned([], []) == ([], [])


def test_curves_show_every_loss_that_was_logged(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"step": s, "epoch": 0, "total": 1.0, "domain": 0.5, "novel": 2.0} for s in range(3)
    ]
    entries.append({"step": 2, "epoch": 0, "validation": {"R-sum": 5.0, "a_to_b_R@1": 0.5, "a_to_b_mAP": 0.1}})
    with charts.style() as plt:
        figure = charts.curves({"one": entries, "two": entries[:2]})
        titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
        plt.close(figure)
    assert titles == ["total", "domain", "novel", "validation R-sum", "validation a2b R@1"]
