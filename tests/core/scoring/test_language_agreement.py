"""The agreement of the answers to captions that say the same in two languages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import PairData, WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.evaluation.protocols import join_pools
from ccaco_cli.core.retrieval.rerank import COSINE, TWO_STAGE, Scorer
from ccaco_cli.core.scoring import languages, results
from ccaco_cli.core.scoring.score import score
from ccaco_cli.core.scoring.split_scorer import SplitEncodings
from ccaco_cli.core.scoring.strata import strata
from ccaco_cli.core.scoring.two_stage import Shortlist, top_answers
from ccaco_cli.core.types import Embedding, EncodedSamples
from tests.conftest import edited

VECTORS = override(RunConfig(), {"loss.beta": 0.0})


def vectors(z: Any) -> EncodedSamples:
    z = torch.as_tensor(z, dtype=torch.float32)
    return EncodedSamples(Embedding(z, z))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    """Seven scenes of each split in English and Chinese."""
    out = tmp_path_factory.mktemp("mixed") / "scenes"
    options = SourceOptions(languages=("en", "zh"), limit=7, size=32)
    prepare("scenes", out=out, options=options, write=WriteOptions(workers=0))
    return shards.open(out)


def test_captions_are_paired_by_their_place_in_each_language() -> None:
    language, row = np.array(["en", "en", "zh", "zh", "en", "es", "zh"]), np.array([0, 0, 0, 0, 1, 1, 1])
    pairs = languages.parallel_pairs(language, row)
    assert pairs.tolist() == [[0, 2], [1, 3], [4, 5], [4, 6], [5, 6]]
    assert languages.agreement(pairs, np.array([3, 1, 3, 0, -1, -1, 2])).tolist() == [True, False, False, False, False]
    assert languages.parallel_pairs(np.array(["en"] * 3), np.arange(3)).shape == (0, 2)


def test_the_first_answer_is_that_of_the_score() -> None:
    images, texts = torch.eye(3), torch.tensor([[0.8, 0.6, 0], [0.6, 0.8, 0], [1, 0, 0], [0, 0, torch.nan]])
    cosine = Scorer.of(COSINE)
    assert top_answers(None, vectors(images), vectors(texts), cosine, 2).tolist() == [0, 1, 0, -1]
    for collapsed in (torch.ones(3, 3), torch.full((3, 3), torch.nan), torch.full((3, 3), torch.inf)):
        assert top_answers(None, vectors(collapsed), vectors(texts), cosine, 3).tolist() == [-1] * 4
    assert top_answers(None, vectors(images[:1]), vectors(texts[:2]), cosine, 5).tolist() == [
        0,
        0,
    ]  # nothing to tie with
    match = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    shortlist = Shortlist(texts[:2], images, None, None, torch.tensor([[0, 1], [1, 0]]), match)
    assert shortlist.top(Scorer.of(TWO_STAGE, 1.0, 1.0)).tolist() == [1, 0]
    assert shortlist.top(Scorer.of(TWO_STAGE, 100.0, 1.0)).tolist() == [0, 1]


def test_scoring_measures_each_language_and_their_agreement(data: PairData, tmp_path: Path) -> None:
    def encodings(name: str, misled: int) -> SplitEncodings:
        """A model that knows the picture of every caption, save that ``misled`` Chinese ones go to another one."""
        split = data.split(name)
        language = languages.caption_languages(split)
        assert language is not None
        answer = split.caption_row.copy()
        wrong = np.flatnonzero(language == "zh")[:misled]
        answer[wrong] = (answer[wrong] + 1) % len(split)
        z = vectors(np.eye(len(split))), vectors(np.eye(len(split))[answer])
        return SplitEncodings(*z, np.arange(len(split)), split.caption_row, language=language)

    count = 5 * len(data.split("test"))
    for misled in (0, 7, count):
        folder = tmp_path / str(misled)
        score(data, lambda name, n=misled: encodings(name, n), None, VECTORS, folder)  # type: ignore[misc]
        stored = json.loads((folder / "results" / "test.cosine.json").read_text())
        assert stored["metrics"]["language_agreement"] == pytest.approx(1 - misled / count)
        assert stored["pool_names"] == ["en", "zh"] and stored["pools"] == [[count // 5, count]] * 2
        outcomes = np.array(stored["per_item"]["language_agreement"])
        assert len(outcomes) == count and outcomes.sum() == count - misled
        assert stored["per_item"]["matching_row"] == np.repeat(np.arange(count // 5), 10).tolist()
        assert stored["per_item"]["language_agreement_row"] == np.repeat(np.arange(count // 5), 5).tolist()


def test_a_report_shows_the_agreement(ccaco: Callable[..., Any], fabricate: Any) -> None:
    run = fabricate("first", 1.0, strata={"things": [2] * 30 + [3] * 30})
    second = fabricate("second", 1.0, strata={"things": [2] * 30 + [3] * 30})
    joined = join_pools(languages.PROTOCOL, {name: fabricate.evaluation(1.5, i, 60) for i, name in enumerate("ez")})
    for folder, agreeing in ((run, 45), (second, 15)):
        file = folder / "results" / "test.two-stage.json"
        outcomes = {
            "language_agreement": [1] * agreeing + [0] * (60 - agreeing),
            "language_agreement_row": [*range(60)],
        }
        metrics = joined.metrics | {"language_agreement": agreeing / 60}
        stored = json.loads(file.read_text()) | joined.as_dict() | {"per_item": outcomes, "metrics": metrics}
        file.write_text(json.dumps(stored))
        with edited(folder) as body:
            body["facts"]["metrics"]["test.two-stage"] = metrics
    rows = json.loads(ccaco("report", run, "--table", "languages", "--format", "json").out)
    assert [(row["language"], row.get("language_agreement")) for row in rows] == [
        ("e", None),
        ("z", None),
        ("mean", 0.75),
    ]
    assert "language agreement" in ccaco("report", run, "--table", "languages", "--format", "markdown").out
    assert '"language_agreement": 0.75' in ccaco("report", run, "--table", "runs", "--format", "json").out
    (compared,) = (
        row
        for row in json.loads(ccaco("report", run, second, "--compare", "--format", "json").out)
        if row["metric"] == "language_agreement"
    )
    assert "worse" in json.dumps(compared)
    (result,) = (results.load_result(run) for run in results.find_runs([run]))
    assert result.per_query("language_agreement").mean == 0.75
    assert {n: part.metrics["language_agreement"] for n, part in strata(result, "things").items()} == {2: 1.0, 3: 0.5}
    gate = ccaco("report", run, "--fail-if", "language_agreement<0.8")
    assert gate.code == 1 and "language_agreement = 0.75" in gate.err
