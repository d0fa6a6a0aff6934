"""Every setting of a run, as frozen dataclasses: read from TOML, overridden by flags and ``--set loss.beta=0.5``."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ccaco_cli.core.errors import ConfigError

C = TypeVar("C")
MODALITIES = ("image", "text", "audio", "video")
"""Those that a model can have a tower of."""


@dataclass(frozen=True)
class TowerConfig:
    """One encoder and its head.

    spec            tiny | family:name[@weights]
    lock            frozen; its tokens are then computed once and cached
    size            image pixels a side, 0 = the tower's own
    tiles           ROWSxCOLUMNS: the picture is cut into so many squares of ``size``, each seen by itself; "" = the picture is one
    context_length  text tokens, 0 = the tower's own
    positions       an entry of ``model.towers.positions.RULES``: how learned positions reach a longer context than they were trained for
    states          of its layers that lie side by side in a token, evenly spaced (3 of a tower of 6 layers: what goes into the first, the
                    third's, the last's); 1 = the last's alone; negative: at most so many
    seconds         audio and video: the start of a clip that is seen and heard, 0 = the tower's own (tiny: 10)
    rate            video frames a second, 0 = the tower's own (tiny: 16)
    normalisation   of log-mel features: an entry of ``towers.sound.NORMALISATIONS``, empty = the tower's own
    cache_tokens    a cached patch grid is average-pooled to at most this many tokens
    center          auto | on | off: subtract the running mean token before pooling (auto: on when trained from scratch)
    pool            mean | max | cls | attention: tokens -> one vector
    crop            in training, the smallest share of a picture that a random crop leaves (blown up to its size again), 1 = no crops
    grayscale       in training, the share of the pictures that lose their colours
    input_dropout   on the tokens (or the class token), before pooling and projection
    head_dropout    inside the residual MLP of the head
    """

    spec: str = "tiny"
    lock: bool = False
    size: int = 0
    tiles: str = ""
    context_length: int = 0
    positions: str = "stretch"
    states: int = 1
    seconds: float = 0.0
    rate: float = 0.0
    normalisation: str = ""
    cache_tokens: int = 49
    center: str = "auto"
    pool: str = "mean"
    crop: float = 1.0
    grayscale: float = 0.0
    input_dropout: float = 0.0
    head_dropout: float = 0.1


@dataclass(frozen=True)
class FusionConfig:
    """The cross branch: how tokens of both sides meet in one match logit.

    kind        an entry of ``model.matching.MATCHERS``
    heads, layers, dropout   of the transformer kinds
    residual    keep what was there and add what attention brings
    direction   both | b_to_a | a_to_b: who looks at whom (b is the text of image-text)
    share       projections and towers are shared with the contrastive half (False = two halves that do not collaborate)
    scale, sharpness         starting values of kappa_2 and lambda of the attended kinds (SCIENCE, finding 4)
    attention   dense | window | linear: an entry of ``model.attention.KINDS``
    window, spread           window: tokens of a block, and global tokens spread over each side
    features, redraw         linear: random features a head, drawn anew about once in so many training steps (0 = never)
    """

    kind: str = "attended"
    heads: int = 4
    layers: int = 1
    dropout: float = 0.1
    residual: bool = True
    direction: str = "b_to_a"
    share: bool = True
    scale: float = 20.0
    sharpness: float = 9.0
    attention: str = "dense"
    window: int = 64
    spread: int = 16
    features: int = 256
    redraw: int = 1000


@dataclass(frozen=True)
class ModelConfig:
    """The aligner: one tower a modality, a shared width, and the cross branch.

    width    D of tokens and of each global vector
    vectors  global vectors a sample, each with a head and a contrastive loss of its own: an ensemble over one tower (arXiv:1511.06314).
             They lie side by side in ``z``, and the similarity is the mean of their cosines
    """

    width: int = 256
    vectors: int = 1
    image: TowerConfig = field(default_factory=TowerConfig)
    text: TowerConfig = field(default_factory=TowerConfig)
    audio: TowerConfig = field(default_factory=TowerConfig)
    video: TowerConfig = field(default_factory=TowerConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)

    @property
    def dim(self) -> int:
        """E of ``z``."""
        return self.width * self.vectors

    def tower(self, modality: str) -> TowerConfig:
        """The tower settings of one modality."""
        found: TowerConfig = getattr(self, modality)
        return found


@dataclass(frozen=True)
class LossConfig:
    """``total = alpha * contrastive + beta * cross``.

    cross          an entry of ``losses.total.CROSS_LOSSES``
    cross_batch    pairs of the batch that the cross branch sees at a step
    cross_start    share of the steps before beta starts to rise (a contrastive warm-up)
    cross_ramp     share of the steps over which it rises to its full value
    balance        fixed | schedule | uncertainty | gradnorm: an entry of ``losses.balance.BALANCES``
    ramp           linear | cosine: how beta rises (not when fixed)
    asymmetry      gradnorm: how strongly the part that learns more slowly is preferred
    teach          weight, times beta, of the loss by which both scores together teach the cosine alone (infonce only); 0 = they do not
    negatives      hard negatives a side for matching and listwise
    temperature    starting value; learned unless learn_temperature is off
    max_scale      clamp of 1 / temperature
    """

    alpha: float = 1.0
    beta: float = 0.5
    cross: str = "infonce"
    cross_batch: int = 64
    cross_start: float = 0.3
    cross_ramp: float = 0.1
    balance: str = "schedule"
    ramp: str = "linear"
    asymmetry: float = 1.5
    teach: float = 0.0
    negatives: int = 1
    temperature: float = 0.05
    learn_temperature: bool = True
    max_scale: float = 100.0


@dataclass(frozen=True)
class DomainConfig:
    """Alignment across domains: pairs from the sources, unpaired samples only from the target.

    target    a domain of the data set; "" = domains play no part
    sources   names with commas between them; "" = every domain but the target
    loss      an entry of ``losses.domain.DOMAIN_LOSSES``
    weight    lambda of ``total = alpha * contrastive + beta * cross + lambda * domain``
    sides     modalities whose features are aligned, with commas; "" = all but text. The target's texts are withheld, so text is aligned
              between the sources, of which there must be two
    critic_lr learning rate of the domain classifiers, in units of optim.lr: an adversary that lags behind is fooled, and aligns nothing
    stats     source | target: whose running statistics (batch norm, centring) the finished model has; target = AdaBN, arXiv:1603.04779
    classify  weight of a supervised label predictor on the pictures; above 0 in the classifier arms
    oracle    also keep and score the checkpoint that is best on the target's validation split: an upper bound, no result
    """

    target: str = ""
    sources: str = ""
    loss: str = "none"
    weight: float = 1.0
    critic_lr: float = 10.0
    sides: str = ""
    stats: str = "source"
    classify: float = 0.0
    oracle: bool = False


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with decay groups, linear warm-up and cosine; the budget is ``epochs`` (or ``steps`` when above 0).

    batch_size  rows (things with all their items) of a batch
    captions    of a row that has several, at most so many pairs of different items in its batch
    torchcompile  towers that learn are compiled in their first steps (a minute, then a tenth or more off every step)
    """

    epochs: int = 10
    steps: int = 0
    batch_size: int = 128
    captions: int = 1
    accum_freq: int = 1
    lr: float = 1e-3
    cross_lr: float = 1.0
    wd: float = 0.01
    beta2: float = 0.98
    warmup: float = 0.05
    grad_clip: float = 1.0
    precision: str = "auto"
    patience: int = 0
    grad_checkpointing: bool = False
    torchcompile: bool = False


