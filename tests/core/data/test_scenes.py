from __future__ import annotations

import hashlib
import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.data import scene_records, scenes
from ccaco_cli.core.data.scene_drawing import STYLES, draw
from ccaco_cli.core.data.scene_figures import COLOURS
from ccaco_cli.core.data.scene_words import RELATIONS, SYNONYMS

NOUNS = {*scenes.ANIMALS, *scenes.OBJECTS}
POSES = {pose for poses in scenes.POSES.values() for pose in poses}
COUNTS = {"train": {"colour": 1200}, "val": {"colour": 200}, "test": {"colour": 1000}}
MEANING = {synonym: word for word, ways in SYNONYMS.items() for synonym in ways}
PLACES = {synonym: word for synonym, word in MEANING.items() if word in scenes.GROUNDS}


def make(**counts):
    return list(scene_records.records("scenes", counts or COUNTS, seed=0, size=64, limit=None))


@pytest.fixture(scope="module")
def records():
    return make()


def parse(caption):
    """(claims of each thing named, relation or None, place or None) of a caption, read without the templates."""
    place = None
    for synonym, word in sorted(PLACES.items(), key=lambda item: -len(item[0])):
        if synonym in caption:
            place, caption = word, caption.replace(synonym, " ")
            break
    claims, between = [], []
    chunks = f" {caption} ".replace(",", " ").replace(" an ", " a ").split(" a ")[1:]
    for chunk in chunks:
        words = [MEANING.get(word, word) for word in chunk.split()]
        nouns = [i for i, word in enumerate(words) if word in NOUNS]
        if not nouns:
            continue
        (at,) = nouns
        after = words[at + 1 :]
        claimed = {"noun": words[at], "colour": words[at - 1]}
        for key, known in (("size", scenes.SCALES), ("pose", POSES)):
            claimed.update((key, word) for word in words[: at - 1] if word in known)
        if after and after[0] in POSES:
            claimed["pose"] = after.pop(0)
        claims.append(claimed)
        between.append(" ".join(w for w in chunk.split()[len(words) - len(after) :] if w != "is"))
    ways = [
        (r, i) for r, both in RELATIONS.items() for i, phrases in enumerate(both) if between and between[0] in phrases
    ]
    return claims, ways[0] if ways else None, place


def holds(claims, facts):
    """Index of the thing that each claim is true of; None when a claim is false."""
    nouns = {fact["noun"]: i for i, fact in enumerate(facts)}
    objects = [nouns.get(phrase["noun"]) for phrase in claims]
    pairs = zip(objects, claims, strict=True)
    return objects if all(i is not None and phrase.items() <= facts[i].items() for i, phrase in pairs) else None


def test_synonyms_mean_one_thing_each():
    synonyms = [synonym for ways in SYNONYMS.values() for synonym in set(ways)]
    assert len(synonyms) == len(set(synonyms))


def test_counts_ids_and_numbers_of_things(records):
    assert Counter(r.split for r in records) == {"train": 1200, "val": 200, "test": 1000}
    assert len({r.id for r in records}) == len(records)
    assert records[0].id == "scenes/train/000000"
    assert {r.meta["things"] for r in records} == {2, 3, 4, 5}
    assert all(len(r.meta["facts"]) == len(r.meta["boxes"]) == r.meta["things"] for r in records)
    assert all(len(r.captions) == 5 and r.captions == tuple(c.strip().lower() for c in r.captions) for r in records)


def test_every_claim_of_every_caption_is_true(records):
    for record in records:
        facts, full = record.meta["facts"], record.meta["full_captions"]
        for i, caption in enumerate(record.captions):
            claims, relation, place = parse(caption)
            matching = holds(claims, facts)
            assert matching, (caption, facts)
            assert all(claimed["colour"] in COLOURS for claimed in claims), caption
            assert place in (None, record.meta["place"]), caption
            if i < full:
                name, inverse = relation
                assert name == record.meta["relation"], caption
                # "next to" reads the same both ways, so either order is true of it.
                assert matching[:2] == ([1, 0] if inverse else [0, 1]) or (
                    name == "next" and set(matching[:2]) == {0, 1}
                ), caption
            else:
                assert relation is None and len(matching) in (1, 2), caption


def test_a_noun_and_a_colour_come_once_in_a_picture(records):
    for facts in (r.meta["facts"] for r in records):
        assert len({f["noun"] for f in facts}) == len({f["colour"] for f in facts}) == len(facts)


