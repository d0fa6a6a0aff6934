from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ccaco_cli.core import runtime
from ccaco_cli.core.encoding import encode as encoding
from ccaco_cli.core.model import layout
from tests.gpu.fake_gpu import pretend_gpu


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One GPU for fake tensors."""
    layout.attention_plan.cache_clear()  # plans hold tensors: fake ones must not be used later, nor real ones here
    pretend_gpu(monkeypatch)
    monkeypatch.setattr(runtime, "free_memory", lambda device: 8 << 30)
    # a second thread would change the state of the fake tensor mode
    monkeypatch.setattr(encoding, "prefetch", lambda read, jobs: ((job, read(job)) for job in jobs))
    yield
    layout.attention_plan.cache_clear()


@pytest.fixture
def late_copies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Copies in the background return zeros, as on a GPU whose data has not arrived; the list receives them."""
    late: list[Any] = []
    to, copy = torch.Tensor.to, torch.Tensor.copy_

    def late_to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = to(self, *args, **kwargs)
        if kwargs.get("non_blocking") or True in [a for a in args if isinstance(a, bool)][:1]:
            late.append(result)
            return torch.zeros_like(result)
        return result

    def late_copy(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if non_blocking:
            late.append(source)
            return self.zero_()
        return copy(self, source)

    monkeypatch.setattr(torch.Tensor, "to", late_to)
    monkeypatch.setattr(torch.Tensor, "copy_", late_copy)
    return late
