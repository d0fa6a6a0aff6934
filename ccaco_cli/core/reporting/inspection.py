"""What a finished model makes of a split, item by item: the material of pages, figures and the table of faithfulness."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ccaco_cli.core import manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.scene_words import SYNONYMS
from ccaco_cli.core.data.shards import PairData, Split
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.errors import DataError, ManifestError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.evaluation.significance import PerQuery
from ccaco_cli.core.experiments.run_folder import load_run
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval import explain, rerank
from ccaco_cli.core.retrieval.explain import Explanation
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import Row, Run
from ccaco_cli.core.scoring.score import SplitEncodings
from ccaco_cli.core.types import OnProgress, no_progress

Array = NDArray[Any]
CANONICAL = {said: word for word, all_said in SYNONYMS.items() for said in all_said}
"""A word of a caption of ``scenes`` -> the word by which its boxes go."""
PAIRS = 200
"""True pairs on which faithfulness is measured."""
CASES = 10
"""Words pointed at, or pairs, below which nothing is claimed."""
NOT_SEPARABLE = "not separable with these cases"
QUERIES = 5000
"""Queries a direction whose answers are shown."""


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run, opened on one pool of one split.

    how     which score ranks: cosine | two-stage | cross
    weight  of the cross score in it
    split   the rows of the pool; ``found`` their items
    """

    run: Run
    how: str
    weight: float
    data: PairData
    split: Split
    aligner: Aligner
    towers: Mapping[str, Tower]
    config: RunConfig
    found: SplitEncodings

    def groups(self) -> tuple[Array, Array]:
        """The group of every item of both modalities."""
        return self.split.group[self.found.row_a], self.split.group[self.found.row_b]

    def texts(self) -> list[str]:
        """What the items of the second modality say; their ids where they are no texts."""
        return self.split.captions if self.data.modalities[1] == "text" else self.split.ids


def open_run(run: Run, split: str = "test", on_progress: OnProgress = no_progress) -> LoadedRun:
    """Loads the model of a run and encodes what its own score was measured on.

    Raises DataError: a lone result file, no such results, a data set that is gone or was prepared anew; ManifestError: no model
    """
    if run.path.is_file():
        raise DataError("a result file has no model to look into", where=run.path, expected="the run's folder")
    measured = results.result(run, split)
    source = manifest.open(run.path, kind="run").inputs["dataset"]
    if not manifest.exists(Path(source["path"])):
        raise DataError(
            "the data set of this run is not where it was",
            where=source["path"],
            next="run this from the folder of the training",
        )
    data = shards.open(Path(source["path"]))
    if data.manifest.sha256 != source["sha256"]:
        raise ManifestError(
            "the data set of this run was prepared anew",
            where=source["path"],
            expected=f"sha256 {source['sha256'][:12]}",
        )
    runtime.limit_threads()
    aligner, towers, config, _ = load_run(run.path)
    whole = data.split(split)
    sides = columns(data, split, aligner, towers, config.model, on_progress)
    encoded = []
    for modality, column in sides.items():
        items = (
            np.flatnonzero(column.row < measured.evaluation.pools[0][0]) if measured.stage == results.SMALL else None
        )

        def tell(done: int, total: int | None, facts: Mapping[str, Any], what: str = f"look at {modality}") -> None:
            on_progress(done, total, {"what": what})

        part = encode(aligner, modality, column, items=items, local_tokens=config.loss.beta > 0, on_progress=tell)
        encoded.append((part, column.row if items is None else column.row[items]))
    (a, row_a), (b, row_b) = encoded
    rows = measured.evaluation.pools[0][0] if measured.stage == results.SMALL else len(whole)
    body = json.loads((run.path / "results" / f"{split}.{measured.stage}.json").read_text("utf-8"))
    chosen = whole.select(np.arange(rows)) if rows < len(whole) else whole
    weight = float(run.facts.get("weight") or 0.0)
    return LoadedRun(
        run, body["scoring"], weight, data, chosen, aligner, towers, config, SplitEncodings(a, b, row_a, row_b)
    )


@dataclass(frozen=True, eq=False)
class Answers:
    """What queries of one direction find.

    items  [Q] the queries' items; rank [Q] of the first right answer (expected, as in results)
    top    [Q, K] items of the other modality, best first; score [Q, K]; right [Q, K] bool
    """

    direction: str
    items: Array
    rank: Array
    top: Array
    score: Array
    right: Array


