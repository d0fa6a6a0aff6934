"""Parts of the search page that need no server: the queue, the columns, the description of the API."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'ccaco[serve]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'ccaco[serve]'")

from ccaco_cli.core.errors import DataError
from ccaco_cli.view.serve import columns, openapi, parameters
from ccaco_cli.view.serve.problems import HttpError
from ccaco_cli.view.serve.workers import BATCH, Lane


class Recorder:
    """Work that waits until it may go on, and records its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go_on = threading.Event()

    def __call__(self, arguments: Sequence[int]) -> list[int]:
        self.go_on.wait(20)
        self.batches.append(list(arguments))
        return [10 * argument for argument in arguments]


def test_waiting_jobs_of_one_key_are_one_batch() -> None:
    async def run() -> list[int]:
        lane, work = Lane("test", 100), Recorder()
        first = asyncio.create_task(lane.run_joined(work, 0, "x", 20))
        await asyncio.sleep(0.1)  # the thread has taken it
        keys = ["x", "y", "x", "x", "y"]
        joined = [asyncio.create_task(lane.run_joined(work, i, key, 20)) for i, key in enumerate(keys, 1)]
        await asyncio.sleep(0.1)
        work.go_on.set()
        results = [await task for task in (first, *joined)]
        lane.close()
        assert work.batches == [[0], [1, 3, 4], [2, 5]]
        return results

    assert asyncio.run(run()) == [0, 10, 20, 30, 40, 50]


def test_a_batch_has_a_limit() -> None:
    async def run() -> None:
        lane, work = Lane("test", 100), Recorder()
        tasks = [asyncio.create_task(lane.run_joined(work, 0, "x", 20))]
        await asyncio.sleep(0.1)
        tasks += [asyncio.create_task(lane.run_joined(work, i, "x", 20)) for i in range(1, BATCH + 5)]
        await asyncio.sleep(0.1)
        work.go_on.set()
        await asyncio.gather(*tasks)
        lane.close()
        assert [len(batch) for batch in work.batches] == [1, BATCH, 4]

    asyncio.run(run())


def test_one_job_that_fails_does_not_fail_its_batch() -> None:
    go_on = threading.Event()

    def work(arguments: Sequence[int]) -> list[int]:
        go_on.wait(20)
        if 2 in arguments:
            raise DataError("two")
        return list(arguments)

    async def run() -> None:
        lane = Lane("test", 100)
        tasks = [asyncio.create_task(lane.run_joined(work, i, "x", 20)) for i in range(4)]
        await asyncio.sleep(0.1)
        go_on.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        lane.close()
        assert [results[i] for i in (0, 1, 3)] == [0, 1, 3] and isinstance(results[2], DataError)

    asyncio.run(run())


