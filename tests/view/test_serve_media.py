"""The search page of sounds, of videos, and of items without thumbnails, in a real browser without a screen."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'ccaco[serve]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'ccaco[serve]'")
pytest.importorskip("av", reason="PyAV is not installed: pip install 'ccaco[video]'")

from tests.recordings import film, sound, tone
from tests.view.serving import Served, serving
from tests.view.test_serve_page import (
    DROP,
    answered,
    ask,
    element,
    hits,
    press,
    problems,
    search,
    text,
    until,
    violations,
    visit,
)

RATE = 16_000
KINDS = ("wav", "flac", "mp3", "opus")
DECODED = "Promise.resolve(Uint8Array.from(atob(url), c => c.charCodeAt(0)))"
CARD = "document.querySelector('#hits > li')"


def tones() -> dict[str, bytes]:
    """Six sounds in four formats, at two levels."""
    files = {}
    for number in range(1, 7):
        kind = KINDS[(number - 1) % len(KINDS)]
        rate = 48_000 if kind == "opus" else RATE
        name = f"{'night/' if number > 3 else ''}{number}.{kind}"
        files[name] = sound(tone(0.5 + 0.1 * number, rate, 200.0 * number), rate, kind)
    return files


@pytest.fixture(scope="module")
def sounds(media_index: Callable[..., str]) -> Iterator[Served]:
    with serving(media_index("audio", tones()), originals=True) as served:
        yield served


@pytest.fixture(scope="module")
def videos(media_index: Callable[..., str]) -> Iterator[Served]:
    files = {f"{number}.mp4": film(1.0, fps=5 + number, side=48) for number in range(4)}
    with serving(media_index("video", files), originals=True) as served:
        yield served


def drop(browser: Any, data: bytes, name: str, media_type: str) -> None:
    """Drops a file whose bytes the test has: a page may not fetch a data address, so they are passed as a text."""
    script = DROP.replace("fetch(url).then(answer => answer.blob())", DECODED)
    browser.execute_async_script(script, base64.b64encode(data).decode(), name, media_type)


def plays(browser: Any, tag: str) -> None:
    """The first player of the results loads its file and knows how long it is."""
    assert ask(browser, f"{CARD}.querySelector('{tag}').preload") == "none", "a list of results loads no files"
    browser.execute_script(f"const p = {CARD}.querySelector('{tag}'); p.preload = 'auto'; p.load();")
    until(lambda: ask(browser, f"{CARD}.querySelector('{tag}').duration > 0.3"))


def test_a_text_finds_sounds_which_can_be_played(browser: Any, sounds: Served) -> None:
    browser.get_log("browser")
    visit(browser, sounds.url, words="sounds")
    assert text(browser, "hint") == "6 sounds. Type what you look for, or drop or paste a sound."
    search(browser, "rain on a window")
    assert hits(browser) == 6
    assert ask(browser, "document.querySelectorAll('#hits audio[controls]').length") == 6
    assert ask(browser, f"{CARD}.querySelector('audio').ariaLabel").startswith("Play ")
    assert ask(browser, f"{CARD}.querySelector('img').getAttribute('src')").endswith("/thumbnail"), "its waveform"
    for place in range(6):
        player = f"document.querySelectorAll('#hits audio')[{place}]"
        browser.execute_script(f"{player}.preload = 'auto'; {player}.load()")
        until(lambda player=player: ask(browser, f"{player}.duration > 0.3"))
    assert problems(browser) == []


def test_a_dropped_sound_is_a_query(browser: Any, sounds: Served) -> None:
    browser.get_log("browser")
    visit(browser, sounds.url, words="sounds")
    drop(browser, tones()["3.mp3"], "three.mp3", "audio/mpeg")
    answered(browser)
    assert text(browser, "error") == "" and text(browser, "query-name") == "Query: three.mp3"
    assert element(browser, "#query audio").is_displayed()
    assert ask(browser, f"{CARD}.querySelector('dd').textContent") == "3.mp3", "the file itself is the best answer"
    drop(browser, b"RIFF and no sound", "deaf.wav", "audio/wav")
    until(lambda: text(browser, "error"))
    drop(browser, b"x", "a.png", "image/png")
    until(lambda: "cannot be a query" in text(browser, "error"))
    assert "a sound" in text(browser, "error")
    assert [line for line in problems(browser) if "400" not in line["message"]] == []


def test_more_like_a_sound_and_its_address(browser: Any, sounds: Served) -> None:
    browser.get_log("browser")
    visit(browser, sounds.url, words="sounds")
    search(browser, "rain")
    best = ask(browser, f"{CARD}.querySelector('dd').textContent")
    press(browser, "More like this")
    until(lambda: text(browser, "query-name") == f"More like {best}" and hits(browser) == 5)
    browser.execute_script("history.replaceState(null, '', location.href)")  # as in another browser
    visit(browser, ask(browser, "location.href"), words="sounds")
    until(lambda: hits(browser) == 5 and text(browser, "query-name") == f"More like {best}")
    assert problems(browser) == []


def test_a_model_without_a_grid_offers_no_heat_maps(browser: Any, sounds: Served) -> None:
    visit(browser, f"{sounds.url}?q=loud+rain", words="sounds")
    answered(browser)
    assert hits(browser) == 6 and sounds.get("/api/index")[1]["explains"] is False
    assert not any(b.text.startswith("Heat map") for b in browser.find_elements("css selector", "#hits button"))


def test_videos_have_a_still_frame_and_are_played(browser: Any, videos: Served) -> None:
    browser.get_log("browser")
    visit(browser, videos.url, words="videos")
    search(browser, "a dog runs")
    assert hits(browser) == 4 and ask(browser, "document.querySelectorAll('#hits img').length") == 0
    assert ask(browser, f"{CARD}.querySelector('video').poster").endswith("/thumbnail")
    plays(browser, "video")
    drop(browser, film(1.0, fps=6, side=48), "mine.mp4", "video/mp4")
    until(lambda: text(browser, "query-name") == "Query: mine.mp4" and hits(browser) == 4)
    assert element(browser, "#query video").is_displayed()
    assert problems(browser) == []


@pytest.mark.parametrize(("modality", "still"), [("audio", 6), ("video", 4)])
def test_a_server_that_sends_no_files_shows_stills_only(
    browser: Any, modality: str, still: int, sounds: Served, videos: Served
) -> None:
    index = {"audio": sounds, "video": videos}[modality].api.library.current().index
    browser.get_log("browser")
    with serving(index.manifest.path) as served:
        visit(browser, served.url, words="sounds" if modality == "audio" else "videos")
        search(browser, "rain")
        assert ask(browser, "document.querySelectorAll('#hits audio, #hits video').length") == 0
        assert ask(browser, "document.querySelectorAll('#hits img').length") == still
        assert problems(browser) == []


@pytest.mark.parametrize("originals", [True, False])
def test_items_without_thumbnails(browser: Any, media_index: Callable[..., str], originals: bool) -> None:
    browser.get_log("browser")
    with serving(media_index("audio", tones(), thumbnails=False), originals=originals) as served:
        visit(browser, served.url, words="sounds")
        search(browser, "rain")
        assert hits(browser) == 6 and ask(browser, "document.querySelectorAll('#hits img').length") == 0
        assert ask(browser, "document.querySelectorAll('#hits audio').length") == (6 if originals else 0)
        press(browser, "More like this")
        until(lambda: hits(browser) == 5)
        assert ask(browser, "document.querySelectorAll('#query img').length") == 0
        browser.execute_script("history.replaceState(null, '', location.href)")
        visit(browser, ask(browser, "location.href"), words="sounds")
        until(lambda: hits(browser) == 5)
        assert problems(browser) == []


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_accessibility_of_players(browser: Any, sounds: Served, videos: Served, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_selenium_python", reason="axe-core is not installed: pip install 'ccaco[browser]'")
    for served, words in ((sounds, "sounds"), (videos, "videos")):
        visit(browser, f"{served.url}?q=rain", width=width, scheme=scheme, words=words)
        answered(browser)
        assert violations(axe, browser) == []
        assert ask(browser, "document.documentElement.scrollWidth") <= width


def test_a_file_that_the_browser_cannot_play_can_be_opened(browser: Any, media_index: Callable[..., str]) -> None:
    """A container without a player in browsers."""
    files = {"1.au": _au(tone(0.5, RATE)[0]), "2.wav": sound(tone(0.6, RATE), RATE)}
    with serving(media_index("audio", files), originals=True) as served:
        visit(browser, served.url, words="sounds")
        search(browser, "rain")
        browser.execute_script(
            "document.querySelectorAll('#hits audio').forEach(p => { p.preload = 'auto'; p.load(); })"
        )
        until(lambda: ask(browser, "document.querySelectorAll('#hits audio').length") == 1)
        assert "cannot play" in ask(browser, "document.querySelector('#hits li > a').textContent")


def _au(samples: Any) -> bytes:
    """A Sun AU file of 16-bit samples."""
    body = (samples * 32767).astype(">i2").tobytes()
    return b".snd" + b"".join(n.to_bytes(4, "big") for n in (24, len(body), 3, RATE, 1)) + body
