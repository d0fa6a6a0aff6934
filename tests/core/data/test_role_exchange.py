from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from ccaco_cli.core.data.bigrams import BigramModel
from ccaco_cli.core.data.role_exchange import ALIKE, UNLIKE, exchanged_roles, role_choices

EXCHANGED = {
    # subject and object
    "A man pushes a boy .": "A boy pushes a man .",
    "a dog chases a cat": "a cat chases a dog",
    "A large brown dog jumps over a small black dog .": "A small black dog jumps over a large brown dog .",
    "A soccer player in red is tackled by a player in blue": "A player in blue is tackled by a soccer player in red",
    "A boy in red is tackled by a girl in a blue jersey": "A girl in a blue jersey is tackled by a boy in red",
    "Two dogs are chasing a cow .": "A cow is chasing two dogs .",
    "Dog chasing two cows in a field": "Two cows chasing dog in a field",
    "While it rains , a man throws a boy into the air .": None,  # "it" is neither
    "In the rain , a man throws a boy into the air .": "In the rain , a boy throws a man into the air .",
    "A man carries a boy on his back .": "A boy carries a man on his back .",
    "A girl stands behind a boy": "A boy stands behind a girl",
    "A boy playfully bites a girl , who laughs .": "A girl playfully bites a boy , who laughs .",
    # the agents of two clauses
    "A boy jumps while a girl watches": "A girl jumps while a boy watches",
    "A boy is running and a girl is sitting .": "A girl is running and a boy is sitting .",
    "Two boys are swimming as a man is sleeping": "A man is swimming as two boys are sleeping",
    "A girl dances with a boy in the background .": "A boy dances with a girl in the background .",
}
LEFT_OUT = {
    "both sides do the same": [
        "A man and a woman",
        "A man stands next to a boy",
        "a boy plays with a girl",
        "A man hugs a boy .",
        "a man with a boy",
        "A boy runs while a girl runs",
        "A man kisses a woman",
    ],
    "one word can name both": [
        "A dog chases a dog",
        "A black dog chases a black dog",
        "A dog chases a brown dog",
        "A man pushes a person",
        "A boy carries a child .",
        "A puppy bites a dog",
        "The animal chases a horse",
    ],
    "the verb would have to change": ["A dog chases two cows", "Two boys push a man", "A boy jumps while girls watch"],
    "a pronoun would refer to the wrong agent": [
        "A man carries a girl on his back",
        "A woman sits while a boy stands behind her",
        "A man walks a dog on its leash",
        "A boy pushes a girl toward the others",
    ],
    "no template reads it to the end": [
        "",
        "A man pushes a boy scout",
        "A group of dogs pulling a man",
        "A large , black dog chases a cow",
        "A man pushes a cart",
        "The harness that the brown and white dog is wearing",
        "Ein Mann schiebt einen Jungen",
        "A girl jumps while a boy and a man watch",
    ],
}


@pytest.mark.parametrize(("caption", "exchanged"), EXCHANGED.items())
def test_exchanges_agents(caption: str, exchanged: str | None) -> None:
    result = exchanged_roles(caption)
    assert (result and result[1]) == exchanged
    if exchanged is not None:
        back = exchanged_roles(exchanged)
        assert back is not None and back[1] == caption, "the exchange of the exchange is the caption"


@pytest.mark.parametrize(
    ("reason", "caption"), [(reason, text) for reason, texts in LEFT_OUT.items() for text in texts]
)
def test_leaves_out(reason: str, caption: str) -> None:
    assert exchanged_roles(caption) is None, reason


def test_kinds() -> None:
    assert [exchanged_roles(f"a {a} chases a {b}")[0] for a, b in (("man", "boy"), ("dog", "cat"), ("dog", "man"))] == [  # type: ignore[index]
        ALIKE,
        ALIKE,
        UNLIKE,
    ]


def test_long_captions_are_read_in_no_time() -> None:
    start = time.perf_counter()
    for text in ("a black and white " * 3000, "a man " * 5000, "a man is walking, " * 3000, "black, " * 9000 + "dog"):
        assert exchanged_roles(text) is None
    assert time.perf_counter() - start < 5


def test_choices_of_a_photo() -> None:
    bigrams = BigramModel(["a man pushes a boy", "a man pushes a cart", "a cat sleeps"])
    captions = ["A  man pushes a boy", "A dog chases a cat", "a cat chases a dog", "A cat sleeps", "A man pushes a boy"]
    ((kind, true, false, advantage),) = role_choices(captions, bigrams)
    assert (kind, true, false) == (ALIKE, "A man pushes a boy", "A boy pushes a man")  # the dog and the cat do both
    assert advantage > 0
    ((_, _, _, disadvantage),) = role_choices(["A boy pushes a man"], bigrams)
    assert disadvantage == -advantage


@pytest.mark.skipif("CCACO_REAL_DATA" not in os.environ, reason="CCACO_REAL_DATA does not name the real data")
def test_real_captions() -> None:
    file = Path(os.environ["CCACO_REAL_DATA"]) / "flickr8k/dataset_flickr8k.json"
    images = json.loads(file.read_text("utf-8"))["images"]
    captions = [sentence["raw"] for image in images for sentence in image["sentences"]]
    exchanged = {caption: result for caption in captions if (result := exchanged_roles(caption))}
    assert 550 < len(exchanged) < 700
    assert sum(kind == ALIKE for kind, _ in exchanged.values()) > 350
    for caption, (_, other_roles) in exchanged.items():
        assert sorted(other_roles.lower().replace("are", "is").split()) == sorted(
            caption.lower().replace("are", "is").split()
        ), "the same words in another order"
        assert other_roles != caption
