"""Every setting of a run, as frozen dataclasses; ``config_io`` reads them from TOML and applies overrides.

Each field declares its default, help, flag and accepted values in one place (``settings.setting``). The options of
``ccaco train`` and ``ccaco ablate``, ``--set``, the range check and the table of all settings are made from that.
"""

from __future__ import annotations

from dataclasses import dataclass

from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.settings import section, setting, with_sections
from ccaco_cli.core.tower_config import TowerConfig as TowerConfig


@dataclass(frozen=True)
class FusionConfig:
    """The cross branch: how the tokens of both modalities give one match logit."""

    kind: str = setting("attended", "Architecture of the cross branch.", choices="model.matching:MATCHERS")
    heads: int = setting(4, "Attention heads of the transformer kinds; must divide the width.", min=1, max=1_024)
    layers: int = setting(1, "Layers of the transformer kinds.", min=1, max=100)
    dropout: float = setting(0.1, "Dropout of the transformer kinds.", min=0, max=1)
    residual: bool = setting(True, "Add the attention output to its input (residual connection).")
    direction: str = setting(
        "b_to_a",
        "Which tokens attend to which; a is the first modality, b the second (the text of image-text).",
        choices=("both", "b_to_a", "a_to_b"),
    )
    share: bool = setting(
        True, "Share projections and towers with the contrastive half; false: the two halves are separate."
    )
    scale: float = setting(20.0, "Start value of the learned scale of the match logit (attended kinds).", above=0)
    sharpness: float = setting(
        9.0,
        "Start value of the learned scale of the cosines inside the attention softmax (attended kinds).",
        above=0,
    )
    place: bool = setting(
        False,
        "Score also where the patches lie that each word attends to, so that relations count (attended kind, dense "
        "attention, words over a patch grid).",
    )
    attention: str = setting(
        "dense",
        "Attention of the cross branch: dense, window or linear.",
        flag="--attention",
        choices="model.attention_kernels:KINDS",
    )
    window: int = setting(64, "Window attention: tokens per block.", min=1)
    spread: int = setting(16, "Window attention: global tokens, evenly spread over each modality.", min=0)
    features: int = setting(256, "Linear attention: random features per head.", min=1, max=4_096)
    redraw: int = setting(
        1000,
        "Linear attention: training steps, on average, between two draws of the features; 0 means never.",
        min=0,
        max=1_000_000_000,
    )


@dataclass(frozen=True)
class DecoderConfig:
    """The text decoder, which a run with ``loss.gamma`` above 0 trains: it writes captions."""

    layers: int = setting(2, "Layers of the text decoder.", min=1, max=1_000)
    heads: int = setting(4, "Attention heads of the text decoder; must divide its width.", min=1, max=1_024)
    width: int = setting(0, "Width of the text decoder; 0: that of the model.", min=0, max=16_384)
    dropout: float = setting(0.1, "Dropout of the text decoder.", min=0, max=1)
    word_dropout: float = setting(
        0.2,
        "Fraction of the words before each word that the text decoder does not see in training, so that it reads the "
        "sample and does not guess (arXiv:1511.06349).",
        min=0,
        below=1,
    )
    max_words: int = setting(
        64, "Maximum tokens of a text that the decoder reads or writes; longer captions are cut.", min=2, max=65_536
    )


