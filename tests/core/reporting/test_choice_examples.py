from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.cross_dataset import ScoreOptions, score_on
from ccaco_cli.core.reporting import inspection, page
from ccaco_cli.core.reporting.choice_examples import choice_examples
from ccaco_cli.core.reporting.inspection import LoadedRun
from ccaco_cli.core.reporting.report_tables import ReportRequest
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import Result


@pytest.fixture(scope="module")
def loaded(run: Path) -> LoadedRun:
    return inspection.open_run(results.find_runs([run])[0])


@pytest.fixture(scope="module")
def result(loaded: LoadedRun) -> Result:
    return results.load_result(loaded.run)


def test_swapped_twins_are_shown_with_both_pictures(loaded: LoadedRun, result: Result) -> None:
    examples = choice_examples(loaded, result)
    kinds = {name for name in result.items if name.startswith("binding_") and not name.endswith("_row")}
    assert {f"binding_{example.kind}" for example in examples} == kinds and len(kinds) >= 3
    for example in examples:
        outcomes = np.asarray(result.items[f"binding_{example.kind}"])
        assert example.share == (outcomes == example.outcome).mean()
        first, twin = (loaded.split.meta(loaded.split.ids.index(picture.id)) for picture in example.pictures)
        assert list(example.captions) in first["binding"] and list(example.captions[::-1]) in twin["binding"]
        assert (example.pictures[0].scores[0] > example.pictures[0].scores[1]) == example.outcome
        for picture in example.pictures:
            assert picture.image is not None and picture.image.shape == (32, 32, 3)
            for caption, explanation in zip(example.captions, picture.explanations, strict=True):
                assert explanation.words and all(word in caption for word in explanation.words)
                assert len(explanation.heat) == len(explanation.words)
    assert len({(example.kind, example.outcome) for example in examples}) == len(examples)


def test_the_shortest_captions_of_either_outcome_are_chosen(loaded: LoadedRun, result: Result) -> None:
    name = "binding_role"
    rows = result.items[f"{name}_row"]
    pairs = [pair for row in dict.fromkeys(rows) for pair in loaded.split.meta(row)["binding"]]
    families = [int(loaded.split.family[row]) for row in rows]
    for right in (0, len(rows) - 1):  # one choice is right, all others are wrong: it is the success
        outcomes = [int(number == right) for number in range(len(rows))]
        changed = replace(result, items={name: outcomes, f"{name}_row": rows})
        success, failure = choice_examples(loaded, changed)
        assert (success.outcome, failure.outcome) == (True, False)
        assert list(success.captions) == pairs[right]
        elsewhere = [pair for pair, family in zip(pairs, families, strict=True) if family != families[right]]
        assert len(" ".join(failure.captions)) == min(len(" ".join(pair)) for pair in elsewhere)


def test_a_model_without_a_cross_branch_has_pictures_and_scores(loaded: LoadedRun, result: Result) -> None:
    config = replace(loaded.config, loss=replace(loaded.config.loss, beta=0.0))
    alone = replace(loaded, config=config, scoring="cosine")
    examples = choice_examples(alone, result)
    assert examples and all(not picture.explanations for example in examples for picture in example.pictures)
    assert all(-1 <= score <= 1 for example in examples for picture in example.pictures for score in picture.scores)


def test_data_without_choices_has_no_examples(loaded: LoadedRun, result: Result) -> None:
    assert choice_examples(loaded, replace(result, items={"matching": [1]})) == []
    sounds = replace(loaded, data=replace(loaded.data, modalities=("image", "audio")))
    assert choice_examples(sounds, result) == []


def test_listed_choices_are_shown_by_a_result_on_their_data_set(run: Path, data_root: Path, tmp_path: Path) -> None:
    scenes = shards.open(data_root / "scenes").split("test")
    captions = {"a.jpg": "a man pushes a boy", "b.jpg": "a dog chases a woman", "c.jpg": "a woman pushes a boy"}
    for row, name in enumerate(captions):
        (tmp_path / name).write_bytes(scenes.media("image", [row])[0])
    images = [{"filename": name, "split": "test", "sentences": [{"raw": text}]} for name, text in captions.items()]
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    prepare("flickr8k-roles", source_path=tmp_path, out=tmp_path / "data/roles", write=WriteOptions(workers=0))
    shutil.copytree(run, tmp_path / "run")
    files = score_on([tmp_path / "run"], "roles", ScoreOptions(device="cpu"), data_root=tmp_path / "data")
    gathered = page.gather(ReportRequest(files))
    assert gathered.model is not None
    shown = {example.kind: example for example in gathered.model.choices}
    assert shown.keys() == {"roles_alike", "roles_unlike"}
    assert shown["roles_unlike"].captions == ("a dog chases a woman", "a woman chases a dog")
    (picture,) = shown["roles_unlike"].pictures
    assert picture.id == "b.jpg" and picture.explanations[0].words == ("dog", "chases", "woman")
    assert (picture.scores[0] > picture.scores[1]) == shown["roles_unlike"].outcome
    (tmp_path / "run/manifest.json").unlink()
    with pytest.raises(DataError, match="no model to look into"):
        inspection.open_run(results.find_runs(files)[0])
