from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ccaco_cli.core.config import LossConfig, ModelConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.retrieval import export
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.query import CLEAN, Exported
from ccaco_cli.core.retrieval.search import SearchOptions, ask, encode_query, search
from tests.manifests import edited
from tests.scripts import ODD, captions

TEXTS = ["a red cat", "two dogs chase a large green ball over the hill", "x", ""]
HARD = [
    "It's the dog's; they've, we'll, I'M & you're   TIRED!!",
    "caf\u00e9 na\u00efve \u00c9COLE \u5b57\u7b26 \U0001f600\U0001f600 10,000.50 a_b-c",
    "&lt;b&gt; &amp;amp; fish &amp; chips",
    "\u00e2\u20ac\u0153mojibake\u00e2\u20ac\u009d \u201cquotes\u201d \u2013"
    " tab\there\nnewline\u00a0nbsp \x1b[31mred\x1b[0m",
    "<start_of_text> inside <end_of_text> text",
    "\u0130stanbul stra\u00dfe \u01c4 \ufb01ne \uff21\uff22",
    "w" * 300 + " and many more words than fit " * 20,
    "",
    "   ",
]


def built(**settings: Any) -> tuple[Any, Any]:
    config = override(
        ModelConfig(width=16), {"image.size": 32} | {k.replace("__", "."): v for k, v in settings.items()}
    )
    torch.manual_seed(0)
    aligner, towers = aligners.build(config, LossConfig(), ("image", "text"))
    return aligner.eval(), towers


def test_the_exported_tokenizer_says_what_open_clips_own_says(index: Path) -> None:
    tower = built()[1]["text"]
    exported = Exported(index / "generation-1/query")
    texts = [*TEXTS, *HARD]
    for text in texts:
        wanted = tower.preprocess([text])
        ids = exported._tokenizer.encode(CLEAN["clip"](text)).ids
        assert ids == wanted["ids"][0][wanted["mask"][0]].tolist(), text


def test_answers_equal_the_models(index: Path) -> None:
    opened = Index(index)
    facts = opened.manifest.facts["query"]
    assert facts["exported"]
    assert max(facts["cosine_difference"], facts["match_difference"]) < 1e-4
    assert opened.exported is not None
    wanted, encoded = encode_query(opened, "text", [*TEXTS, *HARD]), opened.exported.encode([*TEXTS, *HARD])
    assert np.allclose(encoded.z, wanted.z.numpy(), atol=1e-5)
    local = wanted.local_tokens
    assert np.allclose(encoded.tokens[encoded.mask], local.tokens[local.mask].numpy(), atol=1e-4)
    assert opened.exported.has_matcher


def test_a_text_of_any_script_has_the_same_vector_as_in_the_model(index: Path) -> None:
    opened, texts = Index(index), [*captions(1000), *ODD.values()]
    assert opened.exported is not None and len({*texts}) == len(texts)
    parts = [opened.exported.encode(texts[first : first + 64]).z for first in range(0, len(texts), 64)]
    z = encode_query(opened, "text", texts).z.numpy()
    assert np.allclose(np.concatenate(parts), z, rtol=0, atol=1e-5)
    assert np.tril(z[:13] @ z[:13].T, -1).max() < 0.999, "these texts could be mixed up"


def test_search_is_the_same_with_and_without_the_exported_side(index: Path, tmp_path: Path) -> None:
    for name in ("light", "plain"):
        shutil.copytree(index, tmp_path / name)
        with edited(tmp_path / name) as body:
            body["facts"] |= {"weight": 2.0, "headline": "two-stage"}
            if name == "plain":
                shutil.rmtree(tmp_path / name / "generation-1/query")
                body["files"] = [f for f in body["files"] if "/query/" not in f["name"]]
    light, plain = Index(tmp_path / "light"), Index(tmp_path / "plain")
    assert plain.exported is None
    options = SearchOptions(8)
    for light_hits, plain_hits in zip(
        ask(light, "text", TEXTS, options), ask(plain, "text", TEXTS, options), strict=True
    ):
        assert [h.row for h in light_hits] == [h.row for h in plain_hits]
        assert [h.score for h in light_hits] == pytest.approx([h.score for h in plain_hits], abs=1e-3)
        assert light_hits[0].match is not None
    picture = encode_query(light, "image", [Image.new("RGB", (32, 32), "red")])
    for light_hits, plain_hits in zip(
        search(light, "image", picture, options), search(plain, "image", picture, options), strict=True
    ):
        assert [h.score for h in light_hits] == pytest.approx([h.score for h in plain_hits], abs=1e-3)


def test_a_text_query_imports_no_torch(index: Path) -> None:
    code = (
        "import sys; from ccaco_cli.app import main\n"
        f"sys.argv = ['ccaco', 'retrieve', 'a red cat', '--index', {str(index)!r}, '-k', '2', '--rerank', '5']\n"
        "sys.argv += ['--format', 'csv']\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = ('torch', 'transformers', 'open_clip', 'faiss', 'pandas', 'datasets')\n"
        "print('HEAVY', [m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
    assert done.stdout.count("\n") == 4
    assert done.stderr == ""


@pytest.mark.parametrize(
    "kind", ["coattention", "early"]
)  # attended: above; those with torch's own layers are the hard ones
def test_other_matchers_are_exported(kind: str, tmp_path: Path) -> None:
    aligner, _ = built(fusion__kind=kind)
    with torch.no_grad(), export.quiet_exporter():
        export.write_graph(
            tmp_path / "m.onnx",
            export._Matcher(aligner),
            export._pairs(aligner, 3, 11, 6),
            export.MATCHER_INPUTS,
            ("match_logit",),
        )
    from ccaco_cli.core.retrieval.query import session
    from ccaco_cli.core.types import LocalTokens

    inputs = export._pairs(aligner, 5, 7, 9)
    with torch.no_grad():
        a, b = (LocalTokens(t, m) for t, m in (inputs[:2], inputs[2:]))
        wanted = aligner.matcher.pairs(a, b).match_logit.numpy()
    outputs = session(tmp_path / "m.onnx").run(
        None, dict(zip(export.MATCHER_INPUTS, (g.numpy() for g in inputs), strict=True))
    )[0]
    assert np.allclose(outputs, wanted, atol=1e-3)


def test_what_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aligner, towers = built()
    monkeypatch.setattr(export, "write_graph", lambda path, *arguments: path.write_bytes(b"not a graph"))
    facts = export.export(tmp_path / "q", aligner, towers, TEXTS, matcher=True)
    assert not facts["exported"]
    assert facts["why"]
    assert not (tmp_path / "q").exists()
    assert export.export(tmp_path / "q", aligner, {"image": towers["image"]}, [], matcher=True) == {"exported": False}

    def full(path: Path, *arguments: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("pages of text") from error

    monkeypatch.setattr(export, "write_graph", full)
    with pytest.raises(OSError, match="No space"):  # it says nothing of the model
        export.export(tmp_path / "q", aligner, towers, TEXTS, matcher=True)
    assert not (tmp_path / "q").exists()
