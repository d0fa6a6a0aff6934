"""The search page's requests for an index of arrays: point clouds with thumbnails, and files that are no arrays."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'ccaco[serve]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'ccaco[serve]'")

from tests.view.serving import Served, serving


def cloud(seed: int, columns: int = 3, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.random.default_rng(seed).standard_normal((20 + seed, columns)).astype(np.float32), **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def clouds(media_index: Callable[..., str]) -> Iterator[Served]:
    files = {f"{number}.npy": cloud(number) for number in range(3)} | {"wide.npy": cloud(1, 5), "bad.npy": b"none"}
    with serving(media_index("array", files)) as served:
        yield served


def test_words_and_arrays_are_queries(clouds: Served) -> None:
    status, facts = clouds.get("/api/index")
    assert (status, facts["items"], facts["file_queries"], facts["searches_all"]) == (
        200,
        {"array": 3},
        ["array"],
        True,
    )
    assert facts["suffixes"] == {"array": [".npy", ".npz"]}
    status, answer = clouds.get("/api/search", text="a red ball", k=2)
    assert status == 200 and answer["target"] == "array" and len(answer["hits"]) == 2
    item = answer["hits"][0]["item"]
    assert (item["modality"], item["id"]) == ("array", item["columns"]["path"].rpartition("/")[2])
    assert clouds.send("GET", item["thumbnail"])[0] == 200, "a cloud is drawn"
    status, answer = clouds.send("POST", "/api/search?modality=array&k=1", cloud(2))
    assert status == 200 and answer["hits"][0]["item"]["id"] == "2.npy"


@pytest.mark.parametrize(
    ("data", "words"), [(b"none", "not an array file"), (cloud(1, 5), "another shape"), (b"", "an empty upload")]
)
def test_files_that_are_no_arrays_of_the_model_are_refused(clouds: Served, data: bytes, words: str) -> None:
    status, problem = clouds.send("POST", "/api/search?modality=array", data)
    assert status == 400 and words in str(problem)
