"""Two-stage search of a test split: shortlists by cosine, then the cross branch. The model is on the device."""

from __future__ import annotations

import numpy as np
import record
import torch
import torch.nn.functional as F

from ccaco_cli.core import config_io, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.evaluation.metrics import summary
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.retrieval.match import match_logits
from ccaco_cli.core.retrieval.rerank import TWO_STAGE, Scorer
from ccaco_cli.core.scoring.two_stage import shortlists
from ccaco_cli.core.types import Embedding, EncodedSamples, LocalTokens

options = record.arguments(__doc__, images=1000, captions=5, tokens=49, words=16)
images = 60 if options.quick else options.images
device = runtime.device(options.device)
config = config_io.override(RunConfig(), {})
torch.manual_seed(0)
aligner, _ = aligners.build(config.model, config.loss, ("image", "text"))
aligner.to(device).eval()
owner = np.repeat(np.arange(images), options.captions)


def samples(z: torch.Tensor, tokens: int) -> EncodedSamples:
    local = F.normalize(torch.randn(len(z), tokens, config.model.width), dim=-1).half() / tokens
    return EncodedSamples(Embedding(z, z), LocalTokens(local, torch.ones(len(z), tokens, dtype=torch.bool)))


image_z = F.normalize(torch.randn(images, config.model.width), dim=-1)
text_z = F.normalize(image_z[owner] + F.normalize(torch.randn(len(owner), config.model.width), dim=-1), dim=-1)
image, text = samples(image_z, options.tokens), samples(text_z, options.words)
groups = (np.arange(images), owner)


def search() -> None:
    directions = shortlists(aligner, image, text, groups, config.eval)
    scorer = Scorer.of(TWO_STAGE, 20.0, 0.5)
    summary(*(shortlist.ranks(scorer) for shortlist in directions))


pairs = torch.stack([torch.arange(images).repeat_interleave(8), torch.arange(8 * images) % len(owner)], 1)
rows = [
    record.alone(f"{images:,} x {len(owner):,}: shortlists, cross branch, ranks", search, options.repeats),
    record.alone(
        f"cross branch of {len(pairs):,} pairs",
        lambda: match_logits(aligner, image.local_tokens, text.local_tokens, pairs),
        options.repeats,
    ),
]
record.finish("Two-stage search of a split", rows, options)
