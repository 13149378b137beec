"""Every kind of graph: symmetric, without loops, connected, the same for all who compute it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from agent.core.topology import TOPOLOGIES, Graph, feasible_degree, neighbours
from agent.core.types import NodeId, TopologySpec

SIZES = [*range(1, 18), 31, 32, 64]


def roster_of(count: int) -> list[NodeId]:
    """Return `count` node ids."""
    return [NodeId(f"node-{i:03}") for i in range(count)]


def spec_of(kind: str, count: int, degree: int = 4) -> TopologySpec:
    """Return a topology; `file` lists a path."""
    roster = roster_of(count)
    return TopologySpec(kind, degree, tuple(pairwise(roster)))


def edges_of(graph: Graph) -> set[tuple[NodeId, NodeId]]:
    """Return each edge once."""
    return {(a, b) for a, found in graph.items() for b in found if a < b}


def is_connected(graph: Graph) -> bool:
    """Say whether every node can be reached from the first, computed here a second time."""
    seen: set[NodeId] = set()
    todo = [next(iter(graph))]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += graph[node]
    return seen == set(graph)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("kind", sorted(TOPOLOGIES))
def test_graph_is_symmetric_connected_and_without_loops(kind: str, count: int) -> None:
    """Whatever the number of nodes, each kind gives a graph on which models can mix."""
    graph = neighbours(spec_of(kind, count), roster_of(count), seed=3)
    assert set(graph) == set(roster_of(count))
    assert all(node not in found for node, found in graph.items())
    assert all(node in graph[other] for node, found in graph.items() for other in found)
    assert is_connected(graph)


@pytest.mark.parametrize("kind", sorted(TOPOLOGIES))
def test_graph_depends_on_the_set_of_members_and_not_on_their_order(kind: str) -> None:
    """All nodes compute the same graph, in whatever order they know the members, and even if one is named twice."""
    roster, spec = roster_of(12), spec_of(kind, 12)
    graph = neighbours(spec, roster, seed=5)
    assert neighbours(spec, [*reversed(roster), roster[3]], seed=5) == graph


@pytest.mark.parametrize("degree", range(2, 12))
@pytest.mark.parametrize("count", SIZES)
def test_regular_is_exactly_regular(count: int, degree: int) -> None:
    """Every node has exactly the feasible degree."""
    spec = TopologySpec("regular", degree)
    graph = neighbours(spec, roster_of(count), seed=11)
    assert {len(found) for found in graph.values()} == {feasible_degree(spec, count)}


@pytest.mark.parametrize(
    ("degree", "count", "feasible"), [(4, 3, 2), (3, 5, 2), (3, 4, 3), (3, 6, 3), (6, 256, 6), (4, 1, 0), (1, 2, 1)]
)
def test_a_degree_that_cannot_be_is_lowered(degree: int, count: int, feasible: int) -> None:
    """Four neighbours among three nodes, or an odd degree over an odd roster, become the next degree that can be."""
    assert feasible_degree(TopologySpec("regular", degree), count) == feasible


def test_regular_of_degree_1_is_pairs() -> None:
    """Degree 1 is the one regular graph that cannot be connected: pairs."""
    graph = neighbours(TopologySpec("regular", 1), roster_of(8), seed=1)
    assert {len(found) for found in graph.values()} == {1}


@pytest.mark.parametrize("kind", ["regular", "ring", "rings", "small-world", "scale-free"])
def test_another_seed_gives_another_graph(kind: str) -> None:
    """The run's seed decides the graph."""
    spec, roster = spec_of(kind, 32), roster_of(32)
    assert neighbours(spec, roster, seed=1) != neighbours(spec, roster, seed=2)


@pytest.mark.parametrize("degree", [2, 4, 6, 10])
def test_rings_change_few_edges_when_a_node_joins_or_leaves(degree: int) -> None:
    """A join or a leave changes at most three edges a ring, however large the fleet is."""
    spec, roster = TopologySpec("rings", degree), roster_of(200)
    whole = edges_of(neighbours(spec, roster, seed=9))
    for gone in roster[::20]:
        rest = edges_of(neighbours(spec, [node for node in roster if node != gone], seed=9))
        assert len(whole ^ rest) <= 3 * (degree // 2)


@pytest.mark.parametrize("degree", [2, 4, 6, 10])
def test_rings_never_exceed_their_degree(degree: int) -> None:
    """Rings may share an edge, so that a node has fewer neighbours than asked for, never more."""
    graph = neighbours(TopologySpec("rings", degree), roster_of(50), seed=9)
    assert all(2 <= len(found) <= degree for found in graph.values())


@pytest.mark.parametrize("kind", sorted(TOPOLOGIES))
def test_256_nodes(kind: str) -> None:
    """The size of the paper is quick and connected in every kind."""
    graph = neighbours(spec_of(kind, 256, degree=10), roster_of(256), seed=90)
    assert is_connected(graph)


def test_scale_free_has_hubs() -> None:
    """Preferential attachment makes a few nodes with many neighbours."""
    sizes = sorted(len(found) for found in neighbours(spec_of("scale-free", 200), roster_of(200), seed=4).values())
    assert sizes[-1] > 4 * sizes[len(sizes) // 2]


def test_edges_of_strangers_do_not_count() -> None:
    """`file` keeps the edges between members, once, and in either direction."""
    a, b, c = roster_of(3)
    spec = TopologySpec("file", 0, ((a, b), (b, a), (a, "stranger"), (c, c)))
    assert edges_of(neighbours(spec, [a, b, c], seed=0)) == {(a, b)}
