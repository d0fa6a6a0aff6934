"""Everything that the report page shows, gathered as plain values: from stored results alone, and from the model where it is at hand."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ccaco_cli.core import config as configs
from ccaco_cli.core import manifest
from ccaco_cli.core.data.loader import DECODERS
from ccaco_cli.core.errors import CcacoError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.reporting import comparison, inspection, report_tables
from ccaco_cli.core.reporting.hit_explanation import as_seen
from ccaco_cli.core.reporting.inspection import Answers, LoadedRun
from ccaco_cli.core.reporting.report_tables import ReportRequest
from ccaco_cli.core.retrieval.explain import METHODS, Explanation
from ccaco_cli.core.retrieval.index import POSTERS
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import Result, Row, Run
from ccaco_cli.core.types import OnProgress, no_progress

EXAMPLES = 4
"""Pairs whose heat maps are drawn."""
CURVES = 8
"""Runs whose training is drawn; of more than that, the first of each arm."""
MANY = 1200
SIDES = (112, 64)
"""Pixels of a thumbnail's longer side, in pools of up to ``MANY`` pictures and in larger ones: a page must stay under 15 MB."""


@dataclass(frozen=True)
class Headline:
    """One figure of the arm that the page is about, with its interval (fractions, R-sum 0..600) and what that covers."""

    metric: str
    value: float
    low: float
    high: float
    covers: str


@dataclass(frozen=True)
class Origin:
    """Where a run comes from.

    command  as it was typed; inputs: name -> {"path", "sha256"}; config as TOML
    """

    name: str
    arm: str
    sha256: str
    made_at: str
    command: str
    inputs: Mapping[str, Mapping[str, str]]
    libraries: Mapping[str, str]
    device: str
    config: str
    weights: Sequence[tuple[str, str]]
    warnings: Sequence[str]


@dataclass(frozen=True, eq=False)
class Example:
    """A true pair with its heat maps; ``picture`` [H, W, 3] uint8 as the model saw it, or None."""

    said: str
    id: str
    picture: NDArray[np.uint8] | None
    why: Explanation


@dataclass(frozen=True, eq=False)
class Inside:
    """What the model of one run was seen to do.

    answers      both directions; ``pictures`` WebP bytes of each item of the first modality, None where it is not drawn
    labels       of the items of either modality, in words; ids of the items of the first
    similarity   (items of a, items of b, cosines [n, n])
    plane        (rows, points of a, points of b); ``classes`` (what divides the rows, value of each row) or None
    confusion    (names, shares [C, C]) or None
    faith        rows of ``inspection.faithfulness`` and ``inspection.pointing`` by method
    """

    run: str
    how: str
    modalities: tuple[str, str]
    answers: Sequence[Answers]
    pictures: Sequence[bytes | None]
    labels: tuple[Sequence[str], Sequence[str]]
    ids: Sequence[str]
    similarity: tuple[Any, Any, Any]
    plane: tuple[Any, Any, Any]
    classes: tuple[str, list[str]] | None
    confusion: tuple[list[str], Any] | None
    faith: Sequence[Row]
    examples: Sequence[Example]


@dataclass(frozen=True, eq=False)
class Page:
    """A report: of a run, of several, or of an ablation.

    runs      the table of runs; ``arms`` the table of arms with the evidence, where there are several
    logs      run -> entries of its ``metrics.jsonl``; of many runs, one an arm
    recalls   name -> headline result, for the figure of recalls: one run of each arm, or every run of the only arm
    missing   what is not on the page, and why
    """

    title: str
    split: str
    headline: Sequence[Headline]
    runs: Sequence[Row]
    arms: Sequence[Row]
    logs: Mapping[str, Sequence[Mapping[str, Any]]]
    recalls: Mapping[str, Result]
    origins: Sequence[Origin]
    inside: Inside | None
    missing: Sequence[str]


def gather(asked: ReportRequest, on_progress: OnProgress = no_progress) -> Page:
    """Reads the results at the paths, and looks into the model of the arm that the page is about (its first seed).

    Raises DataError: nothing there, or no results on the split. What only some runs have is left out, with the reason in ``missing``
    """
    runs = results.find(asked.paths)
    rows = report_tables.rows(asked.paths, split=asked.split, every_stage=asked.stages)
    missing: list[str] = []
    arms: list[Row] = []
    if len({run.label for run in runs}) > 1:
        try:
            arms = report_tables.table(asked, "ablation")
        except CcacoError as error:
            missing.append(f"The table of arms: {error}")
    main = _main(runs, asked)
    one_each = {run.label: run for run in reversed(runs)}
    named = one_each if len(one_each) > 1 else {run.name: run for run in runs}
    named = dict(sorted(named.items()))  # one order, one colour in every chart
    found = {name: results.result(run, asked.split) for name, run in named.items()}
    inside: Inside | None = None
    try:
        inside = look_inside(inspection.open_run(main[0], asked.split, on_progress), missing, on_progress)
    except CcacoError as error:
        missing.append(f"What needs the model (gallery, heat maps, similarity, map): {error}")
    title = " and ".join(path.name or str(path) for path in asked.paths[:3]) + (" ..." if len(asked.paths) > 3 else "")
    return Page(
        title,
        asked.split,
        headline([results.result(run, asked.split) for run in main]),
        rows,
        arms,
        {run.name: log(run.path) for run in (runs if len(runs) <= CURVES else named.values()) if run.path.is_dir()},
        found,
        [origin(run) for run in runs if run.path.is_dir()],
        inside,
        missing,
    )


