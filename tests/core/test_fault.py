from __future__ import annotations

import os

import pytest

from ccaco_cli.core import fault
from tests.processes import launch


def walk() -> None:
    os.environ[fault.VARIABLE] = "b:2"
    for name in ("a", "b", "a", "b"):
        fault.point(name)


def test_it_kills_at_the_given_point_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch(1, walk) == [-9]
    monkeypatch.delenv(fault.VARIABLE, raising=False)
    fault.point("b")
