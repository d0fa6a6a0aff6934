"""Captions, queries and names of odd code points through the commands: nothing fails, and terminals stay safe."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from ccaco_cli.core.data import pairs
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.escape import printable
from ccaco_cli.core.experiments.embed_request import EmbedRequest
from ccaco_cli.core.workflows.embed import embed
from tests.scripts import CAPTIONS, ODD

TEXTS = [*ODD.values(), *CAPTIONS.values(), "half \ud83d a pair"]
QUERIES = [text for kind, text in ODD.items() if kind != "controls"]


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.fixture(scope="module")
def odd(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index whose name, captions and files' names are of odd code points."""
    folder = tmp_path_factory.mktemp("odd")
    rows = []
    for number, text in enumerate(TEXTS):
        name = decomposed(f"caf\u00e9-\uae40\uce58-\u304c-{number}.png")
        Image.effect_noise((32, 32), 50 + number).save(folder / name)
        rows.append({"filepath": unicodedata.normalize("NFC", name), "title": text, "split": "test"})
    (folder / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    prepare(
        "table",
        source_path=folder / "t.jsonl",
        out=folder / "odd",
        options=SourceOptions(),
        write=WriteOptions(workers=0),
    )
    index = folder / decomposed("\u00fcbung-\uac00.idx")
    embed(
        EmbedRequest(run, "odd", out=folder / "embeddings", index=index, device="cpu", precision="fp32"),
        data_root=folder,
    )
    return index


def test_captions_are_stored_in_normal_form_c(odd: Path) -> None:
    stored = pairs.open(odd.parent / "odd").split("test").captions
    assert sorted(stored) == sorted(
        unicodedata.normalize("NFC", " ".join(t.replace("\ud83d", "").split())) for t in TEXTS
    )


def test_both_normal_forms_of_a_query_have_the_same_answers(odd: Path, ccaco: Callable[..., Any]) -> None:
    texts = [CAPTIONS[language] for language in ("vi", "ko", "ja", "el")]
    forms = [unicodedata.normalize(form, text) for text in texts for form in ("NFC", "NFD")]
    done = ccaco("retrieve", "-", "--index", odd, "-k", 3, "--format", "json", stdin="\n".join(forms))
    assert (done.code, done.err) == (0, "")
    hits = json.loads(done.out)
    rows = [[(hit["id"], hit["score"]) for hit in hits[3 * i : 3 * i + 3]] for i in range(len(forms))]
    assert rows[::2] == rows[1::2] and len({tuple(row) for row in rows}) > 1


@pytest.mark.parametrize("layout", ["table", "csv", "json"])
def test_odd_queries_and_captions_are_escaped(layout: str, odd: Path, ccaco: Callable[..., Any]) -> None:
    arguments = ("--index", odd, "-k", len(TEXTS), "--format", layout)
    done = ccaco("retrieve", "-", *arguments, stdin="\n".join(QUERIES))
    assert (done.code, done.err) == (0, "")
    if layout == "json":  # which has escapes of its own
        assert len(json.loads(done.out)) == len(QUERIES) * len(TEXTS)
        assert not any(unicodedata.category(character) == "Cc" for character in done.out.replace("\n", ""))
        return
    assert printable(done.out) == done.out
    assert "\\u202ecat\\u202c" in done.out and "\\x1b[31m" in done.out
    if layout == "csv":
        assert len([*csv.DictReader(io.StringIO(done.out))]) == len(QUERIES) * len(TEXTS)


@pytest.mark.parametrize("query", ["half \ud83d a pair", "\udcff cat", "a cat \udfff"])
def test_a_query_with_half_a_pair_is_refused(query: str, odd: Path, ccaco: Callable[..., Any]) -> None:
    done = ccaco("retrieve", query, "--index", odd)
    assert done.code == 2 and not done.out
    assert "not UTF-8 text" in done.err and done.err.isprintable() is False
    assert done.err == printable(done.err)


def test_the_search_page_answers_odd_texts(odd: Path) -> None:
    pytest.importorskip("starlette", reason="starlette is not installed: pip install 'ccaco[serve]'")
    from tests.view.serving import serving

    with serving(odd) as served:
        for text in ODD.values():
            status, answer = served.get("/api/search", text=text, k=len(TEXTS))
            assert status == 200 and len(answer["hits"]) == len(TEXTS), text
        for text in ("\ud83d", "a \udfff", "\udcff"):
            status, answer = served.send("GET", f"/api/search?text={quote(text, errors='surrogatepass')}")
            assert status == 400 and "not UTF-8" in answer["what"]
