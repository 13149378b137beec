"""Metropolis-Hastings weights and sums: stochastic, symmetric, the same bits everywhere."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.mixing import adopt, mix, mixing_weights
from agent.core.topology import TOPOLOGIES, neighbours
from agent.core.types import NodeId, Params, TopologySpec
from tests.core.cluster import names

QUICK = settings(deadline=None, derandomize=True, max_examples=60)
A, B, C, D = names(4)


def vectors(count: int, size: int = 7, seed: int = 0) -> dict[NodeId, Params]:
    """Return random models of nodes a, b, c and so on."""
    rng = np.random.default_rng(seed)
    return {node: rng.standard_normal(size).astype(np.float32) for node in names(count)}


def test_weights_by_hand() -> None:
    """w_ij = 1/(1 + max(d_i, d_j)), and the rest stays with self."""
    assert mixing_weights(B, 2, {A: 3, C: 1}) == {A: 1 / 4, B: pytest.approx(1 - 1 / 4 - 1 / 3), C: 1 / 3}


def test_a_neighbour_that_did_not_arrive_gives_its_weight_to_self() -> None:
    """The weights of those who arrived do not change."""
    assert mixing_weights(A, 3, {B: 3}) == {A: 0.75, B: 0.25}


def test_without_neighbours_the_model_is_kept_to_the_bit() -> None:
    """Nobody there means identity."""
    model = vectors(1)[A]
    assert mixing_weights(A, 0, {}) == {A: 1.0}
    assert mix({A: model}, {A: 1.0}).tobytes() == model.tobytes()


@QUICK
@given(st.integers(0, 40), st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_weights_are_a_distribution_whatever_degrees_are_claimed(degree: int, claimed: list[int]) -> None:
    """With at most `degree` arrivals the weights are non-negative and sum to 1, whatever others say of themselves."""
    arrived = {NodeId(f"n{i}"): other for i, other in enumerate(claimed[:degree])}
    weights = mixing_weights(NodeId("me"), degree, arrived)
    assert sum(weights.values()) == pytest.approx(1.0)
    assert min(weights.values()) >= 0.0
    assert list(weights) == sorted(weights)


@pytest.mark.parametrize("kind", sorted(TOPOLOGIES))
def test_the_mean_of_all_models_is_kept(kind: str) -> None:
    """On every symmetric graph, regular or not, one round of mixing keeps the mean."""
    roster = names(11)
    spec = TopologySpec(kind, 4, tuple(pairwise(roster)))
    graph, models = neighbours(spec, roster, seed=2), vectors(11)
    after = [
        mix(models, mixing_weights(node, len(graph[node]), {peer: len(graph[peer]) for peer in graph[node]}))
        for node in roster
    ]
    assert np.abs(np.mean(after, axis=0) - np.mean(list(models.values()), axis=0)).max() < 1e-6


def test_sums_run_in_the_order_of_ids_and_not_of_arrival() -> None:
    """Equal inputs give equal bits, in whatever order they arrived."""
    models = vectors(4, size=1000)
    weights = mixing_weights(B, 3, dict.fromkeys((A, C, D), 3))
    backwards = {node: models[node] for node in reversed(list(models))}
    shuffled = {node: weights[node] for node in (D, A, C, B)}
    assert mix(models, weights).tobytes() == mix(backwards, shuffled).tobytes()


def test_mixing_leaves_its_inputs_alone() -> None:
    """The models of others are read only; the result is a vector of its own, float32."""
    models = vectors(3)
    before = {node: model.copy() for node, model in models.items()}
    for model in models.values():
        model.flags.writeable = False
    result = mix(models, mixing_weights(A, 2, {B: 2, C: 2}))
    assert result.dtype == np.float32
    assert all(np.array_equal(models[node], before[node]) for node in models)
    assert not any(np.shares_memory(result, model) for model in models.values())


def test_equal_models_stay_what_they_are() -> None:
    """A consensus is a fixed point up to rounding."""
    model = vectors(1)[A]
    mixed = mix(dict.fromkeys((A, B, C), model), mixing_weights(A, 2, {B: 2, C: 2}))
    assert np.abs(mixed - model).max() < 1e-6


def test_large_finite_models_do_not_overflow() -> None:
    """A convex sum of finite numbers is finite, even at the end of float32."""
    top = np.full(3, np.finfo(np.float32).max, np.float32)
    assert np.isfinite(mix(dict.fromkeys((A, B, C), top), {A: 0.25, B: 0.25, C: 0.25})).all()


def test_adopting_is_the_plain_mean_of_others() -> None:
    """A joiner starts from the mean of its neighbours' models, with no weight of its own."""
    models = vectors(3)
    assert np.abs(adopt(models) - np.mean(list(models.values()), axis=0)).max() < 1e-6
