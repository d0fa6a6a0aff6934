"""Named points at which the tests kill a process, to test that an interruption at any point does no harm."""

from __future__ import annotations

import os
import signal

VARIABLE = "CCACO_FAULT"
"""Environment variable with POINT or POINT:N: the process kills itself (SIGKILL) at the Nth passage of the point."""
_counts: dict[str, int] = {}


def point(name: str) -> None:
    """Does nothing unless the environment names this point."""
    target, _, nth = os.environ.get(VARIABLE, "").partition(":")
    if target == name:
        _counts[name] = _counts.get(name, 0) + 1
        if _counts[name] == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)
