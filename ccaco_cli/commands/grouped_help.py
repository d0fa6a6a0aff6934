"""``--help`` with options under headings, in plain text; Rich can do it, but would double the start-up time."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

GROUPS = ("Data", "Model", "Losses", "Optimisation", "Domains", "Evaluation", "Processes", "Run", "Output", "Other")
"""Headings in this order; an option without one stands under the last."""


class GroupedHelpCommand(TyperCommand):
    """A command whose options are grouped by their ``rich_help_panel``."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the arguments and each group of options as one section."""
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *GROUPS)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                default = "Arguments" if parameter.param_type_name == "argument" else GROUPS[-1]
                sections[getattr(parameter, "rich_help_panel", None) or default].append(record)
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)
