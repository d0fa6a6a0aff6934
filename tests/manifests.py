"""Manifests changed under a seal that is right again, as no command would leave them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ccaco_cli.core import manifest


@contextmanager
def edited(folder: Path) -> Iterator[dict[str, Any]]:
    """The body of a folder's manifest, to be changed in place; sealed and written when the block ends."""
    body = json.loads((folder / manifest.NAME).read_text("utf-8"))
    yield body
    (folder / manifest.NAME).write_text(json.dumps(body | {"seal": manifest.seal(body)}), "utf-8")