def test_relations_hold_in_the_picture(records):
    for record in records:
        (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (b["box"] for b in record.meta["boxes"][:2])
        relation = record.meta["relation"]
        if relation == "left":
            assert ax1 < bx0
        elif relation == "next":
            assert max(bx0 - ax1, ax0 - bx1) < 0.05
        elif relation == "above":
            assert ay1 < by0
            assert max(ax0, bx0) < min(ax1, bx1)
        elif relation == "on":
            assert by0 - 0.01 <= ay1 < by1
            assert ay0 + ay1 < by0 + by1
        elif relation == "inside":
            assert bx0 < ax0 < ax1 < bx1
            assert by0 < ay0 < ay1 < by1
        else:
            figures = {f.noun: f for f in record.media["image"].args[0].figures}
            chaser, chased = (figures[f["noun"]] for f in record.meta["facts"][:2])
            assert chaser.left == chased.left == (bx0 < ax0)


def test_boxes_hold_their_thing(records):
    for record in [r for r in records if r.split == "test"][:150]:
        pixels = np.asarray(draw(record.media["image"].args[0], 128), dtype=int)
        for box, fact in zip(record.meta["boxes"], record.meta["facts"], strict=True):
            assert box["word"] == fact["noun"]
            x0, y0, x1, y1 = box["box"]
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            part = pixels[round(y0 * 128) : round(y1 * 128), round(x0 * 128) : round(x1 * 128)]
            near = np.abs(part - COLOURS[fact["colour"]]).max(-1) < 12
            assert near.mean() > 0.04, (record.id, fact)


def swapped(facts, kind):
    a, b = (dict(f) for f in facts[:2])
    keys = {"role": ("noun", "pose", "colour", "size"), "colour": ("colour",), "shape": ("noun", "pose")}[kind]
    for key in keys:
        a[key], b[key] = b[key], a[key]
    return [a, b, *facts[2:]]


def test_twins_differ_in_exactly_the_binding(records):
    families = {}
    for record in records:
        if record.family:
            families.setdefault(record.family, []).append(record)
    kinds = Counter()
    for first, second in families.values():
        kind = first.meta["twin"]["kind"]
        kinds[first.split, kind] += 1
        assert first.meta["twin"] == second.meta["twin"] == {"kind": kind, "of": first.id}
        assert second.meta["facts"] == swapped(first.meta["facts"], kind) != first.meta["facts"]
        assert all(first.meta[key] == second.meta[key] for key in ("relation", "place"))
        first_drawing, second_drawing = (r.media["image"].args[0] for r in (first, second))
        assert (first_drawing.place, first_drawing.variant) == (second_drawing.place, second_drawing.variant)
        assert first.media["image"]() != second.media["image"]()
        assert first.meta["boxes"][2:] == second.meta["boxes"][2:]
        for record, other in ((first, second), (second, first)):
            assert [true for true, _ in record.meta["binding"]] == list(record.captions[:3])
            assert [false for _, false in record.meta["binding"]] == list(other.captions[:3])
        for true, false in first.meta["binding"]:
            assert true != false
            assert sorted(true.replace("an ", "a ").split()) == sorted(false.replace("an ", "a ").split())
            claims, (relation, inverse), _ = parse(false)
            matching = holds(claims, first.meta["facts"])
            assert matching is None or (
                kind == "role" and matching[:2] == ([0, 1] if inverse else [1, 0]) and relation != "next"
            ), false
    assert {kind for split, kind in kinds} == {"role", "colour", "shape"}
    assert all(kinds[split, kind] >= 12 for split in COUNTS for kind in ("role", "colour", "shape"))
    share = {s: sum(bool(r.family) for r in records if r.split == s) / COUNTS[s]["colour"] for s in COUNTS}
    assert share == {"train": 0.5, "val": 0.5, "test": 0.5}
    assert all(r.meta["twin"] is None and r.meta["binding"] == [] for r in records if not r.family)


def test_held_out_pairs_are_seen_in_test_only(records):
    pairs = {
        split: {(f["noun"], f["colour"]) for r in records if r.split == split for f in r.meta["facts"]}
        for split in COUNTS
    }
    assert not pairs["train"] & scenes.HELD_OUT
    assert not pairs["val"] & scenes.HELD_OUT
    assert pairs["test"] >= scenes.HELD_OUT
    for record in records:
        assert record.meta["heldout"] == any((f["noun"], f["colour"]) in scenes.HELD_OUT for f in record.meta["facts"])


def test_orange_napping_cats_live_in_the_test_gallery(records):
    wanted = {"noun": "cat", "colour": "orange", "pose": "napping"}
    answers = [r for r in records if r.split == "test" and any(wanted.items() <= f.items() for f in r.meta["facts"])]
    assert len(answers) >= 8
    assert any("orange cat napping" in caption for r in answers for caption in r.captions)


def test_full_captions_nearly_name_their_picture(records):
    gallery = [r for r in records if r.split == "test"]

    def fits(caption):
        claims, relation, place = parse(caption)
        for record in gallery:
            matching = holds(claims, record.meta["facts"])
            related = relation is None or (
                matching and relation[0] == record.meta["relation"] and set(matching[:2]) == {0, 1}
            )
            yield bool(matching and related and place in (None, record.meta["place"]))

    sampled = random.Random(0).sample(gallery, 40)
    full = [sum(fits(c)) for a in sampled for c in a.captions[:3]]
    part = [sum(fits(c)) for a in sampled for c in a.captions[3:]]
    print(
        f"pictures that a caption is true of: full {np.mean(full):.2f}, "
        f"partial median {np.median(part):.0f}, mean {np.mean(part):.1f}"
    )
    assert min(full) >= 1
    assert np.mean(full) < 2.5
    assert np.median(part) <= 5


def digest(records):
    sha = hashlib.sha256()
    for record in records:
        sha.update(
            repr((record.id, record.captions, record.family, dict(record.meta))).encode() + record.media["image"]()
        )
    return sha.hexdigest()


def test_same_bytes_in_another_process():
    counts = {"train": dict.fromkeys(STYLES, 12)}
    records = list(scene_records.records("s", counts, seed=3, size=64, limit=None))
    code = (
        "import sys; from ccaco_cli.core.data import scene_records; import hashlib\n"
        f"records = list(scene_records.records('s', {counts!r}, seed=3, size=64, limit=None))\n"
        # In reverse order: nothing may depend on what was drawn before.
        "drawn = [r.media['image']() for r in reversed(records)][::-1]\n"
        "sha = hashlib.sha256()\n"
        "for r, b in zip(records, drawn): sha.update(repr((r.id, r.captions, r.family, dict(r.meta))).encode() + b)\n"
        "print(sha.hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    other = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert other == digest(records)
    assert other != digest(scene_records.records("s", counts, seed=4, size=64, limit=None))


def test_a_split_does_not_depend_on_how_much_is_requested(records):
    smaller = list(scene_records.records("scenes", COUNTS, seed=0, size=64, limit=30))
    assert [r.captions for r in smaller if r.split == "test"] == [r.captions for r in records if r.split == "test"][:29]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
def test_limit_keeps_families_whole(limit):
    records_again = list(
        scene_records.records(
            "s", {"test": {"colour": 100}, "val": {"colour": 60, "sketch": 40}}, seed=0, size=64, limit=limit
        )
    )
    for split in ("test", "val"):
        here = [r for r in records_again if r.split == split]
        assert max(1, limit - 2) <= len(here) <= limit
        assert set(Counter(r.family for r in here if r.family).values()) <= {2}


def test_media_are_small_picklable_functions_of_the_requested_size():
    for size in (32, 64, 150):
        (record,) = scene_records.records("s", {"test": {"colour": 1}}, seed=0, size=size, limit=None)
        make_bytes = record.media["image"]
        assert len(pickle.dumps(make_bytes)) < 4000
        image = Image.open(BytesIO(pickle.loads(pickle.dumps(make_bytes))()))
        assert (image.size, image.mode, image.format) == ((size, size), "RGB", "JPEG")


def test_styles_look_as_they_are_called():
    (record,) = scene_records.records("s", {"test": {"colour": 1}}, seed=0, size=64, limit=None)
    picture = record.media["image"].args[0]
    colour, sketch, noisy = (np.asarray(draw(picture, 64, style), dtype=float) for style in STYLES)
    assert np.ptp(sketch, axis=-1).max() == 0
    assert np.ptp(colour, axis=-1).max() > 100
    assert np.corrcoef(colour.ravel(), noisy.ravel())[0, 1] < -0.7
    assert np.abs(np.diff(noisy, axis=1)).mean() > 2 * np.abs(np.diff(colour, axis=1)).mean()
