"""From a query to ranked answers: shortlist by the dot product, then cosine and cross-attention together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.retrieval.index import Index, IndexSide
from ccaco_cli.core.retrieval.query import Query
from ccaco_cli.core.retrieval.rerank import CROSS
from ccaco_cli.core.retrieval.vector_duplicates import group_duplicates
from ccaco_cli.core.types import EncodedSamples

if TYPE_CHECKING:
    from ccaco_cli.core.retrieval.filters import Selection

Array = np.ndarray[Any, Any]
CANDIDATES = 100
"""Fewest candidates among which near-duplicates are grouped."""


@dataclass(frozen=True)
class Hit:
    """One answer.

    Attributes:
        rank: place among the answers, from 1.
        row: of the item in its side of the index.
        score: what ranks the answers (``Index.scorer``); the cosine where the cross branch did not score the item.
        cosine: -1..1.
        match: match logit, or None where the cross branch did not score the item.
        item: columns of the index: id, group, text, thumbnail ...
        duplicates: further candidates that this hit stands for (``SearchOptions.dedup``).
        modality: of the item.
    """

    rank: int
    row: int
    score: float
    cosine: float
    match: float | None
    item: dict[str, Any]
    duplicates: int = 0
    modality: str = ""


@dataclass(frozen=True)
class SearchOptions:
    """What a search returns.

    Attributes:
        k: hits per query.
        rerank: candidates that the cross branch reorders; None = as many as in the evaluation of the run, 0 = none.
        target: modalities of the items that are searched, separated by commas; "" = as ``Index.targets`` chooses.
        where: a condition on the columns of the items (``filters``); "" = every item.
        dedup: candidates whose vectors have at least this cosine with a better hit are not hits of their own, but
            counted with it, 0..1; 0 = each item is a hit.
        plus, minus: texts that are added to each query, and taken away from it.
        mix_weight: of each of these texts, where that of the query is 1.
    """

    k: int = 10
    rerank: int | None = None
    target: str = ""
    where: str = ""
    dedup: float = 0.0
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    mix_weight: float = 1.0

    def check(self) -> None:
        """Raises ConfigError: a number out of its range."""
        valid = self.k >= 1 and (self.rerank is None or self.rerank >= 0)
        if not (valid and 0 <= self.dedup <= 1 and 0 < self.mix_weight < float("inf")):
            names = ("k", "rerank", "dedup", "mix_weight")
            numbers = ", ".join(f"{name} = {getattr(self, name)}" for name in names)
            expected = "k >= 1, rerank >= 0, dedup from 0 to 1, mix_weight > 0"
            raise ConfigError("a number out of range", where=numbers, expected=expected)


def ask(
    index: Index, modality: str, samples: Sequence[Any], options: SearchOptions = SearchOptions()
) -> list[list[Hit]]:
    """Encodes queries by the exported query side, if there is one for the modality, else by the model, and searches."""
    return search(index, modality, _encode(index, modality, samples), options)


def _encode(index: Index, modality: str, samples: Sequence[Any]) -> Query:
    if index.exported is not None and index.exported.modality == modality:
        return index.exported.encode(samples)
    return _arrays(encode_query(index, modality, samples))


def encode_query(index: Index, modality: str, samples: Sequence[Any]) -> EncodedSamples:
    """Encodes queries as the items of the index were encoded: preprocessing, token pooling, rounding, precision.

    There are two exceptions, which are encoded in float32: a precision in which this CPU is slow, and queries of the
    exported modality. Their cosines differ by less than 1e-3.

    Args:
        samples: texts; or files, encoded bytes or decoded media (PIL images, recordings).
    Returns:
        Embeddings and tokens, on the CPU.
    Raises:
        DataError: a file that cannot be read or decoded.
    """
    from ccaco_cli.core.encoding.encode import EncodeOptions
    from ccaco_cli.core.encoding.samples import encode_samples

    aligner, towers, _ = index.model
    return encode_samples(aligner, towers[modality], samples, options=EncodeOptions(max_tokens=index.store_grid))


def stored_query(index: Index, modality: str, rows: Array) -> Query:
    """Queries that are items of the index itself: their stored vectors, and their stored tokens if there are any."""
    side = index.sides[modality]
    z = side.vectors.read(rows)
    if side.has_tokens:
        return Query(z, *side.tokens.read(rows))
    return _without_tokens(z)


def similar_items(index: Index, modality: str, row: int, options: SearchOptions = SearchOptions()) -> list[Hit]:
    """The items that are most like an item of the index, without the item itself.

    Args:
        modality: of the item, and of the answers unless ``options.target`` says otherwise.
    """
    target = options.target or modality
    query = stored_query(index, modality, np.array([row]))
    (hits,) = search(index, modality, query, replace(options, k=options.k + 1, target=target))
    different = [hit for hit in hits if hit.row != row or target != modality][: options.k]
    return [replace(hit, rank=rank) for rank, hit in enumerate(different, 1)]


def search(
    index: Index, modality: str, query: EncodedSamples | Query, options: SearchOptions = SearchOptions()
) -> list[list[Hit]]:
    """Best k items for each query, of the modalities that ``Index.targets`` names.

    The cross branch scores pairs of its two modalities; items of the modality of the query, all answers by or of a
    further side, and items of several modalities in one list are ranked by the cosine.

    With ``options.plus`` and ``options.minus`` the query is a weighted sum of vectors, of unit norm again. Its match
    logit is the same weighted sum: that of the parts which the cross branch can score against the items.

    Args:
        query: of ``encode_query``, ``stored_query``, or of the exported query side.
    Returns:
        One list of hits for each query, best first. It is empty where no item satisfies ``options.where``.
    Raises:
        ConfigError: ``options.rerank`` for sides that the cross branch does not score, or for several at once.
        DataError: the index holds no items of the target, or the parts of a query cancel each other out.
        FilterError: ``options.where`` cannot be evaluated.
    """
    options.check()
    targets = index.targets(modality, options.target)
    if options.rerank and (reason := index.cosine_alone(modality, targets)):
        scored = [m for m in targets if {modality, m} == {*index.modalities}]
        raise ConfigError(
            f"{reason}, so they have no match score",
            where=f"--rerank {options.rerank}",
            expected=f"{' and '.join(index.modalities)}, or the cosine alone",
            next=f"--target {scored[0]}, or leave out --rerank" if scored else "leave out --rerank",
        )
    queries = query if isinstance(query, Query) else _arrays(query)
    parts = [_Part(modality, queries, 1.0)]
    texts = ((options.plus, options.mix_weight), (options.minus, -options.mix_weight))
    if options.plus or options.minus:
        index.targets("text", options.target)
        encoded = _encode(index, "text", [*options.plus, *options.minus])
        weights = [weight for names, weight in texts for _ in names]
        parts += [_Part("text", encoded[i : i + 1], weight) for i, weight in enumerate(weights)]
    if len(targets) == 1:
        return _Search(index, targets[0], options, parts).hits()
    columns = {field.name: field.type for target in targets for field in index.sides[target].items.schema}
    searches = [_Search(index, target, options, parts, columns, by_cosine=True) for target in targets]
    return [_merged(answers, options.k) for answers in zip(*(search.hits() for search in searches), strict=True)]


def _merged(answers: Sequence[Sequence[Hit]], k: int) -> list[Hit]:
    """The best k hits of several modalities by their cosines."""
    hits = sorted((hit for hits in answers for hit in hits), key=lambda hit: -hit.cosine)
    return [replace(hit, rank=rank) for rank, hit in enumerate(hits[:k], 1)]


def _arrays(query: EncodedSamples) -> Query:
    z = query.z.numpy()
    if query.tokens is None:
        return _without_tokens(z)
    return Query(z, query.tokens.tokens.float().numpy(), query.tokens.mask.numpy())


def _without_tokens(z: Array) -> Query:
    return Query(z, np.zeros((len(z), 0, 1), np.float32), np.zeros((len(z), 0), bool))


@dataclass(frozen=True)
class _Part:
    """One term of a composed query.

    Attributes:
        query: one row for each query, or one row for all.
    """

    modality: str
    query: Query
    weight: float

    def row(self, number: int) -> Query:
        return self.query[number : number + 1] if len(self.query.z) > 1 else self.query


@dataclass(frozen=True)
class _Candidates:
    """Candidates of one query in the order of their rank: arrays [n]; ``matches`` is NaN without a match logit."""

    rows: Array
    scores: Array
    cosines: Array
    matches: Array


@dataclass(frozen=True)
class _Search:
    """A search of one side, whose queries are encoded.

    Attributes:
        columns: that ``options.where`` may name although this side lacks them: they are null.
        by_cosine: the cross branch scores nothing.
    """

    index: Index
    target: str
    options: SearchOptions
    parts: Sequence[_Part]
    columns: Mapping[str, Any] = field(default_factory=dict)
    by_cosine: bool = False

    @cached_property
    def side(self) -> IndexSide:
        return self.index.sides[self.target]

    @cached_property
    def scored_parts(self) -> list[_Part]:
        """The parts that the cross branch can score against the items."""
        weighted = not self.by_cosine and self.side.has_tokens and self.index.scorer.weight
        scored = [p for p in self.parts if weighted and {p.modality, self.target} == {*self.index.modalities}]
        return [p for p in scored if p.query.tokens.shape[1]]

    @cached_property
    def exhaustive(self) -> bool:
        """True where the cross branch scores every item."""
        return bool(self.scored_parts) and self.index.scorer.kind == CROSS

    @cached_property
    def shortlist(self) -> int:
        """Candidates that the cross branch scores."""
        if not self.scored_parts:
            return 0
        if self.exhaustive:
            return self.side.vectors.ntotal
        if self.options.rerank is not None:
            return self.options.rerank
        settings = self.index.manifest.config["eval"]
        return int(settings["shortlist" if self.target == self.index.modalities[0] else "shortlist_back"])

    @cached_property
    def selection(self) -> Selection | None:
        return self.side.select(self.options.where, self.columns) if self.options.where else None

    @cached_property
    def norms(self) -> Array:
        """[q, 1]: norms of the sums of vectors, 1 for a query of one part."""
        if len(self.parts) == 1:
            return np.ones((len(self.parts[0].query.z), 1), np.float32)
        norms: Array = np.linalg.norm(self._sums, axis=1, keepdims=True)
        if (norms < 1e-3).any():
            raise DataError(
                "the parts of this query cancel each other out",
                where="--minus",
                expected="other words than those of the query",
            )
        return norms

    @cached_property
    def _sums(self) -> Array:
        sums: Array = self.parts[0].query.z
        for part in self.parts[1:]:
            sums = sums + part.weight * part.query.z
        return sums

    def hits(self) -> list[list[Hit]]:
        """The answers to all queries."""
        z = self._sums / self.norms if len(self.parts) > 1 else self._sums
        k, ntotal = self.options.k, self.side.vectors.ntotal
        count = max(k, self.shortlist, max(CANDIDATES, 4 * k) if self.options.dedup else 0)
        cosines, rows = self.side.vectors.search(z, min(ntotal, count), self.selection)
        answer = self._grouped if self.options.dedup else self._best
        return [answer(number, z[number : number + 1], cosines[number], rows[number]) for number in range(len(z))]

    def _best(self, number: int, z: Array, cosines: Array, rows: Array) -> list[Hit]:
        """The first k candidates."""
        ranked = self._rank(number, cosines, rows, {})
        return self._hits(ranked, range(min(self.options.k, len(ranked.rows))))

    def _rank(self, number: int, cosines: Array, rows: Array, logits: dict[int, float]) -> _Candidates:
        """Reorders the first candidates of a query by both stages.

        Args:
            logits: row -> match logit, which this fills in.
        """
        cosines, rows = cosines[rows >= 0], rows[rows >= 0]  # an approximate search may have found fewer
        scores, matches = cosines.astype(np.float64), np.full(len(rows), np.nan)
        order = np.arange(len(rows))
        if self.shortlist:
            listed = slice(min(self.shortlist, len(rows)))
            missing = np.array([row for row in rows[listed].tolist() if row not in logits], np.int64)
            if len(missing):
                logits.update(zip(missing.tolist(), self._match(number, missing).tolist(), strict=True))
            matches[listed] = [logits[row] for row in rows[listed].tolist()]
            scores[listed] = self.index.scorer(scores[listed], matches[listed])
            order[listed] = np.argsort(-scores[listed], kind="stable")
        return _Candidates(rows[order], scores[order], cosines[order], matches[order])

    def _match(self, number: int, rows: Array) -> Array:
        """Match logits [n] of one query with some rows."""
        weighted = [
            part.weight * _match(self.index, part.modality, part.row(number), self.side, rows)
            for part in self.scored_parts
        ]
        logits: Array = weighted[0] if len(weighted) == 1 else np.sum(weighted, 0)
        return logits / self.norms[number, 0] if len(self.parts) > 1 else logits

    def _grouped(self, number: int, z: Array, cosines: Array, rows: Array) -> list[Hit]:
        """Groups near-duplicates, among more and more candidates until there are k groups, or all are grouped."""
        logits: dict[int, float] = {}
        while True:
            ranked = self._rank(number, cosines, rows, logits)
            vectors = self.side.vectors.read(ranked.rows)
            groups = group_duplicates(vectors, self.options.dedup, self.options.k)
            complete = len(ranked.rows) < len(rows) or len(rows) == self.side.vectors.ntotal
            if complete or groups.max(initial=-1) + 1 >= self.options.k:
                break
            before = len(rows)
            wanted = min(self.side.vectors.ntotal, 4 * before)
            (cosines,), (rows,) = self.side.vectors.search(z, wanted, self.selection)
            if len(rows) == before:  # of a selection
                break
        firsts = np.unique(groups[groups >= 0], return_index=True)[1]
        sizes = np.bincount(groups[groups >= 0])
        leaders = np.flatnonzero(groups >= 0)[firsts]
        return [
            replace(hit, duplicates=int(size) - 1)
            for hit, size in zip(self._hits(ranked, leaders.tolist()), sizes, strict=True)
        ]

    def _hits(self, candidates: _Candidates, places: Sequence[int]) -> list[Hit]:
        return [
            Hit(
                rank,
                int(candidates.rows[i]),
                float(candidates.scores[i]),
                float(candidates.cosines[i]),
                None if np.isnan(candidates.matches[i]) else float(candidates.matches[i]),
                self.side.item(int(candidates.rows[i])),
                modality=self.target,
            )
            for rank, i in enumerate(places, 1)
        ]


def _match(index: Index, modality: str, query: Query, side: IndexSide, rows: Array) -> Array:
    """Match logits [n] of one query with some rows of the other modality."""
    tokens, mask = side.tokens.read(rows)
    ours = np.repeat(query.tokens, len(rows), 0), np.repeat(query.mask, len(rows), 0)
    pairs = (*ours, tokens, mask) if modality == index.modalities[0] else (tokens, mask, *ours)
    if index.exported is not None and index.exported.has_matcher:
        return index.exported.match(*pairs)
    import torch

    from ccaco_cli.core.retrieval.match import match_logits
    from ccaco_cli.core.types import LocalTokens

    every = torch.arange(len(rows))
    a, b = (LocalTokens(torch.from_numpy(t), torch.from_numpy(m)) for t, m in (pairs[:2], pairs[2:]))
    return match_logits(index.model[0], a, b, torch.stack([every, every], 1)).numpy()
