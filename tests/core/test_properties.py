"""Whole fleets under random faults: they end, spend no more than they have, and repeat themselves.

`Cluster` checks budget, rounds, inbox, weights, deadlines and the order of effects after every step of every test here.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import events as ev
from agent.core.participation import POLICIES
from agent.core.round_state import Phase
from agent.core.topology import TOPOLOGIES
from agent.core.types import NodeId, Roster, RoundKind, TopologySpec
from tests.core.cluster import COST, Cluster, Crash, Cut, Faults, Full, Node, make_run, names, restart_fleet

MANY = settings(deadline=None, derandomize=True, max_examples=80)
ROUNDS = 6
DEADLINE_S = 20.0


def spec(kind: str, roster: tuple[NodeId, ...]) -> TopologySpec:
    """Return a topology of each kind; the file lists a path through all nodes."""
    path = tuple(pairwise(roster))
    return TopologySpec(kind, 4 if kind in {"rings", "small-world", "scale-free"} else 3, path)


@st.composite
def fleets(draw: st.DrawFn, *, faulty: bool) -> tuple[Cluster, Cluster]:
    """Return the same cluster twice."""
    roster = names(draw(st.integers(2, 8)))
    policy = draw(st.sampled_from(sorted(POLICIES)))
    run = make_run(
        roster,
        rounds=ROUNDS,
        policy=policy,
        topology=spec(draw(st.sampled_from(sorted(TOPOLOGIES))), roster),
        seed=draw(st.integers(0, 2**63)),
        schedule=draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (4, 2)])),
    )
    limits = {node: draw(st.integers(0, 8)) * COST.upper_uj + draw(st.integers(0, 999)) for node in roster}
    slowest = 9.0 if faulty else 3.0  # along a path six rounds of training can add up before a model comes
    faults = Faults(seed=draw(st.integers(0, 2**32)), training_s=(0.0, 0.0) if draw(st.booleans()) else (0.5, slowest))
    if faulty:
        faults = draw(_faults(roster, faults))
    return Cluster(run, roster, faults, limits=limits), Cluster(run, roster, faults, limits=limits)


@st.composite
def _faults(draw: st.DrawFn, roster: tuple[NodeId, ...], base: Faults) -> Faults:
    node, moment = st.sampled_from(roster), st.floats(0.0, 90.0)
    down = st.sampled_from([0.0, 1.0, 15.0, 70.0])
    by_time = st.builds(Crash, node, down, at_s=moment)
    by_effect = st.builds(Crash, node, down, after_effects=st.integers(1, 40))
    some_rounds = st.frozensets(st.tuples(node, st.integers(0, ROUNDS - 1)), max_size=3)
    cut = st.builds(lambda who, start, lasts: Cut(who, start, start + lasts), node, moment, st.floats(1.0, 60.0))
    full = st.builds(
        lambda who, start, lasts, model: Full(who, start, start + lasts, model),
        *(node, moment, st.floats(1.0, 200.0), st.booleans()),
    )
    return Faults(
        seed=base.seed,
        delay_s=draw(st.sampled_from([(0.01, 0.05), (0.0, 0.0), (0.0, 12.0)])),
        training_s=base.training_s,
        timer_late_s=draw(st.sampled_from([0.0, 0.5])),
        loss=draw(st.sampled_from([0.0, 0.1, 0.5])),
        crashes=tuple(draw(st.lists(by_time | by_effect, max_size=3))),
        cuts=tuple(draw(st.lists(cut, max_size=1))),
        full=tuple(draw(st.lists(full, max_size=2))),
        late=draw(st.dictionaries(node, st.sampled_from([5.0, 45.0, 100.0, float("inf")]), max_size=1)),
        failing=draw(some_rounds),
        stubborn=draw(some_rounds),
    )


def longest_s(cluster: Cluster) -> float:
    """Return by when every node has ended: each wait there is, as often as a fault can cause it."""
    faults = cluster.faults
    pauses = sum(crash.down_s + 2 * DEADLINE_S + 30 for crash in faults.crashes)
    switched_on = max([0.0, *(late for late in faults.late.values() if late != float("inf"))])
    full = max([0.0, *(full.to_s for full in faults.full)])
    return 200.0 + pauses + switched_on + full + 3 * ROUNDS * (DEADLINE_S + 7)


@MANY
@given(fleets(faulty=True))
def test_every_fleet_ends_in_bounded_time_whatever_goes_wrong(pair: tuple[Cluster, Cluster]) -> None:
    """No fault makes a node wait for ever, but being alone: then it waits for others, and says so."""
    cluster, _ = pair
    cluster.run(longest_s(cluster))
    for node in cluster.nodes.values():
        if node.finished or cluster.faults.late.get(node.id) == float("inf"):
            continue
        assert node.machine is not None, f"{node.id} never came back"
        assert node.machine.phase in {Phase.WAITING, Phase.JOINING}, f"{node.id} hangs"
        assert not node.machine.around.live, f"{node.id} hangs among others"
        assert "still waiting" in node.notices[-1]


@MANY
@given(fleets(faulty=True))
def test_ledger_and_records_tell_the_same_story(pair: tuple[Cluster, Cluster]) -> None:
    """Over crashes and restarts the records' energy adds up to the ledger's charges, which cover what was spent."""
    cluster, _ = pair
    cluster.run(longest_s(cluster))
    for node in cluster.nodes.values():
        if node.finished and node.disk.snapshot is not None:
            ledger = node.disk.snapshot.ledger
            assert sum(record.energy_uj for record in node.disk.last_records().values()) == ledger.charged_uj
            assert ledger.charged_uj >= node.spent_uj
            assert ledger.windows == sum(node.trainings.values()) or cluster.faults.crashes


@MANY
@given(fleets(faulty=True))
def test_equal_seeds_give_equal_decisions_records_and_models(pair: tuple[Cluster, Cluster]) -> None:
    """A fleet with all its faults is a function of its seeds."""
    one, two = (cluster.run(longest_s(cluster)) for cluster in pair)
    assert one.decisions() == two.decisions()
    assert one.models() == two.models()
    assert one.trace == two.trace


@MANY
@given(fleets(faulty=False))
def test_symmetric_delivery_keeps_the_mean_of_all_models(pair: tuple[Cluster, Cluster]) -> None:
    """With nothing lost the mixing matrix is doubly stochastic: the mean before and after a round agree to 1e-5."""
    cluster, _ = pair
    roster, last = cluster.run_.roster, ROUNDS - 1
    cluster.run(longest_s(cluster))
    assert cluster.all_done
    if any(not cluster.graphs[0][node] for node in roster):
        return  # who has no neighbour publishes nothing
    shared = [model for node in roster for model in cluster.published[node, last].values()]
    mixed = [node.disk.model[1] for node in cluster.nodes.values() if node.disk.model]
    assert len(shared) == len(mixed) == len(roster)
    assert np.abs(np.mean(shared, axis=0) - np.mean(mixed, axis=0)).max() < 1e-5


def draw_by_hand(seed: int, node: NodeId, round_: int) -> float:
    """Return the draw of a node and round, written down a second time on purpose."""
    text = f"{seed}\x1f{node}\x1f{round_}\x1fparticipation".encode()
    return (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 11) / 2**53


def decide_by_hand(cluster: Cluster, node: NodeId) -> list[bool]:
    """Return whether `node` trains in each round, by the formulas of the paper and nothing of the machine."""
    run, left = cluster.run_, cluster.nodes[node].ledger.limit_uj
    assert left is not None
    train, period = run.schedule.train_rounds, run.schedule.train_rounds + run.schedule.sync_rounds
    slots = [round_ for round_ in range(ROUNDS) if round_ % period < train]
    tau, decisions = left // COST.expected_uj, []
    for round_ in range(ROUNDS):
        draw, affords, slot = draw_by_hand(run.seed, node, round_), left >= COST.upper_uj, round_ in slots
        slots_left = len([s for s in slots if s >= round_])
        trains = {
            "d-psgd": True,
            "greedy": affords,
            "skiptrain": slot,
            "skiptrain-constrained": slot and affords and draw < min(1.0, tau / len(slots)),
            "skiptrain-replanned": slot and affords and draw < min(1.0, left / (COST.expected_uj * max(1, slots_left))),
        }[run.policy]
        left -= COST.expected_uj if trains else 0
        decisions.append(trains)
    return decisions


@MANY
@given(fleets(faulty=False))
def test_decisions_equal_a_plain_computation_from_the_formulas(pair: tuple[Cluster, Cluster]) -> None:
    """Without faults every decision of every policy is what ten lines of arithmetic say, and no more is trained."""
    cluster, _ = pair
    cluster.run(longest_s(cluster))
    for name, node in cluster.nodes.items():
        records = node.disk.last_records()
        assert [records[round_].decision.train for round_ in range(ROUNDS)] == decide_by_hand(cluster, name)
        assert {round_ for round_, record in records.items() if record.decision.train} == set(node.trainings)
        if POLICIES[cluster.run_.policy].obeys_schedule:
            assert all(records[round_].kind is RoundKind.TRAINING for round_ in node.trainings)


@settings(MANY, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([0.0, 2.0, 30.0]), st.sampled_from(sorted(POLICIES)))
def test_a_power_cut_after_any_effect_costs_at_most_one_reservation(
    seed: int, effects: int, down_s: float, policy: str
) -> None:
    """Wherever the power goes, no round is trained twice, nothing is charged twice, and no joule comes back."""
    roster = names(3)
    limits = dict.fromkeys(roster, 4 * COST.upper_uj)
    faults = Faults(seed=seed, crashes=(Crash(roster[1], down_s, after_effects=effects),))
    cluster = Cluster(make_run(roster, policy=policy), roster, faults, limits=limits).run(1000.0)
    node = cluster.nodes[roster[1]]
    if node.finished and node.disk.snapshot is not None:
        ledger = node.disk.snapshot.ledger
        assert node.spent_uj <= ledger.charged_uj <= node.spent_uj + COST.upper_uj
        assert ledger.forfeited_uj in {0, COST.upper_uj}


def rounds_that_ran_out(cluster: Cluster) -> int:
    """Return how many rounds of all nodes ended at their deadline."""
    records = [record for node in cluster.nodes.values() for record in node.disk.records]
    return sum(record.train_s + record.collect_s >= DEADLINE_S - 1e-6 for record in records)


@pytest.mark.parametrize("kind", ["complete", "ring", "regular"])
@pytest.mark.parametrize(
    "rounds",
    [(3, 3, 3, 3, 3, 3), (3, 4, 3, 4, 3, 4), (1, 9, 15, 30, 4, 22), (30, 2, 2, 2, 2, 2), (10, 10, 10, 20, 20, 20)],
)
def test_a_fleet_that_restarts_as_a_whole_gets_back_into_step(kind: str, rounds: tuple[int, ...]) -> None:
    """Nodes resumed at different rounds meet again after a few deadlines, instead of crawling from one to the next."""
    roster = names(6)
    cluster = Cluster(make_run(roster, rounds=60, topology=spec(kind, roster)), roster)
    restart_fleet(cluster, dict(zip(roster, rounds, strict=True)))
    cluster.run(3000.0)
    assert cluster.all_done
    last = [node.disk.last_records()[59] for node in cluster.nodes.values()]
    assert all(record.peers_received == record.peers_expected for record in last)
    assert rounds_that_ran_out(cluster) <= 6 * (max(rounds) - min(rounds) + 3)
    assert cluster.now < 40 * DEADLINE_S


def test_a_node_that_is_cut_off_keeps_the_pace_of_deadlines() -> None:
    """A node that reaches nobody neither races through the run nor stops, and jumps back when it can."""
    roster = names(4)
    cut = Cut(roster[0], 5.0, 95.0)
    run = make_run(roster, rounds=200, policy="skiptrain")
    cluster = Cluster(run, roster, Faults(cuts=(cut,))).run(2000.0)
    alone = [r for r in cluster.nodes[roster[0]].disk.records if r.peers_received == 0 and not r.error]
    assert cluster.all_done
    assert 3 <= len(alone) <= 6
    assert cluster.nodes[roster[0]].disk.last_records()[199].peers_received == 3


def test_an_outage_of_the_whole_network_leaves_the_fleet_together() -> None:
    """While nobody reaches anybody all nodes keep one pace, so that afterwards they are at most one round apart."""
    roster = names(5)
    cuts = tuple(Cut(node, 5.0, 150.0) for node in roster)
    cluster = Cluster(make_run(roster, rounds=60, policy="d-psgd"), roster, Faults(cuts=cuts)).run(150.0)
    rounds = [node.highest_round for node in cluster.nodes.values()]
    assert max(rounds) - min(rounds) <= 1
    assert max(rounds) < 20
    cluster.run(3000.0)
    assert cluster.all_done
    assert all(node.disk.last_records()[59].peers_received == 4 for node in cluster.nodes.values())


def test_a_node_far_ahead_is_not_waited_for() -> None:
    """Who is two rounds ahead will not send this round's model any more: its neighbours go on without it."""
    roster = names(5)
    cluster = Cluster(make_run(roster, rounds=40), roster)
    restart_fleet(cluster, dict(zip(roster, (25, 0, 0, 0, 0), strict=True)))
    cluster.run(3000.0)
    slow = [r for r in cluster.nodes[roster[1]].disk.records if r.train_s + r.collect_s >= DEADLINE_S - 1e-6]
    assert cluster.all_done
    assert len(slow) <= 3


