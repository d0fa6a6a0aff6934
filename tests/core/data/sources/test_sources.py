from __future__ import annotations

import subprocess
import sys

import pytest

from ccaco_cli.core.data.sources import SOURCES


def test_every_entry_is_a_source_of_that_name() -> None:
    assert {"scenes", "scenes-styles", "coco", "flickr8k", "flickr30k", "emoji-styles", "imagefolder", "table"} <= set(
        SOURCES
    )
    assert {"webdataset", "hub", "sugarcrepe"} <= set(SOURCES)
    for name, source in SOURCES.items():
        assert source.name == name and source.expects and len(source.modalities) == 2
    assert {name for name, source in SOURCES.items() if source.embedded} == {"scenes", "scenes-styles", "bounces"}
    with pytest.raises(KeyError):
        SOURCES["flickr"]


def test_naming_sources_imports_none_of_them() -> None:
    code = (
        "import sys; from ccaco_cli.core.data.sources import SOURCES; print(len(list(SOURCES)), 'coco' "
        "in SOURCES, sorted(sys.modules))"
    )
    report = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    ).stdout
    assert report.startswith(f"{len(SOURCES)} True")
    assert not any(
        f"'{name}'" in report
        for name in ("numpy", "PIL", "pyarrow", "torch", "datasets", "ccaco_cli.core.data.sources.coco")
    )
