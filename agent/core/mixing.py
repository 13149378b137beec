"""Metropolis-Hastings averaging, adapt-then-combine: x_i <- sum_j w_ij x_j after local training.

w_ij = 1 / (1 + max(d_i, d_j)) for each neighbour j whose model arrived, and w_ii is the rest, so that a neighbour that
did not arrive gives its weight back to self, and a node without neighbours keeps its model. Where every edge delivered
both ways the matrix is doubly stochastic and the mean of all models is kept. Sums run over the sorted ids, self in its
place, so that equal inputs give equal bits on every node and in every driver.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from agent.core.types import NodeId, Params


def mixing_weights(me: NodeId, degree: int, arrived: Mapping[NodeId, int]) -> dict[NodeId, float]:
    """Return the weight of each model, in sorted order; `arrived` maps a neighbour to its degree."""
    weights = {node: 1.0 / (1.0 + max(degree, other)) for node, other in arrived.items()}
    weights[me] = 1.0 - sum(weights[node] for node in sorted(weights))
    return {node: weights[node] for node in sorted(weights)}


def mix(models: Mapping[NodeId, Params], weights: Mapping[NodeId, float]) -> Params:
    """Return the weighted sum of `models` (each of shape (n,), float32) over the sorted node ids, as a new vector."""
    order = sorted(weights)
    total: Params = np.multiply(models[order[0]], np.float32(weights[order[0]]))
    scaled = np.empty_like(total)
    for node in order[1:]:
        np.multiply(models[node], np.float32(weights[node]), out=scaled)
        total += scaled
    return total


def adopt(models: Mapping[NodeId, Params]) -> Params:
    """Return the plain mean of the neighbours' models: what a fresh joiner starts from."""
    return mix(models, dict.fromkeys(models, 1.0 / len(models)))
