"""The page as text: what it holds, what it escapes, how large it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.reporting import page as workflow
from ccaco_cli.core.reporting.inspection import Answers
from ccaco_cli.core.reporting.page import Example, Inside
from ccaco_cli.core.reporting.report_tables import ReportRequest
from ccaco_cli.core.retrieval.explain import Explanation, Trial
from ccaco_cli.view import page


def inside(pictures: int, captions: int, size: int = 1000, evil: str = "") -> Inside:
    """What a model could have done with ``pictures`` pictures of ``size`` bytes and ``captions`` captions of each."""
    rng = np.random.default_rng(0)
    texts = [
        f"caption {i} {evil} of a dog that runs over a green field beside a river" for i in range(pictures * captions)
    ]

    def answers(direction: str, queries: int, gallery: int) -> Answers:
        score = np.sort(rng.normal(size=(queries, 5)))[:, ::-1]
        return Answers(
            direction,
            np.arange(queries),
            rng.integers(1, 9, queries) * 1.0,
            rng.integers(gallery, size=(queries, 5)),
            score,
            score > 1,
        )

    why = Explanation(
        "attention", ("dog",), np.eye(2)[None], Trial(1.0, np.array([0.5]), np.zeros(1), np.ones(1), np.zeros(1))
    )
    both = [answers("text_to_image", len(texts), pictures), answers("image_to_text", pictures, len(texts))]
    bytes_of = [rng.bytes(size) for _ in range(pictures)]
    batch = (np.arange(2), np.arange(2), np.eye(2))
    points = rng.normal(size=(2, 2))
    faith = [
        {
            "method": "attention",
            "measure": "deletion",
            "word": "",
            "value": 0.5,
            "low": 0.25,
            "high": 0.75,
            "random": 0.0,
        }
    ]
    faith[0] |= {"centre": None, "cases": 9, "verdict": "better"}
    ids = [f"{i}.jpg" for i in range(pictures)]
    labels = (texts[::captions], texts)
    example = [Example(f"a {evil} dog", "1.jpg", np.zeros((8, 8, 3), np.uint8), why)]
    return Inside(
        "r",
        "cosine",
        ("image", "text"),
        both,
        bytes_of,
        labels,
        ids,
        batch,
        (np.arange(2), points, points),
        None,
        None,
        faith,
        example,
    )


@pytest.fixture
def gathered(fabricate: Callable[..., Path]) -> workflow.Page:
    paths = [fabricate(arm, skill, arm=arm) for arm, skill in (("ccaco", 2.5), ("clip", 1.0), ("fusion", 0.2))]
    return workflow.gather(ReportRequest(paths))


def test_it_is_one_file_that_loads_nothing(gathered: workflow.Page) -> None:
    text = page.render(replace(gathered, inside=inside(3, 2)))
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']+""", text)
    assert not re.findall(r"url\((?!#|data:)|@import|<script src", text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "color-scheme" in text and "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_what_others_wrote_is_escaped(gathered: workflow.Page) -> None:
    evil = "</script><script>alert(1)</script><b onclick='x'>"
    hostile = replace(gathered, title=evil, missing=[evil], inside=inside(2, 1, evil=evil))
    text = page.render(hostile)
    assert "<script>alert" not in text and "<b onclick" not in text
    data = re.search(r'<script type="application/json" id="g-data">(.*?)</script>', text, re.DOTALL)
    assert data and evil in json.loads(data[1])["labels"][1][0]


def test_the_best_two_are_marked_and_the_verdict_said(gathered: workflow.Page) -> None:
    table = page.table(gathered.arms)
    assert table
    column = [name for name, _ in table["columns"]].index("text_to_image_R@1")
    assert [row[column][2] for row in table["rows"]] == ["best", "second", ""]
    text = page.render(gathered)
    assert "reference" in text and "worse" in text and ">2nd</span>" in text
    one = page.table(gathered.arms[:1])
    assert one and not any(mark for row in one["rows"] for _, _, mark in row), "one arm is no contest"


def test_marks_need_a_difference() -> None:
    found = page.grid([{"arm": "a", "R-sum": 5.0}, {"arm": "b", "R-sum": 5.0}])
    assert found and not any(mark for row in found["rows"] for _, _, mark in row)
    assert page.grid([]) is None


def test_headlines_have_intervals_commands_and_hashes(gathered: workflow.Page) -> None:
    text = page.render(gathered)
    first = gathered.headline[0]
    assert f"{first.low:.1f} – {first.high:.1f}" in text
    assert gathered.origins[0].sha256 in text and gathered.origins[0].inputs["dataset"]["sha256"] in text


def test_a_page_for_5000_queries_stays_under_15_mb(gathered: workflow.Page) -> None:
    big = page.render(replace(gathered, inside=inside(1000, 5, size=5000)))
    assert len(big.encode()) < 15e6


def test_it_is_written_whole_and_as_html_only(gathered: workflow.Page, tmp_path: Path) -> None:
    page.write(tmp_path / "new/page.html", gathered)
    assert (tmp_path / "new/page.html").read_text("utf-8").startswith("<!doctype html>")
    with pytest.raises(DataError, match=r"FILE\.html"):
        page.refuse(tmp_path / "page.pdf")


def test_spoken_names() -> None:
    assert page._spoken("text_to_image_R@1") == "text → image R@1"
    assert page._spoken("binding_accuracy") == "binding"


def test_the_terminal_and_the_page_lay_out_alike(gathered: workflow.Page) -> None:
    table: Any = page.table(gathered.runs)
    assert [row[0][1] for row in table["rows"]] == [row["run"] for row in gathered.runs]
