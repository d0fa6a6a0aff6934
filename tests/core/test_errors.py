from __future__ import annotations

from ccaco_cli.core.errors import CcacoError, DataError


def test_an_error_is_one_line_that_says_what_where_expected_and_next() -> None:
    error = DataError("nothing\nthere", where="data/x", expected="a  folder", next="ccaco prepare x")
    assert str(error) == "nothing there: data/x; expected a folder; next: ccaco prepare x"
    error = DataError("a run", where="a  b/first", next="rm -r 'a  b/first'\nand again")
    assert str(error) == "a run: a  b/first; next: rm -r 'a  b/first' and again", "names keep their spaces"
    assert isinstance(error, CcacoError)
    assert str(CcacoError("only this")) == "only this"