@pytest.mark.parametrize("kind", sorted(TOPOLOGIES))
def test_a_late_node_adopts_and_never_shares_what_it_began_with(kind: str) -> None:
    """A fresh node that finds all online and the run going does not begin round 0: it joins with their average."""
    roster = names(5)
    run = make_run(roster, rounds=30, policy="d-psgd", topology=spec(kind, roster))
    cluster = Cluster(run, roster, Faults(late={roster[2]: 40.0})).run(3000.0)
    node = cluster.nodes[roster[2]]
    assert cluster.all_done
    assert any("joined the run" in notice for notice in node.notices)
    first = min(record.round for record in node.disk.records)
    assert first > 0
    assert min(round_ for sender, round_ in cluster.published if sender == node.id) == first


def test_a_joiner_survives_a_power_cut_with_what_it_adopted() -> None:
    """The adopted model is durable before the node counts as having taken part."""
    roster = names(4)
    for effects in range(2, 14):
        faults = Faults(late={roster[3]: 40.0}, crashes=(Crash(roster[3], 1.0, after_effects=effects),))
        cluster = Cluster(make_run(roster, rounds=20), roster, faults).run(2000.0)
        assert cluster.all_done
        shared = [m for (who, _), models in cluster.published.items() if who == roster[3] for m in models.values()]
        assert all(np.abs(model).max() > 0 for model in shared), f"its zeros went out after effect {effects}"


