"""How faithful heat maps are: explanations of true pairs, and the table of deletion, insertion and pointing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ccaco_cli.core.data.scene_words import SYNONYMS
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.evaluation.significance import PerQuery
from ccaco_cli.core.reporting.inspection import Array, LoadedRun, evenly_spaced, open_run
from ccaco_cli.core.reporting.rows import FaithfulnessRow
from ccaco_cli.core.retrieval import explain
from ccaco_cli.core.retrieval.explain import Explanation
from ccaco_cli.core.scoring.results import Run
from ccaco_cli.core.types import OnProgress, no_progress

CANONICAL = {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms}
"""A word of a caption of ``scenes`` -> the word by which its boxes are named."""
PAIRS = 200
"""True pairs on which faithfulness is measured."""
MIN_CASES = 10
"""Words, or pairs, below which there is no verdict."""
NOT_SEPARABLE = "not separable with these cases"


@dataclass(frozen=True, eq=False)
class ExplainedPair:
    """A true pair and the explanation of its match.

    Attributes:
        item: of the second modality; ``row`` is the row that it belongs to.
        text: the caption, or the id of an item without one.
    """

    item: int
    row: int
    text: str
    explanation: Explanation


def explain_pairs(
    loaded: LoadedRun, method: str, max_pairs: int | None = None, on_progress: OnProgress = no_progress
) -> list[ExplainedPair]:
    """Explains evenly chosen true pairs.

    Args:
        max_pairs: None = ``PAIRS``.
    Raises:
        DataError: the model has no cross branch, or its tower no grid.
        ConfigError: as ``explain.relevance``.
    """
    first, second = loaded.data.modalities
    if loaded.config.loss.beta == 0:
        raise DataError(
            "this run has no cross branch to explain", where=loaded.run.path, expected="a run with beta > 0"
        )
    encodings, texts = loaded.encodings, loaded.texts()
    pairs = []
    chosen = evenly_spaced(len(encodings.row_b), max_pairs or PAIRS)
    for done, item in enumerate(chosen.tolist(), start=1):
        row = int(encodings.row_b[item])
        start = int(np.searchsorted(encodings.row_a, row))
        a, b = encodings.a.local_tokens[start : start + 1], encodings.b.local_tokens[item : item + 1]
        words = explain.content_word_spans(loaded.towers[second], texts[item]) if second == "text" else []
        grid = explain.patch_grid(loaded.aligner, loaded.towers[first], int(a.mask.sum()))
        explanation = explain.explain(loaded.aligner, a, b, grid, words, method)
        pairs.append(ExplainedPair(item, row, texts[item], explanation))
        on_progress(done, len(chosen), {"what": f"explain by {method}"})
    return pairs


def faithfulness_rows(loaded: LoadedRun, pairs: Sequence[ExplainedPair]) -> list[FaithfulnessRow]:
    """Deletion and insertion over true pairs: the mean gain over random cells and its 95 % interval over images.

    Args:
        pairs: explained by one method.
    """
    group = loaded.split.group[[pair.row for pair in pairs]]
    rows = []
    for measure in ("deletion", "insertion"):
        gains = np.array([getattr(pair.explanation.trial, f"{measure}_gain") for pair in pairs])
        value, low, high = _interval(gains, group)
        rows.append(
            FaithfulnessRow(
                run=loaded.run.name,
                method=_method(pairs),
                measure=measure,
                word="",
                value=value,
                low=low,
                high=high,
                random=0.0,
                centre=None,
                cases=len(gains),
                verdict=_verdict(low, high, len(gains)),
            )
        )
    return rows


def pointing_rows(loaded: LoadedRun, pairs: Sequence[ExplainedPair]) -> list[FaithfulnessRow]:
    """The pointing game where boxes are known (``meta["boxes"]``): one row over all words and one for each word.

    The value is the fraction of cases in which the centre of the hottest cell lies in the box of the word. The verdict
    compares it with the better of both baselines, by the interval of the difference.

    Returns:
        [] where no box is known.
    """
    cases_by_word: dict[str, list[tuple[float, float, float, int]]] = {}
    for pair in pairs:
        boxes = {box["word"]: box["box"] for box in loaded.split.meta(pair.row).get("boxes") or ()}
        for word, heat in zip(pair.explanation.words, pair.explanation.heat, strict=True):
            name = CANONICAL.get(word.lower(), word.lower())
            if name in boxes:
                case = *explain.point(heat, boxes[name]), int(loaded.split.group[pair.row])
                cases_by_word.setdefault(name, []).append(case)
    all_cases = [case for cases in cases_by_word.values() for case in cases]
    if not all_cases:
        return []
    rows = []
    for word, cases in [("", all_cases), *sorted(cases_by_word.items())]:
        hit, random, centre, group = (np.array(column) for column in zip(*cases, strict=True))
        baseline = random if random.mean() > centre.mean() else centre
        _, difference_low, difference_high = _interval(hit - baseline, group)
        value, low, high = _interval(hit, group)
        rows.append(
            FaithfulnessRow(
                run=loaded.run.name,
                method=_method(pairs),
                measure="pointing",
                word=word,
                value=value,
                low=low,
                high=high,
                random=float(random.mean()),
                centre=float(centre.mean()),
                cases=len(cases),
                verdict=_verdict(difference_low, difference_high, len(cases)),
            )
        )
    return rows


def faithfulness_table(run: Run, split: str, on_progress: OnProgress = no_progress) -> list[FaithfulnessRow]:
    """Deletion, insertion and pointing of the heat maps of a run, by each method."""
    loaded = open_run(run, split, on_progress)
    rows = []
    for method in explain.METHODS:
        pairs = explain_pairs(loaded, method, on_progress=on_progress)
        rows += [*faithfulness_rows(loaded, pairs), *pointing_rows(loaded, pairs)]
    return rows


def _method(pairs: Sequence[ExplainedPair]) -> str:
    return pairs[0].explanation.method


def _interval(values: Array, group: Array) -> tuple[float, float | None, float | None]:
    """(mean, low, high): the 95 % interval over groups; no interval for a single group."""
    if len(np.unique(group)) < 2:
        return float(values.mean()), None, None
    estimate = significance.estimate([PerQuery.of(values, group)])
    return estimate.value, estimate.low, estimate.high


def _verdict(low: float | None, high: float | None, cases: int) -> str:
    """Of a difference with this 95 % interval."""
    if low is None or high is None or cases < MIN_CASES:
        return "too few cases"
    if low > 0:
        return significance.BETTER
    return significance.WORSE if high < 0 else NOT_SEPARABLE
