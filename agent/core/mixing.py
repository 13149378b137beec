"""Metropolis-Hastings averaging, adapt-then-combine: x_i <- sum_j w_ij x_j after local training.

w_ij = 1 / (1 + max(d_i, d_j)) for each neighbour j whose model arrived, and w_ii is the rest, so that a neighbour that
did not arrive gives its weight back to self, and a node without neighbours keeps its model. Where every edge delivered
both ways the matrix is doubly stochastic and the mean of all models is kept. Sums run over the sorted ids, self in its
place, so that equal inputs give equal bits on every node and in every driver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from agent.core.types import NodeId, Params, params_digest


def mixing_weights(me: NodeId, degree: int, arrived: Mapping[NodeId, int]) -> dict[NodeId, float]:
    """Return the weight of each model, in sorted order; `arrived` maps a neighbour to its degree."""
    weights = {node: 1.0 / (1.0 + max(degree, other)) for node, other in arrived.items()}
    weights[me] = 1.0 - sum(weights[node] for node in sorted(weights))
    return {node: weights[node] for node in sorted(weights)}


def mix(models: Mapping[NodeId, Params], weights: Mapping[NodeId, float]) -> Params:
    """Return the weighted sum of `models` (each of shape (n,), float32) over the sorted node ids, as a new vector."""
    order = sorted(weights)
    total: Params = np.empty_like(models[order[0]])
    weighted_sum([models[node] for node in order], [weights[node] for node in order], total, np.empty_like(total))
    return total


def weighted_sum(rows: Sequence[Params], weights: Sequence[float], out: Params, scratch: Params) -> None:
    """Write the weighted sum of `rows` to `out`, in their order; all of shape (n,), float32, none of them an input.

    It is one row of the product of mixing matrix and stacked models: who emulates many nodes computes the rows in any
    order and on any number of threads, and gets the bits that each node alone gets.
    """
    np.multiply(rows[0], np.float32(weights[0]), out=out)
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        np.multiply(row, np.float32(weight), out=scratch)
        np.add(out, scratch, out=out)


def adopt(models: Mapping[NodeId, Params]) -> Params:
    """Return the plain mean of the neighbours' models: what a fresh joiner starts from."""
    return mix(models, dict.fromkeys(models, 1.0 / len(models)))


class Arithmetic(Protocol):
    """What a machine computes with models; a driver of many may put it off until somebody needs the numbers."""

    def mix(self, models: Mapping[NodeId, Params], weights: Mapping[NodeId, float]) -> Params:
        """Return what `mix` returns."""

    def adopt(self, models: Mapping[NodeId, Params]) -> Params:
        """Return what `adopt` returns."""

    def digest(self, params: Params) -> str:
        """Return what `params_digest` returns, or what will stand for it."""


class AtOnce:
    """Arithmetic that is done when it is asked for."""

    mix = staticmethod(mix)
    adopt = staticmethod(adopt)
    digest = staticmethod(params_digest)
