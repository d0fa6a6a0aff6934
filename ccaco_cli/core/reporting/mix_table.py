"""The table of mixes of runs with the pretrained models that they started from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ccaco_cli.core.data.domain_names import SOURCE_TEST
from ccaco_cli.core.experiments.cross_dataset import ScoreOptions
from ccaco_cli.core.experiments.interpolation import Mix, interpolate
from ccaco_cli.core.reporting.rows import MixRow
from ccaco_cli.core.retrieval.rerank import COSINE, TWO_STAGE
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import Run
from ccaco_cli.core.types import OnProgress, no_progress


def mix_rows(
    paths: Sequence[Path],
    shares: Sequence[float],
    on: str | None = None,
    options: ScoreOptions = ScoreOptions(),
    *,
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
) -> list[MixRow]:
    """One row for each mix of each run, as ``interpolate`` makes them.

    Args:
        paths: run folders, ablation folders, or folders that hold runs.
    Raises:
        DataError: no finished run at a path; also what ``interpolate`` raises.
    """
    rows = []
    for run in results.find_runs(paths):
        mixes = interpolate(run.path, shares, on, options, data_root=data_root, on_progress=on_progress)
        rows += [_row(mix, run) for mix in mixes]
    return rows


def _row(mix: Mix, run: Run) -> MixRow:
    facts, retained = mix.run.facts, mix.retained
    metrics, stage = facts["metrics"], facts["headline"]
    last = "test" if "test.cosine" in metrics else "val"
    splits = ["val", *(name for name in ("test", SOURCE_TEST) if f"{name}.cosine" in metrics)]
    r_sums = {
        f"{split}_{scoring}_R-sum": metrics.get(f"{split}.{scoring}", {}).get("R-sum")
        for split in splits
        for scoring in (COSINE, TWO_STAGE)
    }
    row = MixRow(
        run=run.name,
        dataset=run.dataset,
        arm=run.label,
        seed=facts["seed"],
        mix=mix.share,
        chosen=mix.chosen,
        folder=str(mix.run.path),
        stage=stage,
        weight=facts["weight"],
        r_sums=r_sums,
        metrics=metrics[f"{last}.{stage}"],
    )
    if retained is None:
        return row
    return replace(
        row,
        retained_on=retained.dataset,
        retained_metric=retained.metric,
        retained=retained.value,
        retained_start=retained.start,
        retained_two_stage=retained.two_stage,
        retention=retained.retention,
    )
