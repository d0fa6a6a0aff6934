"""A model of ccaco for mteb, so that the image and text tasks of MIEB (arXiv:2504.10471) run on it.

usage: python examples/mteb_encoder.py RUN|SPEC TASK [TASK ...]
for example: python examples/mteb_encoder.py runs/first CIFAR10ZeroShot Flickr30kI2TRetrieval
Needs ``pip install mteb`` (2.x), and the data sets of the tasks, which mteb downloads.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import ccaco_cli

MODALITIES = {"image": "images", "text": "texts", "audio": "audio", "video": "video"}
"""Column of a batch of mteb -> keyword of ``Model.encode``."""


class Encoder:
    """The encoder interface of mteb 2 around ``ccaco_cli.load``.

    Args:
        model_name: a run, an index or a SPEC of a pretrained model.
        revision: ignored; a run is identified by its manifest.
        device: ``auto``, ``cpu``, ``cuda`` ...
        precision: as in ``ccaco_cli.load``; ``fp32`` does not depend on the size of the batches.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        precision: str = "fp32",
        **options: Any,
    ):
        self.name = model_name
        self.model = ccaco_cli.load(model_name, device or "auto", precision)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb stores beside the results."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        name = Path(self.name.rpartition(":")[2]).name  # without the folders of this machine
        parameters = sum(parameter.numel() for parameter in self.model.aligner.parameters())
        return ModelMeta(
            loader=None,
            name=f"ccaco/{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}",
            revision=None,
            release_date=None,
            languages=None,
            n_parameters=parameters,
            memory_usage_mb=None,
            max_tokens=None,
            embed_dim=self.model.embedding_size,
            license=None,
            open_weights=True,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=False,
            training_datasets=None,
            modalities=list(self.model.modalities),
        )

    def encode(self, inputs: Iterable[Mapping[str, Any]], **task: Any) -> np.ndarray:
        """Encodes batches of one modality, or of two that are then added, as mteb's own CLIP models do.

        Args:
            inputs: batches: ``{"image": [...]}``, ``{"text": [...]}`` or both.
            task: what mteb says about its task; none of it changes an embedding.
        Returns:
            [n, E] float32; unit norm where the samples are of one modality.
        """
        parts = []
        for batch in inputs:
            columns = [column for column in MODALITIES if column in batch and column in self.model.modalities]
            if not columns:
                known = " and ".join(self.model.modalities)
                raise ValueError(f"a batch of {', '.join(batch)}, and this model encodes {known}")
            embeddings = [self.model.encode(**{MODALITIES[column]: list(batch[column])}) for column in columns]
            parts.append(np.sum(embeddings, axis=0, dtype=np.float32))
        return np.concatenate(parts) if parts else np.empty((0, self.model.embedding_size), np.float32)

    def get_image_embeddings(self, images: Iterable[Mapping[str, Any]], **task: Any) -> np.ndarray:
        """The embeddings of the images of batches, whatever else they hold."""
        return self.encode(({"image": batch["image"]} for batch in images), **task)

    def get_text_embeddings(self, texts: Iterable[Mapping[str, Any]], **task: Any) -> np.ndarray:
        """The embeddings of the texts of batches, whatever else they hold."""
        return self.encode(({"text": batch["text"]} for batch in texts), **task)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """[n, m] cosine similarity of every pair."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """[n] cosine similarity of row i of both."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)


def _unit(embeddings: Any) -> np.ndarray:
    vectors = np.atleast_2d(np.asarray(embeddings, np.float32))
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def main(model: str, task_names: list[str]) -> None:
    """Runs tasks of mteb and prints the main score of each."""
    import mteb

    for result in mteb.evaluate(Encoder(model), mteb.get_tasks(tasks=task_names)):
        print(f"{result.task_name}: {result.get_score():.4f}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
