"""Matchers: from the local tokens of both sides to one match logit a pair.

A matcher has two steps, so that the first can be stored in an index and only the second runs at query time:
``local(side, tokens, mask)`` prepares the tokens of one side; ``forward(a, b, index)`` scores pairs of prepared sides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model import attention
from ccaco_cli.core.model.attention import Kernel, kernel, masked_mean, weighted
from ccaco_cli.core.model.fusion import CoAttentionBlock, SingleStream, Stream, mlp
from ccaco_cli.core.model.layout import LINE, Layout, Sequence
from ccaco_cli.core.types import Crossed, LocalTokens

MAX_SCALE = 100.0
TOKENS_AT_ONCE = 1 << 16
"""Of listed pairs whose activations are recomputed, as many as hold so many tokens are scored at a time."""


class Matcher(nn.Module, ABC):
    """What every kind shares: the interface, and all pairs as a special case of listed pairs.

    width    D of the tokens that ``local`` receives and gives
    layouts  how the tokens of either side lie (set by ``build``)
    kinds    attention kinds that it can work with
    """

    kinds: tuple[str, ...] = ("dense",)

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        self.width, self.config = width, config
        self.layouts: tuple[Layout, Layout] = (LINE, LINE)
        self.checkpointing = False

    def lie(self, a: LocalTokens, b: LocalTokens) -> tuple[Sequence, Sequence]:
        """The layouts of these tokens."""
        one, other = (layout.of(x.tokens.shape[1]) for layout, x in zip(self.layouts, (a, b), strict=True))
        return (one,), (other,)

    def local(self, side: int, tokens: Tensor, mask: Tensor) -> Tensor:
        """Prepares one side: tokens [R, N, D], mask [R, N] -> [R, N, D]."""
        return tokens

    def forward(
        self, a: LocalTokens, b: LocalTokens, index: Tensor | None = None, *, attention: bool = False
    ) -> Crossed:
        """Scores pairs.

        a, b       LocalTokens (prepared by ``local``) of A and B samples
        index      [M, 2] int64 rows of a and b, or None for all A x B pairs
        attention  also return how much each token of b looks at each of a, by head (listed pairs only)
        Returns    Crossed, match_logit [M] or [A, B]
        """
        if self.training:
            for module in self.modules():
                if isinstance(module, Kernel):
                    module.refresh()
        if index is not None:
            return (
                self._recomputed(a, b, index)
                if self.checkpointing and self.training
                else self.pairs(a[index[:, 0]], b[index[:, 1]], attention)
            )
        rows, columns = (torch.arange(len(x.mask), device=x.mask.device) for x in (a, b))
        crossed = self.pairs(
            *(
                x[i]
                for x, i in zip((a, b), (rows.repeat_interleave(len(columns)), columns.repeat(len(rows))), strict=True)
            )
        )
        return Crossed(crossed.match_logit.view(len(rows), len(columns)), drift=crossed.drift)

    def _recomputed(self, a: LocalTokens, b: LocalTokens, index: Tensor) -> Crossed:
        """Some pairs at a time, whose activations are made again when their gradient is due (arXiv:1604.06174)."""

        def some(part: Tensor) -> tuple[Tensor, Tensor | None]:
            crossed = self.pairs(a[part[:, 0]], b[part[:, 1]])
            return crossed.match_logit, crossed.drift

        parts = torch.split(index, max(1, TOKENS_AT_ONCE // (a.tokens.shape[1] + b.tokens.shape[1])))
        found = [checkpoint(some, part, use_reentrant=False) for part in parts]
        drifts = [
            drift * (len(part) / len(index)) for part, (_, drift) in zip(parts, found, strict=True) if drift is not None
        ]
        return Crossed(torch.cat([logit for logit, _ in found]), drift=torch.stack(drifts).sum() if drifts else None)

    @abstractmethod
    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        """Scores row i of a against row i of b."""


class Scaled(Matcher):
    """Matchers whose score is a cosine: kappa_2 multiplies, learned and clamped."""

    def __init__(self, width: int, config: FusionConfig):
        super().__init__(width, config)
        self.log_scale = nn.Parameter(torch.tensor(config.scale).log())

    def scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=MAX_SCALE)


EVERY_KIND = ("dense", "window", "linear")


class Attended(Scaled):
    """Gated attended similarity (after SCAN, arXiv:1803.08024, eq. 1-8; gate and identity start: SCIENCE, finding 4).

    t_w = unit(B x_w), v_p = unit(A x_p), A and B start as the identity; a_wp = softmax_p(lambda t_w . v_p);
    s = sum_w g_w cos(t_w, sum_p a_wp v_p), g = softmax over the looking side's tokens of Linear(LN(x)).
    ``local`` gives g_w * t_w, so that the gate travels in the norm and nothing else has to be stored.
    """

    kinds = EVERY_KIND

    def __init__(self, width: int, config: FusionConfig):
        super().__init__(width, config)
        self.kernel = (
            None if config.attention == "dense" else kernel(width, config)
        )  # dense has a shorter way, see ``_attend``
        maps = [nn.Linear(width, width, bias=False) for _ in range(2)]
        for linear in maps:
            nn.init.eye_(linear.weight)
        self.maps = nn.ModuleList(maps)
        self.gates = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1)) for _ in range(2))
        self.log_sharpness = nn.Parameter(torch.tensor(config.sharpness).log())

    def local(self, side: int, tokens: Tensor, mask: Tensor) -> Tensor:
        gate = self.gates[side](tokens).squeeze(-1).float().masked_fill(~mask, -torch.inf).softmax(-1)
        gated: Tensor = F.normalize(self.maps[side](tokens), dim=-1) * gate.unsqueeze(-1)
        return gated

    def forward(
        self, a: LocalTokens, b: LocalTokens, index: Tensor | None = None, *, attention: bool = False
    ) -> Crossed:
        if index is None and self.kernel is not None:
            return super().forward(a, b)
        one, other = ((*_unit(x.tokens), x.mask) for x in (a, b))  # before rows are repeated for their pairs
        if index is not None:
            return self._rows(
                tuple(t[index[:, 0]] for t in one), tuple(t[index[:, 1]] for t in other), self.lie(a, b), attention
            )
        tables = []
        if self.config.direction != "a_to_b":
            tables.append(self._table(other, one))
        if self.config.direction != "b_to_a":
            tables.append(self._table(one, other).T)
        return Crossed(self.scale() * torch.stack(tables).mean(0))

    def _table(self, looking: tuple[Tensor, ...], seen: tuple[Tensor, ...]) -> Tensor:
        """Every row against every other, each (unit tokens, gates, mask): -> [rows seen, rows that look]. Half of the looking tokens of a
        batch of captions is padding: only real ones are laid side by side."""
        (tokens, gate, mask), (keys, _, there) = looking, seen
        real, row = tokens[mask], mask.nonzero()[:, 0]
        cosines = (keys.flatten(0, 1) @ real.T).view(*keys.shape[:2], -1)  # [rows seen, P, all tokens that look]
        weights = (self.log_sharpness.exp() * cosines).masked_fill(~there.unsqueeze(-1), -torch.inf).softmax(1)
        belongs = row.unsqueeze(1) == torch.arange(len(mask), device=mask.device)
        table: Tensor = _attend(weights, cosines, keys) @ (belongs * gate[mask].unsqueeze(1))
        return table

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        one, other = ((*_unit(x.tokens), x.mask) for x in (a, b))
        return self._rows(one, other, self.lie(a, b), attention)

    def _rows(
        self, one: tuple[Tensor, ...], other: tuple[Tensor, ...], lie: tuple[Sequence, Sequence], attention: bool
    ) -> Crossed:
        """Row i of both sides, each (unit tokens, gates, mask)."""
        (unit_a, gate_a, mask_a), (unit_b, gate_b, mask_b) = one, other
        if self.kernel is not None:
            return self._sparse(self.kernel, (unit_a, mask_a, gate_a), (unit_b, mask_b, gate_b), lie, attention)
        cosines = unit_b @ unit_a.transpose(1, 2)
        logit, weights = self._directions(cosines, unit_a, unit_b, mask_a, mask_b, gate_a, gate_b)
        return Crossed(logit, attention=weights if attention else None)

    def _sparse(
        self,
        kernel: Kernel,
        a: tuple[Tensor, Tensor, Tensor],
        b: tuple[Tensor, Tensor, Tensor],
        lie: tuple[Sequence, Sequence],
        attention: bool,
    ) -> Crossed:
        """The same score, what each token attends to built by a kernel: a, b are (unit tokens, mask, gates)."""
        scale = self.log_sharpness.exp()
        ways = {"b_to_a": [(b, a, lie[::-1])], "a_to_b": [(a, b, lie)], "both": [(b, a, lie[::-1]), (a, b, lie)]}[
            self.config.direction
        ]
        scores, weights = [], None
        for (tokens, _, gate), (seen, mask, _), lies in ways:
            queries, keys = (scale * tokens).unsqueeze(2), seen.unsqueeze(2)
            if attention and weights is None:  # then the score goes through it, so that it has a gradient there
                weights = kernel.weights(queries, keys, mask, scale=1.0, lie=lies)
                weights = weights.transpose(2, 3) if self.config.direction == "a_to_b" else weights
                brought = weighted(weights.transpose(2, 3) if self.config.direction == "a_to_b" else weights, keys)
            else:
                brought = kernel(queries, keys, keys, mask, scale=1.0, dropout=0.0, lie=lies)
            scores.append((gate * F.cosine_similarity(tokens.float(), brought.squeeze(2).float(), dim=-1)).sum(-1))
        return Crossed(self.scale() * torch.stack(scores).mean(0), attention=weights)

    def _directions(
        self, cosines: Tensor, a: Tensor, b: Tensor, mask_a: Tensor, mask_b: Tensor, gate_a: Tensor, gate_b: Tensor
    ) -> tuple[Tensor, Tensor]:
        """cosines [M, L, P] of b's tokens against a's. Returns score [M], attention [M, 1, L, P]."""
        sharpness = self.log_sharpness.exp()
        scores, attention = [], cosines
        if self.config.direction != "a_to_b":
            attention = _look(cosines, mask_a, sharpness)
            scores.append(
                (gate_b * _attend(attention.squeeze(-3).transpose(-1, -2), cosines.transpose(-1, -2), a)).sum(-1)
            )
        if self.config.direction != "b_to_a":
            back = _look(cosines.transpose(-1, -2), mask_b, sharpness).transpose(-1, -2)
            scores.append((gate_a * _attend(back.squeeze(-3), cosines, b)).sum(-1))
            attention = attention if self.config.direction == "both" else back
        return self.scale() * torch.stack(scores).mean(0), attention


def _unit(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Splits what ``Attended.local`` gives into unit tokens and gates (zero for padding)."""
    gate = tokens.float().norm(dim=-1)
    return (tokens / gate.clamp_min(1e-6).unsqueeze(-1).to(tokens.dtype)), gate


