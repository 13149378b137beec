"""What the network does is a function of the seed and of names."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.types import NodeId
from sim_harness.network_model import NetworkModel, Sent
from sim_harness.scenario import load_scenario

NODES = tuple(NodeId(f"n{i:03d}") for i in range(10))


def network(*settings: str, nodes: tuple[NodeId, ...] = NODES, seed: int = 3) -> NetworkModel:
    """Return the model of a network with these settings."""
    scenario = load_scenario("demo", ["nodes=10", *(f"network.{setting}" for setting in settings)])
    return NetworkModel(scenario.network, nodes, seed)


def test_a_perfect_network_takes_no_time() -> None:
    """Everything arrives at once, everybody is there and as fast as their device."""
    perfect = network()
    assert perfect.send(0, 1, 1, 5, 3, 1000) == Sent(0.0, (0, 1, 2))
    assert (perfect.changes, perfect.parted(0.0), perfect.reaches(0, 1, 0.0)) == ([], False, True)
    assert (list(perfect.absences(0)), perfect.slowness(0, 0)) == ([], 1.0)


FAULTY = ("delay_s=[0.1, 0.5]", "loss=0.2", "stragglers={share: 0.3, factor: 4, every_round: true}")
CHURN = "churn={mean_up_s: 50, mean_down_s: 5}"


def test_it_depends_on_seed_and_names_only() -> None:
    """In any order of asking, and whatever other nodes there are; another seed is another network."""
    some, fewer = network(*FAULTY, CHURN), network(*FAULTY, CHURN, nodes=(NODES[2], NODES[7]))
    for round_ in reversed(range(50)):
        assert some.send(2, 7, 1, round_, 4, 9) == fewer.send(0, 1, 1, round_, 4, 9)
        assert some.slowness(7, round_) == fewer.slowness(1, round_)
    assert list(islice(some.absences(7), 20)) == list(islice(fewer.absences(1), 20))
    other = network(*FAULTY, CHURN, seed=4)
    assert [some.send(0, 1, 1, r, 4, 9) for r in range(9)] != [other.send(0, 1, 1, r, 4, 9) for r in range(9)]
    assert next(some.absences(0)) != next(other.absences(0))


def test_loss_delay_and_stragglers_are_as_frequent_as_they_should() -> None:
    """Over many draws; each message of a model is lost by itself, and each way between two nodes has its own luck."""
    model = network(*FAULTY)
    sent = [model.send(i, j, 1, r, 4, 9) for i in range(10) for j in range(10) if i != j for r in range(50)]
    assert sum(4 - len(one.arriving) for one in sent) / (4 * len(sent)) == pytest.approx(0.2, abs=0.01)
    assert {len(one.arriving) for one in sent} == {0, 1, 2, 3, 4}
    delays = [one.delay_s for one in sent]
    assert min(delays) >= 0.1
    assert max(delays) <= 0.5
    assert sum(delays) / len(delays) == pytest.approx(0.3, abs=0.01)
    slow = [model.slowness(i, r) for i in range(10) for r in range(500)]
    assert set(slow) == {1.0, 4.0}
    assert slow.count(4.0) / len(slow) == pytest.approx(0.3, abs=0.03)


def test_bandwidth_serves_one_after_the_other() -> None:
    """A model that takes two seconds reaches the third neighbour after six."""
    model = network("bandwidth_bytes_s=500")
    assert [model.send(0, j, j, 0, 1, 1000).delay_s for j in (1, 2, 3)] == [2.0, 4.0, 6.0]


def test_partitions_cut_both_ways_and_end() -> None:
    """Groups and the rest are apart from the first moment of a cut to its last; a share is rounded."""
    model = network(
        "partitions=[{from_s: 5, to_s: 9, groups: [[n000, n001], [n002]]}, {from_s: 8, to_s: 20, share: 0.3}]"
    )
    assert model.changes == [5.0, 8.0, 9.0, 20.0]
    assert [model.parted(now) for now in (4.9, 5.0, 8.9, 9.0, 19.9, 20.0)] == [False, True, True, True, True, False]
    for now in (0.0, 5.0, 8.5, 10.0, 30.0):
        reached = [[model.reaches(i, j, now) for j in range(10)] for i in range(10)]
        assert reached == [list(column) for column in zip(*reached, strict=True)]
        assert all(reached[i][i] for i in range(10))
    assert [model.reaches(0, j, 6.0) for j in range(10)] == [True, True] + [False] * 8
    assert [model.reaches(9, j, 6.0) for j in range(10)] == [False] * 3 + [True] * 7
    assert sorted(sum(model.reaches(i, j, 15.0) for j in range(10)) for i in range(10)) == [3] * 3 + [7] * 7


@given(
    spans=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), max_size=6),
    seed=st.integers(0, 99),
    churns=st.booleans(),
)
def test_absences_are_sorted_and_apart(spans: list[tuple[int, int]], seed: int, churns: bool) -> None:
    """Listed ones and those by chance become one list without overlaps, in which every listed one lies."""
    listed = ", ".join(f"{{node: n004, from_s: {begin}, to_s: {begin + length}}}" for begin, length in spans)
    chance = "mean_up_s: 30, mean_down_s: 20, " if churns else ""
    model = network(f"churn={{{chance}absences: [{listed}]}}", seed=seed)
    found = list(islice(model.absences(4), 60))
    assert all(begin < end for begin, end in found)
    assert all(former[1] < later[0] for former, later in pairwise(found))
    for begin, length in spans:
        assert any(first <= begin and begin + length <= last for first, last in found)
    assert (len(list(islice(model.absences(5), 60))) == 60) == churns


def test_a_share_of_the_nodes_churns() -> None:
    """Always the same ones; they are gone for as much of the time as the means say."""
    model = network("churn={mean_up_s: 30, mean_down_s: 10, share: 0.5}")
    churning = [i for i in range(10) if next(model.absences(i), None)]
    assert 0 < len(churning) < 10
    spans = list(islice(model.absences(churning[0]), 3000))
    assert sum(end - begin for begin, end in spans) / spans[-1][1] == pytest.approx(0.25, abs=0.03)
