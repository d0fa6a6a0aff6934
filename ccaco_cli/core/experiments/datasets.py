"""Finds the prepared folder of a data set, and prepares embedded data sets."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path

from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import ALL
from ccaco_cli.core.data.sources import SOURCES
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.data.split_shares import evaluation_split
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import OnNote, OnProgress, no_note, no_progress


def locate(dataset: str, data_root: Path = Path("data")) -> Path:
    """Finds the prepared folder of a data set.

    Args:
        dataset: a name below ``data_root``, or a folder.
    Returns:
        The folder. That of an embedded source may not exist yet (``needs_prepare`` is then true).
    Raises:
        DataError: no such data set, or it is not prepared; names the command that prepares it.
    """
    home = data_root / dataset
    folder = next((path for path in (home, Path(dataset)) if manifest.exists(path)), None)
    if folder is not None:
        return folder
    if dataset in SOURCES:
        if SOURCES[dataset].embedded:
            return home
        raise DataError(
            "this data set is not prepared",
            where=home,
            expected=SOURCES[dataset].expects,
            next=f"ccaco prepare {dataset} --source PATH",
        )
    if Path(dataset).is_dir():
        raise DataError(
            "not a prepared data set",
            where=dataset,
            expected="a folder that ccaco prepare made",
            next="ccaco prepare --list",
        )
    near = difflib.get_close_matches(dataset, SOURCES, 1)
    hint = f"ccaco prepare {near[0]}" if near else "ccaco prepare --list"
    raise DataError(
        "no such data set", where=dataset, expected=f"a prepared folder, or one of {', '.join(SOURCES)}", next=hint
    )


def needs_prepare(dataset: str, data_root: Path = Path("data")) -> bool:
    """True for an embedded source that is not prepared yet, so that a caller may do it; raises what ``locate``
    raises.
    """
    return not manifest.exists(locate(dataset, data_root))


def prepared(dataset: str, data_root: Path = Path("data"), on_progress: OnProgress = no_progress) -> Path:
    """The prepared folder that NAME or FOLDER means; an embedded data set is prepared on the way when it is not there.

    Raises:
        what ``locate`` and ``prepare`` raise
    """
    path = locate(dataset, data_root)
    if not manifest.exists(path):
        prepare(
            dataset,
            out=path,
            on_progress=lambda done, total, facts: on_progress(done, total, {**facts, "what": f"prepare {dataset}"}),
        )
    return path


def prepared_for_evaluation(
    dataset: str,
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
    on_note: OnNote = no_note,
) -> Path:
    """As ``prepared``; a folder of class folders is prepared on the way, with every image in ``test``."""
    folder = Path(dataset)
    if manifest.exists(data_root / dataset) or manifest.exists(folder) or dataset in SOURCES or not folder.is_dir():
        return prepared(dataset, data_root, on_progress)
    return prepared_folder("imagefolder", folder, data_root, SourceOptions(all_test=True), on_progress, on_note)


def prepared_folder(
    source: str, folder: Path, data_root: Path, options: SourceOptions, on_progress: OnProgress, on_note: OnNote
) -> Path:
    """The prepared data set of a published folder, made on the way. A folder that has changed since is prepared again.

    Raises:
        DataError: what ``prepare`` raises.
    """
    if not folder.is_dir():
        raise DataError("no such folder", where=folder, expected=SOURCES[source].expects)
    files = ((file, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file())
    state = "\n".join(f"{file.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}" for file, stat in files)
    name = folder.resolve().name if source == "imagefolder" else source
    out = data_root / f"{name}-{hashlib.sha256(f'{source} {state}'.encode()).hexdigest()[:8]}"
    if not manifest.exists(out):
        prepare(source, source_path=folder, out=out, options=options, on_progress=on_progress)
        on_note(f"{folder} is prepared as {source} in {out}")
    return out


def split_to_embed(dataset: str, split: str | None, data_root: Path = Path("data")) -> tuple[str, str]:
    """The split to embed where none is named, and a sentence on what is left out ("" = nothing).

    That is every split of a data set of one modality, which is not trained on; of pairs it is test, else val, else
    train. It prepares nothing, because every process of a launcher calls it: embedded sources have all splits.
    """
    if split is not None:
        return split, ""
    folder = locate(dataset, data_root)
    if not manifest.exists(folder):
        return "test", ""
    data = shards.open_any(folder)
    if len(data.modalities) == 1:
        return ALL, ""
    chosen = evaluation_split(data.splits)
    samples = {name: int(data.manifest.facts["splits"][name]["samples"]) for name in data.splits}
    total = sum(samples.values())
    parts = []
    if chosen != "test":
        parts.append(f"{dataset} has no split 'test': the split {chosen!r} is embedded")
    elif samples[chosen] < total:
        parts.append(f"the split {chosen!r} is embedded")
    if samples[chosen] < total:
        parts.append(f"{total - samples[chosen]:,} of {total:,} samples are left out (--split {ALL} takes all)")
    return chosen, "; ".join(parts)
