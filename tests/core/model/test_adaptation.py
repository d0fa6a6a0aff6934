from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ccaco_cli.core.config import DomainConfig
from ccaco_cli.core.model.adaptation import Adaptation, AdaptationTask


def embeddings(n: int, width: int = 8) -> torch.Tensor:
    return F.normalize(torch.randn(n, width), dim=-1)


def heads(**more: object) -> Adaptation:
    settings: dict[str, object] = {"adversarial": True, **more}
    task = AdaptationTask({"image": 2, "text": 3}, torch.tensor([2, 9, 0, 1]), torch.tensor([1, -1, 0]), **settings)  # type: ignore[arg-type]
    return Adaptation(DomainConfig(loss="dann"), 8, task)


def test_features_have_one_length() -> None:
    features = Adaptation.features(embeddings(5))
    assert torch.allclose(features.norm(dim=1), torch.full((5,), 8**0.5))


def test_codes_are_source_and_target_or_the_sources_own() -> None:
    domain = torch.tensor([3, 0, 2])
    assert heads().domain_labels(embeddings(5), domain).tolist() == [0, 0, 0, 1, 1]
    assert heads().domain_labels(embeddings(3), domain).tolist() == [1, 2, 0]


def test_a_classifier_a_side_only_where_there_is_an_adversary() -> None:
    modules = heads()
    assert modules.domain_classifiers["image"](embeddings(4)).shape == (4, 2)
    assert modules.domain_classifiers["text"](embeddings(4)).shape == (4, 3)
    assert not list(heads(adversarial=False).parameters())


def test_a_label_predictor_where_classes_are_requested() -> None:
    modules = heads(classify="image", classes=4)
    assert modules.predict(embeddings(3)).shape == (3, 4)
    assert modules.modalities == {"image", "text"}
    with pytest.raises(RuntimeError, match="no label predictor"):
        heads().predict(embeddings(3))


def test_only_what_learns_is_stored() -> None:
    assert all(
        name.startswith(("domain_classifiers.", "predictor."))
        for name in heads(classify="image", classes=2).state_dict()
    )
