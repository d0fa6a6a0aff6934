from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ccaco_cli.core.config_io import override
from ccaco_cli.core.data.loader import NONE, PairDataset, PairPlan
from ccaco_cli.core.losses import contrastive, domain
from ccaco_cli.core.losses.total import CROSS_LOSSES
from ccaco_cli.core.model.adaptation import Adaptation, AdaptationTask
from ccaco_cli.core.reporting.training_log import read_log
from ccaco_cli.core.training import loop, step
from ccaco_cli.core.types import Words


def losses(aligner: Any, config: Any, heads: Any = None) -> step.StepLosses:
    return step.StepLosses(aligner, config, adaptation=heads)


def batch(toy: Any, config: Any) -> Any:
    data, plan = toy.data(config)
    return data[plan.epoch(0)[0]]


def test_parts_are_the_losses_of_the_models_own_outputs(toy: Any) -> None:
    config = toy.config(loss__alpha=2.0, loss__cross_batch=0)
    aligner, inputs = toy.aligner(config).eval(), batch(toy, config)
    parts = losses(aligner, config.loss)(inputs, beta=0.3)
    (a, features_a), (b, features_b) = aligner.encode("image", inputs.a), aligner.encode("text", inputs.b)
    local = aligner.local_tokens("image", features_a), aligner.local_tokens("text", features_b)
    table = aligner.cross(*local).match_logit
    assert torch.allclose(parts["contrastive"], contrastive.info_nce(a.z, b.z, inputs.group, aligner.logit_scale()))
    assert torch.allclose(parts["cross"], contrastive.matrix_nce(table, inputs.group, inputs.group), atol=1e-6)
    assert torch.allclose(parts["total"], 2 * parts["contrastive"] + 0.3 * parts["cross"])


@pytest.mark.parametrize("cross", ["infonce", "matching"])
def test_a_picture_that_is_read_once_counts_in_each_of_its_pairs(toy: Any, cross: str) -> None:
    config = toy.config(loss__cross=cross, loss__cross_batch=12)
    aligner, (data, plan) = toy.aligner(config).eval(), toy.data(config)
    rows, a, b = replace(plan, captions=2).epoch(0)[0]
    once = data[(rows, a, b)]
    often = replace(once, a=data.a.inputs(a), at_a=None)
    assert (len(once.a["tokens"]), len(often.a["tokens"])) == (8, 16)
    actual, wanted = (losses(aligner, config.loss)(x, 0.3, torch.Generator().manual_seed(0)) for x in (once, often))
    assert set(actual) == {"contrastive", "cross", "total"}
    assert all(torch.allclose(actual[k], wanted[k], atol=1e-6) for k in wanted)
    weights = [aligner.sides[m].tower.linear.weight for m in ("image", "text")]
    for gradient, expected_gradient in zip(
        *(torch.autograd.grad(x["total"], weights) for x in (actual, wanted)), strict=True
    ):
        assert torch.allclose(gradient, expected_gradient, atol=1e-6)


