"""The model card (README.md) of an exported model, made from the stored results and settings of its run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ccaco_cli import __version__
from ccaco_cli.core import manifest
from ccaco_cli.core.errors import CcacoError
from ccaco_cli.core.evaluation.metric_table import Unit, find_metric
from ccaco_cli.core.evaluation.significance import Estimate, estimate
from ccaco_cli.core.experiments.pretrained import LoadedModel, is_run, name_of
from ccaco_cli.core.export.dual_encoder import scale_of
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model.towers.tower import TowerSpec
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import Result
from ccaco_cli.core.training.loop import BEFORE_TRAINING

CARD = "README.md"
COSINE = "cosine"
"""The stage of results that an exported model can repeat: it has no cross branch."""
SHOWN = ("R@1", "R@5", "R@10")
GLOBAL_HALF = (
    "This is the global half of a model of ccaco: one vector per sample. The cross branch, which compares the words of "
    "a text with the regions of an image and reorders the first hits, is not part of this format."
)


@dataclass(frozen=True)
class CardOptions:
    """What the card says beside the facts of the run.

    Attributes:
        title: name of the exported model.
        library: name by which the hub knows the library that loads it.
        usage: code that encodes with it.
        license: identifier of the licence; "" = not named.
    """

    title: str
    library: str
    usage: str
    license: str = ""


def model_card(model: str | Path, loaded: LoadedModel, options: CardOptions) -> str:
    """The text of the card.

    Args:
        model: folder of a run, or SPEC.
        loaded: the same model.
    """
    run = loaded.manifest
    parts = [
        _front_matter(loaded, options),
        f"# {options.title}",
        _description(model, loaded),
        f"## Use\n\n```python\n{options.usage}```\n",
        "## Results\n\n" + "\n\n".join(_tables(model, run)),
    ]
    if is_run(model):
        parts.append(f"## Training\n\n{_training(loaded)}")
    stated = options.license or "not stated; ask the author before you use it"
    parts.append(f"## Licence\n\nOf this model: {stated}.{_data_licence(run)}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _front_matter(loaded: LoadedModel, options: CardOptions) -> str:
    modalities = set(loaded.towers)
    lines = [f"license: {json.dumps(options.license)}"] if options.license else []
    lines.append(f"library_name: {options.library}")
    if modalities == {"image", "text"}:
        lines.append("pipeline_tag: zero-shot-image-classification")
    lines += ["tags:", "- ccaco", "- feature-extraction", *(f"- {modality}" for modality in loaded.towers)]
    return "\n".join(["---", *lines, "---"])


def _description(model: str | Path, loaded: LoadedModel) -> str:
    scale, bias = scale_of(loaded)
    first, second = loaded.aligner.modalities
    start = loaded.config.model.spec if is_run(model) else str(model)
    facts = [
        f"It maps {first} and {second} to unit vectors of {loaded.aligner.embedding_size} numbers, which are compared "
        f"by their cosine. Logit scale: {scale:.4g}" + ("." if bias is None else f"; logit bias: {bias:.4g}.")
    ]
    facts += [f"The {m} tower is `{public_spec(str(tower.spec))}`." for m, tower in loaded.towers.items()]
    if start and is_run(model):
        facts.append(f"Training started from `{public_spec(start)}`.")
    if not is_run(model):
        facts.append("It is a pretrained model, which was not trained further.")
    if loaded.config.loss.beta > 0:
        facts.append(GLOBAL_HALF)
    return "\n".join(facts)


def public_spec(spec: str) -> str:
    """A SPEC or the name of a run without the folders of this machine."""
    if is_run(spec):
        return Path(spec).name
    tower = TowerSpec.parse(spec)
    local = Path(tower.name).expanduser().is_absolute() or Path(tower.name).is_dir()
    weights = Path(tower.weights).name if "/" in tower.weights else tower.weights
    return str(TowerSpec(tower.family, Path(tower.name).name if local else tower.name, weights))


def _tables(model: str | Path, run: Manifest) -> Iterator[str]:
    """Markdown of every stored result of the model, or a sentence that there is none."""
    stored = list(_stored_results(model, run))
    if not stored:
        yield (
            "No results of this model are stored. Measure it with "
            f"`ccaco report --model {public_spec(str(model))} --on DATASET`."
        )
        return
    for result in stored:
        yield _table(result)
    yield "Intervals are 95% over queries (bootstrap over images); they say nothing about other training runs."


def _stored_results(model: str | Path, run: Manifest) -> Iterator[Result]:
    """The results by cosine: of the test split (else of validation), and of other data sets."""
    folder = Path(model) if is_run(model) else Path("runs") / name_of(model)
    first = None
    for split in ("test", "val"):
        if first is None and (folder / "results" / f"{split}.{COSINE}.json").is_file():
            first = results.load_result(results.find_runs([folder])[0], split, COSINE)
            yield first
    for file in sorted(folder.glob(f"results/on/*/*.{COSINE}.json")):
        body = results.read(file) or {}
        repeated = first is not None and (body.get("data"), body.get("split")) == (first.data, first.split)
        if body.get("model") == run.sha256 and not repeated:  # else of an earlier model in this folder
            yield results.load_result(results.find_runs([file])[0], str(body["split"]), COSINE)


def _table(result: Result) -> str:
    evaluation = result.evaluation
    a, b = evaluation.names
    n_a, n_b = (sum(sizes) for sizes in zip(*evaluation.pools, strict=True))
    protocol = result.run.facts.get("protocol") or _stored_protocol(result)
    text = f"**{result.dataset}**, split `{result.split}`: {n_a:,} {a} and {n_b:,} {b} samples, pool `{result.pool}`"
    text += f", data `{result.data[:12]}`.\nProtocol of the data: {protocol}.\n" if protocol else ".\n"
    if result.split == "val":
        text += "The data set has no test samples: validation also chose the best epoch.\n"
    metrics = [f"{x}_to_{y}_{name}" for x, y in ((a, b), (b, a)) for name in SHOWN] + ["R-sum"]
    metrics += [name for name in ("class_accuracy", "mean_class_accuracy") if name in result.metrics]
    rows = [f"| {name} | {_value(result, name)} |" for name in metrics if result.metrics.get(name) is not None]
    return "\n".join([text, "| metric | value [95% interval] |", "|---|---|", *rows])


def _value(result: Result, name: str) -> str:
    value = result.metrics[name]
    interval = _interval(result, name)
    declared = find_metric(name)
    factor, unit = (100, "%") if declared is not None and declared.unit is Unit.FRACTION else (1, "")
    assert value is not None
    text = f"{factor * value:.2f}{unit}"
    return text if interval is None else f"{text} [{factor * interval.low:.2f}, {factor * interval.high:.2f}]"


def _interval(result: Result, name: str) -> Estimate | None:
    """The interval of a metric; None where it is no mean over queries, or has too few of them."""
    try:
        return estimate([result.per_query(name)])
    except CcacoError:
        return None


def _stored_protocol(result: Result) -> str:
    return str((results.read(result.run.path) or {}).get("data_protocol", "")) if result.run.path.is_file() else ""


def _training(loaded: LoadedModel) -> str:
    config, facts = loaded.config, loaded.manifest.facts
    fitted = facts.get("fitted", {})
    lines = [
        f"arm `{config.arm}`, seed {config.seed}, on `{Path(config.dataset).name}`",
        f"loss: {config.loss.alpha:g} x {config.loss.contrastive}"
        + (f" + {config.loss.beta:g} x {config.loss.cross} (cross)" if config.loss.beta > 0 else ""),
        f"up to {config.optim.epochs} epochs, batch {config.optim.batch_size}, learning rate {config.optim.lr:g}, "
        f"{config.optim.precision}; best on validation: {_best_epoch(fitted.get('best_epoch'))}",
        f"{facts.get('parameters', 0):,} trained parameters",
        f"ccaco {__version__}, run `{facts['name']}` ({loaded.manifest.sha256[:12]})",
    ]
    lines += [f"warning: {warning['what']}" for warning in facts.get("warnings", ())]
    return "\n".join(f"- {line}" for line in lines)


def _best_epoch(epoch: int | None) -> str:
    """The epoch whose weights are exported, in words; epochs count from 0."""
    if epoch is None:
        return "not recorded"
    return "the start, before training" if epoch == BEFORE_TRAINING else f"after epoch {epoch + 1}"


def _data_licence(run: Manifest) -> str:
    """The licence of the training data, where the data set is still there."""
    dataset = run.inputs.get("dataset")
    if dataset is None or not manifest.exists(Path(dataset["path"])):
        return ""
    try:
        opened = manifest.open(Path(dataset["path"]), kind="dataset")
    except CcacoError:
        return ""
    licence = opened.facts.get("licence") if opened.sha256 == dataset["sha256"] else None
    return f" Of the data that it was trained on: {licence}." if licence else ""
