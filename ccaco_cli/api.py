"""A trained model from Python, ``ccaco_cli.load("runs/first")``: a thin layer over the functions of the commands."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch

from ccaco_cli.core import manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.encoding.conversion import as_samples
from ccaco_cli.core.encoding.encode import EncodeOptions, reduce_precision
from ccaco_cli.core.encoding.samples import encode_samples
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.experiments.pretrained import is_run, open_model
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval.address import is_address
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.match import match_logits
from ccaco_cli.core.retrieval.open_index import open_index
from ccaco_cli.core.retrieval.rerank import CROSS, Scorer, score_kind
from ccaco_cli.core.retrieval.search import Hit, SearchOptions, ask
from ccaco_cli.core.scoring.two_stage import logit_scale
from ccaco_cli.core.text_input import check_utf8, is_blank
from ccaco_cli.core.types import EncodedSamples, OnProgress, no_progress

__all__ = ["Hit", "Model", "load"]

Array = np.ndarray[Any, Any]
SAMPLES = {modality.keyword: name for name, modality in MODALITIES.items() if modality.keyword}
"""Keyword of the methods of ``Model`` -> modality."""


class Samples(TypedDict, total=False):
    """The keywords of ``Model.encode`` and ``Model.search`` for samples: one of them, a list or one sample alone."""

    images: Any
    texts: Any
    audio: Any
    video: Any
    arrays: Any
    arrays2: Any


class SearchSettings(TypedDict, total=False):
    """Further keywords of ``Model.search``, which are the options of ``ccaco retrieve``.

    Attributes:
        target: modalities of the items that are searched, separated by commas, such as "image" for images that are
            like an image; by default all of an index of media files, else the one that the query is not of, or the
            only one that the index holds.
        where: a condition in SQL on the columns of the items: "year >= 2020 and folder like '%/beach/%'".
        dedup: cosine from which items are near-duplicates, which are one hit with their number in ``hit.duplicates``;
            by default each item is a hit.
        plus, minus: texts that are added to each query and taken away from it; a list, or one text.
        mix_weight: of each of these texts, where that of the query is 1; 1 by default.
    """

    target: str
    where: str
    dedup: float
    plus: str | Sequence[str]
    minus: str | Sequence[str]
    mix_weight: float


class SearchKeywords(Samples, SearchSettings, total=False):
    """The queries of ``Model.search`` and its settings."""


def load(path_or_spec: str | Path, device: str = "auto", precision: str = "auto") -> Model:
    """Loads the trained model of a run or of an index.

    Args:
        path_or_spec: folder of a finished run (``runs/first``) or of an index (``photos.idx``), which holds its model;
            an index in a database (``milvus:photos.db``); or a pretrained model (``open_clip:ViT-B-32@openai``,
            ``hf:openai/clip-vit-base-patch32``, ``hf:FOLDER``).
        device: ``auto``, ``cpu``, ``cuda`` ...; a model of an index runs on the CPU, as it does in ``ccaco retrieve``.
        precision: of the towers, as in ``ccaco embed``: ``auto`` (16 bits where the device is faster with it),
            ``fp32``, ``bf16`` or ``fp16``; a model of an index computes as its items were computed.
    Returns:
        The model, ready to encode.
    Raises:
        ConfigError: neither a SPEC nor the folder of a run or of an index.
        TowerError: a SPEC of no pretrained model of two modalities, or weights that cannot be had.
        ManifestError: the run is not finished, or files of the folder were changed.
    """
    path = Path(path_or_spec)
    kind = "index" if is_address(path_or_spec) else _kind(path)
    runtime.limit_threads()
    if kind == "run" or (kind != "index" and not is_run(path_or_spec)):
        aligner, towers, config, run = open_model(path_or_spec, device)
        reduce_precision(aligner, runtime.encoding_dtype(precision, next(aligner.parameters()).device))
        return Model(aligner, towers, config, weight=float(run.facts.get("weight") or 0.0), run=run.sha256)
    if kind == "index":
        index = open_index(path_or_spec)
        run_digest = index.manifest.inputs["run"]["sha256"]
        return Model(*index.model, weight=index.weight, run=run_digest, index=index)
    raise ConfigError(
        "no model can be loaded from this",
        where=path_or_spec,
        expected="the folder of a finished run or of an index, or a SPEC such as open_clip:ViT-B-32@openai",
        next="ccaco train --dataset scenes --name first, then ccaco_cli.load('runs/first')",
    )


def _kind(path: Path) -> str:
    """The kind of the artefact in a folder; "" = there is none."""
    if not manifest.exists(path):
        return ""
    try:
        return str(manifest.read_json(path / manifest.NAME)["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


class Model:
    """A trained aligner with its preprocessing.

    Samples are given as lists. An image is a path, the bytes of a file, a PIL image or an array [H, W, 3] or [H, W]
    uint8. A text is a str. Audio is a path, bytes, or (array [n] or [channels, n], samples per second). A video is a
    path, bytes, or (array [T, H, W, 3] uint8, frames per second). An array is a path, bytes, or a NumPy array [N, W] or
    [W]; a list of vectors is ``list(vectors)``.

    Attributes:
        modalities: the two modalities that the model aligns, first and second: ("image", "text") ...; of a run that was
            continued with a new pair, ``encode`` and ``search`` also take the further modalities.
        config: settings of the run that trained it.
        scorer: the score that ranks answers: its kind, the scale of cosines, and the weight of match logits.
    """

    def __init__(
        self,
        aligner: Aligner,
        towers: Mapping[str, Tower],
        config: RunConfig,
        *,
        weight: float = 0.0,
        run: str = "",
        index: Index | None = None,
    ):
        self.aligner, self.towers, self.config = aligner.eval(), dict(towers), config
        self.modalities = aligner.modalities
        kind = score_kind(config.loss.alpha, config.loss.beta, weight)
        self.scorer = Scorer.of(kind, logit_scale(aligner), weight)
        self._run, self._index, self._opened = run, index, dict[Path, Index]()

    @property
    def embedding_size(self) -> int:
        """Numbers of one embedding."""
        return self.aligner.embedding_size

    def encode(self, *, batch_size: int = 0, show_progress: bool = False, **samples: Unpack[Samples]) -> Array:
        """Embeds samples of one modality; exactly as ``ccaco embed`` does.

        Args:
            batch_size: samples at a time; 0 = what suits the device.
            show_progress: print progress to stderr.
            samples: one of images, texts, audio, video, arrays and arrays2: a list, or one sample alone.
        Returns:
            [n, E] float32, unit norm: the dot product of two rows is their cosine similarity.
        Raises:
            ConfigError: no keyword or several, or a modality that this model was not trained on.
            DataError: a sample that cannot be read or decoded.
        """
        modality, listed = self._samples(samples)
        encoded = self._encode(modality, listed, batch_size, show_progress, local_tokens=False)
        vectors: Array = encoded.z.numpy()
        return vectors

    def similarity(self, a: Any, b: Any) -> Array:
        """Cosine similarity of every pair of two lists of embeddings.

        Args:
            a, b: [n, E] and [m, E] as ``encode`` gives them.
        Returns:
            [n, m] float32, -1..1.
        Raises:
            ConfigError: arrays of another width.
        """
        embeddings = [np.asarray(x) for x in (a, b)]
        for array in embeddings:
            if array.ndim != 2 or array.shape[1] != self.embedding_size or not np.issubdtype(array.dtype, np.floating):
                raise ConfigError(
                    "no embeddings of this model",
                    where=f"an array of shape {list(array.shape)} and type {array.dtype}",
                    expected=f"[n, {self.embedding_size}] float, as encode gives them",
                )
        first, second = (array.astype(np.float32, copy=False) for array in embeddings)
        cosines: Array = first @ second.T
        return cosines

    def match(self, a: Any, b: Any, *, batch_size: int = 0) -> Array:
        """Match logits of the cross branch for listed pairs.

        Args:
            a: n samples of the first modality (``modalities[0]``, for example images).
            b: n samples of the second; a[i] and b[i] are one pair.
        Returns:
            [n] float32, higher = better match.
        Raises:
            ConfigError: lists of different length, or a model without a cross branch.
            DataError: a sample that cannot be read or decoded.
        """
        samples_a, samples_b = self._both(a, b)
        if len(samples_a) != len(samples_b):
            raise ConfigError(
                "pairs need as many samples of both modalities",
                where=f"{len(samples_a)} and {len(samples_b)} samples",
                expected="two lists of one length; score gives all pairs",
            )
        if self.config.loss.beta == 0:
            raise ConfigError(
                "this model has no cross branch",
                where="loss.beta = 0",
                expected="a run with beta > 0",
                next="ccaco train --beta 0.5, or use similarity",
            )
        encoded_a, encoded_b = (
            self._encode(m, x, batch_size) for m, x in zip(self.modalities, (samples_a, samples_b), strict=True)
        )
        index = torch.arange(len(samples_a))[:, None].expand(-1, 2)
        return self._match(encoded_a, encoded_b, index)

    def score(self, a: Any, b: Any, *, batch_size: int = 0) -> Array:
        """Scores every pair by both stages, as ``ccaco retrieve`` scores the items that it reranks.

        That is ``scale * cosine + weight * match`` with the weight that was chosen on validation; the cosine alone
        where that weight is 0; the match logit alone for a model without a contrastive half.

        Args:
            a: n samples of the first modality (``modalities[0]``, for example images).
            b: m samples of the second (for example texts).
        Returns:
            [n, m] float32, higher = better match.
        Raises:
            DataError: a sample that cannot be read or decoded.
        """
        with_match = bool(self.scorer.weight)
        encoded_a, encoded_b = (
            self._encode(m, x, batch_size, local_tokens=with_match)
            for m, x in zip(self.modalities, self._both(a, b), strict=True)
        )
        cosine = encoded_a.z.numpy() @ encoded_b.z.numpy().T
        match = None
        if with_match:
            index = torch.cartesian_prod(torch.arange(len(encoded_a)), torch.arange(len(encoded_b)))
            match = self._match(encoded_a, encoded_b, index).reshape(cosine.shape)
        scores: Array = np.asarray(self.scorer(cosine, match), np.float32)
        return scores

    def search(
        self,
        index: str | Path | Index | None = None,
        *,
        k: int = 10,
        rerank: int | None = None,
        **keywords: Unpack[SearchKeywords],
    ) -> list[list[Hit]]:
        """Finds the best items of an index for each query, as ``ccaco retrieve`` does.

        Each hit has all columns of its item: ``hit.item["path"]``, ``hit.item["year"]`` ...

        Args:
            index: folder of an index that this model was embedded into; None = the index that the model was loaded
                from.
            k: answers for each query.
            rerank: items that the cross branch reorders; None = as many as in the evaluation of the run, 0 = none.
            keywords: one of images, texts, audio, video, arrays and arrays2: the queries, a list or one query alone;
                and target, where, dedup, plus, minus and mix_weight, as ``SearchSettings`` describes them.
        Returns:
            One list of hits for each query, best first; empty where no item satisfies the condition.
        Raises:
            ConfigError: no index, an index of another model, no keyword or several, or a number out of range.
            DataError: a query that cannot be read or decoded, or a target that the index does not hold.
            FilterError: the condition does not parse, is not boolean, or names an unknown column.
        """
        settings: dict[str, Any] = dict(keywords)
        modality, samples = self._samples({name: settings.pop(name) for name in SAMPLES if name in settings})
        options = _search_options(k, rerank, settings)
        texts_of = {"query": samples if modality == "text" else (), "plus": options.plus, "minus": options.minus}
        for name, queries in texts_of.items():
            for number, text in enumerate(queries, 1):
                check_utf8(text, f"{name} {number}")
                if is_blank(text):
                    raise DataError(f"{name} {number} is empty", expected="a sentence")
        opened = self._open(index)
        opened.targets(modality, options.target)
        return ask(opened, modality, samples, options) if samples else []

    def _open(self, index: str | Path | Index | None) -> Index:
        if index is None:
            if self._index is None:
                raise ConfigError(
                    "this model was loaded from a run, so it has no index of its own",
                    where="search",
                    expected="the folder of an index",
                    next="ccaco embed --run RUN --dataset NAME --index NAME.idx",
                )
            return self._index
        if isinstance(index, Index):
            opened = index
        else:
            path = Path(index)
            opened = self._opened.get(path) or Index(path)
            self._opened[path] = opened
        if opened.manifest.inputs["run"]["sha256"] != self._run:
            raise ConfigError(
                "this index holds items of another model",
                where=opened.manifest.path,
                expected="an index of the run that this model was loaded from",
                next=f"ccaco_cli.load({str(opened.manifest.path)!r})",
            )
        return opened

    def _samples(self, by_keyword: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """(modality, samples) of the one keyword that was used."""
        used = {keyword: samples for keyword, samples in by_keyword.items() if samples is not None}
        if len(used) != 1 or not used.keys() <= SAMPLES.keys():
            raise ConfigError(
                "samples of one modality are needed",
                where=", ".join(used) or "no keyword",
                expected=f"one of {', '.join(f'{keyword}=' for keyword in SAMPLES)}",
            )
        ((keyword, samples),) = used.items()
        modality = SAMPLES[keyword]
        if modality not in self.towers:
            raise ConfigError(
                f"this model was not trained on {modality}",
                where=f"{keyword}=",
                expected=" or ".join(f"{known}=" for known, m in SAMPLES.items() if m in self.towers),
            )
        return modality, as_samples(modality, samples)

    def _both(self, a: Any, b: Any) -> tuple[list[Any], list[Any]]:
        first, second = self.modalities
        return as_samples(first, a), as_samples(second, b)

    def _encode(
        self,
        modality: str,
        samples: Sequence[Any],
        batch_size: int = 0,
        show_progress: bool = False,
        *,
        local_tokens: bool = True,
    ) -> EncodedSamples:
        if batch_size < 0:
            raise ConfigError("a number out of range", where=f"batch_size = {batch_size}", expected="0 or more")
        return encode_samples(
            self.aligner,
            self.towers[modality],
            samples,
            local_tokens=local_tokens,
            options=EncodeOptions(batch_size=batch_size),
            on_progress=_print_progress(modality) if show_progress else no_progress,
        )

    def _match(self, a: EncodedSamples, b: EncodedSamples, index: torch.Tensor) -> Array:
        if not len(index):
            return np.zeros(0, np.float32)
        logits: Array = match_logits(self.aligner, a.local_tokens, b.local_tokens, index).numpy()
        return logits

    def __repr__(self) -> str:
        weight = "" if self.scorer.kind == CROSS else f", weight {self.scorer.weight:g}"
        towers = ", ".join(f"{m}: {tower.spec}" for m, tower in self.towers.items())
        return f"Model({towers}; {self.embedding_size} dimensions; score {self.scorer.kind}{weight})"


def _search_options(k: int, rerank: int | None, settings: dict[str, Any]) -> SearchOptions:
    """Raises ConfigError: a number out of range."""
    for name in ("plus", "minus"):
        texts = settings.get(name, ())
        settings[name] = (texts,) if isinstance(texts, str) else tuple(texts)
    options = SearchOptions(k, rerank, **settings)
    options.check()
    return options


def _print_progress(modality: str) -> OnProgress:
    def report_progress(done: int, total: int | None, facts: Mapping[str, Any]) -> None:
        end = "\n" if done == total else ""
        print(f"\rencode {modality}: {done:,} of {total:,}", end=end, file=sys.stderr, flush=True)

    return report_progress
