"""The index of a split: vectors, tokens, items and the model in one folder, which is all that a query needs."""

from __future__ import annotations

import io
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from ccaco_cli.core import config_io, manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.errors import CcacoError, DataError, ManifestError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.modalities import MODALITIES, sides_of
from ccaco_cli.core.retrieval import query, token_store, vectors
from ccaco_cli.core.retrieval.generations import open_generation
from ccaco_cli.core.retrieval.rerank import Scorer, score_kind
from ccaco_cli.core.retrieval.token_store import Tokens
from ccaco_cli.core.retrieval.vectors import Vectors
from ccaco_cli.core.types import LocalTokens

if TYPE_CHECKING:  # torch and the model are imported where they are needed: a text query does without
    from ccaco_cli.core.model.aligner import Aligner
    from ccaco_cli.core.model.towers.tower import Tower
    from ccaco_cli.core.retrieval.filters import Selection

THUMBNAIL = 224
SELECTIONS = 8
"""Conditions on one side whose rows are remembered."""
REBUILD = "ccaco embed --run RUN --dataset NAME --index NAME.idx --rebuild"
QUERY = "query"
"""Folder of the exported query side."""
FOLDERS = "folders"
"""Key in the manifest of an index of media files: modality -> folder of its files, and the settings of the command."""
_COLUMNS = {("group", False): pa.int64(), ("thumbnail", False): pa.binary(), ("text", True): pa.list_(pa.string())}
"""(name, holds lists) -> type of a column of the items that is no Arrow array; all others are texts. The first part
alone does not always tell."""


def save_model(folder: Path, aligner: Aligner, towers: Mapping[str, Tower], config: RunConfig) -> None:
    """Stores everything that encodes and matches a query: config, all weights (locked towers too), tokenizer files."""
    from ccaco_cli.core.model import weights

    model = config.model
    for modality, tower in towers.items():
        spec = tower.save_assets(folder / f"tower-{modality}").replace(str(folder), "{model}")
        center = "off" if aligner.sides[modality].center is None else "on"
        sides: dict[str, Any] = {modality: replace(model.tower(modality), spec=spec, center=center)}
        model = replace(model, **sides)
    manifest.write_bytes(folder / "config.toml", config_io.to_toml(replace(config, model=model)).encode())
    weights.save_weights(folder / weights.WEIGHTS, aligner, everything=True)


def load_model(folder: Path, modalities: tuple[str, str]) -> tuple[Aligner, dict[str, Tower], RunConfig]:
    """Loads what ``save_model`` wrote; the folder may have been moved."""
    from ccaco_cli.core.model import aligner as aligners
    from ccaco_cli.core.model import weights

    settings = config_io.load(folder / "config.toml")
    for key in [key for key in settings if key.endswith(".spec")]:
        settings[key] = settings[key].replace("{model}", str(folder))
    config = config_io.override(RunConfig(), settings)
    aligner, towers = aligners.build(config.model, config.loss, modalities)
    weights.load_weights(folder / weights.WEIGHTS, aligner, everything=True)
    return aligner.eval(), towers, config


