"""A trained model from Python: prints the answers of an index, and the scores of images and texts.

usage: python examples/python_api.py [RUN [INDEX]]
The defaults are what examples/quickstart.sh leaves: quickstart/runs/first and quickstart/scenes.idx
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

import ccaco_cli
from ccaco_cli.core.retrieval.index import Index

run, index_folder = (*sys.argv[1:], *["quickstart/runs/first", "quickstart/scenes.idx"][len(sys.argv) - 1 :])[:2]
model = ccaco_cli.load(run)
print(model)

queries = ["an orange cat napping", "a dog chasing a ball"]
for query, hits in zip(queries, model.search(index_folder, texts=queries, k=3), strict=True):
    print(f"\n{query}")
    for hit in hits:
        print(
            f"  {hit.rank}. score {hit.score:6.2f}  cosine {hit.cosine:5.2f}  {hit.item['id']}: {hit.item['text'][0]}"
        )

# Images can be paths, PIL images, arrays or bytes. These are the thumbnails of the first three items.
index = Index(Path(index_folder))
items = [index.sides["image"].item(row) for row in range(3)]
images = [Image.open(io.BytesIO(item["thumbnail"])) for item in items]
texts = [item["text"][0] for item in items]

print(f"\nembeddings: {model.encode(images=images).shape}, {model.encode(texts=texts).shape}")
print("\nscores, one row per image, one column per text:")
for row in model.score(images, texts):
    print("  " + "  ".join(f"{score:7.2f}" for score in row))
print("match logits of image i with text i: " + "  ".join(f"{logit:.2f}" for logit in model.match(images, texts)))