def test_the_run_that_ends_while_a_node_joins_ends_that_node_too() -> None:
    """A joiner that only ever heard the last round's header does not wait for ever."""
    roster = names(3)
    cluster = Cluster(make_run(roster, rounds=3), roster, Faults(late={roster[2]: 30.5})).run(500.0)
    node = cluster.nodes[roster[2]]
    assert node.finished or "still waiting" in node.notices[-1]


def test_a_single_node_run_goes_on_after_a_restart() -> None:
    """Where nobody else belongs to the run nobody is waited for, not even after a power cut."""
    roster = names(1)
    cluster = Cluster(make_run(roster), roster, Faults(crashes=(Crash(roster[0], 3.0, after_effects=9),))).run(400.0)
    assert cluster.all_done


def test_a_node_of_a_listed_roster_does_not_begin_alone() -> None:
    """Whoever is the only one switched on waits, though the roster is known, and says what to check."""
    roster = names(3)
    late = {roster[1]: float("inf"), roster[2]: float("inf")}
    cluster = Cluster(make_run(roster), roster, Faults(late=late)).run(100.0)
    node = cluster.nodes[roster[0]]
    assert node.machine is not None
    assert node.machine.phase is Phase.WAITING
    assert len(node.notices) == 3
    assert not node.trainings


