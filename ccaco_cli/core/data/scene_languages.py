"""The languages in which the generated scenes are described."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ccaco_cli.core.data import scene_words, scene_words_es, scene_words_zh
from ccaco_cli.core.data.scene_words import SceneObject, Wording


@dataclass(frozen=True)
class SceneLanguage:
    """How a language says the facts of a scene.

    Attributes:
        full: (wording, objects, relation of the first to the second, place) -> a caption with the relation. Of one
            wording, the captions of a scene and of its swapped twin differ in the order of words and in particles only.
        partial: (wording, one or two objects, place) -> a caption without a relation.
    """

    full: Callable[[Wording, Sequence[SceneObject], str, str], str]
    partial: Callable[[Wording, Sequence[SceneObject], str], str]


LANGUAGES = {
    "en": SceneLanguage(scene_words.full, scene_words.partial),
    "zh": SceneLanguage(scene_words_zh.full, scene_words_zh.partial),
    "es": SceneLanguage(scene_words_es.full, scene_words_es.partial),
}
"""Code of ISO 639-1 -> language."""
