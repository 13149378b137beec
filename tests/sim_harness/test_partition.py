"""Every way of dealing out the samples: the contract that all keep, and what each promises beyond it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import DataError
from sim_harness.partition import PARTITIONS, Labels, shard

every_partition = pytest.mark.parametrize("kind", sorted(PARTITIONS))


@st.composite
def deals(draw: st.DrawFn) -> tuple[Labels, int, int, int]:
    """Return labels in any order, nodes, seed and shards, often with barely more samples than shards."""
    nodes, shards = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    extra = draw(st.integers(0, nodes * shards) | st.integers(0, 300))
    classes = draw(st.integers(1, 12))
    labels = np.random.default_rng(draw(st.integers(0, 2**32))).integers(classes, size=nodes * shards + extra)
    return labels, nodes, draw(st.integers(0, 2**63)), shards


@every_partition
@given(deals())
def test_every_sample_goes_to_exactly_one_node_and_every_node_has_one(
    kind: str,
    deal: tuple[Labels, int, int, int],
) -> None:
    """The parts are disjoint, complete, as many as there are nodes, and none is empty."""
    labels, nodes, _, _ = deal
    parts = PARTITIONS[kind](*deal)
    assert len(parts) == nodes
    assert all(len(part) for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))


@every_partition
@given(deals())
def test_the_parts_are_of_equal_size(kind: str, deal: tuple[Labels, int, int, int]) -> None:
    """No node has more than one sample a shard over another."""
    sizes = [len(part) for part in PARTITIONS[kind](*deal)]
    assert max(sizes) - min(sizes) <= deal[3]


@every_partition
@given(deals())
def test_the_same_seed_deals_the_same_hands(kind: str, deal: tuple[Labels, int, int, int]) -> None:
    """Nothing but the arguments decides, and each hand comes in ascending order."""
    first, second = PARTITIONS[kind](*deal), PARTITIONS[kind](*deal)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(np.all(np.diff(part) > 0) for part in first)


@every_partition
def test_another_seed_deals_other_hands(kind: str) -> None:
    """The seed reaches the deal."""
    labels = np.repeat(np.arange(10), 20)
    first, second = PARTITIONS[kind](labels, 10, 1, 2), PARTITIONS[kind](labels, 10, 2, 2)
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@every_partition
def test_too_few_samples_are_an_error(kind: str) -> None:
    """Fewer samples than nodes are refused, with both numbers in the message."""
    with pytest.raises(DataError, match=r"3 training samples .* 4"):
        PARTITIONS[kind](np.arange(3), 4, 1, 1)


@given(deals())
def test_a_node_holds_at_most_its_shards(deal: tuple[Labels, int, int, int]) -> None:
    """In the order by class a node's samples form at most `shards` runs, so it sees the classes of so many shards."""
    labels, _, _, shards = deal
    rank = np.empty(len(labels), dtype=int)
    rank[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    for part in shard(*deal):
        runs = 1 + np.count_nonzero(np.diff(np.sort(rank[part])) > 1)
        assert runs <= shards


def test_two_shards_of_large_classes_hold_at_most_four_classes() -> None:
    """With classes larger than a shard, as in McMahan et al. 2017, a shard holds at most two classes."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 97))
    assert all(len(np.unique(labels[part])) <= 4 for part in shard(labels, 16, 7, 2))
