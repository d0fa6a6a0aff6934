"""Embedding photos and captions: ccaco against a plain PIL loop over files with open_clip.

ccaco reads prepared shards, cuts captions to the longest of the batch, and uses bf16 where the device is faster
with it.
"""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import photos
import record
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from ccaco_cli.core import config_io, runtime
from ccaco_cli.core.config import LossConfig, ModelConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.loader import Column, MediaColumn
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.encoding.encode import encode, reduced_precision
from ccaco_cli.core.model import aligner as aligners

options = record.arguments(
    __doc__,
    models="ViT-B-32,RN50",
    count=256,
    size=112,
    precision="auto",
    photos="",
    peer_precision="fp32",
    peer_batches="64",  # the fastest of these is used
)
runtime.limit_threads()
count, device = (16 if options.quick else options.count), runtime.device(options.device)
dtype = runtime.encoding_dtype(options.precision, device)
kind_of = str(dtype).removeprefix("torch.")
preprocess = open_clip.image_transform(options.size, is_train=False)
with tempfile.TemporaryDirectory() as place:
    root = Path(place)
    (root / "files").mkdir()
    files = photos.folder(root / "files", count, options.photos)
    source = photos.table(root, files)

    def prepared(image_size: int | None) -> shards.PairData:
        out = root / f"data-{image_size}"
        prepare(
            "table",
            source_path=source,
            out=out,
            options=SourceOptions(),
            write=WriteOptions(image_size=image_size, workers=0),
        )
        return shards.open(out)

    spent = record.seconds(lambda: prepared(options.size))
    data = {"resized": shards.open(root / f"data-{options.size}"), "full-size": prepared(None)}
    captions = data["resized"].split("train").captions

    def measured(name: str) -> list[record.Row]:
        spec = f"open_clip:{name}@none"
        settings = {"image.spec": spec, "text.spec": spec, "image.size": options.size, "width": 512}
        config = config_io.override(ModelConfig(), settings)
        torch.manual_seed(0)
        aligner, towers = aligners.build(config, LossConfig(), ("image", "text"))
        aligner.to(device).eval()
        model = open_clip.create_model(name, force_image_size=options.size).to(device).eval()
        tokenize = open_clip.get_tokenizer(name)
        # as in ``ccaco embed``, except for small images, which it reads decoded from a cache from the second run on
        media = {
            kind: MediaColumn(dataset.split("train"), "image", towers["image"].preprocess)
            for kind, dataset in data.items()
        }
        texts = columns(data["resized"], "train", aligner, towers, config)["text"]

        def ours(modality: str, column: Column) -> None:
            np.save(root / "ours.npy", encode(aligner, modality, column).z.numpy().astype(np.float16))

        peer_dtype = runtime.encoding_dtype(options.peer_precision, device)
        model.to(peer_dtype)

        def image_batch(rows: int) -> torch.Tensor:
            return torch.zeros(rows, 3, options.size, options.size, device=device, dtype=peer_dtype)

        @torch.inference_mode()
        def seconds_per_image(rows: int) -> float:
            batch = image_batch(rows)
            encode_batch = partial(model.encode_image, batch)
            if not record.fits(encode_batch):
                return float("inf")
            return min(record.seconds(encode_batch, options.device) for _ in range(3)) / rows

        sizes = list(dict.fromkeys(min(int(size), count) for size in options.peer_batches.split(",")))
        peer_batch = sizes[0] if len(sizes) == 1 else min(sizes, key=seconds_per_image)
        facts.append(f"{name}: the peer computes in {options.peer_precision}, {peer_batch} at a time")

        @torch.inference_mode()
        def pil_loop() -> None:
            embeddings = []
            for first in range(0, count, peer_batch):
                batch = torch.stack([preprocess(Image.open(file)) for file in files[first : first + peer_batch]])
                embeddings.append(
                    torch.nn.functional.normalize(
                        model.encode_image(batch.to(device, peer_dtype)).float(), dim=-1
                    ).cpu()
                )
            np.save(root / "theirs.npy", torch.cat(embeddings).numpy().astype(np.float16))

        @torch.inference_mode()
        def text_loop() -> None:
            for first in range(0, count, peer_batch):
                model.encode_text(tokenize(captions[first : first + peer_batch]).to(device), normalize=True).cpu()

        torch.backends.mha.set_fastpath_enabled(False)  # its operations are not counted
        with FlopCounterMode(display=False) as counter:
            reference_z = encode(aligner, "image", media["resized"]).z
        torch.backends.mha.set_fastpath_enabled(True)
        limit = record.operations(counter.get_total_flops(), options.device, kind_of)
        turns = partial(record.alternate, repeats=options.repeats, device=options.device)
        with reduced_precision(aligner, dtype):  # once a command, as loading a model is
            ours("image", media["resized"])
            difference = 1 - torch.nn.functional.cosine_similarity(
                torch.from_numpy(np.load(root / "ours.npy")).double(), reference_z.double()
            )
            facts.append(f"{name}: {kind_of} and float32 differ by {float(difference.max()):.1e} of cosine at most")
            rows = [
                turns(
                    f"{name}, {count} photos, {kind} shards",
                    partial(ours, "image", column),
                    pil_loop,
                    wanted=2,
                    limit=limit,
                )
                for kind, column in media.items()
            ]
            return [*rows, turns(f"{name}, {count} captions", partial(ours, "text", texts), text_loop, wanted=2)]

    facts: list[str] = []
    rows = [row for name in options.models.split(",") for row in measured(name)]
facts += [
    f"our towers compute in {kind_of}; photos at {options.size} px",
    f"prepare (once, checks included): {record.time_text(spent)}",
]
facts += [
    f"{row.label}: the arithmetic alone would be {statistics.median(row.factors) * row.over_limit:.2f} times as fast "
    "as the peer"
    for row in rows
    if row.over_limit and row.factors
]
facts.append(f"peak memory of this process: {record.own_memory():,.0f} MiB")
record.finish("Embedding", rows, options, facts=facts)
