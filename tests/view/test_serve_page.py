"""The search page in a real browser without a screen; it needs: apt install chromium chromium-driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'ccaco[serve]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'ccaco[serve]'")

from tests.view.serving import Served, serving

DROP = """
const [url, name, type, done] = arguments;
const drop = content => {
  const data = new DataTransfer();
  data.items.add(new File([content], name, { type }));
  const options = { bubbles: true, cancelable: true, dataTransfer: data };
  for (const kind of ["dragenter", "dragover", "drop"]) document.body.dispatchEvent(new DragEvent(kind, options));
  done();
};
url ? fetch(url).then(answer => answer.blob()).then(drop) : drop("no picture");
"""


@pytest.fixture(scope="module")
def scenes(index: Path) -> Iterator[Served]:
    """The index of pairs."""
    with serving(index) as served:
        yield served


@pytest.fixture(scope="module")
def photo_server(photo_index: Path) -> Iterator[Served]:
    """The index of photos, with their files."""
    with serving(photo_index, originals=True) as served:
        yield served


def visit(browser: Any, url: str, *, width: int = 1200, scheme: str = "light", words: str = "images") -> None:
    """Opens a page and waits until it says what the index holds."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(url)
    until(lambda: words in text(browser, "hint"))


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def ask(browser: Any, script: str) -> Any:
    return browser.execute_script(f"return {script}")


def text(browser: Any, name: str) -> str:
    return str(ask(browser, f"document.getElementById('{name}').textContent"))