def test_discovered_rosters_begin_with_all_that_were_expected() -> None:
    """Without a list, the first `expect_nodes` that see each other are the fleet."""
    nodes = names(4)
    cluster = Cluster(make_run((), expect_nodes=4), nodes).run(500.0)
    assert cluster.all_done
    assert {node.disk.snapshot.roster for node in cluster.nodes.values() if node.disk.snapshot} == {Roster(0, nodes)}


class SlowSight(Cluster):
    """Until 5 s the first and the fourth of four nodes do not see each other."""

    def _tell(self, node: Node) -> None:
        node.told_of_peers = False
        if not node.online or node.machine is None:
            return
        hidden = {frozenset(names(4)[::3])} if self.now <= 5.0 else set()
        others = [o for o in self.nodes.values() if o is not node and o.online and {o.id, node.id} not in hidden]
        live = {other.id: other.ready for other in others}
        if live != node.machine.around.live:
            self.step(node, ev.PeersChanged(live))


def test_discovered_rosters_converge_when_more_come_than_were_expected() -> None:
    """Nodes that saw different threes of four do not keep them: all four begin with one roster, and all edges mix."""
    run = make_run((), expect_nodes=3, rounds=6, policy="skiptrain")
    cluster = SlowSight(run, names(4))
    cluster.at(5.1, cluster.presence_changed)
    cluster.run(2000.0)
    records = [record for node in cluster.nodes.values() for record in node.disk.last_records().values()]
    assert cluster.all_done
    assert {(record.peers_received, record.rejected) for record in records} == {(3, 0)}


def test_a_node_that_comes_between_two_start_timeouts_splits_no_roster() -> None:
    """The first start timeout begins the run for all who are there; who comes later spends nothing, and says why."""
    run = make_run((), expect_nodes=4, rounds=100, policy="skiptrain")
    a, b, c = nodes = names(3)
    cluster = Cluster(run, nodes, Faults(late={b: 4.0, c: 32.0})).run(5000.0)
    for node in (cluster.nodes[a], cluster.nodes[b]):
        assert [record.peers_received for record in node.disk.last_records().values()] == [1] * 100
    assert not cluster.nodes[c].trainings
    assert any("another roster, without this node" in notice for notice in cluster.nodes[c].notices)


