"""The page in a real browser without a screen; it needs: apt install chromium chromium-driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.reporting import page as page_data
from ccaco_cli.core.reporting.report_tables import ReportRequest
from ccaco_cli.view import page


@pytest.fixture(scope="module")
def gathered(run: Path) -> page_data.PageData:
    """Of a real run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_data.faithfulness, "PAIRS", 20)
        return page_data.gather(ReportRequest([run]))


@pytest.fixture(scope="module")
def of_run(gathered: page_data.PageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a real run."""
    file = tmp_path_factory.mktemp("page") / "run.html"
    page.write(file, gathered)
    return file


@pytest.fixture
def of_arms(fabricate: Callable[..., Path], tmp_path: Path) -> Path:
    """The page of three arms without models."""
    paths = [fabricate(arm, skill, arm=arm) for arm, skill in (("clip", 1.0), ("ccaco", 2.5), ("fusion", 0.2))]
    page.write(tmp_path / "arms.html", page_data.gather(ReportRequest(paths)))
    return tmp_path / "arms.html"


def visit(browser: Any, file: Path, *, width: int = 1200, scheme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(file.as_uri())


def ask(browser: Any, script: str) -> Any:
    return browser.execute_script(f"return {script}")


def choose(browser: Any, field: str, value: str) -> None:
    browser.execute_script(
        "const f = document.getElementById(arguments[0]); f.value = arguments[1]; f.dispatchEvent(new Event('input'));",
        field,
        value,
    )


def test_it_loads_shows_its_pictures_and_asks_for_nothing(browser: Any, of_run: Path) -> None:
    browser.get_log("browser")
    visit(browser, of_run)
    assert [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []
    assert ask(browser, "document.images.length") > 20
    unseen = "[...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt)"
    assert (
        ask(
            browser,
            f"{unseen}.map(i => [i.complete, i.naturalWidth, i.alt, i.closest('section').id, i.src.slice(0, 60)])",
        )
        == []
    )
    assert (
        ask(
            browser,
            "[...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().height < 100).length",
        )
        == 0
    )
    assert ask(browser, "performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length") == 0


def test_each_word_of_a_choice_is_shown_over_both_pictures(browser: Any, of_run: Path) -> None:
    visit(browser, of_run)
    rows = ask(
        browser,
        """[...document.querySelectorAll('#choices .pair')].map(pair => [...pair.querySelectorAll('figure')].map(
            figure => [figure.getBoundingClientRect().top,
                       [...figure.querySelectorAll('li span')].map(s => s.textContent)]))""",
    )
    assert len(rows) >= 6 and len(rows) % 2 == 0, "three kinds, two captions; the other outcome where there is one"
    for (top, words), (twin_top, twin_words) in rows:
        assert top == twin_top and words == twin_words and len(words) > 3, "side by side, the same words"


def test_tables_sort_both_ways(browser: Any, of_arms: Path) -> None:
    visit(browser, of_arms)
    column = "[...document.querySelectorAll('#arms tbody tr')].map(r => r.querySelector('th').textContent)"
    numbers = "[...document.querySelectorAll('#arms thead th')].findIndex(h => h.textContent.trim() === 't2i R@1')"
    assert ask(browser, column) == ["clip", "ccaco", "fusion"]
    press = f"document.querySelectorAll('#arms thead th button')[{numbers}].click()"
    browser.execute_script(press)
    assert ask(browser, column) == ["ccaco", "clip", "fusion"]
    assert (
        ask(browser, f"document.querySelectorAll('#arms thead th')[{numbers}].getAttribute('aria-sort')")
        == "descending"
    )
    browser.execute_script(press)
    assert ask(browser, column) == ["fusion", "clip", "ccaco"]
    browser.execute_script("document.querySelector('#arms thead th button').click()")
    assert ask(browser, column) == ["ccaco", "clip", "fusion"]
    assert ask(browser, "document.querySelectorAll('[aria-sort]').length") == 1


def test_arms_are_filtered(browser: Any, of_arms: Path) -> None:
    visit(browser, of_arms)
    choose(browser, "find-arm", "fus")
    assert ask(browser, "[...document.querySelectorAll('#arms tbody tr')].filter(r => r.offsetHeight).length") == 1
    assert ask(browser, "document.querySelector('#results [role=status]').textContent") == "1 of 3"


def test_queries_are_filtered_ordered_and_paged(browser: Any, of_run: Path) -> None:
    visit(browser, of_run)
    count = "Number(document.getElementById('g-count').textContent.match(/of (\\d+)/)[1])"
    page_words = ask(browser, count)
    parts = []
    for outcome in ("first", "five", "missed"):
        choose(browser, "g-outcome", outcome)
        shown = ask(browser, "document.getElementById('g-count').textContent")
        parts.append(0 if shown.startswith("no query") else ask(browser, count))
    assert sum(parts) == page_words == 125
    assert ask(browser, "document.querySelectorAll('#g-list .right').length") == 0, (
        "a missed query has no right answer among its five"
    )
    choose(browser, "g-outcome", "all")
    choose(browser, "g-order", "worst")
    ranks = ask(
        browser,
        "[...document.querySelectorAll('#g-list .note')].map(n => parseFloat(n.textContent.match(/[\\d.]+/)[0]))",
    )
    assert ranks == sorted(ranks, reverse=True) and len(ranks) == 12
    browser.execute_script("document.getElementById('g-next').click()")
    assert ask(browser, "document.getElementById('g-count').textContent").startswith("13 – 24")
    choose(browser, "g-words", "zebra-crossing")
    assert ask(browser, "document.getElementById('g-count').textContent") == "no query matches"
    choose(browser, "g-words", "")
    choose(browser, "g-direction", "1")
    assert ask(browser, count) == 25 and ask(browser, "document.querySelectorAll('#g-list h3 img').length") == 12


@pytest.mark.parametrize(
    ("which", "width", "scheme"), [("of_run", 1200, "light"), ("of_run", 390, "dark"), ("of_arms", 1200, "dark")]
)
def test_accessibility(browser: Any, which: str, width: int, scheme: str, request: pytest.FixtureRequest) -> None:
    axe = pytest.importorskip("axe_selenium_python", reason="axe-core is not installed: pip install 'ccaco[browser]'")
    visit(browser, request.getfixturevalue(which), width=width, scheme=scheme)
    checker = axe.Axe(browser)
    checker.inject()
    violations = [
        (violation["id"], violation["impact"], [node["html"][:200] for node in violation["nodes"][:3]])
        for violation in checker.run()["violations"]
    ]
    assert violations == []


def test_a_phone_need_not_scroll_sideways(browser: Any, of_run: Path) -> None:
    visit(browser, of_run, width=390)
    assert ask(browser, "document.documentElement.scrollWidth") <= 390


def test_captions_of_the_gallery_have_their_direction_and_language(
    browser: Any, gathered: page_data.PageData, tmp_path: Path
) -> None:
    assert gathered.model
    captions = ["一只橘猫", "قطة on a sofa", "ソファの猫", "고양이", "a cat"]
    labels = [captions[number % 5] for number in range(len(gathered.model.labels[1]))]
    model = replace(gathered.model, labels=(gathered.model.labels[0], labels))
    page.write(tmp_path / "languages.html", replace(gathered, model=model))
    visit(browser, tmp_path / "languages.html")
    shown = "[...document.querySelectorAll('#g-list h3 span')].map(e => [e.lang, getComputedStyle(e).direction])"
    expected = [["zh", "ltr"], ["ar", "rtl"], ["ja", "ltr"], ["ko", "ltr"], ["", "ltr"]]
    assert ask(browser, shown)[:5] == expected


def test_5000_queries_open_quickly(
    browser: Any, gathered: page_data.PageData, tmp_path: Path, record_property: Callable[..., None]
) -> None:
    small = gathered
    assert small.model
    rows = np.arange(1000) % len(small.model.thumbnails)
    pictures, labels = [small.model.thumbnails[i] for i in rows], [small.model.labels[0][i] for i in rows]
    fields = ("queries", "rank", "top", "score", "correct")
    ranked = replace(small.model.ranked[0], **{f: np.repeat(getattr(small.model.ranked[0], f), 40, 0) for f in fields})
    big = replace(
        small.model,
        thumbnails=pictures,
        ids=labels,
        labels=(labels, small.model.labels[1]),
        ranked=[ranked, small.model.ranked[1]],
    )
    file = tmp_path / "big.html"
    page.write(file, replace(small, model=big))
    assert len(ranked.queries) == 5000 and file.stat().st_size < 15e6
    visit(browser, file)
    # the event ends a moment after the page counts as loaded
    end = "const end = performance.getEntriesByType('navigation')[0].loadEventEnd"
    milliseconds = browser.execute_async_script(
        f"(function look(done) {{ {end}; end ? done(end) : setTimeout(look, 10, done) }})(arguments[0])"
    )
    record_property("milliseconds", milliseconds)
    print(f"5,000 queries: {file.stat().st_size / 1e6:.1f} MB, open in {milliseconds:.0f} ms")
    assert 0 < milliseconds < 10_000  # 2,000 on a machine that does nothing else