def element(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def search(browser: Any, words: str) -> None:
    """Types a query and presses Enter, and waits for its answer."""
    field = element(browser, "#text")
    field.clear()
    field.send_keys(words + "\n")
    answered(browser)


def answered(browser: Any) -> None:
    until(lambda: "result" in text(browser, "status") or "No item" in text(browser, "status") or text(browser, "error"))


def hits(browser: Any) -> int:
    return int(ask(browser, "document.querySelectorAll('#hits > li').length"))


def press(browser: Any, words: str) -> None:
    """Clicks the first button that begins with some words."""
    find = f"[...document.querySelectorAll('button')].find(b => b.textContent.startsWith({words!r}))"
    browser.execute_script(f"{find}.click()")


def fill(browser: Any, column: str, place: int, value: str) -> None:
    """Sets a field of the filter of a column."""
    browser.execute_script(
        "const box = [...document.querySelectorAll('#filter-fields fieldset')]"
        ".find(f => f.querySelector('legend').textContent === arguments[0]);"
        "const field = box.querySelectorAll('input')[arguments[1]];"
        "if (field.type === 'checkbox') field.checked = true; else field.value = arguments[2];"
        "field.dispatchEvent(new Event('input', { bubbles: true }));",
        column,
        place,
        value,
    )


def problems(browser: Any) -> list[Any]:
    return [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]


def test_a_search_shows_pictures_and_loads_nothing_from_outside(browser: Any, scenes: Served) -> None:
    browser.get_log("browser")
    visit(browser, scenes.url)
    assert ask(browser, "document.title").startswith("scenes.idx") and text(browser, "title") == "scenes.idx"
    search(browser, "a red cat")
    assert hits(browser) == 24 and text(browser, "status").startswith("24 results in ")
    press(browser, "More results")
    until(lambda: hits(browser) == 25)
    assert not element(browser, "#more").is_displayed()
    browser.execute_script("document.querySelectorAll('#hits img').forEach(i => i.loading = 'eager')")
    until(lambda: ask(browser, "[...document.images].every(i => i.complete && i.naturalWidth && i.alt)"))
    sites = ask(browser, "performance.getEntriesByType('resource').map(r => new URL(r.name).origin)")
    assert set(sites) == {scenes.url.rstrip("/")}
    first = element(browser, "#hits > li")
    assert "score" in first.text and "cosine" in first.text
    assert ask(browser, "document.activeElement.id") in ("text", "more", ""), "the focus stays"
    assert problems(browser) == []


def test_filters_narrow_the_search(browser: Any, photo_server: Served) -> None:
    browser.get_log("browser")
    visit(browser, photo_server.url)
    search(browser, "a cat")
    assert hits(browser) == 16
    element(browser, "#filters summary").click()
    fill(browser, "year", 0, "2020")
    until(lambda: hits(browser) == 6)
    assert text(browser, "where-sent") == "year >= 2020" and text(browser, "filter-count") == " (1 set)"
    fill(browser, "folder", 0, "")
    until(lambda: hits(browser) == 3)
    assert text(browser, "where-sent") in [
        f"(folder in ('/{place}/')) and (year >= 2020)" for place in ("beach", "city")
    ]
    press(browser, "Clear the filters")
    until(lambda: hits(browser) == 16)
    fill(browser, "taken", 1, "2010-07-04")
    until(lambda: hits(browser) == 1)
    assert text(browser, "where-sent") == "taken < timestamp '2010-07-05'", "the last day counts"
    press(browser, "Clear the filters")
    element(browser, "#where").send_keys("camera like '%5D' and year < 1900")
    until(lambda: "No item matches" in text(browser, "status"))
    assert not element(browser, "#results").is_displayed()
    element(browser, "#where").clear()
    element(browser, "#where").send_keys("yeer > 2")
    until(lambda: "yeer" in text(browser, "error"))
    assert "year" in text(browser, "error"), "the nearest column"
    assert [line for line in problems(browser) if "400" not in line["message"]] == []
    address = ask(browser, "location.href")
    visit(browser, address)
    until(lambda: "yeer" in text(browser, "error"))
    assert ask(browser, "document.getElementById('text').value") == "a cat", "the address holds query and filter"


def test_dropped_chosen_and_pasted_pictures_are_queries(browser: Any, scenes: Served, photos: Path) -> None:
    browser.get_log("browser")
    visit(browser, scenes.url)
    version = scenes.get("/api/index")[1]["version"]
    browser.execute_async_script(DROP, f"/api/items/{version}/image/3/thumbnail", "cat.jpg", "image/jpeg")
    answered(browser)
    assert hits(browser) == 24 and "texts" in ask(browser, "document.getElementById('hits').className"), "captions"
    assert text(browser, "query-name") == "Query: cat.jpg" and element(browser, "#query img").is_displayed()
    assert ask(browser, "document.querySelector('#query img').naturalWidth") > 0
    press(browser, "Remove")
    assert not element(browser, "#query").is_displayed() and not element(browser, "#results").is_displayed()
    element(browser, "#file").send_keys(str(photos / "beach/p00.jpg"))
    answered(browser)
    assert text(browser, "query-name") == "Query: p00.jpg" and hits(browser) == 24
    browser.execute_script(
        "const data = new DataTransfer();"
        "data.items.add(new File([new Uint8Array(9)], 'x.png', { type: 'image/png' }));"
        "const paste = new Event('paste', { bubbles: true, cancelable: true });"
        "document.dispatchEvent(Object.assign(paste, { clipboardData: data }));"
    )
    until(lambda: "not a picture" in text(browser, "error"))
    assert [line for line in problems(browser) if "400" not in line["message"]] == []


def test_a_file_that_is_no_query_is_refused(browser: Any, scenes: Served) -> None:
    visit(browser, scenes.url)
    browser.execute_async_script(DROP, "", "notes.txt", "text/plain")
    until(lambda: "cannot be a query" in text(browser, "error"))
    assert "a picture" in text(browser, "error") and ask(browser, "document.body.className") == ""
    browser.execute_async_script(DROP, "", "broken.png", "image/png")
    until(lambda: "not a picture" in text(browser, "error"))
    search(browser, "a cat")
    assert hits(browser) == 24 and text(browser, "error") == ""


def test_the_heat_map_opens_and_closes_by_keyboard(browser: Any, scenes: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get_log("browser")
    visit(browser, scenes.url)
    search(browser, "a red cat")
    button = next(b for b in browser.find_elements("css selector", "#hits button") if b.text.startswith("Heat map"))
    browser.execute_script("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER)
    until(lambda: ask(browser, "document.querySelectorAll('#why-maps img').length") == 3)
    assert ask(browser, "document.getElementById('why').open")
    words = ask(browser, "[...document.querySelectorAll('#why-maps li')].map(l => l.textContent)")
    assert words == ["what the model sees", "red", "cat"]
    until(lambda: ask(browser, "[...document.querySelectorAll('#why-maps img')].every(i => i.naturalWidth > 100)"))
    assert "Match score" in text(browser, "why-status")
    element(browser, "#why-close").send_keys(Keys.ESCAPE)
    assert not ask(browser, "document.getElementById('why').open")
    assert ask(browser, "document.activeElement === arguments[0]".replace("arguments[0]", "document.activeElement"))
    assert ask(browser, "document.activeElement.textContent").startswith("Heat map"), "the focus returns"
    assert problems(browser) == []


def test_more_like_this_and_the_way_back(browser: Any, scenes: Served) -> None:
    visit(browser, scenes.url)
    search(browser, "a red cat")
    ids = "[...document.querySelectorAll('#hits dd:first-of-type')].map(d => d.textContent)"
    before = ask(browser, ids)
    press(browser, "More like this")
    until(lambda: text(browser, "query-name").startswith("More like "))
    until(lambda: ask(browser, ids) != before)
    assert before[0] not in ask(browser, ids) and hits(browser) == 24
    assert not any(b.text.startswith("Heat map") for b in browser.find_elements("css selector", "#hits button"))
    address = ask(browser, "location.href")
    browser.back()
    until(lambda: ask(browser, ids) == before)
    assert ask(browser, "document.getElementById('text').value") == "a red cat"
    visit(browser, address)
    until(lambda: hits(browser) == 24)
    assert "similar=" in address


def test_every_direction(browser: Any, scenes: Served) -> None:
    visit(browser, scenes.url)
    search(browser, "a red cat")
    element(browser, "#filters summary").click()
    browser.execute_script(
        "const field = document.getElementById('target'); field.value = 'text';"
        "field.dispatchEvent(new Event('input', { bubbles: true }));"
    )
    until(lambda: "texts" in ask(browser, "document.getElementById('hits').className"))
    browser.execute_script("document.getElementById('dedup').click()")
    until(lambda: "dedup=1" in ask(browser, "location.href"))
    element(browser, "#minus").send_keys("a dog")
    until(lambda: "minus=a+dog" in ask(browser, "location.href"))
    answered(browser)
    assert text(browser, "error") == ""


def test_the_keyboard_reaches_everything(browser: Any, photo_server: Served) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    visit(browser, f"{photo_server.url}?q=a+cat")
    answered(browser)
    reached = []
    for _ in range(14):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(
            ask(browser, "document.activeElement.id || document.activeElement.textContent.split(':')[0].trim()")
        )
        assert ask(browser, "getComputedStyle(document.activeElement).outlineStyle") != "none" or reached[-1] == "file"
    for name in ("Skip to the results", "text", "Search", "file", "Details", "More like this"):
        assert name in reached, reached


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")])
def test_accessibility(browser: Any, photo_server: Served, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_selenium_python", reason="axe-core is not installed: pip install 'ccaco[browser]'")
    visit(browser, photo_server.url, width=width, scheme=scheme)
    search(browser, "a cat")
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert violations(axe, browser) == []
    assert ask(browser, "document.documentElement.scrollWidth") <= width, "no scrolling sideways"
    element(browser, "#where").send_keys("nonsense(")
    until(lambda: text(browser, "error"))
    assert violations(axe, browser) == []


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_accessibility_of_captions_and_heat_maps(browser: Any, scenes: Served, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_selenium_python", reason="axe-core is not installed: pip install 'ccaco[browser]'")
    visit(browser, f"{scenes.url}?q=a+red+cat", width=width, scheme=scheme)
    answered(browser)
    press(browser, "Heat map")
    until(lambda: ask(browser, "document.querySelectorAll('#why-maps img').length") == 3)
    assert violations(axe, browser) == []
    press(browser, "Close")
    version = scenes.get("/api/index")[1]["version"]
    browser.execute_async_script(DROP, f"/api/items/{version}/image/3/thumbnail", "cat.jpg", "image/jpeg")
    until(lambda: "texts" in ask(browser, "document.getElementById('hits').className"))
    assert violations(axe, browser) == []
    assert ask(browser, "document.documentElement.scrollWidth") <= width


def violations(axe: Any, browser: Any) -> list[Any]:
    checker = axe.Axe(browser)
    checker.inject()
    return [
        (violation["id"], violation["impact"], [node["html"][:200] for node in violation["nodes"][:3]])
        for violation in checker.run()["violations"]
    ]


def test_the_token_opens_the_page_and_leaves_the_address(browser: Any, photo_index: Path) -> None:
    token = "a-token-of-24-characters"
    with serving(photo_index, token=token) as served:
        browser.get_log("browser")
        visit(browser, f"{served.url}?token={token}")
        assert token not in ask(browser, "location.href")
        search(browser, "a cat")
        assert hits(browser) == 16 and problems(browser) == []
        assert ask(browser, "document.cookie") == "", "scripts cannot read it"


def test_a_page_whose_server_has_ended_says_so(browser: Any, photo_index: Path) -> None:
    with serving(photo_index) as served:
        visit(browser, served.url)
    element(browser, "#text").send_keys("a cat\n")
    until(lambda: "does not answer" in text(browser, "error"))
    assert "ccaco retrieve --serve" in text(browser, "error")