def _look(cosines: Tensor, mask: Tensor, sharpness: Tensor) -> Tensor:
    """How much every looking token sees of each: cosines [..., L, P], mask [..., P] of what is seen -> [..., 1, L, P], one head."""
    return (sharpness * cosines).masked_fill(~mask.unsqueeze(-2), -torch.inf).softmax(-1).unsqueeze(-3)


def _attend(weights: Tensor, cosines: Tensor, seen: Tensor) -> Tensor:
    """Cosine of every looking token with the mean of what it sees.

    weights, cosines [..., P, L], seen [..., P, D] -> [..., L]
    The attended vector is never built: its product with the token is sum_p a_wp cos_wp, its norm comes from the Gram matrix of ``seen``.
    """
    norm = ((seen @ seen.transpose(-1, -2) @ weights) * weights).sum(-2).clamp_min(1e-12).sqrt()
    return (weights * cosines).sum(-2) / norm


class MaxSim(Scaled):
    """Token-wise maximum similarity, both ways (FILIP, arXiv:2111.07783, eq. 4-6).

    Shown as attention: the softmax, at the temperature of the score, of the cosines of which the score takes the highest.
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
        return Crossed(
            self._score(cosines, a.mask, b.mask), attention=_look(cosines, a.mask, self.scale()) if attention else None
        )

    def _score(self, cosines: Tensor, mask_a: Tensor, mask_b: Tensor) -> Tensor:
        both = mask_b.unsqueeze(-1) & mask_a.unsqueeze(-2)
        cosines = cosines.masked_fill(~both, -1.0)
        best_a, best_b = cosines.amax(-1), cosines.amax(-2)
        mean_b = (best_a * mask_b).sum(-1) / mask_b.sum(-1).clamp_min(1)
        mean_a = (best_b * mask_a).sum(-1) / mask_a.sum(-1).clamp_min(1)
        return self.scale() * (mean_a + mean_b) / 2


class Residual(Scaled):
    """The source description's fusion: F_v' = F_v + softmax(F_v F_t^T / sqrt(D)) F_t, and F_t' alike; no parameters of its own."""

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        scores = b.tokens @ a.tokens.transpose(1, 2) / self.width**0.5
        heads = scores.masked_fill(~a.mask.unsqueeze(1), -torch.inf).softmax(-1).unsqueeze(1)
        to_a = heads.squeeze(1)
        to_b = scores.transpose(1, 2).masked_fill(~b.mask.unsqueeze(1), -torch.inf).softmax(-1)
        brought_a, brought_b = to_b @ b.tokens, to_a @ a.tokens
        fused_a, fused_b = a.tokens + brought_a, b.tokens + brought_b
        drift = masked_mean(brought_a.square(), a.mask).mean() + masked_mean(brought_b.square(), b.mask).mean()
        cosine = F.cosine_similarity(masked_mean(fused_a, a.mask), masked_mean(fused_b, b.mask), dim=-1)
        return Crossed(self.scale() * cosine, fused_a, fused_b, heads if attention else None, drift)


