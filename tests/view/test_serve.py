"""The JSON API of the search page, through real sockets: answers, limits, and what is refused."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'ccaco[serve]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'ccaco[serve]'")

from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import SearchOptions, ask
from ccaco_cli.view.serve import limits as serve_limits
from ccaco_cli.view.serve.limits import Limits
from tests.view.serving import Served, serving

TOKEN = "a-token-of-24-characters"
MIB = serve_limits.MIB


@pytest.fixture(scope="module")
def scenes(index: Path) -> Iterator[Served]:
    """The index of pairs."""
    with serving(index) as served:
        yield served


@pytest.fixture(scope="module")
def photo_server(photo_index: Path) -> Iterator[Served]:
    """The index of photos, with their files."""
    with serving(photo_index, originals=True) as served:
        yield served


@pytest.fixture(scope="module")
def picture(index: Path) -> bytes:
    """The thumbnail of one item."""
    data: bytes = Index(index).sides["image"].item(3)["thumbnail"]
    return data


def ids(answer: Any) -> list[str]:
    return [hit["item"]["id"] for hit in answer["hits"]]


def problem(answer: Any) -> str:
    """What a refusal says; it always has the four parts."""
    assert set(answer) == {"what", "where", "expected", "next"} and answer["what"], answer
    return str(answer["what"])


# ---- answers


@pytest.mark.parametrize("options", [{}, {"k": 5}, {"k": 3, "rerank": 0}, {"k": 4, "target": "text"}])
def test_a_text_has_the_hits_of_the_core(scenes: Served, index: Path, options: dict[str, Any]) -> None:
    status, answer = scenes.get("/api/search", text="a red cat", **options)
    assert status == 200
    settings = {"k": 24} | options
    (wanted,) = ask(Index(index), "text", ["a red cat"], SearchOptions(**settings))
    assert ids(answer) == [hit.item["id"] for hit in wanted] and len(wanted) == settings["k"]
    for hit, core in zip(answer["hits"], wanted, strict=True):
        assert (hit["rank"], hit["item"]["row"]) == (core.rank, core.row)
        assert (hit["score"], hit["cosine"]) == pytest.approx((core.score, core.cosine), abs=1e-4)
    assert answer["target"] == options.get("target", "image") and answer["modality"] == "text"


def test_a_file_has_the_hits_of_the_core(scenes: Served, index: Path, picture: bytes) -> None:
    for target in ("text", "image"):
        status, answer = scenes.send("POST", f"/api/search?modality=image&k=5&target={target}", picture)
        (wanted,) = ask(Index(index), "image", [picture], SearchOptions(5, target=target))
        assert status == 200 and ids(answer) == [hit.item["id"] for hit in wanted]
        assert answer["target"] == target
    assert answer["hits"][0]["item"]["row"] == 3, "an item is closest to itself"


def test_more_like_this_is_a_search_by_the_vector_of_the_row(scenes: Served, index: Path) -> None:
    version = scenes.get("/api/index")[1]["version"]
    opened = Index(index)
    for modality in opened.sides:
        z = np.load(opened.sides[modality].folder / "vectors.npy")
        status, answer = scenes.get(f"/api/items/{version}/{modality}/7/similar", k=6)
        order = [row for row in np.argsort(-(z @ z[7]), kind="stable") if row != 7][:6]
        rows = [hit["item"]["row"] for hit in answer["hits"]]
        assert status == 200 and [hit["rank"] for hit in answer["hits"]] == [1, 2, 3, 4, 5, 6]
        assert (z @ z[7])[rows] == pytest.approx((z @ z[7])[order], abs=1e-6) and 7 not in rows
        assert {hit["match"] for hit in answer["hits"]} == {None} and answer["target"] == modality


def test_the_heat_map_of_an_answer(scenes: Served, index: Path, picture: bytes) -> None:
    version = scenes.get("/api/index")[1]["version"]
    address = f"/api/items/{version}/image/3/explanation"
    for status, answer in (
        scenes.get(address, text="a red cat"),
        scenes.get(address, text="a red cat", method="gradient"),
        scenes.send("POST", f"/api/items/{version}/text/2/explanation?modality=image", picture),
    ):
        assert status == 200 and answer["words"] and isinstance(answer["match"], float)
        for word in answer["words"]:
            assert word["word"] and np.min(word["heat"]) >= 0
            assert word["picture"].startswith("data:image/webp;base64,")
    assert [word["word"] for word in scenes.get(address, text="a red cat")[1]["words"]] == ["red", "cat"]


def test_answers_are_as_the_description_says(scenes: Served, picture: bytes) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema comes with openapi-spec-validator")
    description = scenes.get("/openapi.json")[1]
    version = scenes.get("/api/index")[1]["version"]
    item = f"/api/items/{version}/image/3"
    for schema, answer in {
        "Index": scenes.get("/api/index"),
        "Columns": scenes.get("/api/columns"),
        "Answer": scenes.get("/api/search", text="a cat", k=3),
        "Item": scenes.get(item),
        "Explanation": scenes.get(f"{item}/explanation", text="a cat"),
        "Problem": scenes.get("/api/search"),
    }.items():
        reference = {"$ref": f"#/components/schemas/{schema}", "components": description["components"]}
        jsonschema.validate(answer[1], reference)


def test_a_text_is_added_and_taken_away(scenes: Served, index: Path) -> None:
    plain, mixed = (
        scenes.get("/api/search", text="a red cat", k=10, **more)[1]
        for more in ({}, {"plus": "snow", "minus": "a dog"})
    )
    options = SearchOptions(10, plus=("snow",), minus=("a dog",))
    (wanted,) = ask(Index(index), "text", ["a red cat"], options)
    assert ids(mixed) == [hit.item["id"] for hit in wanted] != ids(plain)


def test_items_thumbnails_and_facts(scenes: Served, index: Path) -> None:
    status, facts = scenes.get("/api/index")
    opened = Index(index)
    assert status == 200 and facts["items"] == {m: len(side.items) for m, side in opened.sides.items()}
    assert facts["file_queries"] == ["image"] and facts["text_queries"] and facts["explains"] and not facts["originals"]
    assert facts["filter_language"] == "sql"
    _, answer = scenes.get("/api/search", text="a cat", k=1)
    item = answer["hits"][0]["item"]
    row = opened.sides["image"].item(item["row"])
    assert scenes.get(item["url"])[1] == {"version": facts["version"], **item}
    assert scenes.send("GET", item["thumbnail"]) == (200, row["thumbnail"])
    assert item["text"] == row["text"] and item["columns"]["place"] == row["place"] and item["original"] is None


def test_the_columns_say_how_they_can_be_filtered(photo_server: Served, scenes: Served) -> None:
    columns = {column["name"]: column for column in photo_server.get("/api/columns")[1]["columns"]}
    assert (columns["year"]["type"], columns["year"]["minimum"], columns["year"]["maximum"]) == ("integer", 2010, 2025)
    assert columns["taken"] | {"missing": 0} == {
        "name": "taken",
        "type": "date",
        "missing": 0,
        "minimum": "2010-07-04T12:00:00",
        "maximum": "2025-07-04T12:00:00",
    }
    assert columns["camera"]["values"] == [{"value": "Canon EOS 5D", "count": 8}, {"value": "Canon EOS R6", "count": 8}]
    assert {value["value"] for value in columns["folder"]["values"]} == {"/beach/", "/city/"}
    assert "values" in columns["path"] and columns["size"]["type"] == "integer", "16 paths are few"
    assert not {"id", "group", "text", "thumbnail"} & set(columns)
    sides = [scenes.get("/api/columns", target=target)[1] for target in ("image", "text")]
    assert [side["target"] for side in sides] == ["image", "text"]
    heldout = next(column for column in sides[0]["columns"] if column["name"] == "heldout")
    assert heldout["type"] == "boolean" and {value["value"] for value in heldout["values"]} == {True, False}


@pytest.mark.parametrize(
    ("where", "years"),
    [
        ("year >= 2020", range(2020, 2026)),
        ("(year >= 2012) and (folder in ('/beach/'))", range(2012, 2026, 2)),
        ("taken >= timestamp '2014-01-01' and taken < timestamp '2015-01-01'", [2014]),
        ("camera ilike '%5d%'", range(2011, 2026, 2)),
    ],
)
def test_a_filter_selects_before_the_search(photo_server: Served, where: str, years: Any) -> None:
    status, answer = photo_server.get("/api/search", text="a cat", where=where)
    assert status == 200 and sorted(hit["item"]["columns"]["year"] for hit in answer["hits"]) == list(years)
    url = answer["hits"][0]["item"]["url"]
    similar = photo_server.get(f"{url}/similar", where=where)[1]["hits"]
    assert len(similar) == len(years) - 1


def test_no_item_may_match(photo_server: Served) -> None:
    assert photo_server.get("/api/search", text="a cat", where="year < 1900")[1]["hits"] == []


def test_near_duplicates_are_one_hit(scenes: Served) -> None:
    assert len(scenes.get("/api/search", text="a cat", k=5, dedup=-0.0)[1]["hits"]) == 5
    status, answer = scenes.get("/api/search", text="a cat", k=5, dedup=0.0001)
    assert status == 200 and 1 <= len(answer["hits"]) <= 5


# ---- originals


def test_originals_are_sent_only_on_request(photo_server: Served, photo_index: Path, photos: Path) -> None:
    item = photo_server.get("/api/search", text="a cat", k=1)[1]["hits"][0]["item"]
    content = Path(item["columns"]["path"]).read_bytes()
    assert photo_server.send("GET", item["original"]) == (200, content)
    for header, part in (("bytes=2-9", content[2:10]), ("bytes=-5", content[-5:]), ("bytes=7-", content[7:])):
        assert photo_server.send("GET", item["original"], headers={"Range": header}) == (206, part)
    assert photo_server.send("GET", item["original"], headers={"Range": "bytes=999999999-"})[0] == 416
    with serving(photo_index) as served:
        hidden = served.get("/api/search", text="a cat", k=1)[1]["hits"][0]["item"]
        assert hidden["original"] is None
        status, answer = served.get(f"{hidden['url']}/original")
        assert status == 403 and "no original files" in problem(answer)


def test_a_file_that_is_not_the_indexed_one_is_not_sent(
    run: Path, photos: Path, tmp_path: Path, photo_index: Path
) -> None:
    copies = tmp_path / "photos"
    shutil.copytree(photos / "beach", copies)
    from ccaco_cli.core.library.request import MediaRequest
    from ccaco_cli.core.library.update import embed_folder

    embed_folder(MediaRequest(source=copies, model=run, index=tmp_path / "m.idx", device="cpu", precision="fp32"))
    with serving(tmp_path / "m.idx", originals=True) as served:
        hits = served.get("/api/search", text="a cat")[1]["hits"]
        items = {Path(hit["item"]["columns"]["path"]).name: hit["item"] for hit in hits}
        unchanged, touched, longer, same_size, gone, pipe, linked, folder = sorted(items)
        os.utime(copies / touched, (1, 1))
        with (copies / longer).open("ab") as file:
            file.write(b"x")
        (copies / same_size).write_bytes(bytes((copies / same_size).stat().st_size))
        os.utime(copies / same_size, (1, 1))
        for name in (gone, pipe, linked, folder):
            (copies / name).unlink()
        os.mkfifo(copies / pipe)
        (copies / linked).symlink_to("/etc/hostname")
        (copies / folder).mkdir()
        status = {name: served.send("GET", item["original"])[0] for name, item in items.items()}
    assert status == {
        unchanged: 200,
        touched: 200,
        longer: 409,
        same_size: 409,
        gone: 404,
        pipe: 409,
        linked: 409,
        folder: 409,
    }


def test_paths_outside_the_index_cannot_be_named(photo_server: Served) -> None:
    version = photo_server.get("/api/index")[1]["version"]
    for path in (
        f"/api/items/{version}/image/../../../../etc/passwd/original",
        f"/api/items/{version}/image/%2e%2e%2f%2e%2e%2fetc%2fpasswd/thumbnail",
        f"/api/items/{version}/image/-1/original",
        f"/api/items/{version}/image/0x1/original",
        f"/api/items/{version}/image/99999999999999999999/original",
        "/templates/page.html",
        "/../page.py",
        "//etc/passwd",
    ):
        status, answer = photo_server.send("GET", path)
        assert status == 404 and problem(answer), path


# ---- refusals


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/api/search", 400, "a parameter is missing: text"),
        ("/api/search?text=", 400, "an empty text"),
        ("/api/search?text=%E2%80%8B", 400, "an empty text"),
        ("/api/search?text=%ff", 400, "not UTF-8 text"),
        (f"/api/search?text={'a' * 1001}", 400, "a text that is too long"),
        (f"/api/search?text=a&where={'a' * 4001}", 400, "a text that is too long"),
        ("/api/search?text=a&k=0", 400, "a number out of range"),
        ("/api/search?text=a&k=241", 400, "a number out of range"),
        ("/api/search?text=a&k=ten", 400, "not a whole number"),
        ("/api/search?text=a&rerank=1001", 400, "a number out of range"),
        ("/api/search?text=a&dedup=nan", 400, "a number out of range"),
        ("/api/search?text=a&dedup=2", 400, "a number out of range"),
        ("/api/search?text=a&text=b", 400, "a parameter that is repeated"),
        ("/api/search?text=a&wher=b", 400, "no such parameter"),
        ("/api/search?text=a&target=audio", 400, "holds no items of the modality"),
        ("/api/search?text=a&where=yeer+%3E+1", 400, "yeer"),
        ("/api/search?text=a&where=)", 400, ""),
        ("/api/search?text=a&where=1;drop+table+items", 400, ""),
        ("/api/search?text=a&where=(select+count(*)+from+read_text('/etc/passwd'))+%3E+0", 400, ""),
        ("/api/columns?target=film", 404, "no items of this modality"),
        ("/api/items/0000/image/1", 410, "the index has changed"),
        ("/api/nothing", 404, "no such address"),
    ],
)
def test_bad_requests_are_refused_in_four_parts(scenes: Served, path: str, status: int, words: str) -> None:
    begun = time.monotonic()
    got, answer = scenes.send("GET", path)
    assert got == status and words in f"{problem(answer)}: {answer['where']}", answer
    assert "/etc" not in str(answer["expected"]) and time.monotonic() - begun < 5


def test_methods_are_refused(scenes: Served) -> None:
    for method in ("PUT", "DELETE", "PATCH"):
        status, answer = scenes.send(method, "/api/search?text=a")
        assert status == 405 and answer["expected"] == "GET, HEAD, POST", answer


def test_a_message_does_not_show_where_files_lie(scenes: Served, index: Path) -> None:
    _, answer = scenes.get("/api/search", text="a", target="audio")
    assert str(index.parent) not in str(answer) and index.name in answer["where"]


def jpeg(side: int = 64) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((side, side), 50).convert("RGB").save(out, "JPEG")
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header names a size that its data does not have."""
    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "an empty upload"),
        (b"this is text, and no picture\n" * 50, 400, "not a picture"),
        (b"\x89PNG\r\n\x1a\n" + b"text after the first bytes of a PNG", 400, "picture"),
        (jpeg()[:-200], 400, "broken picture"),
        (jpeg()[:20], 400, "picture"),
        (png_header(100_000, 100_000), 413, "too many pixels"),
        (png_header(8_000, 8_000), 413, "too many pixels"),
        (png_header(300, 300), 400, "broken picture"),
        (b"GIF89a" + b"\xff" * 1000, 400, "picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, "not a picture"),
    ],
)
def test_a_broken_upload_is_refused(scenes: Served, body: bytes, status: int, words: str) -> None:
    version = scenes.get("/api/index")[1]["version"]
    for path in ("/api/search?modality=image", f"/api/items/{version}/text/0/explanation?modality=image"):
        got, answer = scenes.send("POST", path, body)
        assert got == status and words in problem(answer), answer


