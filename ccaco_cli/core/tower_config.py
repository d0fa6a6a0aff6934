"""The settings of the tower of one modality; a section of ``config.ModelConfig``."""

from __future__ import annotations

from dataclasses import dataclass

from ccaco_cli.core.settings import setting

NEW, PRETRAINED, ADAPTER = HEADS = ("new", "pretrained", "adapter")
"""What maps a pooled vector to the joint space (``TowerConfig.head``)."""


@dataclass(frozen=True)
class TowerConfig:
    """The encoder (tower) and the projection head of one modality."""

    spec: str = setting("tiny", "Tower for {modality}: {specs}.", flag="--{modality}-tower", metavar="SPEC")
    head: str = setting(
        NEW,
        "What maps the tower to the joint space: new (random weights), pretrained (the projection of the dual encoder "
        "that the SPEC names), or adapter (pretrained, and a residual MLP that starts at identity).",
        choices=HEADS,
    )
    lock: bool = setting(
        False, "Freeze the {modality} tower; its tokens are computed once and cached.", flag="--lock-{modality}"
    )
    lock_side: bool = setting(
        False,
        "Freeze the whole {modality} side, also its centring and head, so that its vectors stay as they are; on for "
        "--lock-{modality} where a run continues with a new pair.",
    )
    unlock: int = setting(
        0,
        "Train only the last N blocks of the {modality} tower, its final norm and its projection; 0: all of it; -N: as "
        "many blocks as it has, at most N.",
        flag="--unlock-{modality}",
        metavar="N",
        min=-1000,
        max=1000,
    )
    size: int = setting(
        0,
        "Pixels per side of the square image that the tower takes; 0 means the tower's own size.",
        flag="--image-size",
        flag_modalities=("image",),
        custom_flag=True,
        shown_default="the tower's own",
        min=0,
        max=16_384,
    )
    tiles: str = setting(
        "",
        "ROWSxCOLUMNS: cut each image into that many squares of `size` pixels and encode each alone; empty: no tiles.",
        flag="--tile",
        flag_modalities=("image",),
        custom_flag=True,
        shown_default="no tiles",
    )
    context_length: int = setting(
        0,
        "Maximum text tokens; longer captions are cut and counted. 0 means the tower's own limit.",
        flag="--context-length",
        flag_modalities=("text",),
        shown_default="the tower's own",
        min=0,
    )
    positions: str = setting(
        "stretch",
        "How learned position embeddings are extended to a longer context than the tower was trained for.",
        choices="model.towers.positions:RULES",
    )
    states: int = setting(
        1,
        "Number of layer states, evenly spaced over the tower, that are concatenated in each token; 1: only the last "
        "state; -N: as many as the tower has, at most N.",
        min=-100,
        max=100,
    )
    seconds: float = setting(
        0.0,
        "Audio and video: seconds from the start of a clip that are encoded; 0 means the tower's own.",
        min=0,
        max=86_400,
    )
    rate: float = setting(
        0.0, "Video: frames per second that are sampled; 0 means the tower's own rate.", min=0, max=1_000
    )
    normalisation: str = setting(
        "",
        "Mean and standard deviation of log-mel features; empty means the tower's own.",
        choices="model.towers.audio:NORMALISATIONS",
    )
    columns: int = setting(0, "Arrays: numbers of a row; 0 means as many as the training split has.", min=0)
    rows: int = setting(
        0, "Arrays: the most rows of a sample; 1: vectors; 0 means as many as the training split has.", min=0
    )
    mean: tuple[float, ...] = setting(
        (0.0,),
        "Arrays: what is subtracted from each column, or from all; by default the mean of the training split.",
        min=-1e12,
        max=1e12,
    )
    std: tuple[float, ...] = setting(
        (1.0,),
        "Arrays: what each column is divided by, or all; by default the standard deviation of the training split.",
        above=0,
        max=1e30,
    )
    cache_tokens: int = setting(
        49,
        "Maximum patch tokens in the cache of a locked tower; a larger patch grid is average-pooled.",
        flag="--cache-tokens",
        min=1,
    )
    center: str = setting(
        "auto",
        "Subtract the running mean token before pooling; auto: on when the tower is trained from scratch.",
        choices=("auto", "on", "off"),
    )
    pool: str = setting("mean", "How tokens become one vector.", choices="model.aligner:POOLS")
    crop: float = setting(
        1.0,
        "Random crops in training: the smallest fraction of the image area that a crop keeps; 1 means no crops.",
        above=0,
        max=1,
    )
    grayscale: float = setting(0.0, "Fraction of the training images that are turned grey.", min=0, max=1)
    input_dropout: float = setting(
        0.0, "Dropout on the tokens (or the class token), before pooling and projection.", min=0, max=1
    )
    head_dropout: float = setting(0.1, "Dropout inside the residual MLP of the head.", min=0, max=1)

    @property
    def projected(self) -> bool:
        """Whether the tower applies the projection of a pretrained dual encoder."""
        return self.head != NEW
