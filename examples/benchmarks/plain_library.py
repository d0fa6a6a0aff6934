"""The peer of ``library.py``: an index of photos in plain open_clip and faiss, as one writes it in an afternoon.

    python plain_library.py index | update | query   MODEL-FOLDER PHOTOS INDEX

It remembers names only: it finds new files, but neither changed, moved nor removed ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import faiss
import numpy as np
import open_clip
import torch
from PIL import Image

BATCH = 64


@torch.inference_mode()
def embed(model: torch.nn.Module, preprocess: object, files: list[Path]) -> np.ndarray:
    parts = []
    for first in range(0, len(files), BATCH):
        batch = torch.stack([preprocess(Image.open(file).convert("RGB")) for file in files[first : first + BATCH]])  # type: ignore[operator]
        parts.append(model.encode_image(batch, normalize=True).numpy())  # type: ignore[operator]
    return np.concatenate(parts)


def main(step: str, model_folder: str, photos: Path, out: Path) -> None:
    name = f"local-dir:{model_folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    names_file, index_file = out / "names.txt", out / "vectors.faiss"
    if step == "query":
        tokens = open_clip.get_tokenizer(name)(["a red square"])
        with torch.inference_mode():
            query = model.encode_text(tokens, normalize=True).numpy()
        _, rows = faiss.read_index(str(index_file)).search(query, 10)
        names = names_file.read_text().splitlines()
        print("\n".join(names[row] for row in rows[0]))
        return
    out.mkdir(exist_ok=True)
    known = names_file.read_text().splitlines() if step == "update" else []
    seen_names = set(known)
    files = [file for file in sorted(photos.rglob("*.jpg")) if str(file) not in seen_names]
    index = faiss.read_index(str(index_file)) if known else None
    if files:
        vectors = embed(model, preprocess, files)
        index = index or faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        faiss.write_index(index, str(index_file))
        names_file.write_text("\n".join([*known, *map(str, files)]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