@dataclass(frozen=True)
class ParallelConfig:
    """How several processes (``torchrun``) share one run; without effect on one. The batch size is that of all processes together.

    kind              an entry of ``training.parallel.KINDS``: ddp (every process holds the model) | fsdp (each holds a part of it)
    gather_with_grad  gradients travel through the gathered embeddings; off, each process asks only its own rows, which is exact as long
                      as all compute one loss, and therefore refused with local_loss
    local_loss        each process computes the contrastive loss of its own queries only (less memory, the same gradients)
    timeout           minutes after which a process that does not answer counts as lost
    """

    kind: str = "ddp"
    gather_with_grad: bool = True
    local_loss: bool = False
    timeout: float = 30.0


@dataclass(frozen=True)
class EvalConfig:
    """How a run is scored.

    shortlist        candidates of the first modality that the cross branch reorders for a query of the second (pictures for a caption)
    shortlist_back   the other way round (captions for a picture)
    rerank_weights   grid from which the weight of the cross score is chosen on validation; 0 must be in it
    select           validation figure that chooses the best checkpoint
    protocol         an entry of ``evaluation.protocols.PROTOCOLS``
    exhaustive       gallery size (things of the first modality) of per-epoch validation for models without a contrastive half
    ways             N of the N-way matching accuracy: how many partners a thing chooses among
    small            gallery size of the stage ``small``: the most that such a model scores exhaustively, so every arm is scored on it too
    """

    shortlist: int = 32
    shortlist_back: int = 64
    rerank_weights: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
    select: str = "R-sum"
    protocol: str = "full"
    exhaustive: int = 50
    ways: int = 10
    small: int = 100


