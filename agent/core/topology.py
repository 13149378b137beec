"""Which nodes are neighbours: each node computes the whole graph alone from roster, kind, degree and seed.

A degree that the roster cannot have (four neighbours among three nodes, an odd degree over an odd roster) is lowered to
the next one that it can have, by `feasible_degree`, which is the same on every node. To add a kind: one function
(members in sorted order, degree, seed, edges) -> edges, and one line in `TOPOLOGIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeAlias

from agent.core.seeding import generator, seed64
from agent.core.types import NodeId, TopologySpec

Graph: TypeAlias = dict[NodeId, frozenset[NodeId]]
Edge: TypeAlias = tuple[NodeId, NodeId]
Edges: TypeAlias = set[Edge]

_SWAPS_PER_EDGE = 10
_REWIRED_SHARE = 0.1


def neighbours(spec: TopologySpec, members: Iterable[NodeId], seed: int) -> Graph:
    """Return the neighbours of every member: symmetric, without loops, independent of the order of `members`.

    The result is shared by all who ask for the same graph: read it only.
    """
    return _graph(spec, tuple(members), seed)


@lru_cache(maxsize=8)
def _graph(spec: TopologySpec, members: tuple[NodeId, ...], seed: int) -> Graph:
    roster = sorted(set(members))
    edges = TOPOLOGIES[spec.kind](roster, feasible_degree(spec, len(roster)), seed, spec.edges)
    graph: dict[NodeId, set[NodeId]] = {node: set() for node in roster}
    for a, b in edges:
        graph[a].add(b)
        graph[b].add(a)
    return {node: frozenset(found) for node, found in graph.items()}


def feasible_degree(spec: TopologySpec, nodes: int) -> int:
    """Return the largest degree <= `spec.degree` that a graph of this kind over `nodes` nodes can have."""
    degree = max(0, min(spec.degree, nodes - 1))
    if spec.kind == "regular" and degree * nodes % 2:
        degree -= 1
    return degree


def _edge(a: NodeId, b: NodeId) -> Edge:
    return (a, b) if a < b else (b, a)


def _hash_order(roster: list[NodeId], seed: int, *names: object) -> list[NodeId]:
    """Return the roster ordered by a hash of each id alone, so that one joiner moves nobody else."""
    return sorted(roster, key=lambda node: (seed64(seed, "topology", *names, node), node))


def _circle(order: list[NodeId], offset: int = 1) -> Edges:
    n = len(order)
    return {_edge(order[i], order[(i + offset) % n]) for i in range(n) if order[i] != order[(i + offset) % n]}


def ring(roster: list[NodeId], _degree: int, seed: int, _edges: object) -> Edges:
    """One cycle through all nodes, in the order of their hashes."""
    return _circle(_hash_order(roster, seed))


def complete(roster: list[NodeId], _degree: int, _seed: int, _edges: object) -> Edges:
    """Everybody is everybody's neighbour."""
    return {_edge(a, b) for a in roster for b in roster if a < b}


def regular(roster: list[NodeId], degree: int, seed: int, _edges: object) -> Edges:
    """Return a connected random graph in which every node has exactly `degree` neighbours (degree 1: pairs).

    A circulant graph over the hashed order, shuffled by seeded double edge swaps, which keep every degree; swaps go on
    until the graph is connected again.
    """
    order = _hash_order(roster, seed)
    edges: Edges = set()
    for offset in range(1, degree // 2 + 1):
        edges |= _circle(order, offset)
    if degree % 2:
        edges |= _circle(order, len(order) // 2)
    rng = generator(seed, "topology", "swaps")
    listed = sorted(edges)
    if len(listed) < 2:  # noqa: PLR2004  a swap takes two edges
        return edges
    while True:
        for _ in range(_SWAPS_PER_EDGE * len(listed)):
            i, j = (int(k) for k in rng.integers(len(listed), size=2))
            _swap(listed, edges, i, j, flip=bool(rng.integers(2)))
        if degree < 2 or _connected(roster, edges):  # noqa: PLR2004  pairs and loners are never connected
            return edges


def _swap(listed: list[Edge], edges: Edges, i: int, j: int, *, flip: bool) -> None:
    """Replace edges (a, b), (c, d) by (a, d), (c, b), unless that makes a loop or a double edge."""
    (a, b), (c, d) = listed[i], listed[j]
    if flip:
        c, d = d, c
    first, second = _edge(a, d), _edge(c, b)
    if a == d or c == b or first in edges or second in edges or first == second:
        return
    edges -= {listed[i], listed[j]}
    edges |= {first, second}
    listed[i], listed[j] = first, second


def _connected(roster: list[NodeId], edges: Edges) -> bool:
    graph: dict[NodeId, list[NodeId]] = {node: [] for node in roster}
    for a, b in edges:
        graph[a].append(b)
        graph[b].append(a)
    seen, todo = {roster[0]}, [roster[0]]
    while todo:
        found = [node for node in graph[todo.pop()] if node not in seen]
        seen.update(found)
        todo.extend(found)
    return len(seen) == len(roster)


def rings(roster: list[NodeId], degree: int, seed: int, _edges: object) -> Edges:
    """Return the union of degree/2 hash-ordered rings: a join or a leave changes O(degree) edges.

    Two rings may share an edge, so a node can have fewer than `degree` neighbours, never more.
    """
    edges: Edges = set()
    for k in range(max(1, degree // 2)):
        edges |= _circle(_hash_order(roster, seed, "ring", k))
    return edges


def small_world(roster: list[NodeId], degree: int, seed: int, _edges: object) -> Edges:
    """Watts-Strogatz: a ring lattice whose longer edges are rewired with probability 0.1; the ring itself stays."""
    order = _hash_order(roster, seed)
    edges = _circle(order)
    rng = generator(seed, "topology", "rewire")
    for offset in range(2, degree // 2 + 1):
        for a, b in sorted(_circle(order, offset)):
            other = order[int(rng.integers(len(order)))] if rng.random() < _REWIRED_SHARE else b
            edges.add(_edge(a, b if other == a or _edge(a, other) in edges else other))
    return edges


def scale_free(roster: list[NodeId], degree: int, seed: int, _edges: object) -> Edges:
    """Barabasi-Albert: each node in turn ties to degree/2 earlier ones, drawn in proportion to their degree."""
    order = _hash_order(roster, seed)
    ties = max(1, degree // 2)
    rng = generator(seed, "topology", "ties")
    edges: Edges = set()
    ends: list[NodeId] = order[:1]
    for i in range(1, len(order)):
        chosen: set[NodeId] = set(order[:i]) if i <= ties else set()
        while len(chosen) < min(ties, i):
            chosen.add(ends[int(rng.integers(len(ends)))])
        for other in sorted(chosen):
            edges.add(_edge(order[i], other))
            ends += [order[i], other]
    return edges


def from_file(roster: list[NodeId], _degree: int, _seed: int, edges: Iterable[tuple[str, str]]) -> Edges:
    """Return the edges that the configuration lists; those of nodes outside the roster do not count."""
    known = set(roster)
    listed = ((NodeId(a), NodeId(b)) for a, b in edges)
    return {_edge(a, b) for a, b in listed if a in known and b in known and a != b}


TOPOLOGIES: dict[str, Callable[[list[NodeId], int, int, tuple[tuple[str, str], ...]], Edges]] = {
    "ring": ring,
    "complete": complete,
    "regular": regular,
    "rings": rings,
    "small-world": small_world,
    "scale-free": scale_free,
    "file": from_file,
}