def _main(runs: Sequence[Run], asked: ReportRequest) -> list[Run]:
    """The runs of the arm that the page is about; one alone when they do not belong together."""
    label = next(
        (name for name in (asked.reference, comparison.FULL) if name in {run.label for run in runs}), runs[0].label
    )
    chosen = [run for run in runs if run.label == label]
    try:
        measured = [results.result(run, asked.split) for run in chosen]
        results.same_pool(measured)
        results.by_arm(measured)
    except CcacoError:
        return chosen[:1]
    return chosen


def headline(measured: Sequence[Result]) -> list[Headline]:
    """The figures that a page opens with: means over the seeds of one arm, with 95 % intervals."""
    a, b = measured[0].evaluation.names
    names = [f"{d}_{m}" for m in ("R@1", "R@10", "mAP") for d in (f"{b}_to_{a}", f"{a}_to_{b}")]
    shown = []
    for name in ["R-sum", *names, "matching_accuracy", "binding_accuracy"]:
        try:
            found = significance.estimate([one.per_query(name) for one in measured])
        except CcacoError:
            continue  # this run did not measure it
        shown.append(Headline(name, found.value, found.low, found.high, found.covers))
    return shown


def log(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's ``metrics.jsonl``; a line that is still being written is left out."""
    file = run / "metrics.jsonl"
    lines = file.read_text("utf-8").splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def origin(run: Run) -> Origin:
    """What a run's manifest says of where it comes from."""
    found = manifest.open(run.path, kind="run")
    command = shlex.join(["ccaco", *map(str, found.made_by.get("argv", ())[1:])])
    return Origin(
        run.name,
        run.label,
        found.sha256,
        found.made_at,
        command,
        found.inputs,
        {"ccaco": str(found.made_by.get("ccaco", "")), **found.made_by.get("libraries", {})},
        str(found.made_by.get("device", "")),
        configs.to_toml(configs.from_dict(found.config)),
        [(entry["name"], entry["sha256"]) for entry in found.files],
        [str(one["what"]) for one in found.facts.get("warnings", ())],
    )


def look_inside(looked: LoadedRun, missing: list[str], on_progress: OnProgress = no_progress) -> Inside:
    """What the page shows of a model; reasons for what it cannot show join ``missing``."""
    both = [inspection.answers(looked, backwards=back, on_progress=on_progress) for back in (False, True)]
    divided: tuple[str, list[str]] | None = None
    mixed: tuple[list[str], Any] | None = None
    try:
        divided, mixed = inspection.classes(looked), inspection.confusion(looked)
    except CcacoError as error:
        missing.append(f"The confusion of classes: {error}")
    faith: list[Row] = []
    examples: list[Example] = []
    for method in METHODS:
        try:
            pairs = inspection.explained(looked, method, on_progress=on_progress)
        except CcacoError as error:
            missing.append(f"Heat maps by {method}: {error}")
            continue
        faith += [
            {"method": method} | row
            for row in [*inspection.faithfulness(looked, pairs), *inspection.pointing(looked, pairs)]
        ]
        if not examples:
            few = [pair for pair in pairs if 3 <= len(pair.why.words) <= 6] or pairs
            ready = few[:: max(1, len(few) // EXAMPLES)][:EXAMPLES]
            examples = [
                Example(pair.said, looked.split.ids[pair.row], _seen(looked, pair.row), pair.why) for pair in ready
            ]
    split, rows = looked.split, looked.found.row_a
    ids = [split.ids[row] for row in rows]
    spoken = [split.captions[split.caption_start[row]] for row in rows] if looked.data.modalities[1] == "text" else ids
    return Inside(
        looked.run.name,
        looked.how,
        looked.data.modalities,
        both,
        thumbnails(looked),
        (spoken, looked.texts()),
        ids,
        inspection.similarity(looked),
        inspection.plane(looked),
        divided,
        mixed,
        faith,
        examples,
    )


def _seen(looked: LoadedRun, row: int) -> NDArray[np.uint8] | None:
    modality = looked.data.modalities[0]
    if modality not in ("image", "audio"):
        return None
    return as_seen(looked.towers[modality], DECODERS[modality](looked.split.media(modality, [row])[0]))


def thumbnails(looked: LoadedRun) -> list[bytes | None]:
    """Small WebP pictures of the items of the first modality: a frame of a film, the outline of a sound."""
    rows, modality = looked.found.row_a, looked.data.modalities[0]
    if modality not in POSTERS:
        return [None] * len(rows)
    side, found = SIDES[len(rows) > MANY], []
    for row in rows:
        image = POSTERS[modality](looked.split.media(modality, [row])[0])
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "WEBP", quality=70, method=2)
        found.append(out.getvalue())
    return list(found)
