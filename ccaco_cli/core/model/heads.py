"""What maps a pooled vector to the joint space."""

from __future__ import annotations

from torch import Tensor, nn

from ccaco_cli.core.model.fusion import mlp
from ccaco_cli.core.model.global_batch import GlobalDropout


class Head(nn.Module):
    """Projection and residual MLP: pooled vector [B, W] -> one global vector [B, D], before normalisation."""

    def __init__(self, pooled_width: int, width: int, dropout: float):
        super().__init__()
        self.project = nn.Linear(pooled_width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = mlp(width, dropout, dropout_type=GlobalDropout)

    def forward(self, pooled: Tensor) -> Tensor:
        projected: Tensor = self.project(pooled)
        return projected + self.mlp(self.norm(projected))  # type: ignore[no-any-return]


class Adapter(nn.Module):
    """Residual MLP on an embedding of a pretrained model; it starts as the identity.

    Args:
        size: E.
        dropout: inside the MLP.
    """

    def __init__(self, size: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.mlp = mlp(size, dropout, dropout_type=GlobalDropout)
        last = [layer for layer in self.mlp.modules() if isinstance(layer, nn.Linear)][-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, E] -> [B, E]."""
        # the MLP is a small correction whatever the length of the embedding
        length = embedding.norm(dim=-1, keepdim=True)
        return embedding + length * self.mlp(self.norm(embedding))  # type: ignore[no-any-return]
