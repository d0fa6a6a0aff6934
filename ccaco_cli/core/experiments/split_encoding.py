"""Encodes a split with everything that scoring needs, and computes the validation metrics that choose the best
epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.loader import Column
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.encoding.encode import EncodeOptions, encode
from ccaco_cli.core.encoding.samples import encode_samples
from ccaco_cli.core.evaluation.protocols import by_similarity, evaluate
from ccaco_cli.core.experiments.templates import Template, class_vectors
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval.explain import content_word_spans
from ccaco_cli.core.scoring import caption_choice
from ccaco_cli.core.scoring.languages import caption_languages
from ccaco_cli.core.scoring.split_scorer import SplitEncodings, classify
from ccaco_cli.core.scoring.two_stage import exhaustive
from ccaco_cli.core.types import EncodedSamples

ACROSS_PROCESSES = EncodeOptions(across_processes=True)


@dataclass(frozen=True, eq=False)
class SplitEncoder:
    """Encodes splits of a data set by one model.

    Attributes:
        towers: modality -> tower, for preprocessing.
        heads: domain and label heads of a run across domains.
        templates: sentences for the name of a class; empty = the template of the data set.
    """

    data: PairData
    config: RunConfig
    aligner: Aligner
    towers: Mapping[str, Tower]
    heads: Adaptation | None = None
    templates: tuple[Template, ...] = ()

    def encode(self, name: str, columns: Mapping[str, Column]) -> SplitEncodings:
        """Encodes the columns of a split, its caption choices and its classes."""
        with_tokens = self.config.loss.beta > 0
        a, b = (encode(self.aligner, modality, c, local_tokens=with_tokens) for modality, c in columns.items())
        row_a, row_b = (column.row for column in columns.values())
        choices = None
        if "text" in columns:
            choices = caption_choice.encode_choices(
                self.data.split(name),
                self.towers["text"].preprocess,
                lambda column: encode(self.aligner, "text", column, local_tokens=with_tokens),
            )
        language = caption_languages(self.data.split(name)) if "text" in columns else None
        spans = (
            partial(content_word_spans, self.towers["text"])
            if with_tokens and self.data.modalities[1] == "text"
            else None
        )
        return SplitEncodings(a, b, row_a, row_b, choices, self._class_vectors(a, name), language, spans)

    def validate(self, name: str, columns: Mapping[str, Column]) -> dict[str, float]:
        """The metrics of a validation split by which the best epoch is chosen.

        Ranks by cosine; without a contrastive loss by the cross score of every pair of the first rows; with neither
        loss, classes are ranked.
        """
        (modality_a, a), (modality_b, b) = columns.items()
        split, loss = self.data.split(name), self.config.loss
        if loss.alpha == loss.beta == 0:
            encoded_a = encode(self.aligner, modality_a, a, options=ACROSS_PROCESSES)
            classes = self._class_vectors(encoded_a, name)
            assert classes is not None
            return classify(split, a.row, classes, self.data.modalities)[0].metrics
        if loss.alpha > 0:
            encoded_a, encoded_b = (
                encode(self.aligner, m, c, options=ACROSS_PROCESSES) for m, c in ((modality_a, a), (modality_b, b))
            )
            groups = split.group[a.row], split.group[b.row]
            device = next(self.aligner.parameters()).device
            rank_pool = by_similarity(encoded_a.z.to(device), encoded_b.z.to(device), *groups)
            return evaluate("full", *groups, rank_pool, self.data.modalities).metrics
        rows = min(self.config.eval.exhaustive, len(split.group))
        items_a, items_b = (np.flatnonzero(column.row < rows) for column in (a, b))
        encoded_a, encoded_b = (
            encode(self.aligner, m, c, items=items, local_tokens=True, options=ACROSS_PROCESSES)
            for m, c, items in ((modality_a, a, items_a), (modality_b, b, items_b))
        )
        groups = split.group[a.row[items_a]], split.group[b.row[items_b]]
        return exhaustive(self.aligner, encoded_a, encoded_b, groups, "full").metrics

    def _class_vectors(self, samples: EncodedSamples, name: str) -> tuple[Tensor, Tensor] | None:
        """``SplitEncodings.classes``: logits of the label predictor and one-hot classes, or else embeddings of samples
        and of prompts.
        """
        names = self.data.split(name).labels
        if self.heads is not None and self.heads.predictor is not None:
            with torch.inference_mode():
                device = next(self.heads.parameters()).device
                logits = self.heads.eval().predict(samples.z.to(device)).float().cpu()
            return logits, torch.eye(len(names))
        if len(names) < 2 or self.data.modalities[1] != "text":
            return None
        template = self.data.manifest.facts.get("source", {}).get("template", "{}")
        templates = self.templates or (template.format,)
        return samples.z, class_vectors(names, templates, self._encode_sentences)

    def _encode_sentences(self, sentences: list[str]) -> Tensor:
        return encode_samples(self.aligner, self.towers["text"], sentences, local_tokens=False).z
