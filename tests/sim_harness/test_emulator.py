"""Emulated fleets of toy models: what holds whatever the network does, and when a run is over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from agent.core.types import NodeId
from sim_harness.cohort.engine import Outcome, Work
from tests.sim_harness.toy_fleet import ToyFleet, same_end, toy_scenario, toy_train


def faults() -> SearchStrategy[list[str]]:
    """Draw settings of the section `network`, and a few others that it must get along with."""
    share = st.sampled_from([0.0, 0.25, 0.6])
    return st.builds(
        lambda *parts: [setting for part in parts for setting in part],
        st.sampled_from([(), ("network.delay_s=[0.01, 0.3]",), ("network.delay_s=[0, 6]",)]),
        share.map(lambda loss: (f"network.loss={loss}",)),
        st.sampled_from([(), ("network.bandwidth_bytes_s=20",)]),
        st.sampled_from(
            [
                (),
                ("network.partitions=[{from_s: 8, to_s: 90, share: 0.5}]",),
                ("network.partitions=[{from_s: 0, to_s: 50, groups: [[n000, n001], [n002]]}]",),
            ]
        ),
        st.sampled_from(
            [
                (),
                ("network.churn={mean_up_s: 20, mean_down_s: 3}",),
                ("network.churn={mean_up_s: 40, mean_down_s: 60, share: 0.5}",),
                ("network.churn={absences: [{node: n001, from_s: 0, to_s: 30}, {node: n002, from_s: 9, to_s: 1e4}]}",),
            ]
        ),
        st.sampled_from([(), ("network.stragglers={share: 0.5, factor: 8, every_round: true}",)]),
        st.sampled_from([(), ("energy.recharge.watts=2",), ("policy.name=d-psgd",), ("policy.name=greedy",)]),
        st.integers(1, 50).map(lambda seed: (f"seed={seed}",)),
    )


@settings(max_examples=40, deadline=None)
@given(drawn=faults())
def test_whatever_the_network_does(drawn: list[str]) -> None:
    """Budgets, rounds, weights, digests and traffic hold in every step, and every run comes to its end."""
    ToyFleet(toy_scenario(*drawn)).run()


@settings(max_examples=10, deadline=None)
@given(drawn=faults())
def test_equal_seeds_give_equal_fleets(drawn: list[str]) -> None:
    """Nothing but the scenario decides anything."""
    same_end(ToyFleet(toy_scenario(*drawn)).run(), ToyFleet(toy_scenario(*drawn)).run())


def test_a_perfect_network_delivers_everything() -> None:
    """Every node ends every round with both neighbours' models, and the run lasts as long as the slowest training."""
    fleet = ToyFleet(toy_scenario("policy.name=skiptrain")).run()
    assert fleet.unfinished == []
    for own in fleet.seen.records.values():
        assert [record.round for record in own] == list(range(12))
        assert all((record.peers_received, record.rejected, record.error) == (2, 0, "") for record in own)
    assert fleet.emulator.state.traffic.messages_out == 6 * 12 * 2
    slowest_s = max(fleet.scenario.device(i).train_s for i in range(6))
    assert fleet.emulator.state.clock.now == pytest.approx(8 * slowest_s)


def test_mixing_keeps_the_mean() -> None:
    """Where nothing is lost the matrix is doubly stochastic: the fleet's mean model does not move while all mix."""

    def apart(works: Sequence[Work]) -> list[Outcome]:
        for work in works:
            work.out[:] = work.params + np.float32(work.node if work.round == 0 else 0)
        return [Outcome(0.5, 1) for _ in works]

    fleet = ToyFleet(toy_scenario("policy.name=skiptrain", "network.delay_s=[0, 2]"), apart).run()
    models = [node.model for node in fleet.nodes if node.model is not None]
    assert np.mean(models, axis=0) == pytest.approx(fleet.initial + 2.5, abs=1e-5)
    assert np.ptp(np.stack(models), axis=0).max() < 0.1 * 5


def test_a_node_that_is_gone_from_the_first_moment_costs_nothing() -> None:
    """It is not even switched on: round 0 begins without it, at the start timeout, and it joins when it comes."""
    absence = "network.churn={absences: [{node: n002, from_s: 0, to_s: 70}]}"
    fleet = ToyFleet(toy_scenario(absence, "timing.start_timeout_s=30", "policy.name=d-psgd", "rounds=30")).run()
    assert fleet.unfinished == []
    late = fleet.seen.records[NodeId("n002")]
    assert late[0].round > 0
    assert any(message.startswith("joined the run in round") for node, message in fleet.seen.notices if node == 2)
    assert min(own[0].round for own in fleet.seen.records.values()) == 0


def test_a_fleet_that_is_gone_for_a_night_goes_on_in_the_morning() -> None:
    """All nodes away for longer than any deadline: the run waits for them."""
    gone = ", ".join(f"{{node: n{i:03d}, from_s: 7.5, to_s: 30000}}" for i in range(6))
    fleet = ToyFleet(toy_scenario(f"network.churn={{absences: [{gone}]}}")).run()
    assert fleet.unfinished == []
    assert fleet.emulator.state.clock.now > 30_000


def test_nodes_that_are_cut_off_from_the_first_moment_wait_for_the_network() -> None:
    """Nobody reaches anybody for longer than all timeouts: nothing begins, and then everything does."""
    groups = ", ".join(f"[n{i:03d}]" for i in range(6))
    cut = f"network.partitions=[{{from_s: 0, to_s: 5000, groups: [{groups}]}}]"
    fleet = ToyFleet(toy_scenario(cut, "timing.start_timeout_s=30")).run()
    assert fleet.unfinished == []
    assert all(len(own) == 12 for own in fleet.seen.records.values())
    assert all(record.peers_received == 2 for own in fleet.seen.records.values() for record in own)


