from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ccaco_cli.core.evaluation.protocols import Evaluation, by_similarity, evaluate
from ccaco_cli.core.evaluation.significance import per_query
from ccaco_cli.core.scoring.languages import evaluate_by_language


def test_each_language_is_a_pool_and_the_metrics_are_means() -> None:
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(n, 6), dim=-1) for n in (4, 12))
    group, group_b = np.arange(4), np.repeat(np.arange(4), 3)
    language = np.array(["de", "en", "en"] * 4)

    def ranked(items: np.ndarray, protocol: str = "full") -> Evaluation:
        groups = group, group_b[items]
        return evaluate(protocol, *groups, by_similarity(images, texts[items], *groups))

    joined = evaluate_by_language(language, ranked)
    alone = {name: ranked(np.flatnonzero(language == name)) for name in ("de", "en")}
    assert joined.pool_names == ("de", "en") and joined.pools == ((4, 4), (4, 8)) and joined.protocol == "languages"
    assert joined.metrics_of_pools() == {name: evaluation.metrics for name, evaluation in alone.items()}
    for name, value in joined.metrics.items():
        assert value == pytest.approx((alone["de"].metrics[name] + alone["en"].metrics[name]) / 2)
    for name in ("image_to_text_R@1", "text_to_image_R@5", "text_to_image_mAP", "R-sum"):  # as tables of tests show it
        assert per_query(name, joined.directions()).mean == pytest.approx(joined.metrics[name])
    stored = Evaluation.from_dict(joined.as_dict())
    assert stored.pool_names == joined.pool_names and stored.metrics_of_pools() == joined.metrics_of_pools()
    assert Evaluation.from_dict(alone["de"].as_dict()).pool_names == ()
