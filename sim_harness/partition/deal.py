"""What is dealt out, to how many, and what all ways of dealing have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from agent.core.seeding import generator
from agent.errors import DataError
from sim_harness.scenario_sections import PartitionSection

Labels: TypeAlias = npt.NDArray[np.integer]
"""The class of each sample, shape (n,)."""

Users: TypeAlias = npt.NDArray[Any]
"""Who made each sample, shape (n,)."""

Indices: TypeAlias = npt.NDArray[np.intp]
"""The samples of one node, ascending, shape (its number of samples,)."""


@dataclass(frozen=True, slots=True, eq=False)
class Deal:
    """What is to be dealt out; equal deals give equal hands."""

    labels: Labels
    nodes: int
    seed: int
    settings: PartitionSection
    users: Users | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def generator(self) -> np.random.Generator:
        """Return the deal's source of chance, from its beginning."""
        return generator(self.seed, "partition", self.settings.kind)

    def enough_for(self, parts: int, what: str) -> None:
        """Raise DataError where there are fewer samples than parts."""
        if len(self) < parts:
            raise DataError(
                f"{len(self)} training samples cannot be dealt out to {parts} {what}; use fewer, or more data"
            )


Partition: TypeAlias = Callable[[Deal], list[Indices]]
"""From a deal to the samples of each node, in node order.

Raises `DataError` if a node would get no sample.
"""


def hands(deal: Deal, parts: Iterable[npt.NDArray[np.intp]], advice: str) -> list[Indices]:
    """Return the nodes' samples in ascending order; DataError, with advice, where a node has none."""
    sorted_parts = [np.sort(part) for part in parts]
    empty = [node for node, part in enumerate(sorted_parts) if not len(part)]
    if empty:
        raise DataError(
            f"data.partition.kind {deal.settings.kind}: {len(empty)} of {deal.nodes} nodes (the first is node "
            f"{empty[0]}) would get none of {len(deal)} training samples; {advice}"
        )
    return sorted_parts


def topped_up(deal: Deal, parts: list[npt.NDArray[np.intp]], rng: np.random.Generator) -> list[Indices]:
    """Return the hands with at least `min_samples` each: who has fewer gets some of who has the most, at random."""
    least = deal.settings.min_samples
    deal.enough_for(deal.nodes * least, f"samples ({deal.nodes} nodes with {least} each, min_samples)")
    sizes = np.array([len(part) for part in parts])
    for node in np.flatnonzero(sizes < least):
        while sizes[node] < least:
            rich = int(np.argmax(sizes))
            moved = min(least - sizes[node], max(1, (sizes[rich] - least) // 2))
            mixed = rng.permutation(parts[rich])
            parts[node], parts[rich] = np.concatenate([parts[node], mixed[:moved]]), mixed[moved:]
            sizes[node] += moved
            sizes[rich] -= moved
    return [np.sort(part) for part in parts]