def test_a_node_that_expects_nobody_else_begins_at_once() -> None:
    """`expect_nodes: 1` is a run of one, without waiting for a start timeout."""
    cluster = Cluster(make_run((), expect_nodes=1, rounds=3, policy="d-psgd"), names(1)).run(25.0)
    assert cluster.all_done


def roster_cluster(late: dict[NodeId, float] | None = None, rounds: int = 25) -> tuple[Cluster, tuple[NodeId, ...]]:
    """Return four nodes of which the fourth is in no roster yet."""
    nodes = names(4)
    return Cluster(make_run(nodes[:3], rounds=rounds, policy="d-psgd"), nodes, Faults(late=late or {})), nodes


@pytest.mark.parametrize("told_s", [2.0, 14.0])
def test_a_node_joins_by_a_roster_at_the_round_that_it_names(told_s: float) -> None:
    """Who is in no roster waits; the epoch that lists it lets it adopt in its round, and all edges mix from then on."""
    cluster, nodes = roster_cluster()
    cluster.at(told_s, lambda: cluster.change_roster(Roster(1, nodes, 8)))
    cluster.run(2000.0)
    joined = cluster.nodes[nodes[3]].disk.last_records()
    assert cluster.all_done
    assert min(joined) > 8
    assert joined[24].peers_received == 3
    before = cluster.nodes[nodes[0]].disk.last_records()
    assert {record.peers_expected for round_, record in before.items() if round_ < 8} == {2}


def test_a_roster_heard_late_comes_into_force_in_the_next_round() -> None:
    """A node that was not told in time follows as soon as it is, and does not stay a stranger."""
    cluster, nodes = roster_cluster(rounds=40)
    roster = Roster(1, nodes[:3], 5)
    cluster.at(2.0, lambda: cluster.change_roster(roster, leave_out=frozenset({nodes[1]})))
    cluster.at(100.0, lambda: cluster.change_roster(roster))
    cluster.run(2000.0)
    last = cluster.nodes[nodes[1]].disk.last_records()[39]
    assert last.peers_received == last.peers_expected == 2


def test_who_leaves_the_roster_ends_and_nobody_waits_for_it() -> None:
    """A leaver finishes with its model saved at the round that the epoch names; the others lose no deadline."""
    nodes = names(4)
    cluster = Cluster(make_run(nodes, rounds=20), nodes)
    cluster.at(3.0, lambda: cluster.change_roster(Roster(1, nodes[:3], 7)))
    cluster.run(1000.0)
    left = cluster.nodes[nodes[3]]
    assert cluster.all_done
    assert max(left.disk.last_records()) == 6
    assert left.disk.model is not None
    assert left.disk.model[0] == 6
    assert "not in the roster of round 7" in left.finished
    assert rounds_that_ran_out(cluster) == 0


def test_nobody_waits_out_a_deadline_for_a_node_that_restarts() -> None:
    """A node dies while the others wait for its model, and is back at once: they go on after a moment, with it."""
    nodes = names(3)
    run = make_run(nodes, rounds=6, policy="skiptrain")
    stubborn = frozenset({(nodes[1], 1)})
    cluster = Cluster(run, nodes, Faults(crashes=(Crash(nodes[1], 1.0, at_s=8.0),), stubborn=stubborn)).run(100.0)
    for node in cluster.nodes.values():
        assert node.finished == "all rounds are done"
        records = node.disk.last_records()
        assert sorted(records) == list(range(6))
        assert [records[round_].peers_received for round_ in (2, 3, 4, 5)] == [2] * 4
        assert max(record.train_s + record.collect_s for record in records.values()) < DEADLINE_S / 2


@pytest.mark.parametrize("down", [(0, 1, 2), (1, 2)])
def test_nodes_that_restart_together_do_not_wait_for_each_other(down: tuple[int, ...]) -> None:
    """Where too few neighbours can tell the round, and all are here, each goes on in its own, without a deadline."""
    nodes = names(3)
    run = make_run(nodes, rounds=8, policy="skiptrain")
    crashes = tuple(Crash(nodes[i], 3.0, at_s=6.0) for i in down)
    cluster = Cluster(run, nodes, Faults(crashes=crashes)).run(200.0)
    for node in cluster.nodes.values():
        assert node.finished == "all rounds are done"
        records = node.disk.last_records()
        assert records[7].peers_received == 2
    assert cluster.now < 6.0 + 3.0 + DEADLINE_S
