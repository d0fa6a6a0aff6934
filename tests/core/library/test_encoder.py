"""Files to parts of an index, without an index: films, embeddings that are not finite, and when a part ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccaco_cli.core.config import LossConfig, ModelConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.encoding.samples import encode_samples
from ccaco_cli.core.library import encoder, parts
from ccaco_cli.core.library.encoder import MediaEncoder
from ccaco_cli.core.library.parts import PartWriter, finished_parts
from ccaco_cli.core.library.reader import MediaReader
from ccaco_cli.core.model import aligner as aligners
from tests.core.library.test_update import picture
from tests.recordings import film


def model(*modalities: str) -> Any:
    torch.manual_seed(0)
    first, second = modalities
    aligner, towers = aligners.build(override(ModelConfig(), {"width": 16}), LossConfig(), (first, second))
    return aligner.eval(), towers


def encode(root: Path, modality: str, built: Any, names: list[str], folder: Path) -> list[Any]:
    aligner, towers = built
    media_encoder = MediaEncoder(aligner, modality, with_tokens=True)
    media_encoder.encode_files(MediaReader(root, towers[modality], ()), names, PartWriter(folder, "float16"))
    return finished_parts(folder)


def test_films_of_different_length(tmp_path: Path) -> None:
    for number, seconds in enumerate((1.0, 2.0, 1.5)):
        (tmp_path / f"{number}.mp4").write_bytes(film(seconds, fps=4 + number, side=48))
    (tmp_path / "cut.mp4").write_bytes(film(1.0)[:300])
    names = ["0.mp4", "1.mp4", "2.mp4", "cut.mp4"]
    built = model("video", "audio")
    (part,) = encode(tmp_path, "video", built, names, tmp_path / "parts")
    assert part.files["path"] == names
    assert [bool(problem) for problem in part.files["problem"]] == [False, False, False, True]
    assert len(part.rows.z) == 3
    assert part.rows.items["duration"].to_pylist() == pytest.approx([1.0, 2.0, 1.5], abs=0.3)
    assert part.rows.items["thumbnail"].null_count == 0
    aligner, towers = built
    query = encode_samples(aligner, towers["video"], [tmp_path / name for name in names[:3]])
    assert np.abs(query.z.numpy() - part.rows.z).max() < 1e-5, "as a query with the same file is encoded"
    tokens, mask = part.rows.tokens.read(np.arange(3))
    assert (mask == query.local_tokens.mask.numpy()).all()
    assert np.abs(tokens - query.local_tokens.tokens.float().numpy())[mask].max() < 2e-2


def test_an_embedding_that_is_not_finite_is_a_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [picture(tmp_path / f"{number}.png", number).name for number in range(5)]
    original = encoder.encode

    def diverged(*arguments: Any, **settings: Any) -> Any:
        encoded = original(*arguments, **settings)
        with torch.inference_mode():
            encoded.z[1:3] = torch.nan
        return encoded

    def without_numbers(*arguments: Any, **settings: Any) -> Any:
        encoded = original(*arguments, **settings)
        with torch.inference_mode():
            encoded.z[:] = torch.nan
        return encoded

    monkeypatch.setattr(encoder, "encode", diverged)
    (part,) = encode(tmp_path, "image", model("image", "text"), names, tmp_path / "parts")
    assert part.files["problem"] == ["", *[encoder.NOT_FINITE] * 2, "", ""]
    assert np.isfinite(part.rows.z).all() and len(part.rows.z) == 3
    assert part.rows.items["sha256"].to_pylist() == [part.files["sha256"][row] for row in (0, 3, 4)]
    monkeypatch.setattr(encoder, "encode", without_numbers)
    *_, part = encode(tmp_path, "image", model("image", "text"), names, tmp_path / "all")
    assert part.rows is None and all(part.files["problem"])


@pytest.mark.parametrize(("limit", "value"), [("PART_FILES", 2), ("PART_BYTES", 1), ("PART_SECONDS", 0.0)])
def test_a_part_ends_by_files_bytes_or_seconds(
    limit: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, limit, value)
    monkeypatch.setattr(encoder, "BATCH_SIZE", {"cpu": 2, "cuda": 2})
    names = [picture(tmp_path / f"{number}.png", number).name for number in range(5)]
    finished = encode(tmp_path, "image", model("image", "text"), names, tmp_path / "parts")
    assert [part.files["path"] for part in finished] == [names[:2], names[2:4], names[4:]]
    assert [part.folder.name for part in finished] == ["part-1-0", "part-2-0", "part-3-0"]