@dataclass(frozen=True)
class RunConfig:
    """One training run, complete: the same config, data and library versions give the same numbers.

    method  how the model comes about, an entry of ``workflows.fit.FITTERS``: gradient | cca (hand-made) | classifier (labels only)
    """

    dataset: str = "scenes"
    arm: str = "ccaco"
    method: str = "gradient"
    seed: int = 0
    device: str = "auto"
    workers: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    domain: DomainConfig = field(default_factory=DomainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


RECIPES: dict[str, dict[str, Any]] = {
    # towers that learn from nothing, in minutes on two cores; things fill few cells of a small picture, and a mean drowns them
    "scratch": {"optim.epochs": 7, "optim.lr": 2e-3, "loss.cross_batch": 32, "model.image.pool": "max"},
    # towers that stay as they are: heads only, four of them, strongly regularised (SCIENCE, finding 3; RESEARCH, leads 19, 20, 25), and a
    # cross branch with its own projections, which need no warm-up by the other half, for there is no tower to share (RESEARCH, lead 14);
    # words by themselves beside what they mean in their sentence (lead 26)
    "locked": {
        "model.vectors": 4,
        "model.text.states": -4,
        "model.fusion.share": False,
        "loss.balance": "fixed",
        "loss.cross_batch": 96,
        "optim.epochs": 25,
        "optim.batch_size": 256,
        "optim.captions": 5,
        "model.image.input_dropout": 0.6,
        "model.text.input_dropout": 0.2,
        "model.audio.input_dropout": 0.2,
        "model.video.input_dropout": 0.2,
        "model.image.head_dropout": 0.5,
        "model.text.head_dropout": 0.5,
        "model.audio.head_dropout": 0.5,
        "model.video.head_dropout": 0.5,
    },
    # pretrained towers that move
    "finetune": {"optim.epochs": 5, "optim.lr": 3e-5, "optim.wd": 0.1, "optim.batch_size": 64},
}


def recipe_of(config: RunConfig, modalities: Iterable[str]) -> str:
    """Which defaults suit the towers asked for: ``scratch``, ``locked`` or ``finetune``."""
    towers = [config.model.tower(m) for m in modalities]
    if all(t.lock for t in towers):
        return "locked"
    scratch = all(
        t.spec.removeprefix("frames:").partition(":")[0] == "tiny" or t.spec.endswith("@none")
        for t in towers
        if not t.lock
    )
    return "scratch" if scratch else "finetune"


def load(path: Path) -> dict[str, Any]:
    """A TOML file as dotted overrides, ``{"loss.beta": 0.5}``."""
    try:
        nested = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            "no such config file", where=path, expected="a TOML file", next="ccaco train --help"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot read this config file ({error.strerror})", where=path, expected="a TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"not TOML ({error})", where=path) from None
    return flatten(nested)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def parse_setting(text: str) -> tuple[str, Any]:
    """``loss.beta=0.5`` -> ("loss.beta", 0.5); the value is TOML, or a bare word taken as text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError("cannot read --set", where=text, expected="KEY=VALUE, for example loss.beta=0.5")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return key.strip(), value


def override(config: C, settings: Mapping[str, Any]) -> C:
    """A copy of a config with dotted settings applied.

    Raises ConfigError: an unknown key (names the nearest), or a value of another type
    """
    for key, value in settings.items():
        config = _set(config, key.split("."), value, key)
    return config


def build(*, base: Mapping[str, Any], explicit: Mapping[str, Any], modalities: Iterable[str]) -> RunConfig:
    """The resolved config of a run: defaults, then the recipe of its towers, then file (``base``), then flags (``explicit``)."""
    modalities = tuple(modalities)
    asked = override(override(RunConfig(), base), explicit)
    with_recipe = override(RunConfig(), RECIPES[recipe_of(asked, modalities)])
    return override(override(with_recipe, base), explicit)


def from_dict(nested: Mapping[str, Any]) -> RunConfig:
    """The inverse of ``dataclasses.asdict``."""
    return override(RunConfig(), flatten(nested))


def to_toml(config: RunConfig) -> str:
    """A config as TOML text that ``--config`` reads back."""
    return "\n".join(_toml_table(asdict(config), ())).strip() + "\n"


def _toml_table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[str]:
    if path:
        yield f"\n[{'.'.join(path)}]"
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{key} = {_toml_value(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _toml_table(value, (*path, key))


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace(
            "\x7f", "\\u007f"
        )  # TOML's basic strings are JSON's, but for DEL
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return repr(value)


def _set(config: Any, path: list[str], value: Any, full: str) -> Any:
    name, rest = path[0], path[1:]
    known = [f.name for f in fields(config)]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1) or difflib.get_close_matches(
            full.split(".")[-1], _all_keys(), 1
        )
        hint = f"did you mean {full[: full.rfind(name)] + near[0] if near[0] in known else near[0]}?" if near else None
        raise ConfigError("unknown config key", where=full, expected=f"one of {', '.join(known)}", next=hint)
    current = getattr(config, name)
    if rest:
        if not is_dataclass(current):
            raise ConfigError("this config key has no parts", where=full, expected=name)
        return replace(config, **{name: _set(current, rest, value, full)})
    if is_dataclass(current):
        raise ConfigError(
            "this config key is a table",
            where=full,
            expected=f"{full}.KEY with KEY one of {', '.join(f.name for f in fields(current))}",
        )
    return replace(config, **{name: _coerce(value, get_type_hints(type(config))[name], current, full)})


def _coerce(value: Any, hint: Any, current: Any, key: str) -> Any:
    if isinstance(current, tuple) and isinstance(value, list | tuple):
        try:
            return tuple(type(current[0])(v) for v in value)
        except (TypeError, ValueError):
            raise ConfigError(f"{value!r} does not fit", where=key, expected=f"numbers, like {list(current)}") from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(current):
        raise ConfigError(f"{value!r} does not fit", where=key, expected=f"{type(current).__name__}, like {current!r}")
    return value


def _all_keys() -> list[str]:
    return list(flatten(asdict(RunConfig())))
