"""Every way of dealing out the samples: the contract that all keep, and what each promises beyond it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as with_settings

from agent.errors import DataError
from sim_harness.partition.deal import Deal, Indices
from sim_harness.partition.registry import PARTITIONS
from sim_harness.scenario_sections import PartitionSection

every_partition = pytest.mark.parametrize("kind", sorted(PARTITIONS))
CIFAR = np.repeat(np.arange(10), 5000)
"""The labels of CIFAR-10's training set, in some order."""


@st.composite
def deals(draw: st.DrawFn) -> Deal:
    """Return labels in any order, nodes, users and settings, often with barely more samples than shards."""
    nodes, shards = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    extra = draw(st.integers(0, nodes * shards) | st.integers(0, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = nodes * shards + extra
    return Deal(
        rng.integers(draw(st.integers(1, 12)), size=count),
        nodes,
        draw(st.integers(0, 2**63)),
        PartitionSection(
            shards=shards,
            alpha=draw(st.sampled_from([0.001, 0.1, 1.0, 1e6])),
            min_samples=draw(st.integers(1, shards)),
            classes=draw(st.integers(1, 4)),
            groups=draw(st.integers(1, 5)),
            users_per_node=draw(st.integers(0, 2)),
        ),
        rng.integers(draw(st.integers(1, 60)), size=count).astype(str),
    )


def dealt(kind: str, deal: Deal) -> list[Indices]:
    """Return what each node gets."""
    return PARTITIONS[kind](replace(deal, settings=with_settings(deal.settings, kind=kind)))


def plain(labels: object, nodes: int, seed: int = 1, **settings: object) -> Deal:
    """Return a deal of those labels, each sample from a user of its own."""
    labels = np.asarray(labels)
    return Deal(labels, nodes, seed, PartitionSection(**settings), np.arange(len(labels)))


@every_partition
@given(deals())
def test_every_sample_goes_to_one_node_at_most_and_every_node_has_one(kind: str, deal: Deal) -> None:
    """The parts are disjoint and ascending, as many as there are nodes, and none is empty; or it is said why not."""
    try:
        parts = dealt(kind, deal)
    except DataError as error:
        assert any(character.isdigit() for character in str(error))  # noqa: PT017  both ways out are in the contract
        return
    assert len(parts) == deal.nodes
    assert all(len(part) for part in parts)
    assert all(np.all(np.diff(part) > 0) for part in parts)
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < len(deal)


@pytest.mark.parametrize("kind", ["iid", "quantity", "shard", "dirichlet"])
@given(deals())
def test_these_never_fail_and_leave_no_sample_out(kind: str, deal: Deal) -> None:
    """With as many samples as shards, all samples are dealt."""
    assert sorted(np.concatenate(dealt(kind, deal))) == list(range(len(deal)))


@pytest.mark.parametrize("kind", ["iid", "shard"])
@given(deals())
def test_the_parts_are_of_equal_size(kind: str, deal: Deal) -> None:
    """No node has more than one sample a shard over another."""
    sizes = [len(part) for part in dealt(kind, deal)]
    assert max(sizes) - min(sizes) <= deal.settings.shards


@every_partition
def test_the_same_seed_deals_the_same_hands_and_another_one_others(kind: str) -> None:
    """Nothing but the deal decides, and the seed reaches it."""
    deal = plain(np.repeat(np.arange(10), 20), 10)
    first, again, other = dealt(kind, deal), dealt(kind, deal), dealt(kind, replace(deal, seed=2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@every_partition
def test_too_few_samples_are_an_error(kind: str) -> None:
    """Fewer samples than nodes are refused, with both numbers in the message."""
    with pytest.raises(DataError, match=r"3 .* 4"):
        dealt(kind, plain(np.arange(3), 4, shards=1, classes=1))


@given(deals())
def test_a_node_holds_at_most_its_shards(deal: Deal) -> None:
    """In the order by class a node's samples form at most `shards` runs, so it sees the classes of so many shards."""
    rank = np.empty(len(deal), dtype=int)
    rank[np.argsort(deal.labels, kind="stable")] = np.arange(len(deal))
    for part in dealt("shard", deal):
        runs = 1 + np.count_nonzero(np.diff(np.sort(rank[part])) > 1)
        assert runs <= deal.settings.shards


def test_two_shards_of_large_classes_hold_at_most_four_classes() -> None:
    """With classes larger than a shard, as in McMahan et al. 2017, a shard holds at most two classes."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 97))
    assert all(len(np.unique(labels[part])) <= 4 for part in dealt("shard", plain(labels, 16, 7)))


def test_kshard_deals_as_the_published_experiments_did() -> None:
    """CIFAR-10 to 256 nodes, seed 1234: the sizes, what nobody gets, and how many classes the nodes have."""
    parts = dealt("kshard", plain(CIFAR, 256, 1234))
    assert [len(part) for part in parts] == [194] * 255 + [274]
    assert len(CIFAR) - len(np.unique(np.concatenate(parts))) == 256
    seen = Counter(len(np.unique(CIFAR[part])) for part in parts)
    assert seen == {1: 19, 2: 201, 3: 30, 4: 5, 6: 1}


@given(deals())
def test_kshard_cuts_each_run_out_of_what_is_left(deal: Deal) -> None:
    """Without the samples of earlier nodes, in a ring by class, each node's lie in at most `shards` runs."""
    try:
        parts = dealt("kshard", deal)
    except DataError:
        assert len(deal) // deal.nodes <= deal.settings.shards
        return
    left = np.argsort(deal.labels, kind="stable")
    for part in parts:
        mine = np.isin(left, part)
        assert np.count_nonzero(mine & ~np.roll(mine, 1)) <= deal.settings.shards
        left = left[~mine]


def test_a_smaller_alpha_makes_nodes_differ_more() -> None:
    """In their mixtures of classes with `dirichlet`, in their sizes with `quantity`."""
    spread = {
        kind: [
            np.std([np.bincount(CIFAR[part], minlength=10) for part in dealt(kind, plain(CIFAR, 20, alpha=alpha))])
            for alpha in (100.0, 1.0, 0.1)
        ]
        for kind in ("dirichlet", "quantity")
    }
    for least, middle, most in spread.values():
        assert least < middle < most


@pytest.mark.parametrize("kind", ["dirichlet", "quantity"])
@given(deals(), st.integers(1, 9))
def test_each_node_has_its_least(kind: str, deal: Deal, least: int) -> None:
    """However small alpha is; and where there are too few samples for that, both numbers are said."""
    deal = replace(deal, settings=with_settings(deal.settings, min_samples=least))
    if deal.nodes * least > len(deal):
        with pytest.raises(DataError, match=rf"{len(deal)} .* {deal.nodes * least} samples \({deal.nodes} nodes"):
            dealt(kind, deal)
    else:
        assert min(len(part) for part in dealt(kind, deal)) >= least


@pytest.mark.parametrize("count", [1, 2, 10])
def test_classes_are_counted(count: int) -> None:
    """Every node has exactly so many, and all samples are dealt."""
    parts = dealt("classes", plain(CIFAR, 64, classes=count))
    assert {len(np.unique(CIFAR[part])) for part in parts} == {count}
    assert sum(map(len, parts)) == len(CIFAR)


def test_more_classes_than_there_are() -> None:
    """Are refused."""
    with pytest.raises(DataError, match="classes is 11, but there are 10 classes"):
        dealt("classes", plain(CIFAR, 64, classes=11))


@pytest.mark.parametrize("groups", [1, 3, 5, 10, 12])
def test_the_nodes_of_a_group_have_the_same_classes(groups: int) -> None:
    """Groups are runs of nodes; up to as many as there are classes they share none, and all samples are dealt."""
    parts = dealt("clustered", plain(CIFAR, 60, groups=groups))
    sets = [frozenset(CIFAR[part].tolist()) for part in parts]
    members = [set(group) for group in np.array_split(np.array(sets), groups)]
    assert all(len(group) == 1 for group in members)
    assert len(set(sets)) == min(groups, 10)
    assert sum(len(next(iter(group))) for group in members) == max(groups, 10)
    assert sum(map(len, parts)) == len(CIFAR)


def test_more_groups_than_nodes() -> None:
    """Are refused."""
    with pytest.raises(DataError, match="groups is 4, but there are 3 nodes"):
        dealt("clustered", plain(CIFAR, 3))


WRITERS = np.random.default_rng(3).permutation(np.repeat([f"w{i:02d}" for i in range(30)], np.arange(1, 31)))
"""30 writers with 1 to 30 samples."""


def of_writers(nodes: int, users_per_node: int) -> list[list[str]]:
    """Return the writers of each node."""
    settings = PartitionSection(users_per_node=users_per_node)
    parts = dealt("user", Deal(np.zeros(len(WRITERS), np.int64), nodes, 5, settings, WRITERS))
    assert sum(map(len, parts)) == sum(np.isin(WRITERS, np.unique(WRITERS[np.concatenate(parts)])))
    return [sorted(set(WRITERS[part])) for part in parts]


def test_whole_users_are_dealt() -> None:
    """All of them, as evenly as can be; no user's samples are at two nodes."""
    hands = of_writers(7, 0)
    assert {len(hand) for hand in hands} == {4, 5}
    assert sorted(chain.from_iterable(hands)) == sorted(set(WRITERS))


def test_those_with_the_most_samples_are_taken() -> None:
    """One writer a node: the 8 with the most samples."""
    hands = of_writers(8, 1)
    assert {len(hand) for hand in hands} == {1}
    assert sorted(chain.from_iterable(hands)) == [f"w{i:02d}" for i in range(22, 30)]


def test_too_few_users_or_none() -> None:
    """Both are errors, with what would help."""
    with pytest.raises(DataError, match=r"30 users cannot be dealt out to 16 nodes with 2 each; .* data of 32 users"):
        of_writers(16, 2)
    with pytest.raises(DataError, match="needs to know who made each sample"):
        dealt("user", replace(plain(CIFAR, 4), users=None))
