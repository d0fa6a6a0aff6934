"""Options that several commands share, named once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Format(StrEnum):
    """How rows are printed."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"
    latex = "latex"


Dataset = Annotated[
    str,
    typer.Option(
        "--dataset", "-d", help="A prepared data set: its NAME under data/, or its FOLDER.", show_default=True
    ),
]
Data = Annotated[Path, typer.Option("--data", help="Where prepared data sets lie.")]
Shown = Annotated[
    Format | None,
    typer.Option(
        "--format",
        "-f",
        help="How rows are printed; by default a table on a terminal, CSV in a pipe.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda[:N].")]
TrainDevice = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda[:N].", show_default="auto")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A TOML file of settings; flags win over it.", show_default=False)
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. --set loss.beta=0.5.", show_default=False),
]
Alpha = Annotated[float | None, typer.Option("--alpha", help="Weight of the contrastive loss.", show_default="1")]
Beta = Annotated[float | None, typer.Option("--beta", help="Weight of the cross-attention loss.", show_default="0.5")]
ImageTower = Annotated[
    str | None,
    typer.Option("--image-tower", metavar="SPEC", help="tiny, or family:name[@weights].", show_default="tiny"),
]
TextTower = Annotated[
    str | None,
    typer.Option("--text-tower", metavar="SPEC", help="tiny, or family:name[@weights].", show_default="tiny"),
]
AudioTower = Annotated[
    str | None, typer.Option("--audio-tower", metavar="SPEC", help="tiny, or hf:name[@weights].", show_default="tiny")
]
VideoTower = Annotated[
    str | None,
    typer.Option(
        "--video-tower", metavar="SPEC", help="tiny, hf:name[@weights], or frames:IMAGE-TOWER.", show_default="tiny"
    ),
]
LockImage = Annotated[
    bool | None,
    typer.Option("--lock-image", help="Freeze the image tower; its tokens are computed once.", show_default=False),
]
LockText = Annotated[
    bool | None,
    typer.Option("--lock-text", help="Freeze the text tower; its tokens are computed once.", show_default=False),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        "--image-size", metavar="SIDE|HxW", help="Pixels that the image tower sees.", show_default="the tower's own"
    ),
]
Tile = Annotated[
    int | None,
    typer.Option("--tile", help="Cut larger pictures into tiles of this side, one pass each.", show_default="no tiles"),
]
ContextLength = Annotated[
    int | None,
    typer.Option(
        "--context-length", help="Text tokens; longer captions are cut and counted.", show_default="the tower's own"
    ),
]
Attention = Annotated[
    str | None, typer.Option("--attention", help="Of the cross branch: dense, window or linear.", show_default="dense")
]
Balance = Annotated[
    str | None,
    typer.Option(
        "--balance", help="Of the losses: fixed, schedule, uncertainty or gradnorm.", show_default="by recipe"
    ),
]
LockAudio = Annotated[bool | None, typer.Option("--lock-audio", help="Freeze the audio tower.", show_default=False)]
LockVideo = Annotated[bool | None, typer.Option("--lock-video", help="Freeze the video tower.", show_default=False)]
CacheTokens = Annotated[
    int | None,
    typer.Option("--cache-tokens", help="Most patch tokens kept of a locked tower's grid.", show_default="49"),
]
TargetDomain = Annotated[
    str | None,
    typer.Option(
        "--target-domain",
        metavar="NAME",
        help="Adapt to this domain; its captions and labels stay unread.",
        show_default=False,
    ),
]
SourceDomains = Annotated[
    str | None,
    typer.Option(
        "--source-domains", metavar="NAME,...", help="Learn pairs from these.", show_default="all but the target"
    ),
]
DomainLoss = Annotated[
    str | None, typer.Option("--domain-loss", help="none, dann, mmd, both or coral.", show_default="none")
]
DomainWeight = Annotated[
    float | None, typer.Option("--domain-weight", help="Weight of the domain loss.", show_default="1.0")
]
DomainSides = Annotated[
    str | None,
    typer.Option("--domain-sides", metavar="SIDE,...", help="Modalities it acts on.", show_default="all but text"),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", help="Passes over the training pictures.", show_default="by towers")
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        help="Samples a step, of all processes together (--set optim.captions=N: N pairs of each).",
        show_default="by towers",
    ),
]
Lr = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.", show_default="by towers")]
Wd = Annotated[float | None, typer.Option("--wd", help="Weight decay.", show_default="by towers")]
Warmup = Annotated[
    float | None,
    typer.Option("--warmup", help="Warm-up: a share of the steps, or steps when 1 or more.", show_default="0.05"),
]
Precision = Annotated[
    str | None, typer.Option("--precision", help="auto, fp32, amp_bf16 or amp_fp16.", show_default="auto")
]
Accum = Annotated[
    int | None, typer.Option("--accum-freq", help="Batches whose gradients are added before a step.", show_default="1")
]
Checkpointing = Annotated[
    bool | None,
    typer.Option("--grad-checkpointing", help="Trade time for memory: activations are made again.", show_default=False),
]
Compile = Annotated[
    bool | None,
    typer.Option("--torchcompile", help="Compile towers that learn: a minute once, faster steps.", show_default=False),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", help="Processes that load data (0 = none besides this one).", show_default="0"),
]
Metric = Annotated[str, typer.Option("--metric", help="The one that is tested: R-sum, text_to_image_R@1, ...")]
Reference = Annotated[
    str | None,
    typer.Option(
        "--reference", metavar="ARM", help="The arm that others are held against.", show_default="ccaco, else the first"
    ),
]
Parallel = Annotated[
    str | None,
    typer.Option("--parallel", help="Under torchrun: ddp, or fsdp to cut the model into parts.", show_default="ddp"),
]
GatherGrad = Annotated[
    bool | None,
    typer.Option(
        "--gather-with-grad/--no-gather-with-grad",
        help="Under torchrun: gradients travel through gathered embeddings.",
        show_default="on",
    ),
]
LocalLoss = Annotated[
    bool | None,
    typer.Option(
        "--local-loss", help="Under torchrun: each process computes its own queries' loss.", show_default=False
    ),
]
Verify = Annotated[str, typer.Option("--verify", help="quick: sizes and manifests; full: hash every file first.")]

