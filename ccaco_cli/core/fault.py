"""Named points at which the tests end a process, so that "killed anywhere" is tried and not hoped for."""

from __future__ import annotations

import os
import signal

VARIABLE = "CCACO_FAULT"
"""POINT or POINT:N in the environment: the process kills itself (SIGKILL) when it comes to that point for the Nth time."""
_seen: dict[str, int] = {}


def point(name: str) -> None:
    """Does nothing, unless the environment names this point."""
    asked, _, nth = os.environ.get(VARIABLE, "").partition(":")
    if asked == name:
        _seen[name] = _seen.get(name, 0) + 1
        if _seen[name] == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)
