"""What a finished model does with single samples of a split, for the report page, figures and faithfulness."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ccaco_cli.core import manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.shards import PairData, Split
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.run_folder import dataset_of_run, load_run, open_unchanged
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.reporting.hit_explanation import model_input_image
from ccaco_cli.core.retrieval.match import match_logits
from ccaco_cli.core.retrieval.rerank import COSINE, CROSS, TWO_STAGE, Scorer
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import Run
from ccaco_cli.core.scoring.split_scorer import SplitEncodings
from ccaco_cli.core.scoring.two_stage import Shortlist, logit_scale
from ccaco_cli.core.types import OnProgress, no_progress

Array = NDArray[Any]
MAX_QUERIES = 5000
"""Queries of one direction whose results are shown."""


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run with its model, and one pool of one split encoded by it.

    Attributes:
        scoring: the score that ranks: cosine | two-stage | cross.
        weight: of the match score in a two-stage score.
        split: the rows of the pool; ``encodings`` holds their items.
    """

    run: Run
    scoring: str
    weight: float
    data: PairData
    split: Split
    aligner: Aligner
    towers: Mapping[str, Tower]
    config: RunConfig
    encodings: SplitEncodings

    def groups(self) -> tuple[Array, Array]:
        """The group of every item of both modalities."""
        return self.split.group[self.encodings.row_a], self.split.group[self.encodings.row_b]

    def texts(self) -> list[str]:
        """The captions, where the second modality is text; else the ids of its items."""
        return self.split.captions if self.data.modalities[1] == "text" else self.split.ids

    @property
    def scorer(self) -> Scorer:
        """The score that ranks."""
        return Scorer.of(self.scoring, logit_scale(self.aligner), self.weight)

    def model_input(self, row: int) -> NDArray[np.uint8] | None:
        """The sample of the first modality as its tower sees it, [H, W, 3]; None where that cannot be drawn."""
        name = self.data.modalities[0]
        modality = MODALITIES[name]
        if not modality.preprocessed_is_picture:
            return None
        return model_input_image(self.towers[name], modality.decode(self.split.media(name, [row])[0]))


def open_run(run: Run, split: str = "test", on_progress: OnProgress = no_progress) -> LoadedRun:
    """Loads the model of a run and encodes the pool on which its own score was measured.

    Args:
        run: a run, or its result on another data set (``RUN/results/on/DATASET/SPLIT.STAGE.json``).
    Raises:
        DataError: a result file without its run, no results on the split, or a data set that is not where it was.
        ManifestError: the data set was prepared again since, or the run has no model.
    """
    measured = results.load_result(run, split)
    if run.path.is_file():
        folder, body = _model_folder(run.path), results.read(run.path) or {}
        data = open_unchanged(body["dataset_folder"], measured.data)
    else:
        folder, data = run.path, dataset_of_run(manifest.open(run.path, kind="run"))
        body = json.loads((folder / "results" / f"{split}.{measured.stage}.json").read_text("utf-8"))
    runtime.limit_threads()
    aligner, towers, config, _ = load_run(folder)
    full_split = data.split(split)
    small = measured.stage == results.SMALL
    rows = measured.evaluation.pools[0][0] if small else len(full_split)
    encoded = []
    for modality, column in columns(data, split, aligner, towers, config.model, on_progress).items():
        items = np.flatnonzero(column.row < rows) if small else None
        report_progress = _named(on_progress, f"encode {modality}")
        with_tokens = config.loss.beta > 0
        part = encode(aligner, modality, column, items=items, local_tokens=with_tokens, on_progress=report_progress)
        encoded.append((part, column.row if items is None else column.row[items]))
    (a, row_a), (b, row_b) = encoded
    return LoadedRun(
        run=run,
        scoring=body["scoring"],
        weight=float(run.facts.get("weight") or 0.0),
        data=data,
        split=full_split.select(np.arange(rows)) if rows < len(full_split) else full_split,
        aligner=aligner,
        towers=towers,
        config=config,
        encodings=SplitEncodings(a, b, row_a, row_b),
    )


def _model_folder(file: Path) -> Path:
    """The run that a result on another data set lies in. Raises DataError: it lies in no run."""
    body = results.read(file) or {}
    folder = next((folder for folder in file.parents if manifest.exists(folder)), None)
    model = None if folder is None else manifest.open(folder, kind="run").sha256
    if folder is None or "dataset_folder" not in body or model != body.get("model"):
        raise DataError("a result file has no model to look into", where=file, expected="the run's folder")
    return folder


@dataclass(frozen=True, eq=False)
class RankedQueries:
    """The best items for the queries of one direction.

    Attributes:
        direction: ``text_to_image`` ...
        queries: [Q] int, items of the query's modality.
        rank: [Q] float, expected rank of the first correct item, as in results.
        top: [Q, K] int, items of the other modality, best first.
        score: [Q, K] float.
        correct: [Q, K] bool.
    """

    direction: str
    queries: Array
    rank: Array
    top: Array
    score: Array
    correct: Array