def test_a_modality_that_cannot_be_a_query(scenes: Served) -> None:
    for modality in ("audio", "text", "film"):
        status, answer = scenes.send("POST", f"/api/search?modality={modality}", jpeg())
        assert status == 400 and answer["expected"] == "image"


def test_large_and_slow_uploads_end(index: Path) -> None:
    with serving(index, limits=replace(Limits(), file_bytes=MIB, upload_seconds=1.0)) as served:
        status, answer = served.send("POST", "/api/search?modality=image", bytes(MIB + 1))
        assert status == 413 and "at most 1 MiB" in answer["expected"], "by its length"

        def parts() -> Iterator[bytes]:
            for _ in range(40):
                yield bytes(MIB // 16)

        status, answer = served.send("POST", "/api/search?modality=image", parts())
        assert status == 413, "without a length"
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
            head = "POST /api/search?modality=image HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n"
            client.sendall(head.encode() + b"x" * 10)
            answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ") and time.monotonic() - begun < 10
        assert served.get("/api/search", text="a cat", k=1)[0] == 200, "it still answers"


def raw(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(data)
        answer = b""
        while part := client.recv(65536):
            answer += part
        return answer


def test_headers_have_limits(scenes: Served) -> None:
    host = f"Host: 127.0.0.1:{scenes.port}\r\nConnection: close\r\n"
    long_header = raw(scenes.port, f"GET /api/index HTTP/1.1\r\n{host}X: {'a' * 20_000}\r\n\r\n".encode())
    assert long_header.startswith(b"HTTP/1.1 431 ") and b"too many bytes of headers" in long_header
    long_address = raw(scenes.port, f"GET /api/index?{'a' * 30_000} HTTP/1.1\r\n{host}\r\n".encode())
    assert long_address.startswith(b"HTTP/1.1 414 ")
    endless = raw(scenes.port, b"GET /api/index HTTP/1.1\r\n" + b"X-Y: z\r\n" * 7_000)
    assert endless.startswith(b"HTTP/1.1 400 ") and b"no valid HTTP request" in endless
    with contextlib.suppress(ConnectionError):  # the server closes while the client still sends
        raw(scenes.port, b"GET /api/index HTTP/1.1\r\n" + b"X-Y: z\r\n" * 1_000_000)
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), b"nonsense\r\n\r\n"):
        assert raw(scenes.port, garbage).startswith(b"HTTP/1.1 400 ")
    assert scenes.get("/api/index")[0] == 200