def answers(
    looked: LoadedRun, *, backwards: bool, k: int = 5, most: int = QUERIES, on_progress: OnProgress = no_progress
) -> Answers:
    """Ranks the pool for evenly chosen queries, by the run's own score.

    backwards  the first modality asks (pictures find captions)
    """
    found, settings = looked.found, looked.config.eval
    sides, ids = (found.a, found.b), looked.groups()
    mine = 0 if backwards else 1
    query, gallery = sides[mine], sides[1 - mine]
    items = _evenly(len(query.z), most)
    scale, weight, size = {
        "cosine": (1.0, 0.0, k),
        "two-stage": (
            float(looked.aligner.logit_scale().detach()),
            looked.weight,
            settings.shortlist_back if backwards else settings.shortlist,
        ),
        "cross": (0.0, 1.0, len(gallery.z)),
    }[looked.how]
    tops, scores, ranks = [], [], []
    for first in range(0, len(items), 256):
        some = torch.from_numpy(items[first : first + 256])
        cosine = query.z[some] @ gallery.z.T
        shortlist = cosine.topk(min(max(size, k), len(gallery.z)), 1).indices
        logits = torch.zeros(shortlist.shape)
        if weight:
            pairs = torch.stack([some[:, None].expand_as(shortlist), shortlist], -1).flatten(0, 1)
            pairs = pairs if backwards else pairs.flip(1)
            logits = rerank.match(looked.aligner, found.a.local_tokens, found.b.local_tokens, pairs).view_as(shortlist)
        stage = rerank.Shortlist(
            query.z[some], gallery.z, ids[mine][some.numpy()], ids[1 - mine], shortlist, logits, scale
        )
        best = (scale * cosine.gather(1, shortlist) + weight * logits).topk(min(k, shortlist.shape[1]), 1)
        tops.append(shortlist.gather(1, best.indices).numpy())
        scores.append(best.values.numpy())
        ranks.append(stage.ranks(weight).rank)
        on_progress(first + len(some), len(items), {"what": "rank the answers"})
    top = np.concatenate(tops)
    names = looked.data.modalities if backwards else looked.data.modalities[::-1]
    right = ids[1 - mine][top] == ids[mine][items][:, None]
    return Answers("_to_".join(names), items, np.concatenate(ranks), top, np.concatenate(scores), right)


def classes(looked: LoadedRun) -> tuple[str, list[str]]:
    """What divides the rows, and the value of each: their label, else their domain, else where a generated scene plays.

    Raises DataError: nothing does
    """
    split = looked.split
    if len(split.labels) > 1 and (split.label >= 0).all():
        return "label", [split.labels[i] for i in split.label]
    if len(set(split.domain.tolist())) > 1:
        return "domain", [split.domains[i] for i in split.domain]
    places = [looked.split.meta(row).get("place") for row in range(len(split))]
    if all(places) and len(set(places)) > 1:
        return "place", [str(place) for place in places]
    raise DataError(
        "the rows of this data set have no classes",
        where=looked.data.name,
        expected="labels or domains, as in emoji-styles",
    )


def confusion(looked: LoadedRun) -> tuple[list[str], Array]:
    """(class names, [C, C] shares): a query of the second modality about class i found something of class j first; rows sum to 1."""
    _, of_row = classes(looked)
    names, code = np.unique(of_row, return_inverse=True)
    found = answers(looked, backwards=False, k=1)
    table = np.zeros((len(names), len(names)))
    np.add.at(table, (code[looked.found.row_b[found.items]], code[looked.found.row_a[found.top[:, 0]]]), 1)
    return names.tolist(), table / np.maximum(table.sum(1, keepdims=True), 1)


def similarity(looked: LoadedRun, most: int = 16) -> tuple[Array, Array, Array]:
    """Cosines of a small batch of true pairs: (items of a [n], items of b [n], [n, n] with row i = item i of b)."""
    one, other = _batch(looked, most)
    table = looked.found.b.z[other] @ looked.found.a.z[one].T
    return one, other, table.numpy()


def plane(looked: LoadedRun, most: int = 400) -> tuple[Array, Array, Array]:
    """The shared space on a plane (t-SNE by cosine; each modality centred, as the two lie apart): (rows [n], points of a [n, 2], of b)."""
    from sklearn.manifold import TSNE

    one, other = _batch(looked, most)
    z = np.concatenate([(x - x.mean(0)).numpy() for x in (looked.found.a.z[one], looked.found.b.z[other])])
    points = TSNE(metric="cosine", init="pca", perplexity=min(30.0, (len(z) - 1) / 3), random_state=0).fit_transform(z)
    return looked.found.row_a[one], points[: len(one)], points[len(one) :]


