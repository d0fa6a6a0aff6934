from __future__ import annotations

from dataclasses import dataclass

from ccaco_cli.core.reporting.rows import Cells, ReportRow, as_dicts


@dataclass(frozen=True)
class Row(ReportRow):
    parts: tuple[Cells, ...]

    def sections(self) -> tuple[Cells, ...]:
        return self.parts


def test_aligned_rows_have_the_same_columns() -> None:
    rows = [Row(({"a": 1}, {"x": 2})), Row(({"a": 3}, {"y": 4, "x": 5})), Row(({"b": 6}, {}))]
    assert [list(row.items()) for row in as_dicts(rows)] == [
        [("a", 1), ("b", None), ("x", 2), ("y", None)],
        [("a", 3), ("b", None), ("x", 5), ("y", 4)],
        [("a", None), ("b", 6), ("x", None), ("y", None)],
    ]
