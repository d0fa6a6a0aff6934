"""What every family of towers is held to."""

from __future__ import annotations

from typing import Any

import torch

from ccaco_cli.core.model.towers.precision import ReducedPrecision
from ccaco_cli.core.model.towers.tower import Tower


def check_narrow(tower: Tower, inputs: dict[str, Any]) -> None:
    """In bf16 a tower gives the same tokens to 1e-3 of cosine, as float32, and is itself left as it was."""
    before = {name: tensor.clone() for name, tensor in tower.module.state_dict().items()}
    with torch.no_grad():
        whole, found = (
            module.eval()(inputs) for module in (tower.module, ReducedPrecision(tower.module, torch.bfloat16))
        )
    assert found.tokens.dtype == found.pooled.dtype == torch.float32
    assert torch.equal(found.mask, whole.mask)
    assert not torch.equal(found.tokens, whole.tokens)
    for one, other in ((found.pooled, whole.pooled), (found.tokens[found.mask], whole.tokens[whole.mask])):
        assert torch.nn.functional.cosine_similarity(one, other, dim=-1).min() > 1 - 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.module.state_dict().items())