def test_a_full_lane_refuses_and_a_closed_one_too() -> None:
    async def run() -> None:
        lane, work = Lane("test", 2), Recorder()
        tasks = [asyncio.create_task(lane.run_joined(work, 0, None, 20))]
        await asyncio.sleep(0.1)
        tasks += [asyncio.create_task(lane.run_joined(work, i, None, 20)) for i in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(HttpError) as refused:
            await lane.run(lambda: 1, 20)
        assert refused.value.status == 503 and refused.value.headers["retry-after"]
        work.go_on.set()
        assert await asyncio.gather(*tasks) == [0, 10, 20]
        lane.close()
        with pytest.raises(HttpError):
            await lane.run(lambda: 1, 20)

    asyncio.run(run())


def test_a_job_that_nobody_waits_for_is_not_done() -> None:
    async def run() -> None:
        lane, work = Lane("test", 10), Recorder()
        first = asyncio.create_task(lane.run_joined(work, 0, None, 20))
        await asyncio.sleep(0.1)
        with pytest.raises(HttpError) as late:
            await lane.run_joined(work, 1, None, 0.1)
        assert late.value.status == 504
        work.go_on.set()
        assert await first == 0 and await lane.run(lambda: "next", 20) == "next"
        lane.close()
        assert work.batches == [[0]]

    asyncio.run(run())


def test_columns_of_all_types() -> None:
    nan = float("nan")
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "text": [["x"], ["y"], ["z"]],
            "thumbnail": pa.array([b"1", b"2", b"3"]),
            "whole": pa.array([3, None, 1]),
            "real": pa.array([nan, 0.5, -1.5]),
            "flag": pa.array([True, None, True]),
            "when": pa.array([datetime(2020, 1, 2), None, datetime(2021, 3, 4)], pa.timestamp("s")),
            "word": pa.array(["b", "b", None]),
            "nothing": pa.array([nan, nan, nan]),
        }
    )
    assert columns.describe([table]) == [
        {"name": "whole", "type": "integer", "missing": 1, "minimum": 1, "maximum": 3},
        {"name": "real", "type": "number", "missing": 0, "minimum": -1.5, "maximum": 0.5},
        {"name": "flag", "type": "boolean", "missing": 1, "values": [{"value": True, "count": 2}]},
        {
            "name": "when",
            "type": "date",
            "missing": 1,
            "minimum": "2020-01-02T00:00:00",
            "maximum": "2021-03-04T00:00:00",
        },
        {"name": "word", "type": "text", "missing": 1, "values": [{"value": "b", "count": 2}]},
        {"name": "nothing", "type": "number", "missing": 0, "minimum": None, "maximum": None},
    ]


@pytest.mark.parametrize("words", [columns.CHOICES, columns.CHOICES + 1, 5000])
def test_many_texts_are_no_choices(words: int) -> None:
    table = pa.table({"name": [f"w{i % words}" for i in range(6000)]})
    (described,) = columns.describe([table])
    assert ("values" in described) == (words <= columns.CHOICES)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("&".join(f"a{i}=1" for i in range(80)), "too many parameters"),
        ("text=%ed%a0%80", "not UTF-8"),
        ("k=1e3&text=a", "not a whole number"),
        ("k=9999999999999999999999&text=a", "out of range"),
        ("dedup=inf&text=a", "out of range"),
    ],
)
def test_odd_parameters(query: str, words: str) -> None:
    with pytest.raises(HttpError, match=words) as refused:
        parameters.read(query, (parameters.TEXT, *parameters.SEARCH))
    assert refused.value.status == 400


def test_the_description_names_every_status_that_a_request_can_get() -> None:
    folder = Path(openapi.__file__).parent
    raised = {code for file in folder.glob("*.py") for code in re.findall(r"HttpError\(\s*(\d{3})", file.read_text())}
    described = {
        status
        for methods in openapi.description()["paths"].values()
        for operation in methods.values()
        if isinstance(operation, dict)
        for status in operation["responses"]
    }
    before_any_route = {"405", "414", "421", "431", "500"}
    assert raised - before_any_route <= described and {"408", "413", "416"} <= raised


def test_the_description_is_valid_openapi_and_names_every_route_and_parameter() -> None:
    validator = pytest.importorskip(
        "openapi_spec_validator", reason="openapi-spec-validator is not installed: pip install 'ccaco[test]'"
    )
    described = openapi.description()
    validator.validate(described)
    operations: dict[str, Any] = {
        f"{method} {path}": operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
        if method in ("get", "post")
    }
    item = "/api/items/{version}/{modality}/{row}"
    assert sorted(operations) == sorted(
        [
            "get /api/index",
            "get /api/columns",
            "get /api/search",
            "post /api/search",
            *(f"get {item}{part}" for part in ("", "/thumbnail", "/original", "/similar", "/explanation")),
            f"post {item}/explanation",
        ]
    )
    searched = {p["name"]: p for p in operations["get /api/search"]["parameters"]}
    assert set(searched) == {"text", "target", "where", "plus", "minus", "k", "rerank", "dedup"}
    assert searched["text"]["required"] and searched["k"]["schema"]["maximum"] == parameters.HITS.maximum
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations)