@dataclass(frozen=True)
@with_sections({m.name: section(TowerConfig, specs=m.specs) for m in MODALITIES.values()}, before="fusion")
class ModelConfig:
    """The aligner: one tower per modality, a shared embedding space, and the cross branch.

    The section of a tower has the name of its modality (``model.image.spec``); ``tower`` returns it, because type
    checkers do not see these fields.
    """

    spec: str = setting(
        "",
        "Pretrained model to start from, both sides with their projections and scale: open_clip:NAME@TAG, "
        "open_clip:FOLDER, hf:NAME, hf:FOLDER, or the folder of a run.",
        flag="--model",
        metavar="SPEC",
        shown_default="new heads on the towers",
    )
    further_sides: str = setting(
        "", "Sides of the run in `spec` that the data set lacks; set by the program, which keeps them as they are."
    )
    width: int = setting(256, "Width D of projected tokens and of each global vector.", min=1, max=16_384)
    vectors: int = setting(
        1,
        "Global vectors per sample, each with its own head and contrastive loss (arXiv:1511.06314); the similarity is "
        "the mean of their cosines.",
        min=1,
        max=1_024,
    )
    fusion: FusionConfig = section(FusionConfig)
    decoder: DecoderConfig = section(DecoderConfig)

    def tower(self, modality: str) -> TowerConfig:
        """The tower settings of one modality."""
        tower: TowerConfig = getattr(self, modality)
        return tower


@dataclass(frozen=True)
class LossConfig:
    """``total = alpha * contrastive + beta * cross + gamma * caption``."""

    alpha: float = setting(1.0, "Weight of the contrastive loss.", flag="--alpha", min=0)
    beta: float = setting(0.5, "Weight of the cross-attention loss.", flag="--beta", min=0)
    gamma: float = setting(
        0.0,
        "Weight of the caption loss, which trains a text decoder (CoCa, arXiv:2205.01917); 0: no decoder.",
        flag="--gamma",
        min=0,
    )
    questions: int = setting(
        2,
        "Questions with answers that the decoder reads of each pair, beside its caption, where samples have questions.",
        min=0,
        max=1_000,
    )
    contrastive: str = setting(
        "infonce",
        "Loss of the contrastive half: infonce (softmax over the batch) or sigmoid (every pair by itself, "
        "arXiv:2303.15343).",
        flag="--contrastive",
        choices="losses.total:CONTRASTIVE_LOSSES",
    )
    bias: float = setting(
        -10.0,
        "Start value of the logit bias of the sigmoid loss; that of a pretrained model wins.",
        min=-1000,
        max=1000,
    )
    cross: str = setting("infonce", "Loss of the cross branch.", choices="losses.total:CROSS_LOSSES")
    cross_batch: int = setting(
        64, "Pairs of the batch that the cross branch scores in each step; 0 means all of them.", min=0
    )
    separation: float = setting(
        0.0,
        "Weight of a loss that keeps samples of different meaning apart within each modality; 0 means none.",
        min=0,
    )
    cross_start: float = setting(
        0.3, "Fraction of the steps before beta starts to rise (contrastive warm-up).", min=0, max=1
    )
    cross_ramp: float = setting(0.1, "Fraction of the steps in which beta rises to its full value.", min=0, max=1)
    balance: str = setting(
        "schedule",
        "How the loss weights change in training: fixed, schedule, uncertainty or gradnorm.",
        flag="--balance",
        choices="losses.balance:BALANCES",
    )
    ramp: str = setting(
        "linear", "Shape of the rise of beta (not with balance = fixed).", choices="losses.balance:RAMPS"
    )
    asymmetry: float = setting(1.5, "GradNorm: how strongly the slower loss is preferred.", min=0, max=100)
    teach: float = setting(
        0.0,
        "Weight, times beta, of a distillation loss from both scores together to the cosine (infonce only); 0: off.",
        min=0,
    )
    negatives: int = setting(1, "Hard negatives per sample and direction for matching and listwise.", min=1)
    temperature: float = setting(0.05, "Start value of the contrastive temperature.", min=1e-6)
    learn_temperature: bool = setting(True, "Learn the temperature; false: keep its start value.")
    max_scale: float = setting(100.0, "Upper limit of the logit scale, 1 / temperature.", above=0, max=10_000)


