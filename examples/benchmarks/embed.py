"""Embedding photos and captions: ours (prepared shards, captions cut to the longest) against a plain PIL loop over files with open_clip."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import open_clip
import photos
import record
import torch
from PIL import Image

from ccaco_cli.core import config as configs
from ccaco_cli.core import runtime
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.retrieval.columns import columns
from ccaco_cli.core.retrieval.embed import encode
from ccaco_cli.core.workflows.prepare import prepare

given = record.arguments(__doc__, model="RN50", count=256, size=112, photos="")
runtime.threads()
count = 16 if given.quick else given.count
spec, device = f"open_clip:{given.model}@none", runtime.device(given.device)
settings = {"image.spec": spec, "text.spec": spec, "image.size": given.size, "width": 512}
config = configs.override(configs.ModelConfig(), settings)
torch.manual_seed(0)
aligner, towers = aligners.build(config, configs.LossConfig(), ("image", "text"))
aligner.to(device).eval()
model = open_clip.create_model(given.model, force_image_size=given.size).to(device).eval()
preprocess, tokenize = open_clip.image_transform(given.size, is_train=False), open_clip.get_tokenizer(given.model)
with tempfile.TemporaryDirectory() as place:
    root = Path(place)
    (root / "files").mkdir()
    files = photos.folder(root / "files", count, given.photos)
    source = photos.table(root, files)
    spent = record.seconds(
        lambda: prepare("table", source_path=source, out=root / "data", options=SourceOptions(), image_size=given.size, workers=0)
    )
    data = shards.open(root / "data")
    captions = data.split("train").captions
    sides = columns(data, "train", aligner, towers, config)

    def ours(modality: str) -> None:
        z = encode(aligner, modality, sides[modality]).z
        np.save(root / "ours.npy", z.numpy().astype(np.float16))

    @torch.inference_mode()
    def pil_loop() -> None:
        found = []
        for first in range(0, count, 64):
            batch = torch.stack([preprocess(Image.open(file)) for file in files[first : first + 64]])
            found.append(torch.nn.functional.normalize(model.encode_image(batch.to(device)), dim=-1).cpu())
        np.save(root / "theirs.npy", torch.cat(found).numpy().astype(np.float16))

    @torch.inference_mode()
    def text_loop() -> None:
        for first in range(0, count, 64):
            model.encode_text(tokenize(captions[first : first + 64]).to(device), normalize=True).cpu()

    rows = [
        record.in_turn(
            f"{given.model} at {given.size} px, {count} photos",
            lambda: ours("image"),
            pil_loop,
            given.repeats,
            wanted=2,
            device=given.device,
        ),
        record.in_turn(f"{count} captions", lambda: ours("text"), text_loop, given.repeats, wanted=2, device=given.device),
    ]
facts = [f"prepare (once, checks included): {record.time_text(spent)}"]
facts.append(f"peak memory of this process: {record.own_memory():,.0f} MiB")
record.finish("Embedding", rows, given, facts=facts)
