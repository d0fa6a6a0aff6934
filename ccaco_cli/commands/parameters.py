"""Command functions whose options are partly generated from declarations elsewhere."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

Command = Callable[..., None]


def option(name: str, kind: Any, *flags: str, **declaration: Any) -> inspect.Parameter:
    """A keyword parameter of a command that is None where its flag is absent.

    Args:
        kind: type of its value.
        declaration: arguments of ``typer.Option``.
    """
    annotation = Annotated[kind | None, typer.Option(*flags, **declaration)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function as keyword parameters, with evaluated annotations."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]


def replace_parameter(
    command: Command, name: str, options: Sequence[inspect.Parameter], collect: Callable[[Mapping[str, Any]], Any]
) -> Command:
    """Replaces one parameter of a command by options; the command gets what ``collect`` makes of their values."""
    remaining = [parameter for parameter in parameters_of(command) if parameter.name != name]
    parameters = [*remaining, *options]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        collected = collect({parameter.name: values[parameter.name] for parameter in options})
        command(**{name: collected}, **{parameter.name: values[parameter.name] for parameter in remaining})

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
