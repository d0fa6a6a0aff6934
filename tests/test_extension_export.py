"""A new export format is one entry of ``FORMATS``: it is accepted, compared with the model, and gets a model card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ccaco_cli.core.encoding.samples import encode_samples
from ccaco_cli.core.experiments.pretrained import LoadedModel
from ccaco_cli.core.export.dual_encoder import scale_of
from ccaco_cli.core.export.export_format import ExportFormat
from ccaco_cli.core.export.formats import FORMATS
from ccaco_cli.core.export.same_vectors import TEXTS, LibraryModel

VECTORS = "vectors.pt"


def write(model: LoadedModel, folder: Path) -> None:
    """A format that holds the vectors of the compared texts alone."""
    z = encode_samples(model.aligner, model.towers["text"], TEXTS, local_tokens=False).z
    torch.save({"z": z, "scale": scale_of(model)[0]}, folder / VECTORS)


def read(folder: Path) -> LibraryModel:
    stored = torch.load(folder / VECTORS, weights_only=True)
    return LibraryModel({"text": lambda texts: stored["z"]}, stored["scale"], None)


def test_it_is_accepted_and_has_a_card(
    run: Path, ccaco: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = 'torch.load("NAME/vectors.pt")\n'
    monkeypatch.setitem(
        FORMATS, "vectors", ExportFormat("torch", lambda model: usage, "", lambda model: "", write, read)
    )  # type: ignore[arg-type]
    done = ccaco("embed", "--run", run, "--export", "vectors", "--out", tmp_path / "out")
    assert done.code == 0
    assert done.err.startswith(f"{tmp_path / 'out'}: vectors; ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", VECTORS]
    assert 'torch.load("out/vectors.pt")' in (tmp_path / "out/README.md").read_text()
    refused = ccaco("embed", "--run", run, "--export", "transformers", "--out", tmp_path / "other")
    assert "expected a format that can: onnx | vectors" in refused.err
