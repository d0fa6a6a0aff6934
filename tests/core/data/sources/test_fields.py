from __future__ import annotations

import datetime
import decimal
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ccaco_cli.core.data.sources.fields import FieldReader, captions_from, is_missing, text_from
from ccaco_cli.core.errors import DataError


@pytest.mark.parametrize(
    "value",
    [None, "", "  \n", float("nan"), np.float32("nan"), pd.NA, pd.NaT, decimal.Decimal("NaN"), "nan", "NaN", b"nan"]
    + ["<NA>", " None ", "null", "NULL", b""],
)
def test_missing_values_are_missing_everywhere(value: Any) -> None:
    assert is_missing(value)
    assert captions_from(value) == [] and text_from(value, "label") == ""
    assert captions_from([value, "a dog"]) == ["", "a dog"], "one that is missing in a list is counted"
    assert captions_from({"raw": value}) == []


@pytest.mark.parametrize("value", [0, 0.0, False, "0", "none of them", "nano", "Nan bread", "n/a sign"])
def test_other_values_are_not_missing(value: Any) -> None:
    assert not is_missing(value) and captions_from(value) == [str(value)]


@pytest.mark.parametrize(
    "value",
    [
        ["a dog", "two cats"],
        ("a dog", "two cats"),
        np.array(["a dog", "two cats"], object),
        [b"a dog", "two cats"],
        '["a dog", "two cats"]',
        "['a dog', 'two cats']",
        "['a dog' 'two cats']",
        "['a dog'\n 'two cats']",
        {"raw": ["a dog", "two cats"], "tokens": [["a", "dog"], ["two", "cats"]]},
        [{"raw": "a dog", "tokens": ["a", "dog"]}, {"raw": "two cats", "tokens": ["two", "cats"]}],
        [{"caption": "a dog", "id": 3}, {"sentence": "two cats"}],
        {"sentences": [{"raw": "a dog"}, {"raw": "two cats"}]},
        json.dumps([{"raw": "a dog"}, {"raw": "two cats"}]),
        str({"raw": ["a dog", "two cats"], "tokens": []}),
    ],
    ids=repr,
)
def test_several_captions_are_taken_apart(value: Any) -> None:
    assert captions_from(value) == ["a dog", "two cats"]


@pytest.mark.parametrize(
    "text", ["[sic] a dog", "[laughs]", "[1, 2]", "{a}", "a dog [left] and a cat [right]", "[a dog] and [a cat]", '"a"']
)
def test_text_in_brackets_is_text(text: str) -> None:
    assert captions_from(text) == [text]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"id": 3, "tokens": ["a"]}, "caption is an object without a known key"),
        ({}, "caption is an object without a known key"),
        ('{"id": 3}', "caption is an object without a known key"),
        ([["a", "dog"], ["two", "cats"]], "caption is a list in a list"),
        ('[["a", "dog"]]', "caption is a list in a list"),
        ("['a dog' ... 'two cats']", "caption is a list that was cut short"),
        ({"raw": object()}, "field is not a text"),
        (object(), "field is not a text"),
    ],
)
def test_a_structure_without_a_rule_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(DataError) as error:
        captions_from(value)
    assert error.value.what == reason
    fields = FieldReader()
    assert fields.captions(value) == [] and fields.problem == reason
    fields.refuse("another reason")
    assert fields.problem == reason, "the first reason stays"


def test_one_text_of_a_field() -> None:
    assert [text_from(value, "label") for value in (3, ["x"], ["x", "x", None], np.array(["x"]), b"x", 2.5)] == [
        "3",
        "x",
        "x",
        "x",
        "x",
        "2.5",
    ]
    assert text_from(datetime.date(2020, 1, 2), "label") == "2020-01-02"
    for value, reason in (
        (["x", "y"], "several values of split in one row"),
        ({"name": "x"}, "split is a structure, not a text"),
        ([["x"]], "split is a structure, not a text"),
        (object(), "field is not a text"),
    ):
        fields = FieldReader()
        assert fields.text(value, "split") == "" and fields.problem == reason
