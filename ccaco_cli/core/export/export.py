"""Exports a model in the format of another library: written, loaded by that library, compared, and only then renamed to
its place."""

from __future__ import annotations

import logging
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging as hf_logging

from ccaco_cli.core import distributed, fault, lock
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.experiments.pretrained import LoadedModel, open_model
from ccaco_cli.core.export import hub
from ccaco_cli.core.export.card import CARD, CardOptions, model_card
from ccaco_cli.core.export.export_format import ExportFormat
from ccaco_cli.core.export.formats import find_format, formats_of
from ccaco_cli.core.export.same_vectors import largest_difference
from ccaco_cli.core.manifest import write_bytes
from ccaco_cli.core.shell import quoted_path

LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and where to.

    Attributes:
        model: folder of a finished run, whose best checkpoint is exported, or SPEC of a pretrained dual encoder.
        format: key of ``formats.FORMATS``.
        out: new folder.
        license: identifier of the licence of the model, for its card; "" = not named.
        repository: OWNER/NAME on the hub that the folder is uploaded to; "" = none.
    """

    model: str | Path
    format: str
    out: Path
    license: str = ""
    repository: str = ""


@dataclass(frozen=True)
class ExportedModel:
    """A finished export.

    Attributes:
        path: its folder.
        difference: largest difference of a unit vector between the library and this program.
        spec: SPEC that loads it again; "" = none does.
        address: of the repository that it was uploaded to; "" = it was not.
        has_cross_branch: the model has a cross branch, which is not in the folder.
    """

    path: Path
    difference: float
    spec: str
    address: str
    has_cross_branch: bool


def export_model(request: ExportRequest) -> ExportedModel:
    """Writes a model in another library's format, with a model card, and uploads it if a repository is named.

    Raises:
        ConfigError: no such format, or a licence or a repository of another form.
        DataError: the folder exists, the format cannot hold this model, the exported model differs, or the hub cannot
            be reached (before anything is written) or refuses the folder (which then stays).
    """
    entry, name = find_format(request.format), request.format
    _check(request)
    if request.repository:
        hub.check_access(request.repository)
    model = open_model(request.model, "cpu")
    _refuse_unfit(model, entry, name)
    options = CardOptions(
        request.repository.rpartition("/")[2] or request.out.name,
        entry.library,
        _usage(entry.usage(model), request),
        request.license,
    )
    difference = _write(request, model, entry, model_card(request.model, model, options))
    address = hub.upload(request.out, request.repository) if request.repository else ""
    spec = entry.spec.replace("FOLDER", str(request.out))
    return ExportedModel(request.out, difference, spec, address, model.config.loss.beta > 0)


def _usage(code: str, request: ExportRequest) -> str:
    """The code of a format with the name of the exported model."""
    if not request.repository:
        return code.replace("NAME", request.out.name)
    return code.replace("local-dir:NAME", "hf-hub:NAME").replace("NAME", request.repository)


def _check(request: ExportRequest) -> None:
    if distributed.world() > 1:
        raise ConfigError("an export runs in one process", where="--export", expected="no launcher such as torchrun")
    if request.license and not LICENSE.fullmatch(request.license):
        raise ConfigError(
            "this is no identifier of a licence",
            where=f"--license {request.license}",
            expected="letters, digits, dots and hyphens, such as apache-2.0 or cc-by-4.0",
        )
    if request.out.exists():
        raise DataError("something is there already", where=request.out, expected="a new folder", next="another --out")


def _refuse_unfit(model: LoadedModel, entry: ExportFormat, name: str) -> None:
    if reason := entry.why_not(model):
        fitting = formats_of(model)
        raise DataError(
            f"the format {name} cannot hold this model: {reason}",
            where=model.manifest.path,
            expected=f"a format that can: {' | '.join(fitting)}" if fitting else "a model that a format can hold",
            next=f"--export {fitting[0]}" if fitting else None,
        )


def _write(request: ExportRequest, model: LoadedModel, entry: ExportFormat, card: str) -> float:
    """Writes the folder under another name, checks it with its library, and renames it; returns the difference."""
    out = request.out
    with lock.hold(out, "export"):
        temp = out.with_name(f".{out.name}.tmp")
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir()
        try:
            with _quiet_libraries():
                entry.write(model, temp)
                fault.point("export.written")
                difference = largest_difference(model, entry.read(temp))
            write_bytes(temp / CARD, card.encode())
            temp.rename(out)
            fault.point("export.renamed")
        finally:
            shutil.rmtree(temp, ignore_errors=True)
    return difference


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Libraries log that an architecture has no weights yet, and draw progress bars of seconds."""
    muted, with_bars = logging.root.manager.disable, hf_logging.is_progress_bar_enabled()
    logging.disable(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(muted)
        if with_bars:
            hf_logging.enable_progress_bar()


def notes(exported: ExportedModel, request: ExportRequest) -> list[str]:
    """Sentences on a finished export, with the next step."""
    lines = [
        f"{exported.path}: {request.format}; loaded by its library, its vectors differ from this model's by at most "
        f"{exported.difference:.1g}"
    ]
    if exported.has_cross_branch:
        lines.append("only the global half is exported: the cross branch, which reranks, is not part of this format")
    if exported.address:
        lines.append(f"uploaded: {exported.address}")
    if not request.license:
        lines.append("the model card names no licence; --license apache-2.0 (or another) does")
    again = f"ccaco embed --model {quoted_path(exported.spec)} --dataset scenes" if exported.spec else ""
    lines.append(f"next: {again or f'{quoted_path(exported.path / CARD)} shows how to load it'}")
    return lines
