"""The data of the report page: from stored results, and from the model where it is available."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ccaco_cli.core import config_io, manifest
from ccaco_cli.core.errors import CcacoError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.reporting import comparison, faithfulness, inspection, report_tables
from ccaco_cli.core.reporting.choice_examples import ChoiceExample, choice_examples
from ccaco_cli.core.reporting.faithfulness import ExplainedPair
from ccaco_cli.core.reporting.inspection import LoadedRun, RankedQueries
from ccaco_cli.core.reporting.report_tables import ReportRequest
from ccaco_cli.core.reporting.rows import ArmRow, FaithfulnessRow, RunRow
from ccaco_cli.core.reporting.training_log import read_log
from ccaco_cli.core.retrieval.explain import METHODS, Explanation
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import Result, Run
from ccaco_cli.core.types import OnProgress, no_progress

EXAMPLES = 4
"""Pairs whose heat maps are drawn."""
MAX_CURVES = 8
"""Runs whose training curves are drawn; of more runs, the first of each arm."""
LARGE_POOL = 1200
THUMBNAIL_SIDES = (112, 64)
"""Pixels of a thumbnail's longer side, in pools of up to ``LARGE_POOL`` items and in larger ones (a page must stay
under 15 MB).
"""
PICTURE_SIDE = 224
"""Pixels of the picture from which a thumbnail is made."""
READABLE_WORDS = range(3, 7)
"""Numbers of words whose heat maps fit in one line of the page."""


@dataclass(frozen=True)
class SummaryMetric:
    """One metric of the arm that the page is about: mean over seeds with its 95 % interval (fractions, R-sum 0..600).

    Attributes:
        covers: what the interval covers: queries, or queries and seeds.
    """

    metric: str
    value: float
    low: float
    high: float
    covers: str


@dataclass(frozen=True)
class Provenance:
    """Where a run comes from.

    Attributes:
        command: as it was typed.
        inputs: name -> {"path", "sha256"}.
        config: as TOML.
        weights: (file name, sha256) of each file of the run.
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
class HeatMapExample:
    """A true pair with its heat maps.

    Attributes:
        image: [H, W, 3] uint8 as the model sees it, or None.
    """

    text: str
    id: str
    image: NDArray[np.uint8] | None
    explanation: Explanation


@dataclass(frozen=True, eq=False)
class ModelDetails:
    """What the model of one run does with single samples.

    Attributes:
        scoring: the score that ranks: cosine | two-stage | cross.
        ranked: both directions.
        thumbnails: WebP bytes of each item of the first modality; None where it cannot be drawn.
        labels: a text for each item of either modality.
        ids: of the items of the first modality.
        similarity: (items of a, items of b, cosines [n, n]).
        embedding_map: (rows [n], points of a [n, 2], points of b [n, 2]).
        classes: (property, its value for each row), or None.
        confusion: (class names, fractions [C, C]), or None.
        faithfulness: rows of every method.
        choices: one success and one failure of each kind of choice between two captions.
    """

    run: str
    scoring: str
    modalities: tuple[str, str]
    ranked: Sequence[RankedQueries]
    thumbnails: Sequence[bytes | None]
    labels: tuple[Sequence[str], Sequence[str]]
    ids: Sequence[str]
    similarity: tuple[Any, Any, Any]
    embedding_map: tuple[Any, Any, Any]
    classes: tuple[str, list[str]] | None
    confusion: tuple[list[str], Any] | None
    faithfulness: Sequence[FaithfulnessRow]
    examples: Sequence[HeatMapExample]
    choices: Sequence[ChoiceExample] = ()


