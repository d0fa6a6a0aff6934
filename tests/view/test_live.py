from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.types import no_progress
from ccaco_cli.view import live


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Mapping[str, float]]]:
    """What a sink called ``test`` is sent."""
    entries: list[tuple[int, Mapping[str, float]]] = []

    @contextmanager
    def sink(folder: Path) -> Any:
        yield lambda step, values: entries.append((step, values))

    monkeypatch.setitem(live.SINKS, "test", sink)
    return entries


def test_every_entry_is_sent_once_under_its_own_name(tmp_path: Path, heard: list[Any]) -> None:
    done_steps: list[int] = []
    log = tmp_path / "metrics.jsonl"
    with live.report_to(
        ["test", "test"], tmp_path, lambda done, total, facts: done_steps.append(done)
    ) as report_progress:
        report_progress(7, 9, {"what": "image tokens of train"})
        log.write_text('{"step": 1, "epoch": 0, "contrastive": 2.5}\n')
        report_progress(1, 2, {})
        with log.open("a") as file:
            file.write('{"step": 2, "contrastive": 2.0}\n{"step": 2, "epo')
        report_progress(2, 2, {})
        with log.open("a") as file:
            file.write('ch": 0, "validation": {"R-sum": 9.5, "image_to_text_R@1": 0.5}, "warnings": []}\n')
    assert done_steps == [7, 1, 2]
    assert heard == [
        (1, {"epoch": 0.0, "contrastive": 2.5}),
        (2, {"contrastive": 2.0}),
        (2, {"epoch": 0.0, "validation/R-sum": 9.5, "validation/image_to_text_R@1": 0.5}),
    ]


def test_a_resumed_run_does_not_send_again_what_was_sent(tmp_path: Path, heard: list[Any]) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, "total": s / 2}) + "\n" for s in range(1, 6))
    )
    with live.report_to(["test"], tmp_path, no_progress) as report_progress:
        report_progress(5, 9, {})
    assert heard == [(5, {"total": 2.5})]


def test_tensorboard_keeps_the_names(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the optional extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with live.report_to(["tensorboard"], tmp_path, no_progress) as report_progress:
        (tmp_path / "metrics.jsonl").write_text(
            '{"step": 3, "total": 2.5, "validation": {"text_to_image_R@1": 0.25}}\n'
        )
        assert not (tmp_path / "tensorboard").exists(), "nothing before the run has begun"
        report_progress(3, 3, {})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"total", "validation/text_to_image_R@1"}
    assert [(e.step, e.value) for e in events.Scalars("validation/text_to_image_R@1")] == [(3, 0.25)]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_library_that_is_not_there_is_named_before_the_run_begins(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"{name} is not installed.*pip install 'ccaco\[{name}\]'"):
        with live.report_to([name], tmp_path, no_progress):
            pytest.fail("it must not begin")


def test_wandb_receives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wandb:
        Error = RuntimeError
        logged: ClassVar[list[Any]] = []

        def Settings(self, **settings: Any) -> None: ...

        def init(self, **settings: Any) -> Any:
            if "refused" in settings["name"]:
                raise RuntimeError("no key")
            return self

        def log(self, values: Any, step: int) -> None:
            self.logged.append((step, values))

        def finish(self) -> None:
            self.logged.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", Wandb())  # type: ignore[arg-type]
    for name in ("fine", "refused"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "total": 2.5}\n')
    with live.report_to(["wandb"], tmp_path / "fine", no_progress) as report_progress:
        report_progress(1, 1, {})
    assert Wandb.logged == [(1, {"total": 2.5}), "finished"]
    with pytest.raises(ConfigError, match=r"wandb did not start a run.*WANDB_MODE=offline"):
        with live.report_to(["wandb"], tmp_path / "refused", no_progress) as report_progress:
            report_progress(1, 1, {})
