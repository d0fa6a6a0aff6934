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
from ccaco_cli.core.reporting import page as page_data
from ccaco_cli.core.reporting.choice_examples import ChoiceExample, ChoicePicture
from ccaco_cli.core.reporting.inspection import RankedQueries
from ccaco_cli.core.reporting.page import HeatMapExample, ModelDetails
from ccaco_cli.core.reporting.report_tables import ReportRequest
from ccaco_cli.core.reporting.rows import FaithfulnessRow
from ccaco_cli.core.retrieval.explain import Explanation, Trial
from ccaco_cli.view import page


def model_details(pictures: int, captions: int, size: int = 1000, evil: str = "") -> ModelDetails:
    """What a model could have done with ``pictures`` pictures of ``size`` bytes and ``captions`` captions of each."""
    rng = np.random.default_rng(0)
    texts = [
        f"caption {i} {evil} of a dog that runs over a green field beside a river" for i in range(pictures * captions)
    ]

    def ranked(direction: str, queries: int, gallery: int) -> RankedQueries:
        score = np.sort(rng.normal(size=(queries, 5)))[:, ::-1]
        return RankedQueries(
            direction,
            np.arange(queries),
            rng.integers(1, 9, queries) * 1.0,
            rng.integers(gallery, size=(queries, 5)),
            score,
            score > 1,
        )

    explanation = Explanation(
        "attention", ("dog",), np.eye(2)[None], Trial(1.0, np.array([0.5]), np.zeros(1), np.ones(1), np.zeros(1))
    )
    both = [ranked("text_to_image", len(texts), pictures), ranked("image_to_text", pictures, len(texts))]
    bytes_of = [rng.bytes(size) for _ in range(pictures)]
    batch = (np.arange(2), np.arange(2), np.eye(2))
    points = rng.normal(size=(2, 2))
    faith = [FaithfulnessRow("r", "attention", "deletion", "", 0.5, 0.25, 0.75, 0.0, None, 9, "better")]
    ids = [f"{i}.jpg" for i in range(pictures)]
    labels = (texts[::captions], texts)
    image = np.zeros((8, 8, 3), np.uint8)
    example = [HeatMapExample(f"a {evil} dog", "1.jpg", image, explanation)]
    shown = ChoicePicture(f"1{evil}.jpg", image, (2.0, 1.0), (explanation, explanation))
    swapped = replace(shown, id="2.jpg", scores=(0.25, 1.5))
    captions = (f"a {evil} dog chases a ball", "a ball chases a dog")
    choices = [
        ChoiceExample("role", True, 0.75, captions, (shown, swapped)),
        ChoiceExample("swap_obj", False, 0.5, captions, (replace(shown, image=None, explanations=()),)),
    ]
    return ModelDetails(
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
        choices,
    )


@pytest.fixture
def gathered(fabricate: Callable[..., Path]) -> page_data.PageData:
    paths = [fabricate(arm, skill, arm=arm) for arm, skill in (("ccaco", 2.5), ("clip", 1.0), ("fusion", 0.2))]
    return page_data.gather(ReportRequest(paths))


def test_it_is_one_file_that_loads_nothing(gathered: page_data.PageData) -> None:
    text = page.render(replace(gathered, model=model_details(3, 2)))
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']+""", text)
    assert not re.findall(r"url\((?!#|data:)|@import|<script src", text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "color-scheme" in text and "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_what_others_wrote_is_escaped(gathered: page_data.PageData) -> None:
    evil = "</script><script>alert(1)</script><b onclick='x'>"
    hostile = replace(gathered, title=evil, missing=[evil], model=model_details(2, 1, evil=evil))
    text = page.render(hostile)
    assert "<script>alert" not in text and "<b onclick" not in text
    data = re.search(r'<script type="application/json" id="g-data">(.*?)</script>', text, re.DOTALL)
    assert data and evil in json.loads(data[1])["labels"][1][0]


@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("一只橘猫在沙发上打盹，窗外是雨天的街道", "zh"),
        ("قطة برتقالية نائمة على الأريكة بجانب كتاب قديم", "ar"),
        ("オレンジ色の猫がソファで昼寝している", "ja"),
        ("café", "en"),
    ],
)
def test_captions_have_their_direction_and_language(gathered: page_data.PageData, caption: str, language: str) -> None:
    text = page.render(replace(gathered, model=model_details(2, 1, evil=caption)))
    attributes = f' dir="auto" lang="{language}"'
    assert f"<h3{attributes}>a {caption} dog</h3>" in text and f"<h4{attributes}>a {caption} dog chases" in text


