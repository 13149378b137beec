"""A graph cut into parts of equal size with few edges between them: which process computes which node.

Parts are pieces of a walk in breadth, made better by swaps of two nodes as Kernighan and Lin (1970) choose them; the
best of a few walks, and of a plain deal, is taken. Equal graphs are cut alike everywhere: nothing is drawn or timed.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import combinations
from typing import TypeAlias

Edges: TypeAlias = Sequence[Sequence[int]]
"""The neighbours of every node, by their places; symmetric, without loops."""

_ROUNDS = 8
"""So often every two parts swap nodes, at most; more gain next to nothing."""


def parts_of(edges: Edges, count: int) -> list[int]:
    """Return the part, from 0 to `count` - 1, of every node; sizes differ by one at most.

    No more edges are cut than by dealing the nodes out in turn.
    """
    nodes = len(edges)
    far = _walk(edges, 0)[-1] if nodes else 0
    walks = [_walk(edges, start) for start in sorted({far, 0, nodes // 2}) if start < nodes]
    candidates = [[node % count for node in range(nodes)], *(_pieces(walk, count) for walk in walks)]
    for parts in candidates:
        _refine(edges, parts, count)
    return min(candidates, key=lambda parts: cut_edges(edges, parts))


def cut_edges(edges: Edges, parts: Sequence[int]) -> int:
    """Return how many edges have their ends in two parts."""
    return sum(parts[node] != parts[other] for node, near in enumerate(edges) for other in near) // 2


def _walk(edges: Edges, start: int) -> list[int]:
    """Return all nodes in breadth from `start` on; where a component ends, the first node that is left goes on."""
    seen, order = set[int](), list[int]()
    for begin in [start, *range(len(edges))]:
        if begin in seen:
            continue
        seen.add(begin)
        order.append(begin)
        at = len(order) - 1
        while at < len(order):
            fresh = [other for other in edges[order[at]] if other not in seen]
            seen.update(fresh)
            order += fresh
            at += 1
    return order


def _pieces(walk: Sequence[int], count: int) -> list[int]:
    parts = [0] * len(walk)
    for place, node in enumerate(walk):
        parts[node] = place * count // len(walk)
    return parts


def _refine(edges: Edges, parts: list[int], count: int) -> None:
    """Swap nodes between every two parts until no pass gains anything."""
    for _ in range(_ROUNDS):
        gained = [_swap_best(edges, parts, a, b) for a, b in combinations(range(count), 2)]
        if not any(gained):
            return


def _swap_best(edges: Edges, parts: list[int], a: int, b: int) -> int:
    """Swap the nodes of two parts, each once, in the order of what that gains; keep the swaps up to the best cut.

    Returns how many edges less are cut.
    """
    gains = {node: _gain(edges, parts, node, a, b) for node, part in enumerate(parts) if part in {a, b}}
    heaps = {side: [(-gain, node) for node, gain in gains.items() if parts[node] == side] for side in (a, b)}
    for heap in heaps.values():
        heapq.heapify(heap)
    swapped: list[tuple[int, int]] = []
    total = best = kept = 0
    for _ in range(min(map(len, heaps.values()))):
        one, other = _top(heaps[a], gains), _top(heaps[b], gains)
        total += gains.pop(one) + gains.pop(other) - 2 * (other in edges[one])
        parts[one], parts[other] = b, a
        swapped.append((one, other))
        if total > best:
            best, kept = total, len(swapped)
        for node in {*edges[one], *edges[other]} & gains.keys():
            gains[node] = _gain(edges, parts, node, a, b)
            heapq.heappush(heaps[parts[node]], (-gains[node], node))
    for one, other in swapped[kept:]:
        parts[one], parts[other] = a, b
    return best


def _gain(edges: Edges, parts: Sequence[int], node: int, a: int, b: int) -> int:
    """Return how many edges less would be cut were the node on the other side."""
    own, other = (a, b) if parts[node] == a else (b, a)
    near = [parts[neighbour] for neighbour in edges[node]]
    return near.count(other) - near.count(own)


def _top(heap: list[tuple[int, int]], gains: dict[int, int]) -> int:
    """Take the node that gains most; what a heap says of a node is out of date where `gains` says otherwise."""
    while True:
        lost, node = heapq.heappop(heap)
        if gains.get(node) == -lost:
            return node