def write_side(
    folder: Path,
    z: Any,
    items: Iterable[Mapping[str, Sequence[Any]]],
    *,
    store: str = "none",
    kind: str = "auto",
    queries: Any = None,
) -> dict[str, Any]:
    """Writes one modality of an index, beside the tokens that a ``token_store.Writer`` has written there, if any.

    Args:
        z: [n, E] float16 or float32, unit norm.
        items: parts of column name -> values (id, group, text ...), n rows in all; ``thumbnail`` holds JPEG bytes.
            Values in an Arrow array keep its type.
        store: how tokens are stored: an entry of ``token_store.STORES``, or none.
        kind: how vectors are searched (``vectors.write``).
        queries: [m, E] vectors of the other modality, on which an approximate search is tuned.
    Returns:
        For the manifest: {"vectors": ..., "tokens": ...} with the bytes of one item in both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    built = vectors.write(folder, z, kind, queries)
    parts = iter(items)
    first = next(parts)
    schema = pa.schema(
        {
            name: values.type
            if isinstance(values, pa.Array)
            else _COLUMNS.get((name, isinstance(next(iter(values), ""), list)), pa.string())
            for name, values in first.items()
        }
    )
    with pa.OSFile(str(folder / "items.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for part in (first, *parts):
            writer.write_table(pa.table(dict(part), schema=schema))
    return storage_facts(folder, built, store, len(z))


def storage_facts(folder: Path, built: vectors.Built, store: str, count: int) -> dict[str, Any]:
    """For the manifest: how a side of ``count`` items stores its vectors and tokens, and the bytes of one item."""
    size = {
        name: _bytes(folder, names) / max(1, count)
        for name, names in (("vectors", vectors.FILES), ("tokens", token_store.FILES))
    }
    if (folder / vectors.DATABASE).exists():
        size["vectors"] = 4.0 * vectors.open(folder).d + 8  # a vector in the database, and the key of its row
    return {
        "vectors": asdict(built) | {"bytes_per_item": round(size["vectors"], 1)},
        "tokens": {"store": store, "bytes_per_item": round(size["tokens"], 1)},
    }


def _bytes(folder: Path, names: Sequence[str]) -> int:
    return sum((folder / name).stat().st_size for name in names if (folder / name).exists())


class IndexSide:
    """One modality of an opened index. Vectors, tokens and items are read when they are first needed."""

    def __init__(self, folder: Path, rows: int | None = None):
        self.folder, self.rows = folder, rows
        self._selections: dict[tuple[str, ...], Selection] = {}

    @cached_property
    def vectors(self) -> Vectors:
        try:
            return vectors.open(self.folder)
        except CcacoError:
            raise
        except Exception as error:  # numpy and faiss raise many kinds for a broken file
            message = f"unreadable vectors ({' '.join(str(error).split())[-80:]})"
            raise ManifestError(message, where=self.folder, next=REBUILD) from None

    @cached_property
    def items(self) -> pa.Table:
        file = self.folder / "items.arrow"
        try:
            table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
            table.validate(full=True)  # offsets beyond the file would be read without a check, and end the process
            return table
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(f"unreadable items ({str(error)[:80]})", where=file, next=REBUILD) from None

    def check(self, width: int) -> None:
        """Raises ManifestError: vectors of another width than the model's, or of other rows than the items'."""
        shape, items = (self.vectors.ntotal, self.vectors.d), len(self.items)
        rows = items if self.rows is None else self.rows
        if shape != (rows, width) or items != rows:
            message = f"vectors of shape {list(shape)} and {items} items do not belong to this index"
            raise ManifestError(message, where=self.folder, expected=f"[{rows}, {width}]", next=REBUILD)

    @cached_property
    def tokens(self) -> Tokens:
        try:
            tokens = Tokens.open(self.folder)
            tokens.check(len(self.items))
            return tokens
        except Exception as error:  # numpy raises many kinds for a broken file
            message = f"unreadable tokens ({' '.join(str(error).split())[-80:]})"
            raise ManifestError(message, where=self.folder, next=REBUILD) from None

    @property
    def has_tokens(self) -> bool:
        return (self.folder / token_store.TOKENS).exists()

    def local_tokens(self, rows: Any) -> LocalTokens:
        """Stored tokens of some rows, float32, for the cross branch."""
        import torch

        tokens, mask = map(torch.from_numpy, self.tokens.read(rows))
        return LocalTokens(tokens, mask)

    def select(self, expression: str, columns: Mapping[str, pa.DataType] = {}) -> Selection:
        """The items that satisfy a condition on their columns; the rows of the last few conditions are remembered.

        Args:
            columns: of other sides, which are null here unless this side has them.
        """
        from ccaco_cli.core.retrieval import filters

        key = (expression, *columns)
        selection = self._selections.get(key)
        if selection is None:
            selection = filters.Selection(expression, lambda: filters.rows_where(self._with(columns), expression))
            if len(self._selections) >= SELECTIONS:
                self._selections.clear()
            self._selections[key] = selection
        return selection

    def _with(self, columns: Mapping[str, pa.DataType]) -> pa.Table:
        """The items, with null columns for those that they lack."""
        table = self.items
        for name in (name for name in columns if name not in table.column_names):
            table = table.append_column(name, pa.nulls(len(table), columns[name]))
        return table

    def item(self, row: int) -> dict[str, Any]:
        """All columns of one row."""
        columns: dict[str, Any] = self.items.slice(row, 1).to_pylist()[0]
        return columns


class Index:
    """An opened index: one complete generation of it, even while a new one is built.

    Args:
        verify: quick | full: whether every file is hashed first.
    Attributes:
        modalities: (a, b) of the model, which its cross branch scores.
        queries: the modalities that the model encodes: both, and further sides of the same space.
        sides: the modalities whose items are stored: some of ``queries``.
    Raises:
        ManifestError: the folder is no index, was altered, or its parts do not belong together.
    """

    def __init__(self, path: Path, verify: str = manifest.QUICK):
        self.manifest, number = open_generation(path, verify)
        if number is not None:
            weakref.finalize(self, os.close, number)
        try:
            first, second = self.manifest.facts["modalities"]
            self.modalities: tuple[str, str] = (first, second)
            self.folder = path / str(self.manifest.facts["generation"])
            self.weight = float(self.manifest.facts["weight"])
            self.embedding_size = int(self.manifest.facts["dim"])
            self.store_grid = int(self.manifest.facts.get("store_grid", 0))
            self.queries = sides_of(self.manifest)
            rows = {m: int(self.manifest.facts["rows"][m]) for m in self.queries if m in self.manifest.facts["rows"]}
            if not rows:
                raise ValueError("no rows")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ManifestError(
                f"unreadable manifest ({error})", where=path, expected="an index", next=REBUILD
            ) from None
        self.sides = {modality: IndexSide(self.folder / modality, count) for modality, count in rows.items()}

    @cached_property
    def scorer(self) -> Scorer:
        """The score that ranks hits, as it was chosen when the model was evaluated."""
        loss = self.manifest.config["loss"]
        kind = score_kind(loss["alpha"], loss["beta"], self.weight)
        return Scorer.of(kind, float(self.manifest.facts["scale"]), self.weight)

    @cached_property
    def exported(self) -> query.Exported | None:
        """The query side that needs no torch, where the model could be exported."""
        folder = self.folder / QUERY
        if not folder.is_dir():
            return None
        for side in self.sides.values():
            side.check(self.embedding_size)
        return query.Exported(folder)

    @cached_property
    def model(self) -> tuple[Aligner, dict[str, Tower], RunConfig]:
        import torch

        from ccaco_cli.core.encoding.encode import reduce_precision

        with torch.inference_mode(False):  # the first caller may be in that mode, and explanations need gradients later
            aligner, towers, config = load_model(self.folder / "model", self.modalities)
            exported = "" if self.exported is None else self.exported.modality  # its graph computes in float32
            reduce_precision(aligner, self._precision(), keep=exported)
        for side in self.sides.values():
            side.check(aligner.embedding_size)
        return aligner, towers, config

    def _precision(self) -> Any:
        """The dtype of towers for queries: that of the items where this CPU is fast in it, else float32."""
        import torch

        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
        stored = dtypes.get(str(self.manifest.facts.get("precision")), torch.float32)
        return stored if stored == runtime.encoding_dtype("auto", torch.device("cpu")) else torch.float32

    def targets(self, query_modality: str, target: str = "") -> tuple[str, ...]:
        """The modalities of the items that a query searches.

        Args:
            query_modality: one of the modalities that the model encodes.
            target: modalities to search, separated by commas; "" = all in an index of media files, whose items do not
                belong to each other; else the first that the query is not of, or the only one that is stored.
        Raises:
            DataError: the model cannot encode the query, or no items of a target are stored.
        """
        if query_modality not in self.queries:
            raise DataError(
                f"the model of this index cannot encode {query_modality}",
                where=self.manifest.path,
                expected=f"a query by {' or '.join(self.queries)}",
            )
        names = tuple(dict.fromkeys(name.strip() for name in target.split(","))) if target else ()
        for name in names:
            if name not in self.sides:
                raise DataError(
                    f"this index holds no items of the modality {name!r}",
                    where=self.manifest.path,
                    expected=f"one of {', '.join(self.sides)}",
                )
        if names or FOLDERS in self.manifest.facts:
            return names or tuple(self.sides)
        others = [modality for modality in self.sides if modality != query_modality]
        return (next(iter(others or self.sides)),)

    def cosine_alone(self, modality: str, targets: Sequence[str]) -> str:
        """Why the cosine alone ranks, in words; "" = the cross branch may score the items, or they are like the query.

        Either the items are of several modalities, or query and items are of two sides that are no pair of the run:
        they meet in the space of a third one.
        """
        if len(targets) > 1:
            return f"{' and '.join(targets)} items are ranked in one list"
        (target,) = targets
        if modality != target and not {modality, target} <= {*self.modalities}:
            return f"{modality} and {target} are no pair of this run"
        return ""


def model_identity(model: Manifest) -> str:
    """Identifies a model by its content: a run by its hash, a pretrained one by those of its towers."""
    return model.sha256 if model.kind == "run" else manifest.json_text(model.facts["towers"])


def is_made_from(path: Path, inputs: Mapping[str, Manifest], settings: Mapping[str, Any], store: str) -> bool:
    """Whether a complete index was made from these inputs, with these facts, and stores tokens in this way."""
    old = manifest.open(path, kind="index")
    scored = old.facts["modalities"] if old.config["loss"]["beta"] > 0 else ()
    return (
        {name: source["sha256"] for name, source in old.inputs.items()} == {n: m.sha256 for n, m in inputs.items()}
        and all(old.facts.get(name) == value for name, value in settings.items())
        and all(
            storage["tokens"]["store"] == (store if modality in scored else "none")
            for modality, storage in old.facts["storage"].items()
        )
    )


def thumbnail(modality: str, data: bytes) -> bytes:
    """JPEG of at most 224 pixels per side that shows a sample (``Modality.picture``); smaller ones keep their size.

    Empty for a modality that cannot be shown.
    """
    picture = MODALITIES[modality].picture
    if picture is None:
        return b""
    return thumbnail_jpeg(picture(data, THUMBNAIL))


def thumbnail_jpeg(image: Image.Image) -> bytes:
    """Shrinks an RGB image in place to at most 224 pixels per side, and encodes it as a JPEG."""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()
