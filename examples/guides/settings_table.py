"""Writes the table of all settings into training-and-settings.md, between its two marks.

python examples/guides/settings_table.py
"""

from __future__ import annotations

from pathlib import Path

from ccaco_cli.core.settings_table import settings_markdown

GUIDE = Path(__file__).with_name("training-and-settings.md")
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"


def with_table(guide: str, table: str) -> str:
    """The text of the guide with this table in place of the one between the marks."""
    before, _, after = guide.partition(BEGIN)
    _, _, after = after.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


if __name__ == "__main__":
    GUIDE.write_text(with_table(GUIDE.read_text("utf-8"), settings_markdown()), "utf-8")
