"""Dealing class by class: mixtures by chance, so many classes a node, or groups of nodes with their own classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from agent.errors import DataError
from sim_harness.partition.deal import Deal, Indices, hands, topped_up
from sim_harness.partition.evenly import shares


def dirichlet(deal: Deal) -> list[Indices]:
    """Divide each class among the nodes by a draw of Dirichlet(alpha) of its own; `min_samples` each at least.

    So the nodes differ in their mixtures of classes, and in their sizes; the more the smaller alpha (Yurochkin et al.
    2019, Li et al. 2022).
    """
    rng = deal.generator()
    parts: list[list[Indices]] = [[] for _ in range(deal.nodes)]
    for samples in _by_class(deal, rng):
        pieces = np.split(samples, shares(rng, deal.settings.alpha, deal.nodes, len(samples)))
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    return topped_up(deal, [np.concatenate(part) for part in parts], rng)


def classes(deal: Deal) -> list[Indices]:
    """Give each node `classes` classes, and divide each class evenly among those that have it.

    One class of a node is its number modulo the classes, so that all are there, the others are drawn (Li et al. 2022).
    Classes that no node has, with few nodes, are left out.
    """
    deal.enough_for(deal.nodes, "nodes")
    rng, count = deal.generator(), deal.settings.classes
    pools = _by_class(deal, rng)
    if count > len(pools):
        raise DataError(f"data.partition.classes is {count}, but there are {len(pools)} classes; use that many at most")
    holders: list[list[int]] = [[] for _ in pools]
    for node in range(deal.nodes):
        first = node % len(pools)
        others = np.delete(np.arange(len(pools)), first)
        for name in (first, *rng.choice(others, count - 1, replace=False)):
            holders[name].append(node)
    parts = _divided(deal.nodes, pools, holders, rng)
    return hands(deal, parts, "use fewer nodes, or more classes a node")


def clustered(deal: Deal) -> list[Indices]:
    """Cut the nodes, in their order, into `groups`, and deal the classes to them: a group's nodes are alike.

    Classes are dealt at random and as evenly as can be; where there are more groups than classes, groups share one.
    A group's samples go to its nodes evenly.
    """
    deal.enough_for(deal.nodes, "nodes")
    groups = deal.settings.groups
    if groups > deal.nodes:
        raise DataError(f"data.partition.groups is {groups}, but there are {deal.nodes} nodes; use that many at most")
    rng = deal.generator()
    pools = _by_class(deal, rng)
    order = rng.permutation(len(pools))
    members = np.array_split(np.arange(deal.nodes), groups)
    holders: list[list[int]] = [[] for _ in pools]
    for turn in range(max(groups, len(pools))):
        holders[order[turn % len(pools)]].extend(int(node) for node in members[turn % groups])
    parts = _divided(deal.nodes, pools, holders, rng)
    return hands(deal, parts, "use fewer nodes, or fewer groups")


def _by_class(deal: Deal, rng: np.random.Generator) -> list[Indices]:
    """Return the samples of each class that there is, shuffled."""
    return [rng.permutation(np.flatnonzero(deal.labels == name)) for name in np.unique(deal.labels)]


def _divided(
    nodes: int, pools: list[Indices], holders: list[list[int]], rng: np.random.Generator
) -> list[npt.NDArray[np.intp]]:
    """Divide each pool evenly among its holders; who gets one sample more is drawn."""
    parts: list[list[Indices]] = [[np.empty(0, np.intp)] for _ in range(nodes)]
    for pool, own in zip(pools, holders, strict=True):
        if own:
            for node, piece in zip(rng.permutation(own), np.array_split(pool, len(own)), strict=True):
                parts[node].append(piece)
    return [np.concatenate(part) for part in parts]