def test_choices_show_each_caption_with_each_picture(gathered: page_data.PageData) -> None:
    text = page.render(replace(gathered, model=model_details(2, 1)))
    section = re.search(r'<section id="choices".*?</section>', text, re.DOTALL)
    assert section and text.count('href="#choices"') == 1
    words = " ".join(re.sub(r"<[^>]+>", " ", section[0]).split())
    role, swap_obj = words.index("role: right 75 % of these choices are right"), words.index("swap obj: wrong")
    first, second = words.index("a dog chases a ball"), words.index("a ball chases a dog")
    assert role < first < second < swap_obj
    assert "1.jpg, shows this · score 2.00 preferred" in words[first:second]
    assert "2.jpg, does not show this · score 0.25" in words[first:second]
    assert "1.jpg, does not show this · score 1.00" in words[second:swap_obj]
    assert "2.jpg, shows this · score 1.50 preferred" in words[second:swap_obj]
    assert "1.jpg, shows this · score 2.00 preferred" in words[swap_obj:], "the caption of the only picture"
    assert section[0].count("Heat map of “dog” over 1.jpg") == section[0].count("Heat map of “dog” over 2.jpg") == 2
    assert "choices" not in page.render(gathered), "no model, no section"


def test_the_best_two_are_marked_and_the_verdict_is_shown(gathered: page_data.PageData) -> None:
    table = page.results_table(gathered.arms)
    assert table
    column = [name for name, _ in table["columns"]].index("text_to_image_R@1")
    assert [row[column][2] for row in table["rows"]] == ["best", "second", ""]
    text = page.render(gathered)
    assert "reference" in text and "worse" in text and ">2nd</span>" in text
    single_arm = page.results_table(gathered.arms[:1])
    assert single_arm and not any(mark for row in single_arm["rows"] for _, _, mark in row), "one arm is no contest"


def test_marks_need_a_difference() -> None:
    table = page.html_table([{"arm": "a", "R-sum": 5.0}, {"arm": "b", "R-sum": 5.0}])
    assert table and not any(mark for row in table["rows"] for _, _, mark in row)
    assert page.html_table([]) is None


def test_headlines_have_intervals_commands_and_hashes(gathered: page_data.PageData) -> None:
    text = page.render(gathered)
    first = gathered.summary[0]
    assert f"{first.low:.1f} – {first.high:.1f}" in text
    assert gathered.provenance[0].sha256 in text and gathered.provenance[0].inputs["dataset"]["sha256"] in text


def test_a_page_for_5000_queries_stays_under_15_mb(gathered: page_data.PageData) -> None:
    big = page.render(replace(gathered, model=model_details(1000, 5, size=5000)))
    assert len(big.encode()) < 15e6


def test_it_is_written_whole_and_as_html_only(gathered: page_data.PageData, tmp_path: Path) -> None:
    page.write(tmp_path / "new/page.html", gathered)
    assert (tmp_path / "new/page.html").read_text("utf-8").startswith("<!doctype html>")
    with pytest.raises(DataError, match=r"FILE\.html"):
        page.refuse(tmp_path / "page.pdf")


def test_metric_names() -> None:
    assert page._metric_name("text_to_image_R@1") == "text → image R@1"
    assert page._metric_name("binding_accuracy") == "binding"


def test_the_terminal_and_the_page_lay_out_alike(gathered: page_data.PageData) -> None:
    table: Any = page.results_table(gathered.runs)
    assert [row[0][1] for row in table["rows"]] == [row.run for row in gathered.runs]
