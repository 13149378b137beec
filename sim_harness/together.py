"""An emulation over several processes: each has the numbers of its own nodes, and sends others what they mix.

A row that another process has is an `Elsewhere` here. All processes know all mixtures and the rows that they are made
of; so each knows what the others lack without being asked, and sends it once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, Optional, TypeAlias
from weakref import finalize

import numpy as np

from agent.core.topology import neighbours
from agent.core.types import Params, RunDescriptor
from agent.learning.trainer import Evaluation
from sim_harness.checkpoint import name_of
from sim_harness.cohort.engine import Engine, Outcome, Test, Work
from sim_harness.cut import Edges, cut_edges, parts_of
from sim_harness.distributed import World
from sim_harness.evidence import params_sha256
from sim_harness.exchange import Elsewhere, Mixture, Wish, plain_mean

_Told: TypeAlias = tuple[Optional[float], Optional[float], Optional[float], int, str]  # noqa: UP045  read by msgspec in Python 3.10, too
"""The first fields of an Evaluation, in their order."""

_PIECE: Final = 1 << 24
"""Numbers of all rows that a process averages at a time: 64 MiB."""


def edges_of(run: RunDescriptor) -> Edges:
    """Return the neighbours of every node of the fleet, by their places."""
    graph = neighbours(run.topology, run.roster, run.seed)
    places = {node: i for i, node in enumerate(run.roster)}
    return [sorted(places[other] for other in graph[node]) for node in run.roster]


class Together:
    """An Exchange of one of several processes."""

    def __init__(self, world: World, edges: Edges, initial: Params) -> None:
        """Take the graph that is cut among the processes, and the row that all of them have."""
        self._world, self._initial = world, initial
        self._parts = parts_of(edges, world.size)
        self._cut_edges = cut_edges(edges, self._parts)
        self._given: dict[int, set[int]] = {}
        """By the id of a row that lives: who has been sent it."""
        self.pause = len(edges)
        self.leads = world.rank == 0
        self.name = name_of(world.rank, world.size)

    def is_here(self, owner: int) -> bool:
        """Say whether the node is in this process's part."""
        return self._parts[owner] == self._world.rank

    def row(self, owner: int, size: int) -> Params:
        """Return memory, or what stands for another process's row."""
        if self.is_here(owner):
            return np.empty(size, np.float32)
        return Elsewhere.of(self._parts[owner], size)

    def share(self, wave: Sequence[Mixture]) -> list[Mixture]:
        """Return the mixtures of this part, after the rows between the parts have been swapped."""
        me = self._world.rank
        give: dict[int, list[Params]] = {}
        take: dict[int, list[Params]] = {}
        for mixture in wave:
            process = self._parts[mixture.owner]
            for row in mixture.rows:
                if process == me and isinstance(row, Elsewhere) and row.received is None:
                    row.received = np.empty(len(row), np.float32)
                    take.setdefault(row.process, []).append(row.received)
                elif process != me and self._is_ours(row) and self._gives_first(row, process):
                    give.setdefault(process, []).append(row)
        self._world.swap(give, take)
        own = [mixture for mixture in wave if self._parts[mixture.owner] == me]
        return [replace(mixture, rows=tuple(map(_received, mixture.rows))) for mixture in own]

    def _is_ours(self, row: Params) -> bool:
        """Say whether this process alone has the row."""
        return not isinstance(row, Elsewhere) and row is not self._initial

    def _gives_first(self, row: Params, process: int) -> bool:
        """Note that the process gets the row; return False where it has got it before."""
        key = id(row)
        if key not in self._given:
            self._given[key] = set()
            finalize(row, self._given.pop, key).atexit = False
        known = process in self._given[key]
        self._given[key].add(process)
        return not known

    def digests(self, found: dict[int, str], owners: Sequence[int]) -> list[str]:
        """Return what all processes have found."""
        found = _merged(self._world.gather(found, dict[int, str]))
        return [found[i] for i in range(len(owners))]

    def engine(self, engine: Engine) -> Engine:
        """Return the engine that serves all nodes, each in its own process."""
        return Divided(engine, self._world, self._parts)

    def measure(self, rows: Sequence[Params], of: Callable[[Params], float]) -> list[float]:
        """Return a number for each row."""
        own = {i: float(of(row)) for i, row in enumerate(rows) if not isinstance(row, Elsewhere)}
        found = _merged(self._world.gather(own, dict[int, float]))
        return [found[i] for i in range(len(rows))]

    def average(self, rows: Sequence[Params]) -> Params:
        """Return the mean: each process sums up pieces of all rows, and gives them to the others."""
        size, processes = len(rows[0]), self._world.size
        average = np.empty(size, np.float32)
        width = max(1, min(_PIECE // len(rows), -(-size // processes)))
        for start in range(0, size, width * processes):
            bounds = [min(size, start + i * width) for i in range(processes + 1)]
            self._average(rows, [slice(*ends) for ends in pairwise(bounds)], average)
        return average

    def _average(self, rows: Sequence[Params], spans: Sequence[slice], average: Params) -> None:
        """Write one span of the average for each process."""
        me, own = self._world.rank, [row for row in rows if self._is_ours(row)]
        widths = [span.stop - span.start for span in spans]
        others = [process for process in range(len(spans)) if process != me]
        theirs = [row.process for row in rows if isinstance(row, Elsewhere)]
        pieces = {process: np.empty((theirs.count(process), widths[me]), np.float32) for process in others}
        self._world.swap(
            {
                process: [np.stack([row[spans[process]] for row in own])]
                for process in others
                if own and widths[process]
            },
            {process: [piece] for process, piece in pieces.items() if piece.size},
        )
        if widths[me]:
            arrived = {process: iter(piece) for process, piece in pieces.items()}
            parts = [next(arrived[row.process]) if isinstance(row, Elsewhere) else row[spans[me]] for row in rows]
            average[spans[me]] = plain_mean(parts)
        self._world.swap(
            {process: [average[spans[me]]] for process in others if widths[me]},
            {process: [average[spans[process]]] for process in others if widths[process]},
        )

    def sha256(self, rows: Sequence[Params]) -> str:
        """Return the digest that the first process takes of all rows, one after the other."""
        return self._world.gather(params_sha256(self._led(rows)), str)[0]

    def _led(self, rows: Sequence[Params]) -> Iterator[Params]:
        """Yield the rows in order where they are led together; elsewhere send those that are here, and yield none."""
        for row in rows:
            if not self.leads:
                self._world.swap({0: [row]} if self._is_ours(row) else {}, {})
            elif isinstance(row, Elsewhere):
                arrived = np.empty(len(row), np.float32)
                self._world.swap({}, {row.process: [arrived]})
                yield arrived
            else:
                yield row

    def agree(self, wish: Wish) -> Wish:
        """Return the weightiest wish."""
        return Wish(self._world.largest(wish))

    def newest(self, checkpoint: int) -> int:
        """Return the largest number."""
        return self._world.largest(checkpoint)

    def describe(self) -> dict[str, Any]:
        """Return how many processes, how many edges between them, and how many bytes of rows they have exchanged."""
        exchanged = sum(self._world.gather(self._world.sent_bytes, int))
        return {"processes": self._world.size, "cut_edges": self._cut_edges, "exchanged_bytes": exchanged}


@dataclass(frozen=True, slots=True)
class Divided:
    """An Engine for all nodes that has each trained and tested in its own process."""

    own: Engine
    world: World
    parts: Sequence[int]

    def train(self, works: Sequence[Work]) -> list[Outcome]:
        """Train the nodes of this part; return the outcomes of all."""
        own = [work for work in works if self.parts[work.node] == self.world.rank]
        found = self.own.train(own) if own else []
        outcomes = [iter(part) for part in self.world.gather([_plain(outcome) for outcome in found], list[Outcome])]
        return [next(outcomes[self.parts[work.node]]) for work in works]

    def evaluate(self, tests: Sequence[Test], samples: int) -> list[Evaluation]:
        """Test the models that are here; those that all processes have are tested by all, to the same end."""
        own = [i for i, test in enumerate(tests) if not isinstance(test.params, Elsewhere)]
        found = self.own.evaluate([tests[i] for i in own], samples) if own else []
        told = {i: _told(evaluation) for i, evaluation in zip(own, found, strict=True)}
        every = _merged(self.world.gather(told, dict[int, _Told]))
        return [Evaluation(*every[i]) for i in range(len(tests))]

    def describe(self) -> dict[str, Any]:
        """Return what this process's engine says."""
        return self.own.describe()

    def close(self) -> None:
        """Close this process's engine."""
        self.own.close()


def _plain(outcome: Outcome) -> Outcome:
    """Return the outcome with a float of Python's, as it goes to others."""
    return replace(outcome, loss=_float(outcome.loss))


def _told(found: Evaluation) -> _Told:
    """Return the evaluation as it goes to others."""
    return _float(found.accuracy), _float(found.own_accuracy), _float(found.loss), found.samples, found.error


def _float(number: float | None) -> float | None:
    return None if number is None else float(number)


def _received(row: Params) -> Params:
    return row.received if isinstance(row, Elsewhere) and row.received is not None else row


def _merged(found: Sequence[dict[int, Any]]) -> dict[int, Any]:
    return {place: value for part in found for place, value in part.items()}
