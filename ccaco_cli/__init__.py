"""ccaco: Contrastive + Cross-Attention Collaborative Optimization for cross-modal alignment.

``ccaco_cli.load("runs/first")`` gives a trained model; the command line is ``ccaco``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ccaco_cli.api import Model

__version__ = "0.1.0"


def load(path_or_spec: str | Path, device: str = "auto", precision: str = "auto") -> Model:
    """Loads the trained model of a run or of an index; see ``ccaco_cli.api.load``. It imports torch."""
    from ccaco_cli import api

    return api.load(path_or_spec, device, precision)