@dataclass(frozen=True)
class DomainConfig:
    """Alignment across domains: pairs from the source domains, unpaired samples only from the target domain."""

    target: str = setting(
        "",
        "Adapt to this domain; its captions and labels are never read. Empty: no adaptation.",
        flag="--target-domain",
        metavar="NAME",
    )
    sources: str = setting(
        "",
        "Train on pairs of these domains.",
        flag="--source-domains",
        metavar="NAME,...",
        shown_default="all but the target",
    )
    loss: str = setting(
        "none",
        "Domain loss: none, dann, mmd, both or coral.",
        flag="--domain-loss",
        choices="losses.domain:DOMAIN_LOSSES",
    )
    weight: float = setting(1.0, "Weight of the domain loss.", flag="--domain-weight", min=0)
    sides: str = setting(
        "",
        "Modalities whose features the domain loss aligns. The target's captions are not read, so text is aligned "
        "between the sources, which then must be two or more.",
        flag="--domain-sides",
        metavar="MODALITY,...",
        shown_default="all but text",
    )
    critic_lr: float = setting(
        10.0,
        "Learning rate of the domain classifiers, in units of optim.lr; a slow classifier aligns nothing.",
        min=0,
    )
    stats: str = setting(
        "source",
        "Domain of the running statistics (batch norm, centring) in the final model; target: AdaBN, arXiv:1603.04779.",
        choices=("source", "target"),
    )
    classify: float = setting(0.0, "Weight of a supervised label classifier on the images; 0 means none.", min=0)
    oracle: bool = setting(
        False,
        "Also keep and score the checkpoint that is best on the target's validation split: an upper bound, no result.",
    )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with decay groups, linear warm-up and cosine decay; the budget is ``epochs``, or ``steps`` when above 0."""

    epochs: int = setting(10, "Passes over the training samples.", flag="--epochs", min=1)
    steps: int = setting(0, "Optimiser steps in place of epochs; 0 means that epochs decide.", min=0, max=1_000_000_000)
    batch_size: int = setting(
        128,
        "Samples per batch, over all processes together (--set optim.captions=N: up to N pairs of each).",
        flag="--batch-size",
        min=1,
    )
    captions: int = setting(1, "Maximum pairs per sample in a batch, for samples with several captions.", min=1)
    accum_freq: int = setting(
        1, "Batches whose gradients are added up before an optimiser step.", flag="--accum-freq", min=1
    )
    lr: float = setting(1e-3, "Peak learning rate.", flag="--lr", above=0, max=1e30)
    cross_lr: float = setting(1.0, "Learning rate of the cross branch, in units of optim.lr.", min=0)
    wd: float = setting(0.01, "Weight decay.", flag="--wd", min=0)
    beta2: float = setting(0.98, "Second moment decay of AdamW.", min=0, below=1)
    warmup: float = setting(
        0.05,
        "Warm-up: a fraction of the steps, or a number of steps when 1 or more.",
        flag="--warmup",
        min=0,
        max=1_000_000_000,
    )
    grad_clip: float = setting(1.0, "Maximum gradient norm; 0 means no clipping.", min=0, max=1e30)
    precision: str = setting(
        "auto",
        "Precision of the computation: auto, fp32, amp_bf16 or amp_fp16.",
        flag="--precision",
        choices="runtime:PRECISIONS",
    )
    lora: int = setting(
        0,
        "Rank of LoRA (arXiv:2106.09685): low-rank updates of the linear layers of unlocked towers learn in place of "
        "the weights, and are merged into them when the model is saved; 0: off.",
        flag="--lora",
        metavar="RANK",
        min=0,
        max=4096,
    )
    layer_decay: float = setting(
        1.0,
        "Each block of a tower learns at this factor times the rate of the block after it; 1: one rate for all.",
        flag="--layer-decay",
        above=0,
        max=1,
    )
    ema: float = setting(
        0.0,
        "Decay of an exponential moving average of the weights over steps, which is validated and saved; 0: off.",
        flag="--ema",
        min=0,
        below=1,
    )
    patience: int = setting(0, "Stop after this many epochs without a better validation metric; 0 means never.", min=0)
    grad_checkpointing: bool = setting(
        False, "Save memory: compute activations again in the backward pass.", flag="--grad-checkpointing"
    )
    torchcompile: bool = setting(
        False, "Compile the trained towers: one minute at the start, then faster steps.", flag="--torchcompile"
    )
    compile_mode: str = setting(
        "default",
        "With --torchcompile. reduce-overhead replays towers whose inputs have one shape as CUDA graphs, for small "
        "towers whose steps wait for kernel launches; it has not been tried on a GPU.",
        choices=("default", "reduce-overhead"),
    )


@dataclass(frozen=True)
class ParallelConfig:
    """How several processes (``torchrun``) share one run; no effect on one process."""

    kind: str = setting(
        "ddp",
        "Under torchrun: ddp (each process holds the model) or fsdp (each holds a part of it).",
        flag="--parallel",
        choices="training.parallel:ENGINES",
    )
    gather_with_grad: bool = setting(
        True,
        "Under torchrun: gradients flow through gathered embeddings. Off: each process uses its own queries only, "
        "which is exact without --local-loss.",
        flag="--gather-with-grad",
    )
    local_loss: bool = setting(
        False,
        "Under torchrun: each process computes the contrastive loss of its own queries (less memory, same gradients).",
        flag="--local-loss",
    )
    timeout: float = setting(30.0, "Minutes after which a process that does not answer counts as lost.", above=0)


@dataclass(frozen=True)
class EvalConfig:
    """How a run is scored."""

    shortlist: int = setting(
        32, "Candidates of the first modality that are reranked for a query of the second (images for a text).", min=1
    )
    shortlist_back: int = setting(
        64, "Candidates of the second modality that are reranked for a query of the first (texts for an image).", min=1
    )
    rerank_weights: tuple[float, ...] = setting(
        (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0),
        "Weights of the match logit that are tried on validation; 0 (cosine only) is always tried.",
        min=0,
    )
    select: str = setting("R-sum", "Validation metric that chooses the best checkpoint.")
    protocol: str = setting(
        "full", "Which queries and galleries are evaluated on the test split.", choices="evaluation.protocols:PROTOCOLS"
    )
    exhaustive: int = setting(
        50,
        "Samples in the gallery of the validation of each epoch, for models without a contrastive half.",
        min=1,
    )
    beam: int = setting(
        4,
        "Captions that the text decoder follows at a time when it describes a test sample; 1: greedy.",
        min=1,
        max=1_000,
    )
    ways: int = setting(10, "N of the N-way matching accuracy: candidates per sample.", min=2)
    small: int = setting(
        100,
        "Samples in the gallery of the stage `small`, on which models without a contrastive half are compared with the "
        "others.",
        min=1,
    )


@dataclass(frozen=True)
class RunConfig:
    """One training run, complete: the same config, data and library versions give the same numbers."""

    dataset: str = setting("scenes", "Prepared data set: its name, or its folder.", flag="--dataset", custom_flag=True)
    arm: str = setting("ccaco", "Named variant of the model, see `ccaco ablate`.", flag="--arm", custom_flag=True)
    method: str = setting(
        "gradient",
        "How the model is made: gradient descent, hand-made features with CCA, a label classifier, or a pretrained "
        "model without training (zero-shot).",
        choices="experiments.methods:METHODS",
    )
    seed: int = setting(
        0, "Seed of the weights, the sample order and random sampling.", flag="--seed", min=0, max=2**32 - 1
    )
    device: str = setting("auto", "auto, cpu or cuda[:N].", flag="--device")
    workers: int = setting(
        -1,
        "Processes that load data. 0: the main process loads it. -1: none on a CPU, one per core (at most 8) on a GPU.",
        flag="--workers",
        min=-1,
        max=1024,
    )
    gpu_decode: bool = setting(
        False,
        "Decode the JPEG images of training batches on the GPU. Pixels differ by a few levels from those decoded on a "
        "CPU; refused without a GPU.",
    )
    model: ModelConfig = section(ModelConfig)
    loss: LossConfig = section(LossConfig)
    optim: OptimConfig = section(OptimConfig)
    eval: EvalConfig = section(EvalConfig)
    domain: DomainConfig = section(DomainConfig)
    parallel: ParallelConfig = section(ParallelConfig)
