"""Dealing without regard to classes: to each the same number of samples, or to some many and to others few."""

from __future__ import annotations

import numpy as np

from sim_harness.partition.deal import Deal, Indices, topped_up


def iid(deal: Deal) -> list[Indices]:
    """Deal all samples at random; sizes differ by at most one."""
    deal.enough_for(deal.nodes, "nodes")
    return [np.sort(hand) for hand in np.array_split(deal.generator().permutation(len(deal)), deal.nodes)]


def quantity(deal: Deal) -> list[Indices]:
    """Deal all samples at random; the nodes' shares of them are one draw of Dirichlet(alpha), `min_samples` at least.

    The smaller alpha, the more unequal the nodes (Li et al. 2022, NIID-Bench: quantity skew).
    """
    rng = deal.generator()
    cuts = shares(rng, deal.settings.alpha, deal.nodes, len(deal))
    return topped_up(deal, np.split(rng.permutation(len(deal)), cuts), rng)


def shares(rng: np.random.Generator, alpha: float, nodes: int, samples: int) -> Indices:
    """Return where to cut so many samples into the nodes' shares, by one draw of Dirichlet(alpha); shape (nodes-1,)."""
    drawn = rng.dirichlet(np.full(nodes, alpha))
    return np.round(np.cumsum(drawn)[:-1] * samples).astype(np.intp).clip(0, samples)