QUERIES = {"text": '"a few words"', "image": "--image FILE", "audio": "--audio FILE", "video": "--video FILE"}
"""How an index is asked by each modality."""
KEYS = {
    "alpha": "loss.alpha",
    "beta": "loss.beta",
    "image_tower": "model.image.spec",
    "text_tower": "model.text.spec",
    "audio_tower": "model.audio.spec",
    "video_tower": "model.video.spec",
    "lock_image": "model.image.lock",
    "lock_text": "model.text.lock",
    "context_length": "model.text.context_length",
    "attention": "model.fusion.attention",
    "balance": "loss.balance",
    "target_domain": "domain.target",
    "source_domains": "domain.sources",
    "domain_loss": "domain.loss",
    "domain_weight": "domain.weight",
    "domain_sides": "domain.sides",
    "lock_audio": "model.audio.lock",
    "lock_video": "model.video.lock",
    "epochs": "optim.epochs",
    "batch_size": "optim.batch_size",
    "lr": "optim.lr",
    "wd": "optim.wd",
    "warmup": "optim.warmup",
    "precision": "optim.precision",
    "accum_freq": "optim.accum_freq",
    "grad_checkpointing": "optim.grad_checkpointing",
    "torchcompile": "optim.torchcompile",
    "parallel": "parallel.kind",
    "gather_with_grad": "parallel.gather_with_grad",
    "local_loss": "parallel.local_loss",
    "workers": "workers",
    "seed": "seed",
    "device": "device",
}
"""Flag -> config key."""


def settings(set_: list[str] | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Flags that were given and ``--set`` pairs, as dotted overrides (``--set`` wins)."""
    from ccaco_cli.core.config import MODALITIES, parse_setting

    given = {KEYS[name]: value for name, value in flags.items() if name in KEYS and value is not None}
    if flags.get("cache_tokens") is not None:
        given |= {f"model.{m}.cache_tokens": flags["cache_tokens"] for m in MODALITIES}
    if flags.get("image_size") is not None or flags.get("tile") is not None:
        given |= _picture(flags.get("image_size"), flags.get("tile"))
    return given | dict(map(parse_setting, set_ or ()))


def _picture(size: str | None, tile: int | None) -> dict[str, Any]:
    """``--image-size 4096x4096 --tile 512`` -> a tower of 512 pixels over 8x8 tiles."""
    from ccaco_cli.core.errors import ConfigError

    sides = [int(side) if side.isdecimal() else 0 for side in (size or "").lower().split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise ConfigError(
            "cannot read this size", where=f"--image-size {size or ''}", expected="pixels, SIDE or HEIGHTxWIDTH"
        )
    height, width = sides[0], sides[-1]
    if tile is None:
        if height != width:
            raise ConfigError(
                "towers see squares",
                where=f"--image-size {size}",
                expected="a square, or --tile",
                next="add --tile SIDE",
            )
        return {"model.image.size": height, "model.image.tiles": ""}
    if tile < 1 or height % tile or width % tile:
        raise ConfigError(
            "tiles must fill the picture", where=f"--tile {tile}", expected=f"a divisor of {height} and {width}"
        )
    return {"model.image.size": tile, "model.image.tiles": f"{height // tile}x{width // tile}"}


def file_settings(path: Path | None) -> dict[str, Any]:
    """The settings of ``--config``."""
    from ccaco_cli.core.config import load

    return {} if path is None else load(path)


def pairs(given: list[str] | None, flag: str) -> dict[str, str]:
    """``OURS=THEIRS`` of a flag that may be given several times."""
    from ccaco_cli.core.errors import ConfigError

    found = {}
    for text in given or ():
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise ConfigError(f"cannot read {flag}", where=text, expected="OURS=THEIRS, for example caption=text")
        found[ours] = theirs
    return found


def share(text: str, flag: str) -> float:
    """``1%`` or ``0.01`` -> 0.01."""
    from ccaco_cli.core.errors import ConfigError

    number, percent, rest = text.partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if rest or not 0 <= value <= 1:
        raise ConfigError(f"cannot read {flag}", where=text, expected="a share such as 1% or 0.01")
    return value