def test_the_last_one_waits_for_nobody() -> None:
    """Who comes back when all others are done is named, and the emulation does not wait for it."""
    absence = "network.churn={absences: [{node: n002, from_s: 15, to_s: 86400}]}"
    fleet = ToyFleet(toy_scenario(absence)).run()
    assert fleet.unfinished == ["n002"]
    assert fleet.emulator.state.clock.now < 1_000


@pytest.mark.parametrize("seed", range(1, 7))
def test_under_strong_churn_all_but_the_last_one_finish(seed: int) -> None:
    """Devices that fail every 20 s: two who look for the run find each other; only one can be left alone."""
    churn = "network.churn={mean_up_s: 20, mean_down_s: 3}"
    fleet = ToyFleet(toy_scenario("nodes=12", "rounds=20", "topology.degree=4", f"seed={seed}", churn)).run()
    assert len(fleet.unfinished) <= 1


def test_nodes_that_come_and_go_too_fast_end_the_run() -> None:
    """Nobody is ever up for as long as a round takes: they are named, and the emulation ends."""
    churn = "network.churn={mean_up_s: 0.1, mean_down_s: 0.1}"
    fleet = ToyFleet(toy_scenario(churn, "nodes=3", "timing.round_deadline_s=60")).run()
    assert len(fleet.unfinished) >= 2


def test_a_single_node_comes_back_and_goes_on() -> None:
    """It has nobody to wait for."""
    churn = "network.churn={absences: [{node: n000, from_s: 10, to_s: 5000}]}"
    fleet = ToyFleet(toy_scenario("nodes=1", churn)).run()
    assert fleet.unfinished == []


def test_a_training_that_has_done_no_step_by_the_deadline_fails_and_is_charged() -> None:
    """Its round ends with the model that it began with, its joules spent, and the others did not wait longer."""
    slow = "network.stragglers={share: 1, factor: 1000}"
    fleet = ToyFleet(toy_scenario(slow, "policy.name=d-psgd", "rounds=3")).run()
    assert fleet.unfinished == []
    records = [record for own in fleet.seen.records.values() for record in own]
    assert {record.error for record in records} == {"stopped before the first local step"}
    assert {record.loss for record in records} == {None}
    assert all(record.energy_uj == fleet.scenario.device(int(record.node[1:])).cost_uj for record in records)
    assert all(node.model is not None for node in fleet.nodes)
    assert fleet.emulator.state.clock.now == pytest.approx(3 * 20.0)
    assert all(np.allclose(node.model, fleet.initial) for node in fleet.nodes if node.model is not None)


def test_a_training_that_misses_the_deadline_keeps_the_steps_that_are_done() -> None:
    """As on a device, whose trainer ends between two local steps: its round's model is what they made of it."""
    done: dict[int, int | None] = {}

    def train(works: Sequence[Work]) -> list[Outcome]:
        done.update({work.node: work.steps for work in works})
        return toy_train(works)

    slow = toy_scenario("network.stragglers={share: 1, factor: 8}", "policy.name=d-psgd", "rounds=1")
    fleet = ToyFleet(slow, train).run()
    assert fleet.unfinished == []
    lasts_s = [8 * fleet.scenario.device(i).round_s(0) for i in range(6)]
    assert min(lasts_s) < 20.0 < max(lasts_s), "some devices miss the deadline, and some do not"
    for i, lasts in enumerate(lasts_s):
        assert done[i] == (None if lasts <= 20.0 else int(20.0 / lasts * fleet.scenario.learning.local_steps))
    assert all(record.error == "" for own in fleet.seen.records.values() for record in own)
    assert all(len(own) == 1 and own[0].energy_uj > 0 for own in fleet.seen.records.values())


def test_a_crash_in_mid_training_stays_charged() -> None:
    """What was reserved is spent, as on a device, and no training of that round is given back later."""
    absence = "network.churn={absences: [{node: n001, from_s: 1, to_s: 1.5}]}"
    fleet = ToyFleet(toy_scenario(absence, "policy.name=greedy")).run()
    first = fleet.seen.records[NodeId("n001")][0]
    assert first.error == "interrupted while training: what was reserved stays charged"
    assert (first.energy_uj, first.loss) == (fleet.scenario.device(1).cost_uj, None)
    snapshot = fleet.nodes[1].snapshot
    assert snapshot is not None
    assert snapshot.ledger.forfeited_uj == first.energy_uj


def test_cohorts_stay_large_where_devices_differ() -> None:
    """When the first training is due, all that have begun are trained: fewer batches than one a round and type."""
    sizes: list[int] = []

    def counting(works: Sequence[Work]) -> list[Outcome]:
        sizes.append(len(works))
        assert [work.node for work in works] == sorted(work.node for work in works)
        return toy_train(works)

    fleet = ToyFleet(toy_scenario("nodes=16", "policy.name=skiptrain"), counting).run()
    assert len({fleet.scenario.device(i).train_s for i in range(4)}) == 4
    assert (sizes[0], sum(sizes)) == (16, 16 * 8)
    assert len(sizes) < 4 * 8


@pytest.mark.parametrize("kind", ["complete", "ring"])
def test_other_graphs(kind: str) -> None:
    """The graph is the core's, whatever its kind."""
    assert ToyFleet(toy_scenario(f"topology.kind={kind}")).run().unfinished == []
