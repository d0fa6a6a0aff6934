from __future__ import annotations

import pytest

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.evaluation.metric_table import METRICS, check_metric


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("r-sum", "R-sum"),
        ("text_to_image_R1", "text_to_image_R@1"),
        ("R@3", "text_to_image_R@3 or image_to_text_R@3"),
        ("image_to_text_map", "image_to_text_mAP"),
        ("zzz", "R-sum"),
        ("", "R-sum"),
    ],
)
def test_an_unknown_metric_is_refused_with_the_nearest_name(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match="no such metric") as refused:
        check_metric(name)
    assert f"next: --metric {nearest}" in str(refused.value)


def test_every_metric_of_the_table_is_accepted() -> None:
    for name, metric in METRICS.items():
        check_metric(f"text_to_image_{name}" if metric.values else name.replace("*", "x"))
    check_metric("audio_to_video_R@7")
