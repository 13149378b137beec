"""SkipTrain as published (arXiv 2407.01283, IPDPSW 2024): one test a sentence or formula.

The formulas are those of the paper's method (sections on SkipTrain and SkipTrain-constrained); the numbers come from
the energy traces and topologies that its authors published with their code.
"""

from __future__ import annotations

import numpy as np
import pytest

from agent.core.budget import Cost, Ledger, Reservation
from agent.core.mixing import mixing_weights
from agent.core.participation import POLICIES, Slot, decide, effective_schedule
from agent.core.topology import neighbours
from agent.core.types import NodeId, RoundKind, Schedule, TopologySpec
from tests.core.cluster import COST, Cluster, make_run, names

CIFAR_ROUNDS = 1000
DEVICES = {
    "Xiaomi 12 Pro": (17.8, 6.532875, 272),
    "Galaxy S22 Ultra": (19.4, 5.986076, 324),
    "OnePlus Nord 2 5G": (17.41, 2.556283, 681),
    "Poco X3": (23.2, 8.51912, 272),
}
"""Battery in Wh, one CIFAR-10 training round in mWh, and τ: the rounds that 10 % of the battery pay for."""


def ledger_of(device: str) -> tuple[Ledger, Cost]:
    """Return a device's CIFAR-10 budget and the cost of a training round, in microjoules."""
    battery_wh, round_mwh, _ = DEVICES[device]
    cost = round(round_mwh * 3_600_000)
    return Ledger(round(battery_wh * 0.10 * 3_600_000_000)), Cost(cost, cost)


def slot(affordable: int | None, total: int, left: int | None = None) -> Slot:
    """Return a training slot of a node with τ = `affordable` of `total` training rounds."""
    return Slot(total, total, affordable, left, 1)


def test_training_rounds_come_first_and_synchronisation_rounds_follow_over_and_over() -> None:
    """SkipTrain: Γtrain training rounds, then Γsync synchronisation rounds; round t trains iff t mod (Γt+Γs) < Γt."""
    schedule = Schedule(3, 2, 12)
    kinds = "".join("T" if schedule.kind(t) is RoundKind.TRAINING else "s" for t in range(12))
    assert kinds == "TTTssTTTssTT"


@pytest.mark.parametrize(("train", "sync", "slots"), [(4, 4, 500), (3, 3, 501), (4, 2, 668), (1, 4, 200), (4, 1, 800)])
def test_training_slots_are_counted_exactly(train: int, sync: int, slots: int) -> None:
    """T_train = Γt/(Γt+Γs) * T holds up to rounding; the exact count for T = 1000 is 501 for (3,3), 668 for (4,2)."""
    schedule = Schedule(train, sync, CIFAR_ROUNDS)
    assert schedule.training_slots() == slots
    assert schedule.training_slots() == sum(schedule.kind(t) is RoundKind.TRAINING for t in range(CIFAR_ROUNDS))


@pytest.mark.parametrize(("tau", "probability"), [(272, 0.544), (324, 0.648), (681, 1.0)])
def test_constrained_trains_with_probability_tau_over_t_train(tau: int, probability: float) -> None:
    """SkipTrain-constrained: p_i = min(τ_i / T_train, 1); .544, .648, 1 and .544 for its devices."""
    assert POLICIES["skiptrain-constrained"].probability(slot(tau, 500)) == pytest.approx(probability)


def test_constrained_probability_is_fixed_when_the_node_begins() -> None:
    """p_i is computed once from τ_i and T_train: what has been spent since does not change it."""
    policy = POLICIES["skiptrain-constrained"]
    assert policy.probability(Slot(500, 17, 272, 1, 1)) == policy.probability(Slot(500, 500, 272, 272, 1))


def test_constrained_stops_when_tau_rounds_are_trained() -> None:
    """Once the budget is gone a node only shares and averages, whatever the draw."""
    decision = decide(POLICIES["skiptrain-constrained"], RoundKind.TRAINING, slot(272, 500), 0.0, affordable=False)
    assert (decision.train, decision.reason) == (False, "budget spent")


@pytest.mark.parametrize("policy", ["skiptrain", "skiptrain-constrained", "skiptrain-replanned"])
def test_nobody_trains_in_a_synchronisation_round(policy: str) -> None:
    """In synchronisation rounds models are shared and averaged only."""
    assert not decide(POLICIES[policy], RoundKind.SYNCHRONISATION, slot(9, 9, 9), 0.0, affordable=True).train


def test_skiptrain_trains_in_every_training_round() -> None:
    """SkipTrain without constraints trains in all training rounds, whatever the budget."""
    policy = POLICIES["skiptrain"]
    assert not policy.obeys_budget
    assert decide(policy, RoundKind.TRAINING, slot(0, 500, 0), 1 - 2**-53, affordable=False).train


def test_d_psgd_trains_in_every_round() -> None:
    """D-PSGD: train, share and average in each round; neither schedule nor budget."""
    policy = POLICIES["d-psgd"]
    assert effective_schedule(policy, Schedule(4, 4, CIFAR_ROUNDS)).training_slots() == CIFAR_ROUNDS
    assert decide(policy, RoundKind.TRAINING, slot(0, 1, 0), 1 - 2**-53, affordable=False).train