@dataclass(frozen=True, eq=False)
class PageData:
    """A report: of a run, of several runs, or of an ablation.

    Attributes:
        summary: the metrics at the top of the page.
        runs: one row for each run; ``arms``: one for each arm, where there are several.
        logs: run -> entries of its training log; of many runs, one run of each arm.
        recalls: name -> result, for the chart of recalls: one run of each arm, or every run of the only arm.
        model: None where no model could be loaded.
        missing: what is not on the page, and why.
    """

    title: str
    split: str
    summary: Sequence[SummaryMetric]
    runs: Sequence[RunRow]
    arms: Sequence[ArmRow]
    logs: Mapping[str, Sequence[Mapping[str, Any]]]
    recalls: Mapping[str, Result]
    provenance: Sequence[Provenance]
    model: ModelDetails | None
    missing: Sequence[str]


def gather(request: ReportRequest, on_progress: OnProgress = no_progress) -> PageData:
    """Reads the results at the paths and inspects the model of the arm that the page is about (its first seed).

    What only some runs have is left out, with the reason in ``missing``.

    Raises:
        DataError: no runs there, or no results on the split.
    """
    runs = request.measured_runs()
    missing: list[str] = []
    arms: Sequence[ArmRow] = []
    if len({run.label for run in runs}) > 1:
        try:
            arms = report_tables.arm_rows(request)
        except CcacoError as error:
            missing.append(f"The table of arms: {error}")
    main = _main_runs(runs, request)
    first_of_arm = {run.label: run for run in reversed(runs)}
    charted = first_of_arm if len(first_of_arm) > 1 else {run.name: run for run in runs}
    charted = dict(sorted(charted.items()))  # one order, so that an arm has one colour in every chart
    model: ModelDetails | None = None
    try:
        loaded = inspection.open_run(main[0], request.split, on_progress)
        model = model_details(loaded, missing, on_progress)
    except CcacoError as error:
        missing.append(f"What needs the model (gallery, heat maps, similarity, map): {error}")
    names = [path.name or str(path) for path in request.paths]
    with_curves = runs if len(runs) <= MAX_CURVES else charted.values()
    return PageData(
        title=" and ".join(names[:3]) + (" ..." if len(names) > 3 else ""),
        split=request.split,
        summary=summary_metrics([results.load_result(run, request.split) for run in main]),
        runs=report_tables.run_rows(request.paths, split=request.split, every_stage=request.stages),
        arms=arms,
        logs={run.name: read_log(run.path) for run in with_curves if run.path.is_dir()},
        recalls={name: results.load_result(run, request.split) for name, run in charted.items()},
        provenance=[provenance(run) for run in runs if run.path.is_dir()],
        model=model,
        missing=missing,
    )


def _main_runs(runs: Sequence[Run], request: ReportRequest) -> list[Run]:
    """The runs of the arm that the page is about; only the first where they do not belong together."""
    labels = {run.label for run in runs}
    wanted = (request.reference, comparison.DEFAULT_REFERENCE)
    label = next((name for name in wanted if name in labels), runs[0].label)
    chosen = [run for run in runs if run.label == label]
    try:
        measured = [results.load_result(run, request.split) for run in chosen]
        results.same_pool(measured)
        results.by_arm(measured)
    except CcacoError:
        return chosen[:1]
    return chosen


def summary_metrics(measured: Sequence[Result]) -> list[SummaryMetric]:
    """The metrics at the top of a page: means over the seeds of one arm, with 95 % intervals."""
    a, b = measured[0].evaluation.names
    names = [f"{direction}_{m}" for m in ("R@1", "R@10", "mAP") for direction in (f"{b}_to_{a}", f"{a}_to_{b}")]
    summary = []
    swapped = [name for name in measured[0].metrics if name.startswith("binding")]  # all together, and by kind
    for name in ["R-sum", *names, "matching_accuracy", *swapped]:
        try:
            estimate = significance.estimate([result.per_query(name) for result in measured])
        except CcacoError:
            continue  # this run did not measure it
        summary.append(SummaryMetric(name, estimate.value, estimate.low, estimate.high, estimate.covers))
    return summary


