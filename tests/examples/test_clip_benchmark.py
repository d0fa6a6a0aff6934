"""The example that compares our recalls with those of CLIP_benchmark, on a small copy of the layout of Flickr8k."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.export.export import ExportRequest, export_model
from tests.pretrained_models import WORDS, open_clip_folder

SCRIPT = Path(__file__).parents[2] / "examples/clip_benchmark_retrieval.py"
PHOTOS = 24


def flickr8k(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    (folder / "Images").mkdir(parents=True)
    captions = []
    for number in range(PHOTOS):
        pixels = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((80, 60 + number))
        pixels.save(folder / f"Images/{number}.jpg", quality=95)
        captions += [
            f"{number}.jpg#{n}\t{' '.join(rng.choice(WORDS.split(), 5 + n))}, number {number} {n} ." for n in range(5)
        ]
    (folder / "Flickr8k.token.txt").write_text("\n".join(captions) + "\n")
    names = [f"{number}.jpg" for number in range(PHOTOS)]
    for split, part in (("train", names[:2]), ("dev", names[2:4]), ("test", names[4:])):
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(part) + "\n")
    return folder


@pytest.mark.filterwarnings("ignore")
def test_recalls_equal_those_of_clip_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("clip_benchmark")
    spec = importlib.util.spec_from_file_location("clip_benchmark_retrieval", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)  # results of a pretrained model are stored below runs/
    source = flickr8k(tmp_path / "real/flickr8k")
    export_model(ExportRequest(f"open_clip:{open_clip_folder(tmp_path / 'small')}", "open_clip", tmp_path / "out"))
    benchmark = script.clip_benchmark_recalls(tmp_path / "out", source, batch=7)
    ours = script.ccaco_recalls(tmp_path / "out", source, tmp_path / "data")
    assert benchmark.keys() == ours.keys()
    assert len({round(value, 3) for value in benchmark.values()}) > 3, "recalls that could tell a difference"
    for name, value in benchmark.items():
        assert ours[name] == pytest.approx(value, abs=1e-4), name