class CoAttention(Matcher):
    """Co-attention blocks, then one logit from the product of both means (ViLBERT's alignment head, arXiv:1908.02265, sec. 3.2)."""

    kinds = EVERY_KIND

    def __init__(self, width: int, config: FusionConfig):
        super().__init__(width, config)
        self.blocks = nn.ModuleList(CoAttentionBlock(width, config) for _ in range(config.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.head = mlp(width, config.dropout, 1)

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        fused_a, fused_b, weights = a.tokens, b.tokens, None
        for block in self.blocks:
            fused_a, fused_b, weights = block(fused_a, a.mask, fused_b, b.mask, lie=self.lie(a, b), weights=attention)
        drift = (
            masked_mean((fused_a - a.tokens).square(), a.mask).mean()
            + masked_mean((fused_b - b.tokens).square(), b.mask).mean()
        )
        joined = self.norms[0](masked_mean(fused_a, a.mask)) * self.norms[1](masked_mean(fused_b, b.mask))
        return Crossed(self.head(joined).squeeze(-1), fused_a, fused_b, weights, drift)


class Unified(Matcher):
    """One single-stream transformer over both sides' tokens, and one logit from their joint mean."""

    kinds = EVERY_KIND

    def __init__(self, width: int, config: FusionConfig):
        super().__init__(width, config)
        self.stream = SingleStream(width, config)
        self.norm = nn.LayerNorm(width)
        self.head = mlp(width, config.dropout, 1)

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        fused_a, fused_b, weights = self.stream(
            a.tokens, a.mask, b.tokens, b.mask, lie=self.lie(a, b), weights=attention
        )
        joint = masked_mean(torch.cat([fused_a, fused_b], 1), torch.cat([a.mask, b.mask], 1))
        return Crossed(self.head(self.norm(joint)).squeeze(-1), fused_a, fused_b, weights)


class Concat(Matcher):
    """Pooled features side by side, then fully connected layers: the plain baseline of the field."""

    def __init__(self, width: int, config: FusionConfig):
        super().__init__(width, config)
        self.head = nn.Sequential(nn.LayerNorm(2 * width), mlp(2 * width, config.dropout, 1))

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        return Crossed(
            self.head(torch.cat([masked_mean(a.tokens, a.mask), masked_mean(b.tokens, b.mask)], -1)).squeeze(-1)
        )


class Early(Matcher):
    """Early fusion: both sides' tokens are joined by one shared encoder layer by layer from the start, without knowing whose they are."""

    kinds = EVERY_KIND

    def __init__(self, width: int, config: FusionConfig):
        super().__init__(width, config)
        self.stream = Stream(width, config)
        self.head = nn.Sequential(nn.LayerNorm(width), mlp(width, config.dropout, 1))

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        mask = torch.cat([a.mask, b.mask], 1)
        one, other = self.lie(a, b)
        fused, _ = self.stream(torch.cat([a.tokens, b.tokens], 1), mask, one + other)
        return Crossed(self.head(masked_mean(fused, mask)).squeeze(-1))


class Late(Scaled):
    """Late fusion: each side decides alone (its own layers to a vector), and only the decisions meet."""

    def __init__(self, width: int, config: FusionConfig):
        super().__init__(width, config)
        self.decide = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), mlp(width, config.dropout)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(()))

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        one, other = (f(masked_mean(x.tokens, x.mask)) for f, x in zip(self.decide, (a, b), strict=True))
        return Crossed(self.scale() * F.cosine_similarity(one, other, dim=-1) + self.bias)


