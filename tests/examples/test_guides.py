"""The guides and configs agree with the code: the table of settings, the towers of a config, links between files."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import load, override
from ccaco_cli.core.experiments import arms
from ccaco_cli.core.settings import config_keys
from ccaco_cli.core.settings_table import settings_markdown

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob(".github/*.md"), *ROOT.glob("examples/**/*.md")]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("settings_table", ROOT / "examples/guides/settings_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_settings_is_up_to_date(generator: ModuleType) -> None:
    guide = generator.GUIDE.read_text("utf-8")
    assert guide.count(generator.BEGIN) == guide.count(generator.END) == 1
    fresh = generator.with_table(guide, settings_markdown())
    assert guide == fresh, "run: python examples/guides/settings_table.py"


def test_the_table_has_every_key(generator: ModuleType) -> None:
    listed = set(re.findall(r"^\| `([\w.]+)` \|", generator.GUIDE.read_text("utf-8"), flags=re.M))
    modality = re.compile(r"^model\.(image|text|audio|video|array2?)\.")
    assert listed == {modality.sub("model.MODALITY.", key.key) for key in config_keys(RunConfig)}


def test_a_table_that_is_out_of_date_is_noticed(generator: ModuleType) -> None:
    guide = f"before\n{generator.BEGIN}old\n{generator.END}after\n"
    assert generator.with_table(guide, "new") == f"before\n{generator.BEGIN}\nnew\n{generator.END}after\n"


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/configs/*.toml")), ids=lambda path: path.name)
def test_every_config_can_be_read(path: Path) -> None:
    assert override(RunConfig(), load(path)) != RunConfig()


def test_the_config_resnet_bert_names_the_towers_of_the_arm_of_its_name() -> None:
    config = override(RunConfig(), load(ROOT / "examples/configs/resnet-bert.toml")).model
    arm = arms.apply(RunConfig(), "resnet-bert").model
    assert (config.image.spec, config.text.spec) == (arm.image.spec, arm.text.spec)


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, fragment = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if fragment:
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), flags=re.M)
            assert fragment in {anchor(heading) for heading in headings}, link


def test_paths_in_documents_exist() -> None:
    """What stands in back-ticks and looks like a file of the repository is one."""
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in DOCUMENTS
        for name in re.findall(r"`((?:core|ccaco_cli|tests|examples|\.ci|\.github)/[\w./-]+)`", path.read_text("utf-8"))
        if not any((folder / name).exists() for folder in (ROOT, ROOT / "ccaco_cli"))
    ]
    assert not missing