def test_greedy_trains_from_round_0_until_the_budget_is_gone() -> None:
    """Greedy: train in each round from the first, and only share and average once τ rounds are spent."""
    roster = names(2)
    limits = {roster[0]: 3 * COST.upper_uj + 999, roster[1]: 5 * COST.upper_uj}
    cluster = Cluster(make_run(roster, rounds=9, policy="greedy"), roster, limits=limits).run(500)
    trained = {node: [r.decision.train for r in cluster.nodes[node].disk.records] for node in roster}
    assert trained == {roster[0]: [True] * 3 + [False] * 6, roster[1]: [True] * 5 + [False] * 4}


@pytest.mark.parametrize("device", DEVICES)
def test_tau_of_the_papers_devices(device: str) -> None:
    """τ_i = floor(10 % of the battery / energy of a round): 272, 324, 681 and 272 rounds."""
    ledger, cost = ledger_of(device)
    assert ledger.affordable(cost) == DEVICES[device][2]


@pytest.mark.parametrize("device", DEVICES)
def test_exactly_tau_rounds_can_be_paid(device: str) -> None:
    """Reserving and settling in integers loses no round: exactly τ are affordable, the next is not."""
    ledger, cost = ledger_of(device)
    rounds = 0
    while ledger.affords(cost.upper_uj):
        ledger = ledger.reserve(Reservation("r", rounds, cost.upper_uj)).settle(cost.expected_uj)
        rounds += 1
    assert rounds == DEVICES[device][2]


def test_a_budget_of_exactly_tau_rounds_is_used_up_to_the_last_joule() -> None:
    """A budget of 272 rounds pays 272 rounds; subtracting joules as floats, as rivals do, pays 271."""
    _, cost = ledger_of("Xiaomi 12 Pro")
    ledger, rounds = Ledger(272 * cost.upper_uj), 0
    while ledger.affords(cost.upper_uj):
        ledger = ledger.reserve(Reservation("r", rounds, cost.upper_uj)).settle(cost.expected_uj)
        rounds += 1
    assert (rounds, ledger.left_uj) == (272, 0)
    joules, left, floats = cost.upper_uj / 1e6, 272 * (cost.upper_uj / 1e6), 0
    while left >= joules:
        left, floats = left - joules, floats + 1
    assert floats == 271


@pytest.mark.parametrize("degree", [6, 8, 10])
def test_weights_on_regular_graphs_are_uniform(degree: int) -> None:
    """Metropolis-Hastings, w_ij = 1/(1 + max(d_i, d_j)): on the paper's 6-, 8- and 10-regular graphs all 1/(d+1)."""
    weights = mixing_weights(NodeId("me"), degree, {NodeId(f"n{i}"): degree for i in range(degree)})
    assert list(weights.values()) == pytest.approx([1 / (degree + 1)] * (degree + 1))


@pytest.mark.parametrize("degree", [6, 8, 10])
def test_the_papers_topologies(degree: int) -> None:
    """256 nodes in a static 6-, 8- or 10-regular graph, whose mixing matrix is symmetric and doubly stochastic."""
    roster = [NodeId(f"n{i:03}") for i in range(256)]
    graph = neighbours(TopologySpec("regular", degree), roster, seed=90)
    matrix = np.zeros((256, 256))
    for i, node in enumerate(roster):
        for other, weight in mixing_weights(node, degree, {peer: len(graph[peer]) for peer in graph[node]}).items():
            matrix[i, roster.index(other)] = weight
    assert np.abs(matrix - matrix.T).max() < 1e-12
    assert np.abs(matrix.sum(axis=0) - 1).max() < 1e-12
    second = np.sort(np.abs(np.linalg.eigvalsh(matrix)))[-2]
    assert second < {6: 0.80, 8: 0.73, 10: 0.66}[degree]  # the authors' graphs: 0.762, 0.693, 0.618


def test_averaging_follows_training() -> None:
    """Adapt, then combine: what a node shares in a round is its model after the local steps of that round."""
    roster = names(2)
    cluster = Cluster(make_run(roster, rounds=1, policy="d-psgd"), roster).run(100)
    for node in roster:
        (model,) = cluster.published[node, 0].values()
        assert np.abs(model).max() > 0


def test_replanned_spends_what_constrained_leaves() -> None:
    """Ours: p = left / (expected * slots left), again in each slot, leaves no affordable round unused at the end."""
    policy = POLICIES["skiptrain-replanned"]
    assert policy.probability(Slot(500, 10, 272, 10, 1)) == 1.0
    assert policy.probability(Slot(500, 10, 272, 4, 1)) == pytest.approx(0.4)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_no_budget_means_no_limit(policy: str) -> None:
    """A node without a budget (limit null) trains in every slot that its policy knows."""
    assert POLICIES[policy].probability(slot(None, 500)) == 1.0
