"""Zero-shot classes: templates by name and from files, class vectors equal to open_clip's."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.experiments.templates import class_vectors, load_templates


class _Model:
    """Encodes a sentence by its bytes."""

    def encode_text(self, texts: Tensor, normalize: bool) -> Tensor:
        vectors = torch.stack([torch.bincount(row, minlength=256).float() for row in texts])
        return F.normalize(vectors[:, 1:], dim=-1)


def _tokens(sentences: list[str]) -> Tensor:
    return torch.tensor([list(sentence.encode().ljust(120, b"\0")) for sentence in sentences])


@pytest.mark.parametrize("name", ["openai", "simple"])
def test_class_vectors_equal_open_clip(name: str) -> None:
    names, model = ["dog", "red bicycle", "snow leopard"], _Model()
    templates = load_templates(name)
    expected = open_clip.build_zero_shot_classifier(model, _tokens, names, templates)
    vectors = class_vectors(names, templates, lambda sentences: model.encode_text(_tokens(sentences), True))
    assert torch.allclose(vectors, expected.T, atol=1e-6)
    one_sentence = class_vectors(names, templates[:1], lambda x: model.encode_text(_tokens(x), True))
    assert not torch.allclose(vectors, one_sentence, atol=1e-3)


def test_a_file_has_one_sentence_per_line(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("a photo of a {}.\n\n{}, drawn {twice}: {}\n", "utf-8")
    first, second = load_templates(str(file))
    assert (first("dog"), second("cat")) == ("a photo of a dog.", "cat, drawn {twice}: cat")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"a {}\na photo\n", "line 2"),
        (b"a caf\xe9 {}\n", "UTF-8"),
        (None, "none.txt"),
    ],
)
def test_bad_files_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "none.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_templates(str(file))
