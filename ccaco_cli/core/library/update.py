"""``ccaco embed --images FOLDER --index NAME.idx``: an index made from media files, and kept up to date with them.

Nothing heavy is imported before there is something to encode: an update that has nothing to do takes about a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccaco_cli.core import fault, manifest, runtime
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.library import parts, states, writer
from ccaco_cli.core.library.hashing import read_known
from ccaco_cli.core.library.parts import KnownFiles, Part, PartWriter, ReadFiles, finished_parts
from ccaco_cli.core.library.request import MediaRequest, MediaResult
from ccaco_cli.core.library.scan import Scan, scan
from ccaco_cli.core.library.settings import (
    refuse_other_files,
    refuse_other_model,
    refuse_other_settings,
    settings_in,
    settings_of,
)
from ccaco_cli.core.library.side_rows import SideRows
from ccaco_cli.core.library.states import MediaLibrary, Update
from ccaco_cli.core.library.writer import ModelSource, StoredModel
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.modalities import MODALITIES, folder_flags, sides_of
from ccaco_cli.core.retrieval import generations
from ccaco_cli.core.retrieval import index as indexes
from ccaco_cli.core.retrieval.complete import NewModel
from ccaco_cli.core.shell import quoted_path
from ccaco_cli.core.types import OnProgress, no_progress

if TYPE_CHECKING:
    from ccaco_cli.core.experiments.pretrained import LoadedModel
    from ccaco_cli.core.retrieval.milvus import MilvusStore

_UNREAD = "unread.json"
"""While several processes encode: the files that they divide."""


@dataclass(frozen=True, eq=False)
class _FolderJob:
    """A request with the state of its index.

    Attributes:
        settings: what is stored under ``FOLDERS`` for the modality of the request.
        old: manifest of the index; None = there is none yet, or it is built anew.
        library: what the index holds.
        scan: of the folder.
        remove: items to take out.
        known: files that were read for this update without the model.
        parts: what was read and encoded for this update, by this process or an earlier one.
        model: that encodes; None = there is nothing to encode.
    """

    request: MediaRequest
    settings: Mapping[str, Any]
    old: Manifest | None
    library: MediaLibrary
    scan: Scan
    remove: set[str]
    known: KnownFiles | None = None
    parts: Sequence[Part] = ()
    model: LoadedModel | None = None

    @property
    def read(self) -> Sequence[ReadFiles]:
        """All files that were read, the latest last."""
        return [*self.parts, *([self.known] if self.known else [])]

    @property
    def modality(self) -> str:
        return self.request.modality

    @property
    def source(self) -> Path:
        return Path(self.settings["source"])

    @property
    def token_store(self) -> str:
        """How tokens are stored; none without a cross branch, and of a side that it does not score."""
        beta = self.model.config.loss.beta if self.model else self.old.config["loss"]["beta"] if self.old else 0.0
        described = self.model.manifest if self.model else self.old
        scored = described is not None and self.modality in described.facts["modalities"]
        return str(self.settings["store_tokens"]) if beta > 0 and scored else "none"


def embed_folder(request: MediaRequest, *, on_progress: OnProgress = no_progress) -> MediaResult:
    """Builds an index from the media files of a folder, or updates it: only new and changed contents are encoded.

    An index of the same model keeps its items of other modalities.

    Under a launcher the processes divide the files; the main process writes the index.

    Raises:
        DataError: no such folder, no media in it, an index of another kind, source or model, or no such item.
        ConfigError: no such index type, token format or precision, or other settings than those of the index.
    """
    request.check()
    if runtime.launcher_rank()[1] > 1:
        return _across_processes(request, on_progress)
    with generations.writer_lock(request.index):
        job = _start(request)
        job, unread = _read_known(job, job.library.unread(job.scan, ()), on_progress)
        if unread:
            job = _encode(_with_model(job), on_progress)
        return _finish(job)


def _across_processes(request: MediaRequest, on_progress: OnProgress) -> MediaResult:
    from ccaco_cli.core import distributed

    with (
        distributed.session(request.device, on_progress) as report_progress,
        distributed.on_main_process(lambda: generations.writer_lock(request.index)),
    ):
        job = distributed.main_process_first(lambda: _start(request))
        if distributed.broadcast(len(job.library.unread(job.scan, ()))):
            job = distributed.main_process_first(lambda: _with_model(job))
            unread_file = _parts_folder(job) / _UNREAD
            # the processes divide the list of the main process: their own scans of a folder in use may differ
            distributed.main_process_only(lambda: manifest.write_json(unread_file, _unread(job)))
            distributed.barrier(while_alive=True)  # a process that opens the model now would remove parts in writing
            paths = manifest.read_json(unread_file)[distributed.rank() :: distributed.world()]
            job = _encode(job, report_progress, paths, distributed.rank())
            distributed.barrier(while_alive=True)
        with distributed.main_process_continues():
            return _finish(replace(job, parts=finished_parts(_parts_folder(job)) if job.model else ()))


def _read_known(job: _FolderJob, unread: Sequence[str], on_progress: OnProgress) -> tuple[_FolderJob, Sequence[str]]:
    """Reads files of an update whose contents may be known; returns the files that need the model.

    Moved and touched files do, as long as no new one is among them, without loading it.
    """
    if job.old is None or not unread:
        return job, unread
    states, remaining = read_known(job.source, unread, job.library.known_contents(()), on_progress)
    return replace(job, known=KnownFiles(states)), remaining


def _unread(job: _FolderJob) -> list[str]:
    return job.library.unread(job.scan, job.read)


def _start(request: MediaRequest) -> _FolderJob:
    """Reads the state of the index and of the folder. Raises the errors of ``embed_folder``."""
    index = request.index
    old = _open_index(index, request)
    if old is not None:
        refuse_other_settings(request, old)
    stored = None if old is None else settings_in(old, request.modality)
    if request.source is None:
        assert stored is not None
        settings = stored
    else:
        settings = settings_of(request) | {"model": stored["model"] if stored else str(request.model)}
    source, side = Path(settings["source"]), _stored_side(request, old)
    library = MediaLibrary() if side is None else MediaLibrary(states.read_states(side), SideRows.open(side))
    remove = library.resolve_names(request.remove, source)
    if request.source is None:
        assert side is not None
        return _FolderJob(request, settings, old, library, library.stored_scan(side), remove)
    scanned = scan(source, request.modality, MODALITIES[request.modality].folder_option)
    if old is not None and side is not None and settings["source"] != settings_in(old, request.modality)["source"]:
        refuse_other_files(request, old, library, scanned)
    return _FolderJob(request, settings, old, library, scanned, remove)


def _stored_side(request: MediaRequest, old: Manifest | None) -> Path | None:
    """The folder of the items that an index holds of the modality of a request; None = it holds none."""
    if old is None or request.modality not in old.facts["rows"]:
        return None
    return request.index / str(old.facts["generation"]) / request.modality


def _open_index(index: Path, request: MediaRequest) -> Manifest | None:
    """The manifest of an index that is updated; None = a new one, or one that is built anew."""
    if not index.exists() and request.source is not None:
        if request.model is None:
            raise ConfigError("a new index needs a model", where=f"--index {index}", expected="--model RUN or SPEC")
        return None
    if index.exists() and not manifest.exists(index):
        raise DataError("something else is there already", where=index, expected="a new name", next="another --index")
    old = manifest.open(index, kind="index")
    if request.rebuild and request.source is not None:
        if request.model is None:
            raise ConfigError("an index that is built anew needs a model", expected="--model RUN or SPEC")
        return None
    if indexes.FOLDERS not in old.facts:
        raise DataError(
            "this index was made from a data set, or by an older version: files of a folder cannot be added or removed",
            where=index,
            expected=f"an index made by one of {folder_flags()}",
            next="another --index, or add --rebuild to replace it",
        )
    return old


def _with_model(job: _FolderJob) -> _FolderJob:
    """Opens the model, finds the parts that earlier processes have finished, and lists what is still to be read."""
    from ccaco_cli.core.experiments.pretrained import open_model

    request = job.request
    dtype = job.request.dtype_name
    if job.old is not None and dtype != job.old.facts["precision"]:
        raise ConfigError(
            f"this index was made in {job.old.facts['precision']}, and this device computes in {dtype}",
            where=request.index,
            expected="the same precision for all items",
            next="--device of before, or add --rebuild with --precision fp32",
        )
    if request.model is None:
        assert job.old is not None
        model = _stored_model(job.old, request)
    else:
        model = open_model(request.model, request.device)
    if job.old is not None and request.model is not None:
        refuse_other_model(model.manifest, job.old, request)
    if job.modality not in (sides := sides_of(model.manifest)):
        raise DataError(
            f"this model cannot encode {job.modality} files",
            where=request.model,
            expected=f"a model of {job.modality}; this one has {' and '.join(sides)}",
        )
    job = replace(job, model=model)
    parts.remove_unfinished(_parts_folder(job))
    return replace(job, parts=finished_parts(_parts_folder(job)))


def _stored_model(old: Manifest, request: MediaRequest) -> LoadedModel:
    """The model in an index, for an update without ``--model``."""
    from ccaco_cli.core.experiments.pretrained import LoadedModel

    first, second = old.facts["modalities"]
    folder = request.index / old.facts["generation"] / "model"
    aligner, towers, config = indexes.load_model(folder, (first, second))
    return LoadedModel(aligner.to(runtime.device(request.device)).eval(), towers, config, old)


def _parts_folder(job: _FolderJob) -> Path:
    """The folder for the parts of this index, by this model and with these settings."""
    assert job.model is not None
    model = job.model.manifest
    identity = model.facts["model"] if model.kind == "index" else indexes.model_identity(model)
    names = ("modality", "store_tokens", "store_grid")
    key = {name: job.settings[name] for name in names} | {"model": identity, "precision": job.request.dtype_name}
    return parts.parts_folder(job.request.index, key)


def _encode(job: _FolderJob, on_progress: OnProgress, paths: Sequence[str] | None = None, rank: int = 0) -> _FolderJob:
    """Reads and encodes files (``paths``, or all that are unread); returns the job with all finished parts."""
    from ccaco_cli.core.encoding.encode import reduced_precision
    from ccaco_cli.core.library.encoder import MediaEncoder
    from ccaco_cli.core.library.reader import MediaReader

    assert job.model is not None
    aligner, towers = job.model.aligner, job.model.towers
    device = runtime.device(job.request.device)
    if runtime.launcher_rank()[1] == 1 and device.type == "cpu":
        runtime.limit_threads()
    folder = _parts_folder(job)
    known = job.library.known_contents(job.parts)
    encoder = MediaEncoder(aligner, job.modality, int(job.settings["store_grid"]), job.token_store != "none")
    with reduced_precision(aligner, job.request.dtype):
        reader = MediaReader(job.source, towers[job.modality], known)
        encoder.encode_files(
            reader, _unread(job) if paths is None else paths, PartWriter(folder, job.token_store, rank), on_progress
        )
    return replace(job, parts=finished_parts(folder))


def _finish(job: _FolderJob) -> MediaResult:
    """Writes the next generation of the index, unless it would be the same as the last."""
    request, library = job.request, job.library
    update = library.update(job.scan, job.read, job.remove)
    if not len(update.picks):
        raise _nothing_left(job, update)
    if job.old is not None and _is_same(job, update):
        generations.sweep(request.index, job.old.facts["generation"])  # of a process that was killed at its end
        if store := _vector_store(job):  # the rows of a process that was killed at its end
            store.finish(request.index / job.old.facts["generation"], job.old.facts["rows"])
        parts.remove_parts(request.index, job.modality)
        return MediaResult(job.old, job.modality, update.counts, update.rejects, written=False)
    written = writer.write(
        request.index,
        update,
        _model_source(job),
        job.settings,
        job.token_store,
        job.old,
        _vector_store(job),
    )
    parts.remove_parts(request.index, job.modality)
    fault.point("media.parts")
    stored = job.old.facts[indexes.FOLDERS].get(job.modality, {}) if job.old else {}
    before = stored.get("source", job.settings["source"])
    moved_from = "" if before == job.settings["source"] else before
    return MediaResult(written, job.modality, update.counts, update.rejects, moved_from=moved_from)


def _vector_store(job: _FolderJob) -> MilvusStore | None:
    """The database that holds the vectors; None = the index does."""
    if job.request.database is None:
        return None
    from ccaco_cli.core.retrieval.milvus import MilvusStore

    if job.old is not None:
        name, identity = job.old.facts["run"], job.old.facts["model"]
    else:
        assert job.model is not None
        name, identity = job.model.manifest.facts["name"], indexes.model_identity(job.model.manifest)
    return MilvusStore.of(job.request.database, name, identity, job.request.rebuild)


def _is_same(job: _FolderJob, update: Update) -> bool:
    assert job.old is not None
    side = _stored_side(job.request, job.old)
    if side is None or dict(job.settings) != job.old.facts[indexes.FOLDERS][job.modality]:
        return False
    text = states.rejects_csv(update.rejects)
    same_rejects = (side / states.REJECTS).read_text("utf-8") == text
    return same_rejects and list(update.states) == list(job.library.states)


def _model_source(job: _FolderJob) -> ModelSource:
    if job.old is not None:
        return StoredModel(job.old)
    assert job.model is not None
    aligner, towers, config, run = job.model
    matcher, grid = job.token_store != "none", int(job.settings["store_grid"])
    return NewModel(aligner, towers, config, run, job.request.dtype_name, grid, matcher)


def _nothing_left(job: _FolderJob, update: Update) -> DataError:
    if job.remove:
        return DataError(
            f"no item would be left of the modality {job.modality}; nothing was removed",
            where=job.request.index,
            expected="an index with at least one item",
            next=f"rm -r {quoted_path(job.request.index)}" if job.old and len(job.old.facts["rows"]) == 1 else None,
        )
    first = next(iter(update.rejects), None)
    reason = f"; the first: {first.path}: {first.reason}" if first else ""
    return DataError(
        f"none of {len(update.rejects):,} files can be an item{reason}",
        where=job.source,
        expected=f"{job.modality} files that can be read",
    )
