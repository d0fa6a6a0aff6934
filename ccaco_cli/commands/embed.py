"""``ccaco embed``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ccaco_cli.commands import options
from ccaco_cli.commands.parameters import Command, option, replace_parameter
from ccaco_cli.core.modalities import MODALITIES


def _folder_options(command: Command) -> Command:
    """Replaces the parameter ``folders`` by one option per modality that has media files: modality -> folder."""
    options = [
        option(
            name,
            Path,
            f"--{modality.folder_option}",
            metavar="FOLDER",
            help=f"Index the {name} files in this folder and below, without a data set; the same command again updates "
            "the index.",
            show_default=False,
            rich_help_panel="Media files",
        )
        for name, modality in MODALITIES.items()
        if modality.folder_option
    ]
    return replace_parameter(
        command, "folders", options, lambda values: {name: path for name, path in values.items() if path is not None}
    )


@_folder_options
def embed(
    folders: Mapping[str, Path],
    model: options.ModelSource = None,
    dataset: options.Dataset = "scenes",
    split: options.Split = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of the shards, or of the exported model.",
            show_default="embeddings/RUN-DATASET-SPLIT or exports/RUN-FORMAT",
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            "--index",
            metavar="FOLDER",  # a Path would change an address
            help="Also build a self-contained search index here. milvus:FILE.db and "
            "milvus:http://HOST:19530#COLLECTION put its vectors into a Milvus database.",
            show_default=False,
        ),
    ] = None,
    index_type: Annotated[
        str,
        typer.Option(
            "--index-type", help="Vector index: auto (exact below a million vectors), flat, ivf, hnsw or ivfpq."
        ),
    ] = "auto",
    store_tokens: Annotated[
        str, typer.Option("--store-tokens", help="Tokens that the index stores for reranking: float16, int8 or none.")
    ] = "float16",
    store_grid: Annotated[
        int,
        typer.Option(
            "--store-grid",
            min=0,
            max=10**6,
            help="Maximum patch tokens stored per image; a larger grid is average-pooled.",
            show_default="all",
        ),
    ] = 0,
    precision: Annotated[
        str,
        typer.Option(
            "--precision", help="Precision of the towers: auto (bf16 where it is faster), fp32, bf16 or fp16."
        ),
    ] = "auto",
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Replace an existing index; processes that read it are not disturbed.")
    ] = False,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            "--remove",
            metavar="PATH|ID",
            help="Take an item, or all below a folder, out of an index of media files; it stays out while its file is "
            "unchanged. Can be repeated.",
            show_default=False,
            rich_help_panel="Media files",
        ),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            "--export",
            metavar="FORMAT",
            help="Embed nothing, but write the model for another library: open_clip, transformers, onnx or "
            "sentence-transformers.",
            show_default=False,
            rich_help_panel="Export",
        ),
    ] = None,
    license: Annotated[
        str,
        typer.Option(
            "--license",
            help="Licence that the model card of an export names, such as apache-2.0.",
            show_default="not named",
            rich_help_panel="Export",
        ),
    ] = "",
    push_to_hub: Annotated[
        str,
        typer.Option(
            "--push-to-hub",
            metavar="OWNER/NAME",
            help="Upload the export, with its model card, to this repository of the Hugging Face hub.",
            show_default="not uploaded",
            rich_help_panel="Export",
        ),
    ] = "",
    verify: options.Verify = "quick",
    device: options.Device = "auto",
    data: options.Data = Path("data"),
) -> None:
    """Embed a folder of media files or a data set and build a search index, or export the model.

    The embeddings of a data set are shards in clip-retrieval's layout.

    Repeat the same command after an interruption: what is finished is kept. An export needs no data set.

    \b
    Examples:
      ccaco embed --model open_clip:ViT-B-32@openai --images ~/Photos --index photos.idx
      ccaco embed --index photos.idx --remove 2021/blurred.jpg
      ccaco embed --run runs/first --dataset scenes --index scenes.idx
      ccaco embed --run runs/first --dataset scenes --index small.idx --store-tokens int8 --store-grid 16
      ccaco embed --run runs/first --dataset scenes --split val --out embeddings/val
      ccaco embed --model open_clip:ViT-B-32@openai --dataset photos --index photos.idx
      ccaco embed --run runs/first --export onnx --out first-onnx --license apache-2.0
    """
    if folders or remove:
        from ccaco_cli.commands.embed_folder import embed_folder, refuse_other_options

        other = {"--split": split, "--out": out, "--export": export, "--license": license}
        refuse_other_options(other | {"--dataset": dataset if dataset != "scenes" else None})
        settings = {"index_type": index_type, "store_tokens": store_tokens, "store_grid": store_grid}
        settings |= {"precision": precision, "device": device, "rebuild": rebuild, "remove": remove or ()}
        embed_folder(folders, index, model, settings)
        return
    if model is None:
        raise typer.BadParameter("missing; a finished run or the SPEC of a pretrained model", param_hint="--model")
    if export is not None or license or push_to_hub:
        _export(model, export, out, license, push_to_hub, index)
        return
    from ccaco_cli.core.experiments.datasets import split_to_embed
    from ccaco_cli.core.experiments.embed_request import EmbedRequest
    from ccaco_cli.core.experiments.pretrained import name_of
    from ccaco_cli.core.retrieval.address import index_place
    from ccaco_cli.core.shell import quoted_path
    from ccaco_cli.core.workflows.embed import embed as workflow
    from ccaco_cli.view import progress

    folder, database = index_place(index)
    split, note = split_to_embed(dataset, split, data)
    out = out or Path("embeddings") / f"{name_of(model)}-{Path(dataset).name}-{split}"
    request = EmbedRequest(
        model,
        dataset,
        out,
        split,
        index=folder,
        database=database,
        rebuild=rebuild,
        index_type=index_type,
        store_tokens=store_tokens,
        store_grid=store_grid,
        precision=precision,
        device=device,
        verify=verify,
    )
    with progress.bar("embed") as report_progress:
        embedded = workflow(request, data_root=data, on_progress=report_progress)
    rows = ", ".join(f"{count:,} {modality}" for modality, count in embedded.facts["rows"].items())
    progress.note(f"{embedded.path}: {rows}")
    if note:
        progress.note(note)
    for modality, storage in embedded.facts.get("storage", {}).items():
        progress.note(f"{modality}: {storage_text(storage)}")
    if reason := embedded.facts.get("query", {}).get("why"):
        progress.note(f"text queries load the whole model: {reason}")
    if index is None:
        progress.note(f"next: add --index {quoted_path(f'{Path(dataset).name}.idx')} to search them")
        return
    query = MODALITIES[embedded.facts["modalities"][1]].query
    progress.note(f"next: ccaco retrieve {query} --index {quoted_path(index)}")


def _export(
    model: str, export_format: str | None, out: Path | None, license: str, repository: str, index: str | None
) -> None:
    """Exports the model and prints what was written."""
    from ccaco_cli.core.errors import ConfigError
    from ccaco_cli.core.experiments.pretrained import name_of
    from ccaco_cli.core.export.export import ExportRequest, export_model, notes
    from ccaco_cli.view import progress

    if export_format is None:
        flag = "--push-to-hub" if repository else "--license"
        raise ConfigError("only an exported model has this", where=flag, expected="--export FORMAT beside it")
    if index is not None:
        raise ConfigError(
            "an export builds no index",
            where=f"--export {export_format} --index {index}",
            expected="one of the two",
            next="two commands",
        )
    out = out or Path("exports") / f"{name_of(model)}-{export_format}"
    request = ExportRequest(model, export_format, out, license, repository)
    for line in notes(export_model(request), request):
        progress.note(line)


def storage_text(storage: Mapping[str, Any]) -> str:
    """Type, accuracy and size of the vectors and tokens that an index stores for one modality."""
    vectors, tokens = storage["vectors"], storage["tokens"]
    return (
        f"{vectors['type']}, recall@10 {vectors['recall']:.3f} of exact search, "
        f"{vectors['bytes_per_item']:,.0f} bytes per item; "
        f"tokens {tokens['store']}, {tokens['bytes_per_item']:,.0f} bytes per item"
    )
