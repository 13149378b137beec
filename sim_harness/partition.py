"""How the training samples are dealt out to the nodes; every sample goes to exactly one node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from agent.core.seeding import generator
from agent.errors import DataError

Labels: TypeAlias = npt.NDArray[np.integer]
"""The class of each sample, shape (n,)."""

Indices: TypeAlias = npt.NDArray[np.intp]
"""The samples of one node, ascending, shape (its number of samples,)."""

Partition: TypeAlias = Callable[[Labels, int, int, int], list[Indices]]
"""From labels, number of nodes, the run's seed and shards a node, to the samples of each node.

Raises `DataError` if a node would get no sample.
"""


def iid(labels: Labels, nodes: int, seed: int, _shards: int) -> list[Indices]:
    """Deal all samples at random; sizes differ by at most one."""
    _enough(len(labels), nodes, "nodes")
    dealt = generator(seed, "partition", "iid").permutation(len(labels))
    return [np.sort(hand) for hand in np.array_split(dealt, nodes)]


def shard(labels: Labels, nodes: int, seed: int, shards: int) -> list[Indices]:
    """Sort by class, cut into `nodes * shards` equal shards, deal `shards` of them to each node at random.

    A node so sees few classes (McMahan et al. 2017, section 3, with 2 shards). Shards differ by at most one sample.
    """
    _enough(len(labels), nodes * shards, f"shards ({nodes} nodes with {shards} each)")
    cut = np.array_split(np.argsort(labels, kind="stable"), nodes * shards)
    dealt = generator(seed, "partition", "shard").permutation(nodes * shards)
    return [np.sort(np.concatenate([cut[i] for i in hand])) for hand in np.split(dealt, nodes)]


def _enough(samples: int, parts: int, what: str) -> None:
    if samples < parts:
        raise DataError(f"{samples} training samples cannot be dealt out to {parts} {what}; use fewer, or more data")


PARTITIONS: Final[dict[str, Partition]] = {
    "iid": iid,
    "shard": shard,
}