def test_a_connection_without_a_request_is_closed(index: Path) -> None:
    with serving(index, limits=replace(Limits(), header_seconds=0.5)) as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: loc")
            assert client.recv(100) == b"", "slow headers"
        assert served.get("/api/index")[0] == 200


# ---- who may ask


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:{port}"])
def test_names_of_this_machine_pass(scenes: Served, host: str) -> None:
    assert scenes.send("GET", "/api/index", headers={"Host": host.format(port=scenes.port)})[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil", ""]
)
def test_other_names_are_refused(scenes: Served, host: str) -> None:
    """A foreign page that resolves its own name to 127.0.0.1 (DNS rebinding) sends that name."""
    for path in ("/", "/api/index", "/script.js", "/openapi.json"):
        status, answer = scenes.send("GET", path, headers={"Host": host.format(port=scenes.port)})
        assert status == 421 and problem(answer) == "this server has another name"


def test_other_sites_cannot_read_or_embed(scenes: Served) -> None:
    for site in ("cross-site", "same-site"):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
        assert scenes.send("GET", "/api/search?text=a", headers=headers)[0] == 403
    assert scenes.send("GET", "/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})[0] == 200
    assert scenes.send("GET", "/api/index", headers={"Sec-Fetch-Site": "same-origin"})[0] == 200


def test_every_answer_has_the_security_headers(scenes: Served) -> None:
    import http.client

    for path in ("/", "/api/index", "/nothing", "/api/search?text="):
        connection = http.client.HTTPConnection("127.0.0.1", scenes.port)
        connection.request("GET", path)
        headers = connection.getresponse().headers
        connection.close()
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin" and "server" not in headers


def test_the_token(photo_index: Path) -> None:
    with serving(photo_index, token=TOKEN) as served:
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}, {"Cookie": "ccaco=x"}):
            for path in ("/", "/api/index", "/script.js", "/api/nothing", f"/?token={TOKEN}x", "/?token=%ff"):
                status, answer = served.send("GET", path, headers=headers)
                assert status == 401 and "needs its token" in problem(answer) and TOKEN not in str(answer)
        assert served.send("GET", "/api/index", headers={"Authorization": f"Bearer {TOKEN}"})[0] == 200
        assert served.get("/api/index", token=TOKEN)[0] == 200
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", served.port)
        connection.request("GET", f"/?token={TOKEN}")
        answer = connection.getresponse()
        cookie = answer.headers["set-cookie"]
        connection.close()
        assert answer.status == 303 and answer.headers["location"] == "/", "the token leaves the address"
        assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower() and TOKEN not in cookie
        cookie = cookie.partition(";")[0]
        assert served.send("GET", "/api/search?text=a", headers={"Cookie": cookie})[0] == 200
        assert served.send("GET", "/api/index", headers={"Cookie": cookie[:-1] + "x"})[0] == 401


