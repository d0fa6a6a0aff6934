"""The records of the generated data set ``scenes``: families of pictures with their captions, questions and twins."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ccaco_cli.core.data.caption_languages import PARALLEL, captions_by_language
from ccaco_cli.core.data.questions import QUESTIONS, Question, stored
from ccaco_cli.core.data.scene_drawing import render_jpeg
from ccaco_cli.core.data.scene_figures import COLOURS
from ccaco_cli.core.data.scene_languages import LANGUAGES, SceneLanguage
from ccaco_cli.core.data.scene_questions import balanced, question_candidates
from ccaco_cli.core.data.scene_words import SceneObject, Wording
from ccaco_cli.core.data.scenes import ANIMALS, HELD_OUT, OBJECTS, Composition, compose, held_out, picture, place
from ccaco_cli.core.types import PairRecord

FAMILIES = ("", "role", "", "", "colour", "", "", "shape", "")
"""Kinds of twins of consecutive families in every split, repeated: half of the pictures have a twin."""

CAPTIONS, FULL_CAPTIONS = 5, 3
"""Captions of a picture in each language, and how many of them have a relation."""


def records(
    name: str,
    counts: Mapping[str, Mapping[str, int]],
    *,
    seed: int,
    size: int,
    limit: int | None,
    languages: Sequence[str] = ("en",),
) -> Iterator[PairRecord]:
    """All records of a generated set.

    Args:
        name: of the set, the first part of every id.
        counts: split -> domain (one of ``STYLES``) -> number of pictures.
        seed: of the set.
        size: pixels per side.
        limit: maximum number of pictures per split, divided among its domains; families are not cut.
        languages: keys of ``scene_languages.LANGUAGES``. Every picture has ``CAPTIONS`` captions in each, which say the
            same. Questions are asked where English is among them.
    """
    for split, domains in counts.items():
        total = sum(domains.values())
        count = total if limit is None else min(limit, total)
        ends = [count * end // total for end in itertools.accumulate(domains.values(), initial=0)]
        for domain, (start, end) in zip(domains, itertools.pairwise(ends), strict=True):
            wanted = end - start
            prefix = f"{name}/{split}" if len(domains) == 1 else f"{name}/{split}/{domain}"
            yield from _split(prefix, split, domain, wanted, seed=seed, size=size, languages=languages)


@dataclass(frozen=True, slots=True)
class _Family:
    """A scene, and its twin if it has one.

    Attributes:
        first: index of the first one in its split and domain.
        kind: of the twin; "" = none.
        scenes: one or two.
        wordings: of their full captions.
    """

    first: int
    kind: str
    scenes: tuple[Composition, ...]
    wordings: list[Wording]

    def full(self, language: SceneLanguage) -> list[list[str]]:
        """The full captions of each scene."""
        return [[language.full(w, s.objects, s.relation, s.place) for w in self.wordings] for s in self.scenes]


def _families(key: str, wanted: int, *, allow_held_out: bool) -> Iterator[_Family]:
    """The families of at most ``wanted`` pictures; ``key`` seeds them."""
    index = 0
    for kind in itertools.cycle(FAMILIES):
        if index + (2 if kind else 1) > wanted:
            return
        rng = random.Random(f"{key}/{index}")
        family = compose(rng, kind, allow_held_out=allow_held_out)
        yield _Family(index, kind, family, [Wording.draw(rng) for _ in range(FULL_CAPTIONS)])
        index += len(family)


def _questions(key: str, compositions: Iterable[Composition], *, allow_held_out: bool) -> list[list[Question]]:
    """The questions of each picture of a split and domain, which are balanced over all of them."""
    colours = {
        noun: tuple(colour for colour in COLOURS if allow_held_out or (noun, colour) not in HELD_OUT)
        for noun in dict.fromkeys((*ANIMALS, *OBJECTS))
    }
    candidates = [
        list(question_candidates(s.objects, s.relation, s.place, colours, random.Random(f"{key}/{number}/questions")))
        for number, s in enumerate(compositions)
    ]
    return balanced(candidates, random.Random(f"{key}/questions"))


def _split(
    prefix: str, split: str, domain: str, wanted: int, *, seed: int, size: int, languages: Sequence[str]
) -> Iterator[PairRecord]:
    key, test = f"{seed}/{split}/{domain}", split == "test"
    families = list(_families(key, wanted, allow_held_out=test))
    scenes = (scene for family in families for scene in family.scenes)
    questions = _questions(key, scenes, allow_held_out=test) if "en" in languages else []
    for family in families:
        kind, full = family.kind, {code: family.full(LANGUAGES[code]) for code in languages}
        ids = [f"{prefix}/{family.first + i:06d}" for i in range(len(family.scenes))]
        for i, scene in enumerate(family.scenes):
            number = family.first + i
            words_rng = random.Random(f"{key}/{number}/words")
            parts: list[tuple[Wording, list[SceneObject]]] = []
            for _ in range(CAPTIONS - FULL_CAPTIONS):
                wording = Wording.draw(words_rng)
                parts.append((wording, words_rng.sample(scene.objects, words_rng.choice((1, 1, 2)))))
            captions, language_facts = captions_by_language(
                {
                    code: full[code][i] + [LANGUAGES[code].partial(*part, scene.place) for part in parts]
                    for code in languages
                }
            )
            meta = _meta(scene)
            if tuple(languages) != ("en",):
                meta |= language_facts | ({PARALLEL: True} if len(languages) > 1 else {})
            meta["twin"] = {"kind": kind, "of": ids[0]} if kind else None
            meta["binding"] = [
                [true, false]
                for code in (languages if kind else ())
                for true, false in zip(full[code][i], full[code][1 - i], strict=True)
            ]
            if questions:
                meta[QUESTIONS] = stored(questions[number])
            image = partial(render_jpeg, picture(scene, ids[i]), size, domain)
            yield PairRecord(
                ids[i],
                ids[i],
                split,
                {"image": image},
                tuple(captions),
                domain=domain,
                family=ids[0] if kind else "",
                meta=meta,
            )


def _meta(scene: Composition) -> dict[str, Any]:
    """The facts and boxes of a scene as JSON types."""
    boxes = [
        {"word": t.noun, "thing": i, "box": [round(min(1.0, max(0.0, v)), 4) for v in box]}
        for i, (t, (_, box)) in enumerate(zip(scene.objects, place(scene), strict=True))
    ]
    return {
        "things": len(scene.objects),
        "facts": [{"noun": t.noun, "colour": t.colour, "size": t.size, "pose": t.pose} for t in scene.objects],
        "relation": scene.relation,
        "place": scene.place,
        "boxes": boxes,
        "heldout": held_out(scene),
        "full_captions": FULL_CAPTIONS,
    }