def rank_queries(
    loaded: LoadedRun,
    *,
    query_side: int,
    k: int = 5,
    max_queries: int = MAX_QUERIES,
    on_progress: OnProgress = no_progress,
) -> RankedQueries:
    """Ranks the pool for evenly chosen queries, by the run's own score.

    Args:
        query_side: 0 = queries of the first modality (images find captions), 1 = of the second.
        k: items per query.
    """
    encodings, settings = loaded.encodings, loaded.config.eval
    sides, groups = (encodings.a, encodings.b), loaded.groups()
    query, gallery = sides[query_side], sides[1 - query_side]
    queries = evenly_spaced(len(query.z), max_queries)
    scorer = loaded.scorer
    two_stage_size = settings.shortlist_back if query_side == 0 else settings.shortlist
    size = {COSINE: k, TWO_STAGE: max(two_stage_size, k), CROSS: len(gallery.z)}[scorer.kind]
    tops, scores, ranks = [], [], []
    for start in range(0, len(queries), 256):
        block = torch.from_numpy(queries[start : start + 256])
        cosine = query.z[block] @ gallery.z.T
        columns = cosine.topk(min(size, len(gallery.z)), 1).indices
        logits = torch.zeros(columns.shape)
        if scorer.weight:
            pairs = torch.stack([block[:, None].expand_as(columns), columns], -1).flatten(0, 1)
            pairs = pairs if query_side == 0 else pairs.flip(1)
            tokens_a, tokens_b = encodings.a.local_tokens, encodings.b.local_tokens
            logits = match_logits(loaded.aligner, tokens_a, tokens_b, pairs).view_as(columns)
        group_query, group_gallery = groups[query_side][block.numpy()], groups[1 - query_side]
        shortlist = Shortlist(query.z[block], gallery.z, group_query, group_gallery, columns, logits)
        best = scorer(cosine.gather(1, columns), logits).topk(min(k, columns.shape[1]), 1)
        tops.append(columns.gather(1, best.indices).numpy())
        scores.append(best.values.numpy())
        ranks.append(shortlist.ranks(scorer).rank)
        on_progress(start + len(block), len(queries), {"what": "rank the queries"})
    top = np.concatenate(tops)
    names = loaded.data.modalities if query_side == 0 else loaded.data.modalities[::-1]
    correct = groups[1 - query_side][top] == groups[query_side][queries][:, None]
    return RankedQueries("_to_".join(names), queries, np.concatenate(ranks), top, np.concatenate(scores), correct)


def row_classes(loaded: LoadedRun) -> tuple[str, list[str]]:
    """(property, its value for each row): the label where there is one, else the domain, else the place of a scene.

    Raises:
        DataError: the rows have none of these.
    """
    split = loaded.split
    if len(split.labels) > 1 and (split.label >= 0).all():
        return "label", [split.labels[i] for i in split.label]
    if len(set(split.domain.tolist())) > 1:
        return "domain", [split.domains[i] for i in split.domain]
    places = [split.meta(row).get("place") for row in range(len(split))]
    if all(places) and len(set(places)) > 1:
        return "place", [str(place) for place in places]
    raise DataError(
        "the rows of this data set have no classes",
        where=loaded.data.name,
        expected="labels or domains, as in emoji-styles",
    )


def confusion_matrix(loaded: LoadedRun) -> tuple[list[str], Array]:
    """(class names, [C, C] fractions): entry [i, j] is the share of the queries (of the second modality) of class i
    whose first result is of class j; rows sum to 1.
    """
    _, row_class = row_classes(loaded)
    names, code = np.unique(row_class, return_inverse=True)
    ranked, encodings = rank_queries(loaded, query_side=1, k=1), loaded.encodings
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (code[encodings.row_b[ranked.queries]], code[encodings.row_a[ranked.top[:, 0]]]), 1)
    return names.tolist(), counts / np.maximum(counts.sum(1, keepdims=True), 1)


def similarity_matrix(loaded: LoadedRun, max_pairs: int = 16) -> tuple[Array, Array, Array]:
    """Cosines of a few true pairs: (items of a [n], items of b [n], [n, n] with row i = item i of b)."""
    items_a, items_b = _one_item_per_row(loaded, max_pairs)
    cosines = loaded.encodings.b.z[items_b] @ loaded.encodings.a.z[items_a].T
    return items_a, items_b, cosines.numpy()


def embedding_map(loaded: LoadedRun, max_pairs: int = 400) -> tuple[Array, Array, Array]:
    """The shared space in two dimensions (t-SNE by cosine): (rows [n], points of a [n, 2], points of b [n, 2]).

    Each modality is centred first, because the two lie apart in the space.
    """
    from sklearn.manifold import TSNE

    items_a, items_b = _one_item_per_row(loaded, max_pairs)
    sides = loaded.encodings.a.z[items_a], loaded.encodings.b.z[items_b]
    z = np.concatenate([(side - side.mean(0)).numpy() for side in sides])
    perplexity = min(30.0, (len(z) - 1) / 3)
    points = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=0).fit_transform(z)
    return loaded.encodings.row_a[items_a], points[: len(items_a)], points[len(items_a) :]


def evenly_spaced(count: int, limit: int) -> Array:
    """At most ``limit`` of ``count`` positions, evenly spaced, in order."""
    return np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(np.int64))


def _one_item_per_row(loaded: LoadedRun, limit: int) -> tuple[Array, Array]:
    """For at most ``limit`` evenly chosen rows, the first item of each modality."""
    rows = evenly_spaced(len(loaded.split), limit)
    return np.searchsorted(loaded.encodings.row_a, rows), np.searchsorted(loaded.encodings.row_b, rows)


def _named(on_progress: OnProgress, name: str) -> OnProgress:
    """Progress that is shown under a name."""
    return lambda done, total, _: on_progress(done, total, {"what": name})