def test_without_weight_the_cross_branch_does_not_run(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy.config()
    aligner = toy.aligner(config)
    monkeypatch.setattr(aligner, "cross", None)
    parts = losses(aligner, config.loss)(batch(toy, config), beta=0.0)
    assert set(parts) == {"contrastive", "total"}
    parts["total"].backward()
    assert all(p.grad is None for p in aligner.matcher.parameters())


@pytest.mark.parametrize("name", [n for n in CROSS_LOSSES if n != "mse"])
def test_every_cross_loss_trains_towers_through_the_cross_branch(toy: Any, name: str) -> None:
    config = toy.config(loss__alpha=0.0, loss__cross=name)
    aligner = toy.aligner(config).train()
    generator = torch.Generator().manual_seed(0)
    parts = losses(aligner, config.loss)(batch(toy, config), 1.0, generator)
    assert set(parts) == {"cross", "total"}
    parts["total"].backward()
    for modality in ("image", "text"):
        assert aligner.sides[modality].tower.linear.weight.grad.abs().sum() > 0


def test_the_generator_alone_draws_the_pairs(toy: Any) -> None:
    config = toy.config(loss__cross="matching", loss__cross_batch=4)
    aligner, inputs = toy.aligner(config).eval(), batch(toy, config)

    def cross(seed: int) -> float:
        return float(losses(aligner, config.loss)(inputs, 1.0, torch.Generator().manual_seed(seed))["cross"].detach())

    assert cross(1) == cross(1)
    assert len({cross(seed) for seed in range(5)}) > 1


def across(toy: Any, name: str, **more: Any) -> tuple[Any, Any, Any]:
    """A batch of 8 pairs and 8 pictures without a partner, and the heads for it."""
    config = toy.config(domain__loss=name, domain__weight=0.5, domain__target="t")
    a, b = toy.columns(24)
    plan = PairPlan(a, b, np.arange(16), 8, 0, unpaired=(np.arange(16, 24), NONE))
    inputs = PairDataset(a, b, np.arange(24), np.arange(24) // 16)[plan.epoch(0)[0]]
    torch.manual_seed(0)
    label = torch.arange(24) % 3
    task = AdaptationTask(
        {"image": 2}, torch.zeros(2, dtype=torch.long), label, adversarial=name in ("dann", "both"), **more
    )
    heads = Adaptation(config.domain, 8, task)
    return config, inputs, heads.eval()


@pytest.mark.parametrize("name", ["dann", "mmd", "both", "coral"])
def test_the_domain_loss_is_that_of_pairs_against_the_rest(toy: Any, name: str) -> None:
    config, inputs, heads = across(toy, name)
    aligner = toy.aligner(config).eval()
    plain = losses(aligner, config.loss)(inputs, 0.3, torch.Generator().manual_seed(0))
    parts = losses(aligner, config.loss, heads)(inputs, 0.3, torch.Generator().manual_seed(0), 0.5)
    assert {k: v for k, v in plain.items() if k != "total"} == {k: parts[k] for k in plain if k != "total"}, (
        "pairs are what they were"
    )
    assert torch.allclose(parts["total"], plain["total"] + 0.5 * parts["domain"])
    features = heads.features(aligner.encode("image", inputs.a)[0].z)
    logits = heads.domain_classifiers["image"](features) if len(heads.domain_classifiers) else None
    domain_inputs = domain.DomainFeatures(features, torch.arange(16) // 8, domain.ramp(0.5), 2, logits)
    assert torch.allclose(parts["domain"], domain.domain_loss(name, domain_inputs))
    assert ("domain_accuracy" in parts) == (name in ("dann", "both"))


def test_the_adversary_descends_what_the_tower_climbs(toy: Any) -> None:
    config, inputs, heads = across(toy, "dann")
    aligner = toy.aligner(config).eval()
    losses(aligner, override(config.loss, {"alpha": 0.0}), heads)(inputs, 0.0, None, 1.0)["total"].backward()
    tower, critic = aligner.sides["image"].tower.linear.weight, heads.domain_classifiers["image"][0].weight
    features = heads.features(aligner.encode("image", inputs.a)[0].z)
    plain = 0.5 * domain.dann(heads.domain_classifiers["image"](features), torch.arange(16) // 8)
    up, down = torch.autograd.grad(plain, (tower, critic))
    assert torch.allclose(critic.grad, down, atol=1e-6)
    assert torch.allclose(tower.grad, -domain.ramp(1.0) * up, atol=1e-6)


def test_a_label_predictor_learns_from_pairs_alone_and_no_words_are_encoded(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, inputs, heads = across(toy, "none", classify="image", classes=3)
    aligner = toy.aligner(config).eval()
    real, encoded = aligner.encode, []
    monkeypatch.setattr(aligner, "encode", lambda m, x: encoded.append(m) or real(m, x))
    heads.config = replace(heads.config, classify=2.0)
    heads.domains = {}
    parts = losses(aligner, override(config.loss, {"alpha": 0.0}), heads)(inputs, 0.0, None, 1.0)
    assert encoded == ["image"] and set(parts) == {"label", "total"}
    logits = heads.predict(real("image", inputs.a)[0].z[:8])
    assert torch.allclose(parts["label"], torch.nn.functional.cross_entropy(logits, heads.label[inputs.rows]))
    assert torch.allclose(parts["total"], 2 * parts["label"])


@pytest.mark.parametrize("share", [True, False])
def test_the_caption_loss_is_that_of_the_decoder_on_the_tokens_of_the_cross_projection(toy: Any, share: bool) -> None:
    config = toy.config(loss__gamma=0.5, loss__alpha=2.0, model__fusion__share=share, optim__captions=2)
    aligner, inputs = toy.aligner(config).eval(), batch(toy, config)
    parts = losses(aligner, config.loss)(inputs, beta=0.3)
    features = aligner.encode("image", inputs.a)[1]
    picture = torch.arange(len(inputs.rows)) if inputs.at_a is None else inputs.at_a
    predicted = aligner.decoder(aligner.memory(features)[picture], features.mask[picture], inputs.words)
    expected = torch.nn.functional.cross_entropy(predicted.logits.flatten(0, 1), predicted.targets.flatten())
    assert torch.allclose(parts["caption"], expected)
    assert torch.allclose(parts["total"], 2 * parts["contrastive"] + 0.3 * parts["cross"] + 0.5 * parts["caption"])
    parts["caption"].backward()
    tower_gradient = aligner.encoder("image").tower.linear.weight.grad
    assert (tower_gradient is not None and bool(tower_gradient.abs().sum() > 0)) == share
    assert all(p.grad is None for p in aligner.encoder("text").parameters())


@pytest.mark.parametrize(("captions", "per_pair"), [(1, 1), (1, 3), (2, 2)])
def test_the_answer_loss_is_that_of_all_questions_of_each_pair(toy: Any, captions: int, per_pair: int) -> None:
    config = toy.config(loss__gamma=0.5, optim__captions=captions)
    aligner, inputs = toy.aligner(config).eval(), batch(toy, config)
    pairs, (start, *content, end) = len(inputs.rows), inputs.words.ids[0][inputs.words.mask[0]].tolist()
    texts = torch.tensor([[start, *content, content[(i * i) % len(content)], end] for i in range(pairs * per_pair)])
    questions = Words(texts, torch.ones_like(texts, dtype=torch.bool), torch.full((len(texts),), len(content)))
    questions.mask[-1] = False  # in place of a question of a sample that has none
    assert "answer" not in losses(aligner, config.loss)(inputs, beta=0.0)
    parts = losses(aligner, config.loss)(replace(inputs, questions=questions), beta=0.0)
    features = aligner.encode("image", inputs.a)[1]
    picture = torch.arange(pairs) if inputs.at_a is None else inputs.at_a
    of_text = torch.tensor([int(picture[i // per_pair]) for i in range(len(texts) - 1)])
    predicted = aligner.decoder(aligner.memory(features)[of_text], features.mask[of_text], questions[:-1])
    expected = torch.nn.functional.cross_entropy(predicted.logits.flatten(0, 1), predicted.targets.flatten())
    assert torch.allclose(parts["answer"], expected)
    assert torch.allclose(parts["total"], parts["contrastive"] + 0.5 * (parts["caption"] + parts["answer"]))


@pytest.mark.parametrize("balance", ["fixed", "schedule", "uncertainty", "gradnorm"])
def test_every_balance_weighs_the_caption_loss(toy: Any, tmp_path: Any, balance: str) -> None:
    config = toy.config(loss__gamma=0.5, loss__balance=balance, optim__epochs=2)
    callbacks = loop.TrainingCallbacks(lambda model: {"R-sum": 1.0})
    loop.fit(toy.aligner(config).train(), loop.TrainingData(*toy.data(config)), config, tmp_path, callbacks)
    steps = [entry for entry in read_log(tmp_path) if "validation" not in entry]
    assert all(entry["caption"] > 0 for entry in steps)
    assert (len({entry["gamma"] for entry in steps}) > 1) == (balance in ("uncertainty", "gradnorm"))


@pytest.mark.parametrize(("gamma", "best_epoch"), [(0.0, 0), (0.5, 1)])
def test_of_equal_validations_the_last_one_is_the_best_where_a_decoder_learns(
    toy: Any, tmp_path: Any, gamma: float, best_epoch: int
) -> None:
    config = toy.config(loss__gamma=gamma, optim__epochs=2)
    callbacks = loop.TrainingCallbacks(lambda model: {"R-sum": 1.0})
    summary = loop.fit(toy.aligner(config).train(), loop.TrainingData(*toy.data(config)), config, tmp_path, callbacks)
    assert summary.best_epoch == best_epoch
