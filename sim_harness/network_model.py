"""What a scenario's section `network` does to messages and nodes, as functions of the run's seed and of names only."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from agent.core.seeding import uniform
from agent.core.types import NodeId
from sim_harness.network_sections import CutSection, NetworkSection

MAX_ABSENCES = 100_000
"""Of one node by chance: who leaves more often than that has a mean far below a round's length."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One model on its way to one neighbour."""

    delay_s: float
    arriving: tuple[int, ...]
    """Which of its messages will arrive, by their numbers."""


class NetworkModel:
    """Asked by places in node order, answers for the whole run."""

    def __init__(self, network: NetworkSection, nodes: Sequence[NodeId], seed: int) -> None:
        self._network, self._nodes, self._seed = network, nodes, seed
        self._plain = network.loss == 0 and network.delay_s[0] == network.delay_s[1] and not network.bandwidth_bytes_s
        self.presence_s = network.delay_s[0]
        """How long it takes until others hear that a node has come or gone."""
        self._sides = {cut: self._side(number, cut) for number, cut in enumerate(network.partitions)}
        self.changes = sorted({moment for cut in network.partitions for moment in (cut.from_s, cut.to_s)})
        """When parts of the network are cut off or come back."""

    def send(self, sender: int, receiver: int, turn: int, round_: int, chunks: int, size_bytes: int) -> Sent:  # noqa: PLR0917
        """Return what becomes of a model of so many chunks and bytes; `turn` neighbours are served up to this one."""
        network, names = self._network, (self._nodes[sender], self._nodes[receiver], round_)
        if self._plain:
            return Sent(network.delay_s[0], self._all(chunks))
        low, high = network.delay_s
        delay_s = low + (high - low) * uniform(self._seed, "delay", *names)
        if network.bandwidth_bytes_s:
            delay_s += turn * size_bytes / network.bandwidth_bytes_s
        if not network.loss:
            return Sent(delay_s, self._all(chunks))
        return Sent(delay_s, tuple(i for i in range(chunks) if uniform(self._seed, "loss", *names, i) >= network.loss))

    @staticmethod
    @cache
    def _all(chunks: int) -> tuple[int, ...]:
        return tuple(range(chunks))

    def parted(self, now: float) -> bool:
        """Say whether any part of the network is cut off now."""
        return any(cut.from_s <= now < cut.to_s for cut in self._sides)

    def reaches(self, sender: int, receiver: int, now: float) -> bool:
        """Say whether what one node sends now can reach another."""
        return not self._sides or all(
            side[sender] == side[receiver] for cut, side in self._sides.items() if cut.from_s <= now < cut.to_s
        )

    def _side(self, number: int, cut: CutSection) -> tuple[int, ...]:
        """Return on which side of a cut each node is."""
        if cut.groups:
            of = {node: place for place, group in enumerate(cut.groups, start=1) for node in group}
            return tuple(of.get(node, 0) for node in self._nodes)
        order = sorted(range(len(self._nodes)), key=lambda i: uniform(self._seed, "cut", number, self._nodes[i]))
        apart = set(order[: round(cut.share * len(order))])
        return tuple(int(i in apart) for i in range(len(self._nodes)))

    def slowness(self, node: int, round_: int) -> float:
        """Return how many times as long as its device a node takes for a training round."""
        stragglers = self._network.stragglers
        names = (self._nodes[node], round_) if stragglers.every_round else (self._nodes[node],)
        slow = stragglers.share > 0 and uniform(self._seed, "straggler", *names) < stragglers.share
        return stragglers.factor if slow else 1.0

    def absences(self, node: int) -> Iterator[tuple[float, float]]:
        """Yield from when to when a node is gone, in order; without end where it leaves by chance."""
        listed = sorted((a.from_s, a.to_s) for a in self._network.churn.absences if a.node == self._nodes[node])
        yield from _merged(listed, self._by_chance(node))

    def _by_chance(self, node: int) -> Iterator[tuple[float, float]]:
        churn, name = self._network.churn, self._nodes[node]
        if churn.mean_up_s is None or churn.mean_down_s is None:
            return
        if uniform(self._seed, "churns", name) >= churn.share:
            return
        now = 0.0
        for i in range(MAX_ABSENCES):
            gone_s = now - churn.mean_up_s * math.log1p(-uniform(self._seed, "up", name, i))
            now = gone_s - churn.mean_down_s * math.log1p(-uniform(self._seed, "down", name, i))
            yield gone_s, now


def _merged(
    listed: Sequence[tuple[float, float]], chance: Iterator[tuple[float, float]]
) -> Iterator[tuple[float, float]]:
    """Merge two sorted streams of spans; those that overlap become one."""
    open_: tuple[float, float] | None = None
    for span in heapq.merge(listed, chance):
        if open_ is not None and span[0] > open_[1]:
            yield open_
            open_ = span
        else:
            open_ = span if open_ is None else (open_[0], max(open_[1], span[1]))
    if open_ is not None:
        yield open_
