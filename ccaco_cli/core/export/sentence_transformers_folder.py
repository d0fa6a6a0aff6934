"""The format of sentence-transformers, with two of its stock modules: ``CLIPModel`` and ``Normalize``."""

from __future__ import annotations

from pathlib import Path

from ccaco_cli.core.experiments.pretrained import LoadedModel
from ccaco_cli.core.export import transformers_folder
from ccaco_cli.core.export.export_format import ExportFormat
from ccaco_cli.core.export.same_vectors import LibraryModel
from ccaco_cli.core.manifest import write_json

CLIP_MODULE = "0_CLIPModel"
MODULES = [
    {"idx": 0, "name": "0", "path": CLIP_MODULE, "type": "sentence_transformers.models.CLIPModel"},
    {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
]
USAGE = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("NAME")
text_vectors = model.encode(["a dog chasing a ball"])                # unit vectors
image_vectors = model.encode([image])                                # PIL images
"""


def why_not(model: LoadedModel) -> str:
    """Why stock modules of sentence-transformers cannot hold a model; "" = they can."""
    if reason := transformers_folder.why_not(model):
        return reason
    kind = transformers_folder.model_type(model)
    return "" if kind == "clip" else f"its stock modules hold a clip model of transformers, and this is a {kind} model"


def write(model: LoadedModel, folder: Path) -> None:
    """Writes the list of modules, and the CLIP model below it.

    Args:
        folder: exists, and is empty.
    """
    (folder / CLIP_MODULE).mkdir()
    transformers_folder.write(model, folder / CLIP_MODULE)
    write_json(folder / "modules.json", MODULES)
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})


def read(folder: Path) -> LibraryModel:
    """Loads the CLIP model that sentence-transformers wraps, with transformers, which is always installed."""
    return transformers_folder.read(folder / CLIP_MODULE)


FORMAT = ExportFormat("sentence-transformers", lambda model: USAGE, f"hf:FOLDER/{CLIP_MODULE}", why_not, write, read)
