"""The captions of a split as a text decoder takes them, also where the tokens of a locked text tower are cached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ccaco_cli.core.data.loader import TextColumn
from ccaco_cli.core.types import Words

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class CaptionWords:
    """Captions of a column, by item."""

    column: TextColumn

    def __call__(self, items: Array) -> Words:
        """The captions of these items."""
        inputs = self.column.inputs(items)
        return Words(inputs["ids"], inputs["mask"])

    def token_ids(self, rows: int | None = None) -> Array:
        """The token ids of all captions of the first ``rows`` rows (None = of all), each once."""
        items = slice(0, int(self.column.start[-1 if rows is None else rows]))
        return np.unique(np.asarray(self.column.ids[items])[np.asarray(self.column.mask[items])])
