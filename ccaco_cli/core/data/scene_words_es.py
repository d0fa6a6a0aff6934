"""Captions of the generated scenes in Spanish, from the same facts and wordings as the English ones.

Adjectives follow the noun and agree with it in gender: un gato rojo pequeño, una pelota roja pequeña.
"""

from __future__ import annotations

from collections.abc import Sequence

from ccaco_cli.core.data.scene_words import SceneObject, Wording

FEMININE = frozenset({"ball", "box", "house"})
"""Nouns whose words are feminine; those of all others are masculine."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "cat": ("gato", "gato", "gato", "minino"),
    "dog": ("perro", "perro", "perro", "can"),
    "bird": ("pájaro",),
    "fish": ("pez",),
    "ball": ("pelota", "pelota", "bola"),
    "box": ("caja",),
    "car": ("coche", "coche", "auto"),
    "sofa": ("sofá", "sofá", "diván"),
    "tree": ("árbol",),
    "house": ("casa",),
    "red": ("roj*", "roj*", "roj*", "escarlata"),
    "orange": ("naranja", "naranja", "naranja", "anaranjad*"),
    "yellow": ("amarill*", "amarill*", "amarill*", "dorad*"),
    "green": ("verde", "verde", "verde", "verde esmeralda"),
    "blue": ("azul", "azul", "azul", "azul celeste"),
    "purple": ("morad*", "morad*", "morad*", "violeta"),
    "small": ("pequeñ*", "pequeñ*", "diminut*"),
    "large": ("grande", "grande", "enorme"),
    "napping": ("durmiendo", "durmiendo", "dormitando", "dormid*"),
    "running": ("corriendo",),
    "sitting": ("sentad*", "sentad*", "descansando"),
    "flying": ("volando",),
    "swimming": ("nadando",),
    "garden": ("en el jardín", "en un jardín", "sobre el césped"),
    "beach": ("en la playa", "en la playa", "junto al mar"),
    "room": ("en una habitación", "en la habitación", "dentro de casa"),
    "snow": ("en la nieve", "en la nieve", "en un día de nieve"),
    "street": ("en la calle", "en la calle", "en la carretera"),
    "desert": ("en el desierto", "en el desierto", "en un desierto seco"),
    "forest": ("en el bosque", "en el bosque", "entre los árboles"),
    "night": ("de noche", "de noche", "bajo las estrellas"),
}
"""Word -> synonyms, repeated by frequency; ``*`` is the ending "o" or "a" by the gender of the noun."""

RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left": (("a la izquierda de {b}",), ("a la derecha de {b}",)),
    "above": (("por encima de {b}", "más arriba de {b}"), ("debajo de {b}", "por debajo de {b}")),
    "on": (("encima de {b}", "encima de {b}", "sobre {b}"), ("con {b} encima",)),
    "inside": (("dentro de {b}", "en el interior de {b}"), ("con {b} dentro",)),
    "chasing": (("persiguiendo a {b}", "siguiendo a {b}"), ("perseguid* por {b}", "seguid* por {b}")),
    "next": (("junto a {b}", "al lado de {b}"), ("junto a {b}", "al lado de {b}")),
}
"""Relation -> (phrases for A to B, phrases for B to A); ``*`` agrees with the first of the two."""

FULL = ("{a} {r}{more} {place}", "{a} {r} {place}{more}", "{place}, {a} {r}{more}", "{a} está {r}{more} {place}")
SHORT = ("{a} {r}{more}", "{a} {r}{more}", "hay {a} {r}{more}", "{a} está {r}{more}")


def full(wording: Wording, objects: Sequence[SceneObject], relation: str, place: str) -> str:
    """As ``scene_words.full``."""
    a, b = (objects[1], objects[0]) if wording.inverse else (objects[0], objects[1])
    phrases = RELATIONS[relation][wording.inverse]
    posed = relation != "chasing"
    phrase = _agree(phrases[int(wording.phrase * len(phrases))], a)
    extras = [_noun_phrase(wording, obj, posed=False) for obj in objects[2 : 2 + wording.more]]
    template = (FULL if wording.placed else SHORT)[wording.template]
    return template.format(
        a=_noun_phrase(wording, a, posed=posed),
        r=phrase.format(b=_noun_phrase(wording, b, posed=posed)),
        more=f", con {' y '.join(extras)} cerca" if extras else "",
        place=_say(wording, place),
    )


def partial(wording: Wording, named: Sequence[SceneObject], place: str) -> str:
    """As ``scene_words.partial``."""
    text = " y ".join(_noun_phrase(wording, obj, posed=True) for obj in named)
    if wording.placed:
        return f"{text} {_say(wording, place)}"
    return f"una imagen de {text}" if wording.template == 0 else text


def _noun_phrase(wording: Wording, obj: SceneObject, *, posed: bool) -> str:
    """A noun phrase: un gato naranja pequeño durmiendo."""
    words = [obj.noun, obj.colour]
    words += [obj.size] if wording.sized else []
    words += [obj.pose] if posed and wording.posed and obj.pose else []
    article = "una" if obj.noun in FEMININE else "un"
    return " ".join([article, *(_agree(_say(wording, word), obj) for word in words)])


def _agree(text: str, obj: SceneObject) -> str:
    return text.replace("*", "a" if obj.noun in FEMININE else "o")


def _say(wording: Wording, word: str) -> str:
    return wording.choose(word, SYNONYMS[word])
