"""Retrieval metrics at the size of COCO's test split: ccaco (ranks, mAP, ties) against CLIP_benchmark's recalls."""

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


options = record.arguments(__doc__, pictures=5000, captions=5, width=512, large=0)
pictures = 500 if options.quick else options.pictures
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
exec(DRAWN.format(pictures=pictures, captions=options.captions, width=options.width), space)
image, text, owner = space["image"].to(options.device), space["text"].to(options.device), space["owner"]
recalls: dict[str, dict[str, float]] = {}


def ours() -> None:
    recalls["ours"] = summary(*both_ranks(image, text, torch.arange(pictures), owner))


def peer() -> None:
    scores = text @ image.t()
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), owner] = True
    figures = {}
    for k in (1, 5, 10):
        for name, table, truth in (("image", scores, positive), ("text", scores.T, positive.T)):
            hits = batchify(recall_at_k, table, truth, 64, options.device, k=k) > 0
            figures[f"{name}_retrieval_recall@{k}"] = hits.float().mean().item()
    recalls["theirs"] = figures


limit = record.operations(
    2 * pictures * len(owner) * options.width, options.device, "float32" if options.device == "cpu" else "float64"
)
rows = [
    record.alternate(
        f"{pictures:,} x {len(owner):,}: ranks, mAP, recalls",
        ours,
        peer,
        options.repeats,
        wanted=7,
        device=options.device,
        limit=limit,
    )
]
difference = "not known, because the peer ran out of memory"
if "theirs" in recalls:
    differences = (
        abs(recalls["ours"][f"{a}_R@{k}"] - recalls["theirs"][f"{b}_retrieval_recall@{k}"])
        for a, b in (("text_to_image", "image"), ("image_to_text", "text"))
        for k in (1, 5, 10)
    )
    difference = f"{max(differences):.5f}"
facts = [f"largest difference of recalls: {difference}"]
if options.device == "cpu":
    drawn = DRAWN.format(pictures=pictures, captions=options.captions, width=options.width)
    begin = f"{drawn}\nimage[:64] @ text[:64].T\n# begin\n"
    peer_code = "scores = text @ image.t()\npositive = torch.zeros_like(scores, dtype=torch.bool)\n"
    peer_code += "positive[torch.arange(len(scores)), owner] = True\n"
    peer_code += "for k in (1, 5, 10):\n    for t, p in ((scores, positive), (scores.T, positive.T)):\n"
    peer_code += "        for s in range(0, len(t), 64):\n"
    peer_code += "            one_hot = F.one_hot(t[s:s+64].topk(k, dim=1)[1], t.shape[1])\n"
    peer_code += "            (one_hot * p[s:s+64][:, None]).sum((1, 2))"
    ours_code = f"both_ranks(image, text, torch.arange({pictures}), owner)"
    rows.append(
        record.memory_row("memory", record.memory(begin + ours_code), record.memory(begin + peer_code), wanted=30)
    )
if options.large:  # 123287: COCO whole
    inputs_code = DRAWN.format(pictures=options.large, captions=5, width=options.width)
    big = f"{inputs_code}\n# begin\nboth_ranks(image, text, torch.arange({options.large}), owner)"
    vectors = 6 * options.large * options.width * 4 / 2**20
    begun = time.perf_counter()
    more = record.memory(big)
    spent = record.time_text(time.perf_counter() - begun)
    facts.append(
        f"{options.large:,} x {5 * options.large:,} in blocks: {more:,.0f} MiB beside the {vectors:,.0f} of the "
        f"vectors, {spent}"
    )
record.finish("Evaluation", rows, options, facts=facts)
