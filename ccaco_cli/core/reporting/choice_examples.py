"""Choices between a caption and a false one, with the pictures, scores and heat maps that the report page shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ccaco_cli.core.encoding.samples import encode_samples
from ccaco_cli.core.errors import CcacoError
from ccaco_cli.core.reporting.inspection import LoadedRun
from ccaco_cli.core.retrieval import explain
from ccaco_cli.core.retrieval.explain import Explanation
from ccaco_cli.core.retrieval.match import match_logits
from ccaco_cli.core.scoring.results import Result
from ccaco_cli.core.types import EncodedSamples

MAX_KINDS = 8
"""Kinds of choices that are shown: those with the largest number of choices."""
SWAPPED, CHOSEN = "binding_", "choice_"
"""Prefixes of stored outcomes: between the captions of swapped twins, and between listed captions."""


@dataclass(frozen=True, eq=False)
class ChoicePicture:
    """One picture of a choice.

    Attributes:
        image: [H, W, 3] uint8 as the model sees it, or None.
        scores: of the true and of the false caption with this picture, by the score that ranks.
        explanations: of both captions; () for a model without attention over a grid.
    """

    id: str
    image: NDArray[np.uint8] | None
    scores: tuple[float, float]
    explanations: tuple[Explanation, ...]


@dataclass(frozen=True, eq=False)
class ChoiceExample:
    """One choice of a kind that went right, or that went wrong.

    Attributes:
        kind: what differs between the captions: role, colour, swap_att ...
        outcome: True where the first picture chooses the true caption.
        share: fraction of all choices of the kind that have this outcome, 0..1.
        captions: the true caption of the first picture, and the false one.
        pictures: the first picture; and that of its swapped twin, of which the false caption is true, where there is
            one.
    """

    kind: str
    outcome: bool
    share: float
    captions: tuple[str, str]
    pictures: tuple[ChoicePicture, ...]


def choice_examples(loaded: LoadedRun, result: Result) -> list[ChoiceExample]:
    """One success and one failure of each kind of choice: those with the shortest captions, of two twins.

    Args:
        result: of the same run and split; it holds the outcome of every choice.
    Returns:
        [] where the data set has no choices.
    """
    if loaded.data.modalities[1] != "text":
        return []
    names = [name.removesuffix("_row") for name in result.items if name.endswith("_row")]
    names = [name for name in names if name.startswith((SWAPPED, CHOSEN))]
    names = sorted(names, key=lambda name: -len(result.items[name]))[:MAX_KINDS]
    return [example for name in names for example in _examples(loaded, result, name)]


def _examples(loaded: LoadedRun, result: Result, name: str) -> list[ChoiceExample]:
    """The success and the failure of one kind."""
    prefix = SWAPPED if name.startswith(SWAPPED) else CHOSEN
    kind = name.removeprefix(prefix)
    outcomes = np.asarray(result.items[name])
    candidates: dict[int, list[tuple[int, tuple[str, str]]]] = {}
    earlier: Counter[int] = Counter()  # choices of each row so far
    for row, outcome in zip(result.items[f"{name}_row"], outcomes.tolist(), strict=True):
        captions = _captions(loaded, row, prefix, kind) if row < len(loaded.split) else []
        if earlier[row] < len(captions):
            candidates.setdefault(outcome, []).append((row, captions[earlier[row]]))
        earlier[row] += 1
    family = loaded.split.family
    examples: list[ChoiceExample] = []
    shown: set[int] = set()  # the failure is of another twin than the success, where there is one
    for outcome in sorted(candidates, reverse=True):
        row, pair = min(candidates[outcome], key=lambda entry: (family[entry[0]] in shown, len(" ".join(entry[1]))))
        shown.add(family[row])
        rows = [row, *(_twin_rows(loaded, row) if prefix == SWAPPED else ())]
        share = float((outcomes == outcome).mean())
        examples.append(ChoiceExample(kind, bool(outcome), share, pair, _pictures(loaded, rows, pair)))
    return examples


def _captions(loaded: LoadedRun, row: int, prefix: str, kind: str) -> list[tuple[str, str]]:
    """The (true, false) captions of the choices of one row and kind, in the order in which they were scored."""
    meta = loaded.split.meta(row)
    if prefix == SWAPPED:
        return [(true, false) for true, false in meta.get("binding") or ()]
    return [(true, false) for listed, true, false, *_ in meta.get("choices") or () if listed == kind]


def _twin_rows(loaded: LoadedRun, row: int) -> list[int]:
    split = loaded.split
    family = np.flatnonzero((split.family == split.family[row]) & (split.group != split.group[row]))
    return [int(twin) for twin in family[:1]]


def _pictures(loaded: LoadedRun, rows: Sequence[int], captions: tuple[str, str]) -> tuple[ChoicePicture, ...]:
    encodings = loaded.encodings
    has_tokens = loaded.config.loss.beta > 0
    texts = encode_samples(loaded.aligner, loaded.towers["text"], captions, local_tokens=has_tokens)
    items = np.searchsorted(encodings.row_a, rows)
    images = encodings.a[items]
    index = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(len(captions)))
    cosine = (images.z[index[:, 0]].double() * texts.z[index[:, 1]].double()).sum(-1)
    match = None
    if loaded.scorer.weight:
        match = match_logits(loaded.aligner, images.local_tokens, texts.local_tokens, index)
    scores = loaded.scorer(cosine, match).view(len(rows), len(captions)).tolist()
    return tuple(
        ChoicePicture(
            id=loaded.split.ids[row],
            image=loaded.model_input(row),
            scores=(scores[number][0], scores[number][1]),
            explanations=_explanations(loaded, images[[number]], texts, captions) if has_tokens else (),
        )
        for number, row in enumerate(rows)
    )


def _explanations(
    loaded: LoadedRun, image: EncodedSamples, texts: EncodedSamples, captions: tuple[str, str]
) -> tuple[Explanation, ...]:
    """Explains one picture with each caption; () where the model has no attention over a grid."""
    aligner, (first, second) = loaded.aligner, loaded.data.modalities
    a = image.local_tokens
    try:
        grid = explain.patch_grid(aligner, loaded.towers[first], int(a.mask.sum()))
        return tuple(
            explain.explain(
                aligner,
                a,
                texts.local_tokens[number : number + 1],
                grid,
                explain.content_word_spans(loaded.towers[second], caption),
            )
            for number, caption in enumerate(captions)
        )
    except CcacoError:
        return ()
