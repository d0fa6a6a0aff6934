"""Metrics of captions: known values, order, and the words that are compared."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.evaluation.caption_metrics import caption_metrics, tokenised

REFERENCES = [
    ["a red ball on a sofa", "a scarlet ball on a couch"],
    ["an orange cat naps in the snow", "a cat sleeps"],
    ["two dogs run on the beach", "dogs running by the sea"],
]


def test_words() -> None:
    assert tokenised("In the snow, a dog's  BALL!") == "in the snow a dog's ball"
    assert tokenised("Ünder_score... 2 cats") == "ünder score 2 cats"


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("pycocoevalcap"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"ccaco\[captions\]"):
        caption_metrics(["a"], [["a"]])


def test_a_reference_itself_is_best_and_other_words_are_worst() -> None:
    pytest.importorskip("pycocoevalcap", reason="needs the extra captions")
    same = caption_metrics([texts[0] for texts in REFERENCES], REFERENCES)
    assert same["BLEU-4"] == pytest.approx(1, abs=1e-6) and same["ROUGE-L"] == pytest.approx(1)
    near = caption_metrics(["a red ball on a box", "an orange cat in the snow", "two dogs on the beach"], REFERENCES)
    unrelated = caption_metrics(["x y z w", "x y z w", "x y z w"], REFERENCES)
    for name in ("BLEU-4", "ROUGE-L", "CIDEr-D"):
        assert same[name] > near[name] > unrelated[name] >= 0
    assert unrelated["BLEU-4"] < 1e-6 and unrelated["CIDEr-D"] == 0


def test_rouge_by_hand() -> None:
    pytest.importorskip("pycocoevalcap", reason="needs the extra captions")
    # longest common subsequence "a b d" of 4 and 4 words: recall = precision = 3/4
    metrics = caption_metrics(["a b x d", "q"], [["a b c d"], ["r"]])
    assert metrics["ROUGE-L"] == pytest.approx(3 / 8)


def test_chinese_captions_are_compared_by_words() -> None:
    pytest.importorskip("pycocoevalcap")
    pytest.importorskip("jieba")
    assert tokenised("一只橘猫在沙发上打盹。") == "一只 橘猫 在 沙发 上 打盹"
    near, far = (
        caption_metrics([text, "两只狗在雪地里奔跑"], [["一只橘猫在沙发上打盹"], ["两只狗在雪地里跑"]])["ROUGE-L"]
        for text in ("一只橘猫在沙发上睡觉", "雨天的街道")
    )
    assert near > far
