from __future__ import annotations

import pytest

from ccaco_cli.core.data.sources.tar_members import NO_MEMBER, SEVERAL, parse_member, split_members


def samples(*names: str) -> list[tuple[str, list[str], str]]:
    """(key, names of the parts, problem) of consecutive members, which are of one key."""
    members = [parse_member(name) for name in names]
    assert len({member.key for member in members}) == 1
    return [(s.key, sorted(m.name for m in s.parts.values()), s.problem) for s in split_members(members)]


@pytest.mark.parametrize(
    ("name", "key", "stem", "kind"),
    [
        ("x/000.jpg", "x/000", "x/000", "image"),
        ("a.b.c.JPG", "a", "a.b.c", "image"),
        ("a.seg.png", "a", "a.seg", "image"),
        ("photo v1.0.jpg", "photo v1.0", "photo v1.0", "image"),
        ("photo v1.0.small.jpg", "photo v1.0", "photo v1.0.small", "image"),
        ("Dr. Smith.txt", "Dr. Smith", "Dr. Smith", "txt"),
        ("2024.01.02.json", "2024.01.02", "2024.01.02", "json"),
        ("a..jpg", "a.", "a.", "image"),
        ("x.y/a.cls", "x.y/a", "x.y/a", ""),
        ("README", "README", "README", ""),
    ],
)
def test_names_are_taken_apart(name: str, key: str, stem: str, kind: str) -> None:
    member = parse_member(name)
    assert (member.key, member.stem, member.kind) == (key, stem, kind)


def test_members_of_one_kind_are_never_merged() -> None:
    assert samples("a.jpg", "a.txt", "a.json", "a.cls") == [("a", ["a.jpg", "a.json", "a.txt"], "")]
    assert samples("a.b.c.jpg", "a.json") == [("a", ["a.b.c.jpg", "a.json"], "")], "fields of one sample"
    assert samples("k.jpg", "k.seg.png", "k.txt") == [("k", ["k.jpg", "k.txt"], "")], "a further field"
    assert samples("st.paul.jpg", "st.paul.txt", "st.john.jpg", "st.john.txt") == [
        ("st.paul", ["st.paul.jpg", "st.paul.txt"], ""),
        ("st.john", ["st.john.jpg", "st.john.txt"], ""),
    ]
    assert samples("st.paul.jpg", "st.john.txt") == [("st.paul", ["st.paul.jpg"], ""), ("st.john", ["st.john.txt"], "")]
    assert samples("a.jpg", "a.txt", "a.jpg", "a.txt") == [("a", [], SEVERAL)] * 2
    assert samples("a.jpg", "a.png", "a.txt") == [("a", [], SEVERAL)] * 2, "which picture is it?"
    assert samples("a.cls", "a.npy") == [("a", [], NO_MEMBER)]
    assert list(split_members([])) == []
