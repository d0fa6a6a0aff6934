"""Retrieval metrics at the size of COCO's test split: ours (all ranks, mAP, ties) against CLIP_benchmark's recalls."""

from __future__ import annotations

import time

import record
import torch
import torch.nn.functional as F

from ccaco_cli.core.evaluation.metrics import summary
from ccaco_cli.core.evaluation.tiles import both_ranks

try:
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k
except (
    ImportError
):  # its two functions, as in CLIP_benchmark 1.6.2 (MIT, LAION), clip_benchmark/metrics/zeroshot_retrieval.py

    def recall_at_k(scores, positive_pairs, k):  # type: ignore[no-untyped-def]
        topk = torch.topk(scores, k, dim=1)[1]
        onehot = F.one_hot(topk, num_classes=scores.shape[1])
        return (onehot * positive_pairs.view(len(scores), 1, scores.shape[1])).sum(dim=(1, 2)) / positive_pairs.sum(
            dim=1
        )

    def batchify(func, x, y, batch_size, device, *args, **kwargs):  # type: ignore[no-untyped-def]
        parts = range(0, len(x), batch_size)
        return torch.cat(
            [
                func(x[s : s + batch_size].to(device), y[s : s + batch_size].to(device), *args, **kwargs).cpu()
                for s in parts
            ]
        )


given = record.arguments(__doc__, pictures=5000, captions=5, width=512, large=0)
pictures = 500 if given.quick else given.pictures
DRAWN = """
import torch, torch.nn.functional as F
from ccaco_cli.core.evaluation.tiles import both_ranks
generator = torch.Generator().manual_seed(0)
owner = torch.arange({pictures}).repeat_interleave({captions})
image = F.normalize(torch.randn({pictures}, {width}, generator=generator), dim=-1)
text = image[owner].add_(F.normalize(torch.randn(len(owner), {width}, generator=generator), dim=-1), alpha=1.1)
text /= text.norm(dim=1, keepdim=True)
"""  # a model that has learned
space: dict[str, torch.Tensor] = {}
exec(DRAWN.format(pictures=pictures, captions=given.captions, width=given.width), space)
image, text, owner = space["image"].to(given.device), space["text"].to(given.device), space["owner"]
kept: dict[str, dict[str, float]] = {}


def ours() -> None:
    kept["ours"] = summary(*both_ranks(image, text, torch.arange(pictures), owner))


def theirs() -> None:
    scores = text @ image.t()
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), owner] = True
    found = {}
    for k in (1, 5, 10):
        for name, table, truth in (("image", scores, positive), ("text", scores.T, positive.T)):
            hits = batchify(recall_at_k, table, truth, 64, given.device, k=k) > 0
            found[f"{name}_retrieval_recall@{k}"] = hits.float().mean().item()
    kept["theirs"] = found


limit = record.operations(
    2 * pictures * len(owner) * given.width, given.device, "float32" if given.device == "cpu" else "float64"
)
rows = [
    record.in_turn(
        f"{pictures:,} x {len(owner):,}: ranks, mAP, recalls",
        ours,
        theirs,
        given.repeats,
        wanted=7,
        device=given.device,
        limit=limit,
    )
]
apart = max(
    abs(kept["ours"][f"{a}_R@{k}"] - kept["theirs"][f"{b}_retrieval_recall@{k}"])
    for a, b in (("text_to_image", "image"), ("image_to_text", "text"))
    for k in (1, 5, 10)
)
facts = [f"largest difference of recalls: {apart:.5f}"]
if given.device == "cpu":
    drawn = DRAWN.format(pictures=pictures, captions=given.captions, width=given.width)
    begin = f"{drawn}\nimage[:64] @ text[:64].T\n# begin\n"
    peer = "scores = text @ image.t()\npositive = torch.zeros_like(scores, dtype=torch.bool)\n"
    peer += "positive[torch.arange(len(scores)), owner] = True\n"
    peer += "for k in (1, 5, 10):\n    for t, p in ((scores, positive), (scores.T, positive.T)):\n        for s in range(0, len(t), 64):\n"
    peer += "            one = F.one_hot(t[s:s+64].topk(k, dim=1)[1], t.shape[1])\n            (one * p[s:s+64][:, None]).sum((1, 2))"
    mine = f"both_ranks(image, text, torch.arange({pictures}), owner)"
    rows.append(record.memory_row("memory", record.memory(begin + mine), record.memory(begin + peer), wanted=30))
if given.large:  # 123287: COCO whole
    whole = DRAWN.format(pictures=given.large, captions=5, width=given.width)
    big = f"{whole}\n# begin\nboth_ranks(image, text, torch.arange({given.large}), owner)"
    vectors = 6 * given.large * given.width * 4 / 2**20
    begun = time.perf_counter()
    more = record.memory(big)
    spent = record.time_text(time.perf_counter() - begun)
    facts.append(
        f"{given.large:,} x {5 * given.large:,} in blocks: {more:,.0f} MiB beside the {vectors:,.0f} of the vectors, {spent}"
    )
record.finish("Evaluation", rows, given, facts=facts)
