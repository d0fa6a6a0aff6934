"""The file formats that ``fuzz.py`` damages: how a valid file of each is made, and how ccaco reads it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core.errors import CcacoError

if __package__:
    from examples.benchmarks import fuzz_sources
else:  # run as a script
    import fuzz_sources  # type: ignore[no-redef]


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        make: folder -> the valid file in it that is mutated; other files may lie beside it.
        read: folder -> what ccaco reads from it.
        seal: called after the mutation, for artefacts whose manifest lists the file's hash: an attacker would do so.
        write: writes an odd file instead of a mutated one; returns the check of what was read.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    seal: Callable[[Path], None] | None = None
    write: Callable[[Path, random.Random], Callable[[Any], None]] | None = None


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text, "utf-8")
        return folder / name

    return make


def _picture(kind: str) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def _pixels(kind: str) -> Format:
    from ccaco_cli.core.data.checks import decode_image

    def make(folder: Path) -> Path:
        (folder / "p").write_bytes(_picture(kind))
        return folder / "p"

    return Format(make, lambda folder: decode_image((folder / "p").read_bytes()))


def _source(name: str, file: str, text: str | Callable[[Path], Path], *, of_folder: bool = True) -> Format:
    """A published list: read to its end, every record checked, as ``prepare`` does."""
    from ccaco_cli.core.data.checks import Rules, check
    from ccaco_cli.core.data.sources import SOURCES
    from ccaco_cli.core.data.sources.source import SourceOptions

    def make(folder: Path) -> Path:
        (folder / "images").mkdir()
        (folder / "images/a.jpg").write_bytes(_picture("JPEG"))
        for split, listed in (("train", "a.jpg"), ("val", ""), ("test", "")):
            for prefix in ("", "flickr8k", "coco-cn_"):
                (folder / f"{prefix}{split}.txt").write_text(listed)
        (folder / "annotations").mkdir()
        return text(folder) if callable(text) else _text(file, text)(folder)

    def read(folder: Path) -> Any:
        where = folder if of_folder else folder / file
        source_data = SOURCES[name].read(where, SourceOptions())
        rules = Rules(str(folder.resolve()), SOURCES[name].modalities)
        return [check(record, rules) for record in source_data.records]

    return Format(make, read)


def _stored_images(folder: Path) -> Path:
    (folder / "train_texts.jsonl").write_text('{"text": "a dog", "image_ids": [1, 2]}\n')
    stored = base64.b64encode(_picture("JPEG")).decode()
    return _text("train_imgs.tsv", f"1\t{stored}\n2\t{stored}\n")(folder)


def _parquet(folder: Path) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"filepath": ["images/a.jpg"] * 3, "title": ["a", "b", "c"]}), folder / "t.parquet")
    return folder / "t.parquet"


def _dataset(folder: Path) -> Path:
    from ccaco_cli.core.data import shards
    from ccaco_cli.core.types import PairRecord

    records = (
        PairRecord(f"id{i}", f"g{i}", "train", {"image": _picture("PNG")}, [f"caption {i}", "b"]) for i in range(4)
    )
    shards.write(
        records,
        folder / "d",
        shards.DatasetInfo(name="d", modalities=("image", "text")),
        shards.WriteOptions(workers=0),
    )
    return folder / "d"


def _read_dataset(folder: Path) -> Any:
    from ccaco_cli.core.data import shards
    from ccaco_cli.core.data.checks import decode_image

    data = shards.open(folder / "d")
    for name in data.splits:
        split = data.split(name)
        pictures = [decode_image(media) for media in split.media("image", range(len(split)))]
        _ = split.ids, split.captions, split.caption_row, split.meta(0), pictures
    return data


def _index(folder: Path) -> Path:
    from ccaco_cli.core import manifest
    from ccaco_cli.core.retrieval import generations, index, token_store

    rng = np.random.default_rng(0)
    root = folder / "i.idx"
    temp, name = generations.begin(root)
    for modality, rows in (("image", 4), ("text", 6)):
        with token_store.Writer(temp / modality, "float16") as writer:
            writer.add(np.ones((rows, 3, 5), np.float16), np.ones((rows, 3), bool))
        z = rng.normal(size=(rows, 8)).astype(np.float32)
        index.write_side(temp / modality, z, [{"id": list("abcdef")[:rows], "text": ["t"] * rows}], store="float16")
    temp.rename(root / name)
    facts = {
        "modalities": ["image", "text"],
        "weight": 0.5,
        "headline": "cosine",
        "generation": name,
        "dim": 8,
        "rows": {"image": 4, "text": 6},
    }
    files = [manifest.file_entry(root, f) for f in sorted((root / name).rglob("*")) if f.is_file()]
    manifest.write(root, "index", facts=facts, files=files)
    return root


def _read_index(folder: Path) -> Any:
    from ccaco_cli.core.retrieval.index import Index

    opened = Index(folder / "i.idx")
    query = np.ones((1, 8), np.float32)
    for side in opened.sides.values():
        side.check(8)
        _, rows = side.vectors.search(query, 3)
        _ = side.local_tokens(rows[0]) if side.has_tokens else None, [side.item(int(row)) for row in rows[0]]
    return opened


def _resealed(name: str) -> Callable[[Path], None]:
    """Makes the manifest of an artefact agree with its files again, and its seal with it."""

    def seal(folder: Path) -> None:
        from ccaco_cli.core import manifest

        file = folder / name / manifest.NAME
        try:
            body = json.loads(file.read_text("utf-8"))
            for entry in body["files"]:
                listed = file.parent / entry["name"]
                if listed.resolve().is_relative_to(file.parent.resolve()) and listed.is_file():
                    entry |= {"sha256": manifest.sha256(listed), "bytes": listed.stat().st_size}
            file.write_text(json.dumps(body | {"seal": manifest.seal(body)}), "utf-8")
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
            return

    return seal


def _within(make: Callable[[Path], Path], pattern: str) -> Callable[[Path], Path]:
    return lambda folder: sorted(make(folder).rglob(pattern))[0]


def _weights(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, folder / "w")
    return folder / "w"


def _read_weights(folder: Path) -> None:
    import torch

    from ccaco_cli.core.model import weights

    weights.load_weights(folder / "w", torch.nn.Linear(3, 2))


def _state(folder: Path) -> Path:
    import torch

    from ccaco_cli.core.training import checkpoint

    torch.save(
        {
            "optimizer": {"state": {}},
            "generators": [checkpoint.generator_states(torch.device("cpu"))],
            "step": 1,
            "epoch": 0,
        },
        folder / "s",
    )
    return folder / "s"


def _read_state(folder: Path) -> None:
    from ccaco_cli.core.training import checkpoint

    checkpoint.load_state(folder / "s")


def _array(folder: Path) -> Path:
    np.save(folder / "x.npy", np.arange(60, dtype=np.float16).reshape(12, 5))
    return folder / "x.npy"


def _read_array(folder: Path) -> Any:
    from ccaco_cli.core.data import cache

    return np.asarray(cache.read_array(folder / "x.npy")).sum()


def _config(folder: Path) -> Path:
    from ccaco_cli.core.config import RunConfig
    from ccaco_cli.core.config_io import to_toml

    return _text("c.toml", to_toml(RunConfig()))(folder)


def _read_config(folder: Path) -> Any:
    from ccaco_cli.core import config_io, recipes

    return config_io.to_toml(
        recipes.build(base=config_io.load(folder / "c.toml"), explicit={}, modalities=("image", "text"))
    )


def _result(folder: Path) -> Path:
    from ccaco_cli.core import manifest
    from ccaco_cli.core.evaluation.protocols import by_similarity, evaluate

    score = np.random.default_rng(0).normal(size=(5, 5))
    evaluation = evaluate(
        "full",
        np.arange(5),
        np.arange(5),
        by_similarity(score, np.eye(5), np.arange(5), np.arange(5)),
        ("image", "text"),
    )
    body = {
        "split": "test",
        "stage": "cosine",
        "arm": "clip",
        "seed": 0,
        "dataset": "d",
        "data": "0" * 64,
        "weight": 0.0,
    }
    manifest.write_json(folder / "r.json", {**body, **evaluation.as_dict(), "strata": {}, "per_item": {}})
    return folder / "r.json"


def _read_result(folder: Path) -> Any:
    from ccaco_cli.core.reporting import report_tables

    return report_tables.run_rows([folder / "r.json"])


def _odd(source: str, name: str, write: Callable[[Path, random.Random], Callable[[Any], None]]) -> Format:
    """A kind of odd inputs of a source."""

    def make(folder: Path) -> Path:
        fuzz_sources.lay_pictures(folder)
        for seed in range(100):
            write(folder / name, random.Random(seed))
            with contextlib.suppress(CcacoError):
                read(folder)
                break
        return folder / name

    def read(folder: Path) -> fuzz_sources.Outcomes:
        return fuzz_sources.outcomes(source, folder / name)

    return Format(make, read, write=write)


def formats() -> dict[str, Format]:
    """Name -> every format that ccaco reads."""
    image = {
        "filename": "a.jpg",
        "filepath": "images",
        "split": "train",
        "sentences": [{"raw": "a dog"}, {"raw": "b"}],
        "cocoid": 1,
    }
    karpathy = json.dumps({"images": [image, image | {"filename": "b.jpg", "split": "val"}], "dataset": "x"})
    coco = json.dumps(
        {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 2, "image_id": 1, "caption": "a dog"}]}
    )

    def official(folder: Path) -> Path:
        return _text("annotations/captions_train2017.json", coco)(folder)

    return {
        "png": _pixels("PNG"),
        "jpeg": _pixels("JPEG"),
        "gif": _pixels("GIF"),
        "webp": _pixels("WEBP"),
        "tiff": _pixels("TIFF"),
        "karpathy": _source("flickr8k", "dataset_flickr8k.json", karpathy),
        "karpathy-coco": _source("coco", "dataset_coco.json", karpathy),
        "coco": _source("coco", "", official),
        "tokens": _source("flickr8k", "Flickr8k.token.txt", "a.jpg#0\ta dog\na.jpg#1\tb\n"),
        "captions-cn": _source("flickr8k-cn", "flickr8kzhc.caption.txt", "a.jpg#zhc#0 狗\na.jpg#zhc#1 两只狗\n"),
        "captions-coco-cn": _source("coco-cn", "imageid.human-written-caption.txt", "a.jpg#0\t狗\na.jpg#1\t两只\n"),
        "captions-flickr30k-cn": _source("flickr30k-cn", "flickr30k_cn_test.txt", "a.jpg#zhm#0\t狗\na#zhm#1\t两只\n"),
        "chinese-clip": _source("chinese-clip", "train_texts.jsonl", '{"text": "狗", "image_ids": ["a", 7]}\n' * 2),
        "chinese-clip-images": _source("chinese-clip", "train_imgs.tsv", _stored_images),
        "languages": _source(
            "table",
            "t.csv",
            "filepath,title,language\nimages/a.jpg,a dog,en\nimages/a.jpg,狗,zh\nb.jpg,un perro,es\n",
            of_folder=False,
        ),
        "csv": _source("table", "t.csv", "filepath,title\nimages/a.jpg,a dog\nimages/a.jpg,b\n", of_folder=False),
        "tsv": _source("table", "t.tsv", "filepath\ttitle\tsplit\nimages/a.jpg\ta dog\ttrain\n", of_folder=False),
        "jsonl": _source(
            "table", "t.jsonl", '{"filepath": "images/a.jpg", "title": ["a", "b"]}\n' * 2, of_folder=False
        ),
        "parquet": _source("table", "t.parquet", _parquet, of_folder=False),
        "quoted-table": _odd("table", "t.csv", fuzz_sources.quoted_table),
        "odd-tar": _odd("webdataset", "s.tar", fuzz_sources.odd_tar),
        "structures-json": _odd("table", "t.json", fuzz_sources.structures),
        "structures-jsonl": _odd("table", "t.jsonl", fuzz_sources.structures),
        "structures-parquet": _odd("table", "t.parquet", fuzz_sources.structures),
        "manifest": Format(_within(_dataset, "manifest.json"), _read_dataset),
        "manifest-resealed": Format(_within(_dataset, "manifest.json"), _read_dataset, _resealed("d")),
        "shard": Format(_within(_dataset, "*.arrow"), _read_dataset),
        "shard-resealed": Format(_within(_dataset, "*.arrow"), _read_dataset, _resealed("d")),
        "index-manifest": Format(_within(_index, "manifest.json"), _read_index, _resealed("i.idx")),
        "index-vectors": Format(_within(_index, "vectors.npy"), _read_index, _resealed("i.idx")),
        "index-items": Format(_within(_index, "*.arrow"), _read_index, _resealed("i.idx")),
        "index-tokens": Format(_within(_index, "tokens.npy"), _read_index, _resealed("i.idx")),
        "index-offsets": Format(_within(_index, "offsets.npy"), _read_index, _resealed("i.idx")),
        "weights": Format(_weights, _read_weights),
        "state": Format(_state, _read_state),
        "array": Format(_array, _read_array),
        "config": Format(_config, _read_config),
        "result": Format(_result, _read_result),
    }
