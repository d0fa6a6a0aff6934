"""Matchers whose score is a scaled cosine between tokens or vectors: attended, maxsim, residual, late."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccaco_cli.core import runtime
from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.model.attention import apply_weights, masked_mean
from ccaco_cli.core.model.attention_kernels import KINDS, Kernel, Layouts, build_kernel
from ccaco_cli.core.model.fusion import mlp
from ccaco_cli.core.model.layout import LINE, Layout
from ccaco_cli.core.model.matcher import CosineMatcher
from ccaco_cli.core.model.places import Places
from ccaco_cli.core.types import Crossed, LocalTokens


class GatedTokens(NamedTuple):
    """The tokens that ``Attended.local`` returns, taken apart.

    Attributes:
        unit: [R, N, D], unit norm.
        gate: [R, N] float32, sums to 1 over the tokens of a sample; zero for padding.
        mask: [R, N] bool, True = real.
        place: [R, N, 2], what ``Places.local`` returns; [R, N, 0] without places.
    """

    unit: Tensor
    gate: Tensor
    mask: Tensor
    place: Tensor

    @classmethod
    def split(cls, local: LocalTokens, width: int) -> GatedTokens:
        """Splits tokens into direction (the first ``width`` numbers), norm (the gate), and place."""
        gate = local.tokens[..., :width].float().norm(dim=-1)
        tokens = local.tokens / gate.clamp_min(1e-6).unsqueeze(-1).to(local.tokens.dtype)
        return cls(tokens[..., :width], gate, local.mask, tokens[..., width:])

    def rows(self, index: Tensor) -> GatedTokens:
        """Returns the samples with these row numbers."""
        return GatedTokens(*(t[index] for t in self))


class Attended(CosineMatcher):
    """Gated attended similarity (after SCAN, arXiv:1803.08024, eq. 1-8).

    t_w = unit(B x_w), v_p = unit(A x_p); a_wp = softmax_p(lambda t_w . v_p); score = sum_w g_w cos(t_w, sum_p a_wp
    v_p), g = softmax over the attending modality's tokens of Linear(LN(x)). A and B start as the identity: with random
    maps the first loss is 4.4 in place of 1.9. ``local`` returns g_w * t_w: the norm holds the gate, so that an index
    stores nothing else. With ``place`` the positions of the attended patches count, too (``Places``).
    """

    kinds = tuple(KINDS)

    def __init__(self, width: int, config: FusionConfig, layouts: tuple[Layout, Layout] = (LINE, LINE)):
        super().__init__(width, config, layouts)
        # dense attention needs no kernel, see ``_attended_cosine``
        self.kernel = None if config.attention == "dense" else build_kernel(width, config)
        maps = [nn.Linear(width, width, bias=False) for _ in range(2)]
        for linear in maps:
            nn.init.eye_(linear.weight)
        self.maps = nn.ModuleList(maps)
        self.gates = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1)) for _ in range(2))
        self.log_sharpness = nn.Parameter(torch.tensor(config.sharpness).log())
        over_grid = layouts[0].grid is not None and config.direction != "a_to_b" and self.kernel is None
        self.places = Places(width) if config.place and over_grid else None
        self.local_width = width + (Places.size if self.places else 0)

    def local(self, side: int, tokens: Tensor, mask: Tensor) -> Tensor:
        gate = self.gates[side](tokens).squeeze(-1).float().masked_fill(~mask, -torch.inf).softmax(-1)
        unit = F.normalize(self.maps[side](tokens), dim=-1)
        if self.places is not None:
            unit = torch.cat([unit, self.places.local(side, unit, self.layouts[0])], -1)
        gated: Tensor = unit * gate.unsqueeze(-1)
        return gated

    def forward(
        self, a: LocalTokens, b: LocalTokens, index: Tensor | None = None, *, attention: bool = False
    ) -> Crossed:
        if index is None and self.kernel is not None:
            return super().forward(a, b)
        gated_a, gated_b = (
            GatedTokens.split(x, self.width) for x in (a, b)
        )  # before rows are repeated for their pairs
        if index is not None:
            rows_a, rows_b = gated_a.rows(index[:, 0]), gated_b.rows(index[:, 1])
            return self._score_rows(rows_a, rows_b, self.token_layouts(a, b), attention)
        tables = []
        if self.config.direction != "a_to_b":
            tables.append(self._score_table(gated_b, gated_a, self.places))
        if self.config.direction != "b_to_a":
            tables.append(self._score_table(gated_a, gated_b, None).T)
        return Crossed(self.scale() * torch.stack(tables).mean(0))

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        gated_a, gated_b = (GatedTokens.split(x, self.width) for x in (a, b))
        return self._score_rows(gated_a, gated_b, self.token_layouts(a, b), attention)

    def _score_table(self, queries: GatedTokens, keys: GatedTokens, places: Places | None) -> Tensor:
        """Scores all pairs: K samples of ``keys`` and Q samples of ``queries`` -> [K, Q].

        Half of the tokens of a batch of captions is padding. A CPU computes only real tokens. A GPU computes all of
        them, since the program would have to wait for it to know how many are real; the gate of padding is zero.
        """
        if runtime.must_wait(queries.mask):
            gate = queries.gate.masked_fill(~queries.mask, 0.0)
            scores, positions = self._token_scores(queries.unit.flatten(0, 1), keys)
            padded_table: Tensor = (scores.view(-1, *queries.mask.shape) * gate).sum(-1)
            if places is not None:
                positions = positions.view(len(keys.unit), *queries.place.shape)
                padded_table = padded_table + places.score(positions, queries.place, gate)
            return padded_table
        row = queries.mask.nonzero()[:, 0]
        belongs = row.unsqueeze(1) == torch.arange(len(queries.mask), device=queries.mask.device)
        of_sample = belongs * queries.gate[queries.mask].unsqueeze(1)  # [T, Q], the gate of each word of a sample
        scores, positions = self._token_scores(queries.unit[queries.mask], keys)
        table = scores @ of_sample
        if places is not None:
            table = table + places.score_words(positions, queries.place[queries.mask], of_sample)
        return table

    def _token_scores(self, tokens: Tensor, keys: GatedTokens) -> tuple[Tensor, Tensor]:
        """Compares each of T tokens with what it attends to in each of K samples of ``keys``.

        Returns:
            Cosines [K, T], and mean places of the attended keys [K, T, 2] (of no numbers without places).
        """
        cosines = (keys.unit.flatten(0, 1) @ tokens.T).view(*keys.unit.shape[:2], -1)  # [K, P, T]
        weights = (self.log_sharpness.exp() * cosines).masked_fill(~keys.mask.unsqueeze(-1), -torch.inf).softmax(1)
        return _attended_cosine(weights, cosines, keys.unit), weights.transpose(1, 2) @ keys.place

    def _score_rows(self, a: GatedTokens, b: GatedTokens, layout: Layouts, attention: bool) -> Crossed:
        """Scores row i of a against row i of b."""
        if self.kernel is not None:
            return self._score_by_kernel(self.kernel, a, b, layout, attention)
        logit, weights = self._score_dense(a, b)
        return Crossed(logit, attention=weights if attention else None)

    def _score_dense(self, a: GatedTokens, b: GatedTokens) -> tuple[Tensor, Tensor]:
        """Returns scores [M] and the attention [M, 1, N_b, N_a]."""
        cosines = b.unit @ a.unit.transpose(1, 2)  # [M, N_b, N_a]
        sharpness = self.log_sharpness.exp()
        scores, attention = [], cosines
        if self.config.direction != "a_to_b":
            attention = _attention(cosines, a.mask, sharpness)
            weights = attention.squeeze(-3).transpose(-1, -2)
            score = (b.gate * _attended_cosine(weights, cosines.transpose(-1, -2), a.unit)).sum(-1)
            if self.places is not None:
                score = score + self.places.score(attention.squeeze(-3) @ a.place, b.place, b.gate)
            scores.append(score)
        if self.config.direction != "b_to_a":
            backward = _attention(cosines.transpose(-1, -2), b.mask, sharpness).transpose(-1, -2)
            scores.append((a.gate * _attended_cosine(backward.squeeze(-3), cosines, b.unit)).sum(-1))
            attention = attention if self.config.direction == "both" else backward
        return self.scale() * torch.stack(scores).mean(0), attention

    def _score_by_kernel(
        self, kernel: Kernel, a: GatedTokens, b: GatedTokens, layout: Layouts, attention: bool
    ) -> Crossed:
        """Computes the same score, with the attended vectors of a kernel."""
        sharpness = self.log_sharpness.exp()
        b_to_a, a_to_b = (b, a, layout[::-1]), (a, b, layout)
        directions = {"b_to_a": [b_to_a], "a_to_b": [a_to_b], "both": [b_to_a, a_to_b]}[self.config.direction]
        scores, weights = [], None
        for queries, keys, layouts in directions:
            q, k = (sharpness * queries.unit).unsqueeze(2), keys.unit.unsqueeze(2)
            if attention and weights is None:
                # the score is computed from the returned weights [M, 1, N_b, N_a], so that gradients reach them
                weights = kernel.weights(q, k, keys.mask, scale=1.0, layout=layouts)
                if queries is b:
                    attended = apply_weights(weights, k)
                else:
                    weights = weights.transpose(2, 3)
                    attended = apply_weights(weights.transpose(2, 3), k)
            else:
                attended = kernel(q, k, k, keys.mask, scale=1.0, dropout=0.0, layout=layouts)
            cosine = F.cosine_similarity(queries.unit.float(), attended.squeeze(2).float(), dim=-1)
            scores.append((queries.gate * cosine).sum(-1))
        return Crossed(self.scale() * torch.stack(scores).mean(0), attention=weights)


def _attention(cosines: Tensor, mask: Tensor, sharpness: Tensor) -> Tensor:
    """Softmax over keys: cosines [..., L, P], mask [..., P] of keys -> [..., 1, L, P], one head."""
    return (sharpness * cosines).masked_fill(~mask.unsqueeze(-2), -torch.inf).softmax(-1).unsqueeze(-3)


def _attended_cosine(weights: Tensor, cosines: Tensor, keys: Tensor) -> Tensor:
    """Cosine of every query token with the weighted mean of its keys.

    The attended vector itself is never computed: its product with the query is sum_p a_wp cos_wp, and its norm follows
    from the Gram matrix of the keys.

    Args:
        weights, cosines: [..., P, L].
        keys: [..., P, D].
    Returns:
        [..., L].
    """
    norm = ((keys @ keys.transpose(-1, -2) @ weights) * weights).sum(-2).clamp_min(1e-12).sqrt()
    return (weights * cosines).sum(-2) / norm


class MaxSim(CosineMatcher):
    """Token-wise maximum similarity in both directions (FILIP, arXiv:2111.07783, eq. 4-6).

    Its attention is the softmax, at the temperature of the score, of the cosines whose maximum the score takes.
    """

    def local(self, side: int, tokens: Tensor, mask: Tensor) -> Tensor:
        return F.normalize(tokens, dim=-1)

    def forward(
        self, a: LocalTokens, b: LocalTokens, index: Tensor | None = None, *, attention: bool = False
    ) -> Crossed:
        if index is not None:
            return self.pairs(a[index[:, 0]], b[index[:, 1]], attention)
        cosines = torch.einsum("apd,bld->ablp", a.tokens, b.tokens)
        return Crossed(self._score(cosines, a.mask[:, None], b.mask[None]))

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        cosines = b.tokens @ a.tokens.transpose(1, 2)
        weights = _attention(cosines, a.mask, self.scale()) if attention else None
        return Crossed(self._score(cosines, a.mask, b.mask), attention=weights)

    def _score(self, cosines: Tensor, mask_a: Tensor, mask_b: Tensor) -> Tensor:
        """cosines [..., N_b, N_a] -> [...]."""
        both = mask_b.unsqueeze(-1) & mask_a.unsqueeze(-2)
        cosines = cosines.masked_fill(~both, -1.0)
        best_a, best_b = cosines.amax(-1), cosines.amax(-2)
        mean_b = (best_a * mask_b).sum(-1) / mask_b.sum(-1).clamp_min(1)
        mean_a = (best_b * mask_a).sum(-1) / mask_a.sum(-1).clamp_min(1)
        return self.scale() * (mean_a + mean_b) / 2


class Residual(CosineMatcher):
    """Residual cross-attention without parameters: F_v' = F_v + softmax(F_v F_t^T / sqrt(D)) F_t, and F_t' likewise.

    The score is the cosine of the mean fused tokens. Loss ``mse`` is trained on its drift.
    """

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        scores = b.tokens @ a.tokens.transpose(1, 2) / self.width**0.5
        heads = scores.masked_fill(~a.mask.unsqueeze(1), -torch.inf).softmax(-1).unsqueeze(1)
        b_over_a = heads.squeeze(1)
        a_over_b = scores.transpose(1, 2).masked_fill(~b.mask.unsqueeze(1), -torch.inf).softmax(-1)
        attn_out_a, attn_out_b = a_over_b @ b.tokens, b_over_a @ a.tokens
        fused_a, fused_b = a.tokens + attn_out_a, b.tokens + attn_out_b
        drift = masked_mean(attn_out_a.square(), a.mask).mean() + masked_mean(attn_out_b.square(), b.mask).mean()
        cosine = F.cosine_similarity(masked_mean(fused_a, a.mask), masked_mean(fused_b, b.mask), dim=-1)
        return Crossed(self.scale() * cosine, fused_a, fused_b, heads if attention else None, drift)


class Late(CosineMatcher):
    """Late fusion: each modality is encoded alone, by its own layers, to one vector; the score is their cosine."""

    def __init__(self, width: int, config: FusionConfig, layouts: tuple[Layout, Layout] = (LINE, LINE)):
        super().__init__(width, config, layouts)
        self.encode = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), mlp(width, config.dropout)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(()))

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        vector_a = self.encode[0](masked_mean(a.tokens, a.mask))
        vector_b = self.encode[1](masked_mean(b.tokens, b.mask))
        return Crossed(self.scale() * F.cosine_similarity(vector_a, vector_b, dim=-1) + self.bias)
