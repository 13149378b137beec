"""The cut of a graph among processes: even, never worse than dealing out, and the best where the best is plain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.topology import TOPOLOGIES
from agent.core.types import ModelShape, NodeId, RunDescriptor, Schedule, TopologySpec
from sim_harness.cut import Edges, cut_edges, parts_of
from sim_harness.together import edges_of

KINDS = sorted(TOPOLOGIES.keys() - {"file"})


def graph(kind: str, nodes: int, degree: int, seed: int) -> Edges:
    """Return a fleet's graph."""
    shape, schedule = ModelShape("small-cnn", (1, 8, 8), 10), Schedule(1, 1, 2)
    roster = tuple(NodeId(f"n{i:03d}") for i in range(nodes))
    return edges_of(RunDescriptor("r", seed, shape, schedule, "d-psgd", TopologySpec(kind, degree), roster))


@given(st.sampled_from(KINDS), st.integers(1, 40), st.integers(1, 6), st.integers(0, 99), st.integers(1, 6))
def test_parts_are_even_and_cut_no_more_than_dealing_out(
    kind: str, nodes: int, degree: int, seed: int, count: int
) -> None:
    """Sizes differ by one at most; no more is cut than by dealing out in turn, and always the same."""
    edges = graph(kind, nodes, degree, seed)
    parts = parts_of(edges, count)
    sizes = [parts.count(part) for part in range(count)]
    assert sum(sizes) == nodes
    assert max(sizes) - min(sizes) <= 1
    assert cut_edges(edges, parts) <= cut_edges(edges, [node % count for node in range(nodes)])
    assert parts_of(edges, count) == parts


@given(st.integers(2, 12), st.permutations(range(24)))
def test_two_cliques_are_cut_at_the_edge_that_joins_them(size: int, names: list[int]) -> None:
    """Whatever the nodes' places are."""
    places = sorted(range(2 * size), key=lambda i: names[i])
    near: list[list[int]] = [[] for _ in range(2 * size)]
    joined = [(a, b) for half in (0, size) for a in range(half, half + size) for b in range(half, a)]
    for a, b in [*joined, (0, size)]:
        near[places[a]].append(places[b])
        near[places[b]].append(places[a])
    assert cut_edges(near, parts_of(near, 2)) == 1


@pytest.mark.parametrize("nodes", [4, 31, 256])
def test_a_ring_is_cut_twice(nodes: int) -> None:
    """Two arcs are the best that there is."""
    edges = graph("ring", nodes, 2, seed=5)
    assert cut_edges(edges, parts_of(edges, 2)) == 2


def test_a_regular_graph_of_256_is_cut_far_less_than_by_chance() -> None:
    """Half of the edges lie between two random halves; a good cut leaves less than a quarter, for several seeds."""
    for seed in range(3):
        edges = graph("regular", 256, 6, seed)
        assert cut_edges(edges, parts_of(edges, 2)) < 256 * 3 // 4