def test_another_host_has_a_token_always(photo_index: Path) -> None:
    with serving(photo_index, host="0.0.0.0") as served:
        assert served.get("/api/index")[0] == 401
    with serving(photo_index, host="0.0.0.0", token=TOKEN) as served:
        headers = {"Authorization": f"Bearer {TOKEN}", "Host": "photos.example"}
        assert served.send("GET", "/api/index", headers=headers)[0] == 200, "its name is not known here"


# ---- work at one time


def test_a_full_queue_says_when_to_try_again(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import http.client

    from ccaco_cli.view.serve import api

    go_on = threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        go_on.wait(30)
        return ask(*arguments, **options)

    with serving(index, limits=replace(Limits(), waiting=3)) as served:
        monkeypatch.setattr(api, "ask", slow)
        answers: list[tuple[int, Any]] = []
        begun = [
            threading.Thread(target=lambda k=k: answers.append(served.get("/api/search", text="a cat", k=k)))
            for k in range(1, 5)
        ]
        for thread in begun:
            thread.start()
            time.sleep(0.2)
        connection = http.client.HTTPConnection("127.0.0.1", served.port)
        connection.request("GET", "/api/search?text=a+dog")
        answer = connection.getresponse()
        assert (
            answer.status == 503 and int(answer.headers["retry-after"]) >= 1 and b"the server is busy" in answer.read()
        )
        connection.close()
        assert served.get("/api/index")[0] == 200, "what needs no work is answered"
        go_on.set()
        for thread in begun:
            thread.join(30)
        assert [status for status, _ in answers] == [200] * 4
        assert served.get("/api/search", text="a dog", k=1)[0] == 200


def test_work_that_takes_too_long_ends_and_waiting_work_is_dropped(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccaco_cli.view.serve import api

    calls, go_on = [], threading.Event()

    def slow(opened: Any, modality: str, samples: Any, options: Any) -> Any:
        calls.append(options.k)
        go_on.wait(30)
        return ask(opened, modality, samples, options)

    with serving(index, limits=replace(Limits(), answer_seconds=0.5)) as served:
        monkeypatch.setattr(api, "ask", slow)
        begun = [
            threading.Thread(target=served.get, args=["/api/search"], kwargs={"text": "a", "k": k}) for k in (1, 2)
        ]
        for thread in begun:
            thread.start()
            time.sleep(0.1)
        status, answer = served.get("/api/search", text="a cat", k=3)
        assert status == 504 and "took too long" in problem(answer)
        for thread in begun:
            thread.join(30)
        go_on.set()
        monkeypatch.undo()
        assert served.get("/api/search", text="a cat", k=4)[0] == 200
        assert calls == [1], "the clients of the others have gone"


def test_many_clients_at_once_get_their_own_answers(scenes: Served, index: Path) -> None:
    texts = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("cat", "dog", "ball", "bird")]
    wanted = {
        text: [h.item["id"] for h in hits]
        for text in texts
        for hits in ask(Index(index), "text", [text], SearchOptions(5))
    }
    answers: dict[int, tuple[int, Any]] = {}

    def send(number: int) -> None:
        answers[number] = scenes.get("/api/search", text=texts[number % len(texts)], k=5)

    threads = [threading.Thread(target=send, args=[number]) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {status for status, _ in answers.values()} == {200}
    assert all(ids(answer) == wanted[texts[number % len(texts)]] for number, (_, answer) in answers.items())


def test_a_failure_of_the_program_is_answered_and_reported(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ccaco_cli.view.serve import api

    def broken(*arguments: Any, **options: Any) -> Any:
        raise ZeroDivisionError("a secret")

    with serving(index) as served:
        monkeypatch.setattr(api, "ask", broken)
        status, answer = served.get("/api/search", text="a cat")
        assert status == 500 and "secret" not in str(answer) and problem(answer)
        messages: list[str] = []
        until(lambda: messages.append(capsys.readouterr().err) or "ZeroDivisionError" in "".join(messages))
        monkeypatch.undo()
        assert served.get("/api/search", text="a cat")[0] == 200


# ---- the index changes while it is served


def until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def test_a_new_generation_is_served_without_a_restart(run: Path, photos: Path, tmp_path: Path) -> None:
    from ccaco_cli.core.library.request import MediaRequest
    from ccaco_cli.core.library.update import embed_folder

    media, path = tmp_path / "photos", tmp_path / "me.idx"
    shutil.copytree(photos / "beach", media)
    request = MediaRequest(source=media, model=run, index=path, device="cpu", precision="fp32")
    embed_folder(request)

    def items() -> int:
        return int(served.get("/api/index")[1]["items"]["image"])

    with serving(path) as served:
        old = served.get("/api/search", text="a cat")[1]
        assert items() == 8
        versions = [old["version"]]
        for number in (1, 2):
            shutil.copyfile(photos / "city" / f"p{2 * number + 1:02d}.jpg", media / f"new{number}.jpg")
            embed_folder(request)
            until(lambda: items() == 8 + number)  # noqa: B023
            versions.append(served.get("/api/index")[1]["version"])
            if number == 1:
                hits = old["hits"]
                assert [served.send("GET", hit["item"]["thumbnail"])[0] for hit in hits] == [200] * 8
                similar = served.get(f"{hits[0]['item']['url']}/similar")[1]
                assert similar["version"] == old["version"], "a page that shows the old answer still works"
        status, answer = served.send("GET", old["hits"][0]["item"]["thumbnail"])
        assert status == 410 and answer["next"] == "search again" and len(set(versions)) == 3
        until(lambda: _unlocked(path / "generation-1"))
        # an index that is damaged while it is served: the old one stays
        manifest = path / "manifest.json"
        body = manifest.read_bytes()
        manifest.write_bytes(b"{}")
        time.sleep(1.2)
        assert items() == 10
        manifest.write_bytes(body)
        time.sleep(1.2)
        assert items() == 10 and served.get("/api/search", text="a cat", k=1)[0] == 200


def _unlocked(generation: Path) -> bool:
    """True when no process reads a generation any more."""
    import fcntl
    import gc

    gc.collect()
    number = os.open(generation, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(number)