MATCHERS: dict[str, Callable[[int, FusionConfig], Matcher]] = {
    "attended": Attended,
    "maxsim": MaxSim,
    "residual": Residual,
    "coattention": CoAttention,
    "unified": Unified,
    "early": Early,
    "late": Late,
    "concat": Concat,
}


def build(width: int, config: FusionConfig, layouts: tuple[Layout, Layout] = (LINE, LINE)) -> Matcher:
    """The matcher that a config names, for sides whose tokens lie so. Raises ConfigError with the known kinds."""
    if config.kind not in MATCHERS:
        raise ConfigError(
            "unknown fusion kind", where=f"model.fusion.kind = {config.kind!r}", expected=" | ".join(MATCHERS)
        )
    if config.direction not in ("both", "b_to_a", "a_to_b"):
        raise ConfigError(
            "unknown direction",
            where=f"model.fusion.direction = {config.direction!r}",
            expected="both | b_to_a | a_to_b",
        )
    if width % config.heads:
        raise ConfigError(
            "heads must divide the width",
            where=f"model.fusion.heads = {config.heads}",
            expected=f"a divisor of {width}",
        )
    attention.check(config)
    found = MATCHERS[config.kind](width, config)
    if config.attention not in found.kinds:
        raise ConfigError(
            f"fusion {config.kind!r} has no {config.attention} attention",
            where=f"model.fusion.attention = {config.attention!r}",
            expected=" | ".join(found.kinds),
            next="--set model.fusion.kind=coattention (or attended, unified, early)",
        )
    found.layouts = layouts
    return found
