"""The search page of an index whose vectors lie in a Milvus database: its answers are those of the folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'ccaco[serve]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'ccaco[serve]'")
pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install 'ccaco[milvus]'")
pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed: pip install 'ccaco[milvus]'")

from tests.view.serving import Served, serving
from tests.view.test_serve_page import ask, element, fill, hits, problems, search, text, until, visit


@pytest.fixture(scope="module")
def files(photos: Path) -> dict[str, bytes]:
    return {path.relative_to(photos).as_posix(): path.read_bytes() for path in photos.rglob("*.jpg")}


@pytest.fixture(scope="module")
def flat(media_index: Callable[..., str], files: dict[str, bytes]) -> Iterator[Served]:
    with serving(media_index("image", files)) as served:
        yield served


@pytest.fixture(scope="module")
def milvus(media_index: Callable[..., str], files: dict[str, bytes]) -> Iterator[Served]:
    with serving(media_index("image", files, "milvus:{}/photos.db"), originals=True) as served:
        yield served


def answer(served: Served, path: str, **parameters: Any) -> Any:
    """Names and scores of the hits; the texts of an error."""
    status, body = served.get(path, **parameters)
    assert status == 200, body
    return [(hit["item"]["id"], hit["score"], hit["cosine"], hit["match"], hit["duplicates"]) for hit in body["hits"]]


@pytest.mark.parametrize(
    "parameters",
    [
        {"text": "a cat", "k": 16},
        {"text": "a cat", "k": 3, "rerank": 0},
        {"text": "a cat", "plus": "at night", "minus": "people"},
        {"text": "a cat", "dedup": 0.5},
        {"text": "a cat", "where": "year >= 2020"},
    ],
)
def test_searches_answer_as_the_folder_does(flat: Served, milvus: Served, parameters: dict[str, Any]) -> None:
    expected = answer(flat, "/api/search", **parameters)
    assert answer(milvus, "/api/search", **parameters) == expected and expected


def test_filters_are_in_the_language_of_milvus(flat: Served, milvus: Served) -> None:
    assert milvus.get("/api/index")[1]["filter_language"] == "milvus"
    expected = answer(flat, "/api/search", text="a cat", where="folder = '/beach/' and year < 2016")
    assert answer(milvus, "/api/search", text="a cat", where='folder == "/beach/" and year < 2016') == expected
    assert len(expected) == 3
    status, problem = milvus.get("/api/search", text="a cat", where="yeer > 3")
    assert status == 400 and "year" in str(problem), problem
    described = [
        [column for column in served.get("/api/columns")[1]["columns"] if column["name"] not in ("path", "modified")]
        for served in (flat, milvus)
    ]
    assert described[0] == described[1], "but for those of the files, which lie elsewhere"


def test_items_files_and_similar_items(flat: Served, milvus: Served, files: dict[str, bytes]) -> None:
    status, body = milvus.get("/api/search", text="a cat", k=1)
    item = body["hits"][0]["item"]
    assert status == 200 and milvus.send("GET", item["thumbnail"])[1][:2] == b"\xff\xd8"
    assert milvus.send("GET", item["original"])[1] == files[item["id"]]
    ours = answer(flat, "/api/search", text="a cat", k=1)[0][0]
    assert item["id"] == ours
    flat_item = flat.get("/api/search", text="a cat", k=1)[1]["hits"][0]["item"]
    assert answer(milvus, f"{item['url']}/similar", k=5) == answer(flat, f"{flat_item['url']}/similar", k=5)
    status, body = milvus.send("POST", "/api/search?modality=image&k=1", files[item["id"]])
    assert status == 200 and body["hits"][0]["item"]["id"] == item["id"]
    assert milvus.get(f"{item['url']}/explanation", text="a red cat")[0] == 200


def test_the_page_builds_filters_for_milvus(browser: Any, milvus: Served) -> None:
    browser.get_log("browser")
    visit(browser, milvus.url)
    search(browser, "a cat")
    assert hits(browser) == 16
    element(browser, "#filters summary").click()
    fill(browser, "year", 0, "2020")
    until(lambda: hits(browser) == 6)
    fill(browser, "folder", 0, "")
    until(lambda: hits(browser) == 3)
    assert text(browser, "where-sent").startswith("(folder in [")
    fill(browser, "taken", 1, "2021-07-04")
    until(lambda: hits(browser) == 1)
    assert ask(browser, "document.querySelectorAll('#hits img').length") == 1
    assert problems(browser) == []
