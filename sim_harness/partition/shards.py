"""Dealing shards of the samples sorted by class, so that a node sees few classes: in two ways that are both in use."""

from __future__ import annotations

import random

import numpy as np

from agent.errors import DataError
from sim_harness.partition.deal import Deal, Indices


def shard(deal: Deal) -> list[Indices]:
    """Sort by class, cut into `nodes * shards` equal shards, deal `shards` of them to each node at random.

    A node so sees few classes (McMahan et al. 2017, section 3, with 2 shards). Shards differ by at most one sample.
    """
    shards = deal.settings.shards
    parts = deal.nodes * shards
    deal.enough_for(parts, f"shards ({deal.nodes} nodes with {shards} each)")
    cut = np.array_split(np.argsort(deal.labels, kind="stable"), parts)
    dealt = deal.generator().permutation(parts)
    return [np.sort(np.concatenate([cut[i] for i in hand])) for hand in np.split(dealt, deal.nodes)]


def kshard(deal: Deal) -> list[Indices]:
    """Sort by class; node by node cut `shards` runs out of what is left, each from a random place, round the end.

    As SkipTrain's experiments were made (decentralizepy, KShardDataPartitioner), to the sample for equal seeds. What is
    left closes up after each cut, so a run may hold more classes than its length says. All runs have the same length
    but those of the last node, which holds the rest of dividing the samples among the nodes; the remainders of dividing
    by `shards` are dealt to nobody.
    """
    shards, rng = deal.settings.shards, random.Random(deal.seed)  # noqa: S311  the published deal
    deal.enough_for(deal.nodes * shards, f"shards ({deal.nodes} nodes with {shards} each)")
    left = np.argsort(deal.labels, kind="stable")
    found = []
    for size in _sizes(len(deal), deal.nodes):
        runs = []
        for _ in range(shards):
            start = rng.randint(0, len(left) - 1)
            places = np.arange(start, start + size // shards) % len(left)
            runs.append(left[places])
            left = np.delete(left, places)
        found.append(np.sort(np.concatenate(runs)))
    if not all(map(len, found)):
        raise DataError(f"{len(deal)} training samples are too few for {deal.nodes} nodes; use fewer, or more data")
    return found


def _sizes(samples: int, nodes: int) -> list[int]:
    """Return how many samples each node is to get, by way of the published fractions, which may round one away."""
    each = samples // nodes
    return [int(size / samples * samples) for size in [*[each] * (nodes - 1), samples - each * (nodes - 1)]]
