"""A generated index as large as a real one, for benchmarks of search: vectors, tokens, thumbnails and columns."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from ccaco_cli.core import config_io
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.retrieval import index as indexes
from ccaco_cli.core.retrieval.complete import NewModel, complete
from ccaco_cli.core.retrieval.generations import next_generation
from ccaco_cli.core.retrieval.token_store import Writer

WIDTH = 512
PLACES = ("beach", "city", "forest", "mountain", "room")


@dataclass(frozen=True)
class Generated:
    """An index of random vectors.

    Attributes:
        manifest: of the index.
        query: what was exported.
        query_folder: of the exported query side.
        vector_bytes: of all vectors.
    """

    manifest: Manifest
    query: dict[str, Any]
    query_folder: Path
    vector_bytes: int


def build(folder: Path, spec: str, rows: int, tokens: int) -> Generated:
    """Writes an index of ``rows`` images with random vectors, and of one caption.

    Args:
        spec: of the text tower.
        tokens: stored of an image.
    """
    config = config_io.override(RunConfig(), {"model.width": WIDTH, "model.text.spec": spec, "eval.shortlist": 64})
    torch.manual_seed(0)
    aligner, towers = aligners.build(config.model, config.loss, ("image", "text"))
    aligner.eval()
    z = np.random.default_rng(0).normal(size=(rows, WIDTH)).astype(np.float32)
    stored = min(rows, 5000)  # tokens of the first few stand for all: only those of a shortlist are read
    stored_tokens = (np.random.default_rng(1).normal(size=(stored, tokens, WIDTH)) / WIDTH**0.5).astype(np.float16)
    items = _items(rows)
    caption = {name: items[name][:1] for name in ("id", "group")} | {"text": ["caption"]}
    facts = {
        "modalities": ["image", "text"],
        "weight": 1.0,
        "headline": "two-stage",
        "name": "benchmark",
        "protocol": "",
    }
    run, dataset = (Manifest(folder, kind, facts) for kind in ("run", "dataset"))
    model = NewModel(aligner, towers, config, run, "float32", 0, True, ["a red cat sleeps on a mat"])
    with next_generation(folder) as generation:
        storage = {}
        for side, vectors, side_items in (("image", z, items), ("text", z[:1], caption)):
            with Writer(generation.temp / side, "float16") as writer:
                for first in range(0, len(vectors), stored):
                    part = stored_tokens[: len(vectors) - first]
                    writer.add(part, np.ones(part.shape[:2], bool))
            storage[side] = indexes.write_side(generation.temp / side, vectors, [side_items], store="float16")
        described = model.put(generation)
        more = {"split": "test", "rows": {"image": rows, "text": 1}, "storage": storage}
        manifest = complete(folder, generation, described, more, dataset)
    query = folder / generation.name / indexes.QUERY
    return Generated(manifest, dict(described.facts["query"]), query, z.nbytes)


def _items(rows: int) -> dict[str, Any]:
    """Ids, captions, one thumbnail for all, and two columns to filter by."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (14, 14, 3), np.uint8)).resize((224, 224)).save(
        out, "JPEG"
    )
    return {
        "id": [str(i) for i in range(rows)],
        "group": list(range(rows)),
        "text": [[f"caption {i}"] for i in range(rows)],
        "thumbnail": [out.getvalue()] * rows,
        "year": pa.array(np.arange(rows) % 25 + 2000, pa.int64()),
        "place": pa.array([PLACES[i % len(PLACES)] for i in range(rows)]),
    }
