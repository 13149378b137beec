"""Mixing for many machines: put off until somebody needs the numbers, then done at once on all cores.

Each machine mixes in its own time; what it gets is a row that holds nothing yet. `flush` computes all rows, each by
`weighted_sum` of the core: they are the rows of one product of the mixing matrix with the stacked models, in any order
and on any number of threads, beside whatever else goes on. Whoever reads a row calls `flush` before, whoever reads a
digest `settle`; nobody changes a row that was computed. Where several processes emulate one fleet, each computes the
rows of its own nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from agent.core.mixing import weighted_sum
from agent.core.types import NodeId, Params, params_digest
from sim_harness.exchange import Alone, Exchange, Mixture

Product: TypeAlias = Callable[[Sequence[Mixture], int], list[Callable[[], None]]]
"""From mixtures that do not need each other, at least one, and a number of threads, to pieces that compute them."""

_SLICES = 4
"""Pieces of work a thread gets in a wave: some for each to even out what others on the machine take."""


class LateDigest(str):
    """Stands for the digest of a row until it is computed; `str(digest)` is empty before."""

    __slots__ = ("value",)
    value: str

    def __new__(cls, value: str = "") -> LateDigest:  # noqa: PYI034  the right type is newer than Python 3.10
        """Make one that is not known yet, or already is."""
        made = super().__new__(cls)
        made.value = value
        return made

    def __str__(self) -> str:
        return self.value

    def __reduce__(self) -> tuple[type[LateDigest], tuple[str]]:
        return LateDigest, (self.value,)


class Deferred:
    """The arithmetic of all machines of a fleet."""

    def __init__(self, threads: int, exchange: Exchange | None = None, product: Product | None = None) -> None:
        """Take how many threads, where else nodes are computed, and what computes rows, by default numpy."""
        self._pool = ThreadPoolExecutor(max(1, threads), "mixing")
        self._threads = max(1, threads)
        self._exchange, self._product = exchange or Alone(), product or by_numpy
        self._mixtures: list[Mixture] = []
        self._digests: list[tuple[int, Params, LateDigest]] = []
        self._mixing: tuple[Sequence[Mixture], Sequence[Future[None]]] = (), []
        """Rows under way: the pieces know only where numbers stand in memory, so their mixtures must be held here."""
        self._naming: tuple[list[tuple[int, LateDigest]], list[Future[list[tuple[int, str]]]]] = [], []
        """Digests under way, and whose they are."""

    def of(self, owner: int) -> NodeArithmetic:
        """Return what the machine of the node at that place computes with."""
        return NodeArithmetic(self, owner)

    def mix(self, owner: int, models: Mapping[NodeId, Params], weights: Mapping[NodeId, float]) -> Params:
        """Return the row that will hold the weighted sum, as `agent.core.mixing.mix` orders it."""
        order = sorted(weights)
        rows = tuple(models[node] for node in order)
        out = self._exchange.row(owner, len(rows[0]))
        mixture = Mixture(owner, out, rows, tuple(weights[node] for node in order))
        self._mixtures.append(mixture)
        return out

    def digest(self, owner: int, params: Params) -> LateDigest:
        """Return what will be the digest of that row."""
        late = LateDigest()
        self._digests.append((owner, params, late))
        return late

    @property
    def waiting(self) -> int:
        """How many rows are still to be computed."""
        return len(self._mixtures)

    def start(self) -> None:
        """Begin to compute what waits, when all that was begun before is done; others can go on meanwhile."""
        self._end_digests()
        mixtures, self._mixtures = self._mixtures, []
        for wave in waves(mixtures):
            self._end_rows()
            self._begin_rows(self._exchange.share(wave))
        waiting, self._digests = self._digests, []
        if waiting:
            self._begin_digests(waiting)

    def flush(self) -> None:
        """Compute all rows; digests may still be under way."""
        if self._mixtures or self._digests:
            self.start()
        self._end_rows()

    def settle(self) -> None:
        """Compute all rows and all digests."""
        self.flush()
        self._end_digests()

    def _begin_rows(self, wave: Sequence[Mixture]) -> None:
        pieces = self._product(wave, self._threads) if wave else []
        self._mixing = wave, [self._pool.submit(piece) for piece in pieces]

    def _end_rows(self) -> None:
        _, parts = self._mixing
        for part in parts:
            part.result()
        self._mixing = (), []

    def _begin_digests(self, waiting: Sequence[tuple[int, Params, LateDigest]]) -> None:
        here = [(i, params) for i, (owner, params, _) in enumerate(waiting) if self._exchange.is_here(owner)]
        size = max(1, -(-len(here) // (_SLICES * self._threads)))
        slices = [here[i : i + size] for i in range(0, len(here), size)]
        rows = self._mixing[1]
        self._naming = (
            [(owner, late) for owner, _, late in waiting],
            [self._pool.submit(_digests, part, rows) for part in slices],
        )

    def _end_digests(self) -> None:
        (named, parts), self._naming = self._naming, ([], [])
        if named:
            known = {i: digest for part in parts for i, digest in part.result()}
            found = self._exchange.digests(known, [owner for owner, _ in named])
            for (_, late), digest in zip(named, found, strict=True):
                late.value = digest

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _digests(rows: Sequence[tuple[int, Params]], after: Sequence[Future[None]]) -> list[tuple[int, str]]:
    """Return digests by their places; `after` are pieces of work that write the rows, and that threads already have."""
    wait(after)
    return [(i, params_digest(params)) for i, params in rows]


def waves(mixtures: Sequence[Mixture]) -> list[list[Mixture]]:
    """Cut the mixtures, in the order that they were asked for, so that none needs another of its own wave."""
    found: list[list[Mixture]] = []
    made: set[int] = set()
    for mixture in mixtures:
        if not found or not made.isdisjoint(map(id, mixture.rows)):
            found.append([])
            made.clear()
        found[-1].append(mixture)
        made.add(id(mixture.out))
    return found


def by_numpy(wave: Sequence[Mixture], threads: int) -> list[Callable[[], None]]:
    """Return pieces of work that compute a wave, row by row."""
    share = max(1, -(-len(wave) // (_SLICES * threads)))
    return [partial(_rows, wave[i : i + share]) for i in range(0, len(wave), share)]


def _rows(mixtures: Sequence[Mixture]) -> None:
    scratch = np.empty_like(mixtures[0].out)
    for mixture in mixtures:
        weighted_sum(mixture.rows, mixture.weights, mixture.out, scratch)


@dataclass(frozen=True, slots=True)
class NodeArithmetic:
    """`agent.core.mixing.Arithmetic` of one node, put off."""

    deferred: Deferred
    owner: int

    def mix(self, models: Mapping[NodeId, Params], weights: Mapping[NodeId, float]) -> Params:
        """Return the row that will hold the average."""
        return self.deferred.mix(self.owner, models, weights)

    def adopt(self, models: Mapping[NodeId, Params]) -> Params:
        """Return the row that will hold the plain mean."""
        return self.deferred.mix(self.owner, models, dict.fromkeys(models, 1.0 / len(models)))

    def digest(self, params: Params) -> str:
        """Return what will be the digest."""
        return self.deferred.digest(self.owner, params)
