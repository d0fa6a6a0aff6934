from __future__ import annotations

import json

import numpy as np
import pytest

from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation import protocols
from ccaco_cli.core.evaluation.metrics import similarity_ranks, summary
from ccaco_cli.core.evaluation.protocols import Evaluation, by_similarity, evaluate


def vectors(n: int, captions: int, width: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    z_a = rng.standard_normal((n, width))
    z_b = z_a.repeat(captions, 0) + rng.standard_normal((n * captions, width))
    groups = np.arange(n)
    z_a, z_b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z_a, z_b))
    return z_a, z_b, groups, groups.repeat(captions)


def test_full_is_one_pool_of_everything():
    z_a, z_b, a, b = vectors(30, 3)
    evaluation = evaluate("full", a, b, by_similarity(z_a, z_b, a, b))
    assert evaluation.pools == ((30, 90),) and evaluation.protocol == "full" and "never a hit" in evaluation.tie_rule
    assert evaluation.metrics == pytest.approx(
        summary(similarity_ranks(z_a, z_b, a, b), similarity_ranks(z_b, z_a, b, a))
    )


def test_coco_1k_averages_five_folds_in_row_order():
    z_a, z_b, a, b = vectors(5000, 5)
    evaluation = evaluate("coco-1k", a, b, by_similarity(z_a, z_b, a, b))
    assert evaluation.pools == ((1000, 5000),) * 5
    assert [int(fold.query_group[0]) for fold in evaluation.a_to_b] == [0, 1000, 2000, 3000, 4000]
    third = similarity_ranks(z_a[2000:3000], z_b[10000:15000], a[2000:3000], b[10000:15000])
    assert evaluation.a_to_b[2].as_dict() == third.as_dict()
    assert evaluation.metrics["image_to_text_R@5"] == pytest.approx(
        np.mean([fold.hits(5).mean() for fold in evaluation.a_to_b])
    )
    assert evaluation.metrics["text_to_image_median_rank"] == pytest.approx(
        np.mean([np.median(fold.rank) for fold in evaluation.b_to_a])
    )


def test_coco_5k_takes_the_first_five_captions_whatever_their_order():
    a = np.arange(5000)[::-1]
    b = np.concatenate([np.tile(np.arange(5000), 5), [7, 7, 9]])  # round by round, and three extra captions at the end
    (pool,) = protocols.pools("coco-5k", a, b)
    assert len(pool.a) == 5000 and len(pool.b) == 25000 and pool.b.max() < 25000
    assert (b[pool.b] == a.repeat(5)).all() and len(set(pool.b.tolist())) == 25000
    assert pool.b[-5:].tolist() == [0, 5000, 10000, 15000, 20000]  # of picture 0, in their own order


@pytest.mark.parametrize(
    ("name", "pictures", "captions", "message"),
    [
        ("coco-5k", 1000, 5, r"1000 images.*coco-5k.*expected 5000"),
        ("coco-1k", 1000, 5, r"1000 images.*coco-1k.*expected 5000"),
        ("flickr-1k", 1014, 5, r"1014 images.*flickr-1k.*expected 1000"),
        ("flickr-1k", 1000, 4, r"4 captions of image 0.*expected 5 or more.*5000 in all"),
    ],
)
def test_other_sizes_are_refused_by_name(name, pictures, captions, message):
    with pytest.raises(DataError, match=message):
        protocols.pools(name, np.arange(pictures), np.arange(pictures).repeat(captions))


def test_repeated_pictures_and_missing_captions_are_refused():
    twice = np.arange(1000) // 2
    with pytest.raises(DataError, match="500 distinct"):
        protocols.pools("flickr-1k", twice, twice.repeat(5))
    with pytest.raises(DataError, match="0 captions of image 999"):
        protocols.pools("flickr-1k", np.arange(1000), np.arange(999).repeat(6))


def test_unknown_protocol_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"coco-2k.*full \| coco-5k \| coco-1k \| flickr-1k"):
        protocols.pools("coco-2k", [0], [0])


def test_stored_and_read_back():
    z_a, z_b, a, b = vectors(12, 2)
    evaluation = evaluate("full", a, b, by_similarity(z_a, z_b, a, b), names=("video", "audio"))
    back = Evaluation.from_dict(json.loads(json.dumps(evaluation.as_dict())))
    assert back.as_dict() == evaluation.as_dict() and set(back.directions()) == {"video_to_audio", "audio_to_video"}
    assert summary(back.a_to_b[0], back.b_to_a[0], back.names) == evaluation.metrics
    with pytest.raises(DataError, match="pools"):
        Evaluation.from_dict({k: v for k, v in evaluation.as_dict().items() if k != "pools"})