def _evenly(count: int, most: int) -> Array:
    """At most ``most`` of ``count`` positions, evenly chosen, in order."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def _batch(looked: LoadedRun, most: int) -> tuple[Array, Array]:
    """Items of evenly chosen rows, the first of each modality."""
    rows = _evenly(len(looked.split), most)
    return np.searchsorted(looked.found.row_a, rows), np.searchsorted(looked.found.row_b, rows)


@dataclass(frozen=True, eq=False)
class Pair:
    """A true pair and why it matches: ``item`` of the second modality, ``row`` that it is of."""

    item: int
    row: int
    said: str
    why: Explanation


def explained(
    looked: LoadedRun, method: str, most: int | None = None, on_progress: OnProgress = no_progress
) -> list[Pair]:
    """Explains evenly chosen true pairs, ``PAIRS`` of them unless said otherwise.

    Raises DataError: no cross branch, or no grid; ConfigError: as ``explain.relevance``
    """
    first, second = looked.data.modalities
    if looked.config.loss.beta == 0:
        raise DataError(
            "this run has no cross branch to explain", where=looked.run.path, expected="a run with beta > 0"
        )
    found, texts = looked.found, looked.texts()
    pairs = []
    chosen = _evenly(len(found.row_b), most or PAIRS)
    for done, item in enumerate(chosen.tolist(), start=1):
        row = int(found.row_b[item])
        at = int(np.searchsorted(found.row_a, row))
        a, b = found.a.local_tokens[at : at + 1], found.b.local_tokens[item : item + 1]
        words = explain.spoken(looked.towers[second], texts[item]) if second == "text" else []
        grid = explain.cells(looked.aligner, looked.towers[first], int(a.mask.sum()))
        pairs.append(Pair(item, row, texts[item], explain.explain(looked.aligner, a, b, grid, words, method)))
        on_progress(done, len(chosen), {"what": f"explain by {method}"})
    return pairs


def faithfulness(looked: LoadedRun, pairs: Sequence[Pair]) -> list[Row]:
    """Deletion and insertion over true pairs: one row each with the mean gain over random cells and its 95 % interval over pictures."""
    group = looked.split.group[[pair.row for pair in pairs]]
    rows: list[Row] = []
    for name in ("deletion", "insertion"):
        gains = np.array([getattr(pair.why.trial, f"{name}_gain") for pair in pairs])
        rows.append(
            {"measure": name, "word": "", **_estimate(gains, group), "random": 0.0, "centre": None, "cases": len(gains)}
        )
        rows[-1]["verdict"] = _verdict(rows[-1], len(gains))
    return rows


def pointing(looked: LoadedRun, pairs: Sequence[Pair]) -> list[Row]:
    """The pointing game where boxes are known (``meta["boxes"]``): one row over all words and one a word; [] where none is known.

    value   how often the hottest cell's middle lies in the word's box; random: of a cell at random; centre: of the picture's middle;
            low, high: 95 % over pictures. The verdict is of the better of both baselines, from the interval of the difference
    """
    seen: dict[str, list[tuple[float, float, float, int]]] = {}
    for pair in pairs:
        boxes = {box["word"]: box["box"] for box in looked.split.meta(pair.row).get("boxes") or ()}
        for word, heat in zip(pair.why.words, pair.why.heat, strict=True):
            name = CANONICAL.get(word.lower(), word.lower())
            if name in boxes:
                seen.setdefault(name, []).append((*explain.point(heat, boxes[name]), int(looked.split.group[pair.row])))
    rows: list[Row] = []
    for word, cases in [("", [case for found in seen.values() for case in found]), *sorted(seen.items())]:
        if not cases:
            continue
        hit, random, centre, group = (np.array(column) for column in zip(*cases, strict=True))
        row: Row = {"measure": "pointing", "word": word, **_estimate(hit, group)}
        row |= {"random": float(random.mean()), "centre": float(centre.mean()), "cases": len(cases)}
        best = random if random.mean() > centre.mean() else centre
        rows.append(row | {"verdict": _verdict(_estimate(hit - best, group), len(cases))})
    return rows


def _estimate(values: Array, group: Array) -> Row:
    if len(np.unique(group)) < 2:
        return {"value": float(values.mean()), "low": None, "high": None}
    found = significance.estimate([PerQuery.of(values, group)])
    return {"value": found.value, "low": found.low, "high": found.high}


def _verdict(row: Row, cases: int) -> str:
    if row["low"] is None or cases < CASES:
        return "too few cases"
    return significance.BETTER if row["low"] > 0 else significance.WORSE if row["high"] < 0 else NOT_SEPARABLE


def table(run: Run, split: str, on_progress: OnProgress = no_progress) -> list[Row]:
    """What can be said for the heat maps of a run: each method's deletion, insertion and pointing."""
    looked = open_run(run, split, on_progress)
    rows: list[Row] = []
    for method in explain.METHODS:
        pairs = explained(looked, method, on_progress=on_progress)
        rows += [
            {"run": run.name, "method": method} | row
            for row in [*faithfulness(looked, pairs), *pointing(looked, pairs)]
        ]
    return rows