def provenance(run: Run) -> Provenance:
    """Where a run comes from, by its manifest."""
    stored = manifest.open(run.path, kind="run")
    made_by = stored.made_by
    return Provenance(
        name=run.name,
        arm=run.label,
        sha256=stored.sha256,
        made_at=stored.made_at,
        command=shlex.join(["ccaco", *map(str, made_by.get("argv", ())[1:])]),
        inputs=stored.inputs,
        libraries={"ccaco": str(made_by.get("ccaco", "")), **made_by.get("libraries", {})},
        device=str(made_by.get("device", "")),
        config=config_io.to_toml(config_io.from_dict(stored.config)),
        weights=[(entry["name"], entry["sha256"]) for entry in stored.files],
        warnings=[str(warning["what"]) for warning in stored.facts.get("warnings", ())],
    )


def model_details(loaded: LoadedRun, missing: list[str], on_progress: OnProgress = no_progress) -> ModelDetails:
    """What the page shows of a model; reasons for what it cannot show are added to ``missing``."""
    ranked = [inspection.rank_queries(loaded, query_side=side, on_progress=on_progress) for side in (1, 0)]
    classes: tuple[str, list[str]] | None = None
    confusion: tuple[list[str], Any] | None = None
    try:
        classes, confusion = inspection.row_classes(loaded), inspection.confusion_matrix(loaded)
    except CcacoError as error:
        missing.append(f"The confusion of classes: {error}")
    rows: list[FaithfulnessRow] = []
    examples: list[HeatMapExample] = []
    for method in METHODS:
        try:
            pairs = faithfulness.explain_pairs(loaded, method, on_progress=on_progress)
        except CcacoError as error:
            missing.append(f"Heat maps by {method}: {error}")
            continue
        rows += [*faithfulness.faithfulness_rows(loaded, pairs), *faithfulness.pointing_rows(loaded, pairs)]
        examples = examples or _heat_map_examples(loaded, pairs)
    split = loaded.split
    ids = [split.ids[row] for row in loaded.encodings.row_a]
    has_captions = loaded.data.modalities[1] == "text"
    first_captions = (
        [split.captions[split.caption_start[row]] for row in loaded.encodings.row_a] if has_captions else ids
    )
    return ModelDetails(
        run=loaded.run.name,
        scoring=loaded.scoring,
        modalities=loaded.data.modalities,
        ranked=ranked,
        thumbnails=thumbnails(loaded),
        labels=(first_captions, loaded.texts()),
        ids=ids,
        similarity=inspection.similarity_matrix(loaded),
        embedding_map=inspection.embedding_map(loaded),
        classes=classes,
        confusion=confusion,
        faithfulness=rows,
        examples=examples,
        choices=choice_examples(loaded, results.load_result(loaded.run, loaded.split.name)),
    )


def _heat_map_examples(loaded: LoadedRun, pairs: Sequence[ExplainedPair]) -> list[HeatMapExample]:
    """Evenly chosen pairs whose heat maps are drawn, preferably with few words."""
    readable = [pair for pair in pairs if len(pair.explanation.words) in READABLE_WORDS] or pairs
    chosen = readable[:: max(1, len(readable) // EXAMPLES)][:EXAMPLES]
    return [
        HeatMapExample(pair.text, loaded.split.ids[pair.row], loaded.model_input(pair.row), pair.explanation)
        for pair in chosen
    ]


def thumbnails(loaded: LoadedRun) -> list[bytes | None]:
    """Small WebP pictures of the items of the first modality: a frame of a video, the waveform of audio."""
    rows, modality = loaded.encodings.row_a, loaded.data.modalities[0]
    picture = MODALITIES[modality].picture
    if picture is None:
        return [None] * len(rows)
    side = THUMBNAIL_SIDES[len(rows) > LARGE_POOL]
    encoded: list[bytes | None] = []
    for row in rows:
        image = picture(loaded.split.media(modality, [row])[0], PICTURE_SIDE)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=70, method=2)
        encoded.append(buffer.getvalue())
    return encoded
