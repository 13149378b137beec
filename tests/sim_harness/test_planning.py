"""What a schedule costs: the paper's numbers, the mean over all seeds, and what real machines then decide."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.core import effects as fx
from agent.core import events as ev
from agent.core.budget import Cost, Ledger
from agent.core.participation import POLICIES
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig, Phase
from agent.core.types import ModelShape, NodeId, Quality, RoundRecord
from sim_harness.__main__ import main
from sim_harness.fleet import NodeFiles, node_config
from sim_harness.planning import plan, rounds_trained
from sim_harness.scenario import Scenario, load_scenario

DEVICES = ("xiaomi-12-pro", "galaxy-s22-ultra", "oneplus-nord-2", "poco-x3")
PAPER_ROUNDS = {"cifar10": 1000, "femnist": 3000}
QUARTER = 64
"""256 nodes are 64 times the four devices; where nothing is drawn, so are their joules."""

GRID_WH = (
    (755.0, 1007.2, 1132.5, 1208.0),
    (504.4, 755.0, 906.0, 1008.7),
    (377.5, 604.0, 756.5, 863.7),
    (302.0, 504.4, 647.8, 755.0),
)
"""Training energy of SkipTrain, 256 nodes, T=1000: rows Γsync 1 to 4, columns Γtrain 1 to 4."""


def paper(
    policy: str, train: int = 4, sync: int = 4, *more: str, nodes: int = 4, workload: str = "cifar10"
) -> dict[str, Any]:
    """Return the plan of the paper's fleet under another policy and schedule."""
    settings = {
        "policy.name": policy,
        "policy.train_rounds": train,
        "policy.sync_rounds": sync,
        "energy.workload": workload,
        "nodes": nodes,
        "rounds": PAPER_ROUNDS[workload],
    }
    return plan(load_scenario("paper-6-regular", [*(f"{key}={value}" for key, value in settings.items()), *more]))


@pytest.mark.parametrize(
    ("policy", "train", "sync", "wh"),
    [
        ("d-psgd", 4, 4, 1510.04),
        ("skiptrain", 4, 4, 755.02),
        ("skiptrain", 3, 3, 756.53),
        ("skiptrain", 4, 2, 1008.71),
        ("greedy", 4, 4, 497.57),
    ],
)
def test_the_papers_energies_on_cifar10(policy: str, train: int, sync: int, wh: float) -> None:
    """256 nodes with the four devices in turn, T=1000: Wh to two digits, for this seed, expected and at most."""
    energy = paper(policy, train, sync, nodes=256)["energy_wh"]
    assert {round(energy[key], 2) for key in ("total", "expected", "max")} == {wh}
    assert round(energy["d_psgd"], 2) == 1510.04


@pytest.mark.parametrize(("policy", "wh"), [("d-psgd", 14914.38), ("skiptrain", 7457.19), ("greedy", 2487.34)])
def test_the_papers_energies_on_femnist(policy: str, wh: float) -> None:
    """FEMNIST, T=3000, on the same fleet."""
    energy = paper(policy, workload="femnist")["energy_wh"]
    assert [round(QUARTER * energy[key], 2) for key in ("total", "expected", "max")] == [wh] * 3


@pytest.mark.parametrize(
    ("workload", "rounds"), [("cifar10", (272, 324, 681, 272)), ("femnist", (413, 492, 1034, 413))]
)
def test_the_papers_budgets_in_rounds(workload: str, rounds: tuple[int, ...]) -> None:
    """What the published share of each battery pays for, and greedy trains exactly that often."""
    planned = paper("greedy", workload=workload)
    assert planned["budget_rounds"] == dict(zip(DEVICES, rounds, strict=True))
    assert planned["training_rounds"]["per_device"] == planned["budget_rounds"]


def test_the_whole_grid_of_schedules() -> None:
    """SkipTrain with 1 to 4 training rounds and 1 to 4 synchronisation rounds costs what the paper's grid says."""
    for sync, row in enumerate(GRID_WH, 1):
        for train, wh in enumerate(row, 1):
            total_wh = QUARTER * paper("skiptrain", train, sync)["energy_wh"]["total"]
            slots = sum(t % (train + sync) < train for t in range(1000))
            assert total_wh == pytest.approx(1510.0386666667 * slots / 1000)
            assert abs(total_wh - wh) < 0.0501


def test_constrained_costs_462_wh_in_expectation_and_never_more_than_467_95() -> None:
    """SkipTrain-constrained (4,4): 462.04 Wh on average; no seed can spend more than 467.95 Wh."""
    totals = []
    for seed in (1, 2):
        energy = paper("skiptrain-constrained", 4, 4, f"seed={seed}", nodes=256)["energy_wh"]
        assert round(energy["expected"], 2) == 462.04
        assert round(energy["max"], 2) == 467.95
        totals.append(energy["total"])
    assert all(abs(total - 462.04) < 3 for total in totals)
    assert len(set(totals)) == 2


@pytest.mark.parametrize(("train", "sync"), [(4, 4), (3, 3), (4, 2), (1, 4)])
@pytest.mark.parametrize("workload", ["cifar10", "femnist"])
def test_the_expected_rounds_are_those_of_a_capped_binomial(workload: str, train: int, sync: int) -> None:
    """E[min(Bin(T_train, p), tau)] with p = min(tau / T_train, 1), summed term by term."""
    planned = paper("skiptrain-constrained", train, sync, workload=workload)
    slots = planned["schedule"]["training_slots"]
    taus = planned["budget_rounds"].values()
    assert planned["training_rounds"]["expected"] == pytest.approx(
        math.fsum(capped_binomial_mean(slots, min(1.0, tau / slots), tau) for tau in taus), abs=1e-6
    )
    assert list(planned["probability"].values()) == [min(1.0, tau / slots) for tau in taus]
    assert planned["training_rounds"]["max"] == sum(min(tau, slots) for tau in taus)


def capped_binomial_mean(n: int, p: float, cap: int) -> float:
    """Return E[min(X, cap)] for X binomial."""
    if p == 1.0:
        return min(n, cap)

    def log_chance(k: int) -> float:
        choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return choose + k * math.log(p) + (n - k) * math.log1p(-p)

    return math.fsum(min(k, cap) * math.exp(log_chance(k)) for k in range(n + 1))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 0.333])
def test_replanned_spends_exactly_tau(seed: int, scale: float) -> None:
    """Planned anew in every slot, a node leaves no affordable round unused and takes none that it cannot pay."""
    planned = paper("skiptrain-replanned", 4, 4, f"seed={seed}", f"energy.budget_scale={scale}")
    assert planned["training_rounds"]["per_device"] == {
        device: min(tau, 500) for device, tau in planned["budget_rounds"].items()
    }
    assert planned["training_rounds"]["expected"] == pytest.approx(planned["training_rounds"]["total"])


def test_a_budget_of_nothing_trains_nobody() -> None:
    """Scale 0 is a budget like any other: no training round, no joule, no division by zero."""
    planned = paper("skiptrain-constrained", 4, 4, "energy.budget_scale=0")
    assert planned["energy_wh"] == {"total": 0, "expected": 0, "max": 0, "d_psgd": planned["energy_wh"]["d_psgd"]}
    assert set(planned["probability"].values()) == {0.0}


def test_the_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """`plan --json` prints these keys, each with one value a device type where it is per device."""
    assert main(["plan", "demo", "--json", "--nodes", "6", "--rounds", "12", "--seed", "3"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["scenario"], planned["nodes"], planned["rounds"], planned["seed"]) == ("demo", 6, 12, 3)
    assert (planned["policy"], planned["workload"]) == ("skiptrain-constrained", "cifar10")
    assert planned["topology"] == {"kind": "regular", "degree": 4}
    assert planned["schedule"] == {"train_rounds": 2, "sync_rounds": 1, "training_slots": 8}
    assert set(planned["training_rounds"]) == {"total", "expected", "max", "per_device"}
    assert set(planned["energy_wh"]) == {"total", "expected", "max", "d_psgd"}
    for per_device in (planned["training_rounds"]["per_device"], planned["probability"], planned["budget_rounds"]):
        assert tuple(per_device) == DEVICES


def test_the_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """`plan` alone shows budget, probability and rounds of each device."""
    assert main(["plan", "paper-6-regular", "--nodes", "4"]) == 0
    shown = capsys.readouterr().out
    assert "500 training rounds" in " ".join(shown.split())
    for device, p in zip(DEVICES, ("0.5440", "0.6480", "1.0000", "0.5440"), strict=True):
        (line,) = (line for line in shown.splitlines() if device in line)
        assert p in line


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_plan_is_what_the_machines_decide(policy: str) -> None:
    """Real RoundMachines without neighbours train in exactly the planned rounds, and charge the planned joules."""
    scenario = load_scenario("demo", ["topology.degree=0", f"policy.name={policy}"])
    trained, charged_uj = 0, 0
    for index, node in enumerate(scenario.node_ids()):
        records, ledger = drive(scenario, index, node)
        rounds = [record.round for record in records if record.decision.train]
        assert rounds == rounds_trained(scenario, index, node)
        assert [record.round for record in records] == list(range(scenario.rounds))
        trained, charged_uj = trained + len(rounds), charged_uj + ledger.charged_uj
    planned = plan(scenario)
    assert planned["training_rounds"]["total"] == trained
    assert planned["energy_wh"]["total"] == pytest.approx(charged_uj / 3.6e9, rel=1e-12)


def drive(scenario: Scenario, index: int, node: NodeId) -> tuple[list[RoundRecord], Ledger]:
    """Run one node's machine to its end; each training costs what the trace says."""
    files, cost_uj = NodeFiles(node, Path(node)), scenario.device(index).cost_uj
    shape = ModelShape("small-cnn", (1, 1, 1), 2)
    run = node_config(scenario, index, shape, files, Path("test.npz"), "fleet", None).descriptor()
    config = MachineConfig(node, run, Cost(cost_uj, cost_uj))
    machine = RoundMachine(config, np.zeros(2, np.float32), Ledger(scenario.limit_uj(index)))
    others = [other for other in scenario.node_ids() if other != node]
    pending: list[ev.Event] = [ev.Started(), ev.PeersChanged(dict.fromkeys(others, ""))]
    records = []
    while pending:
        for effect in machine.handle(pending.pop(0), 0.0):
            if isinstance(effect, fx.AppendRecord):
                records.append(effect.record)
            if isinstance(effect, fx.StartTraining):
                answer = ev.TrainingFinished(effect.round, effect.params, 0.5, cost_uj, Quality.REPLAYED)
                pending.append(answer)
        if not pending and machine.deadline == 0.0:  # a round in which nobody is awaited ends at once
            pending.append(ev.DeadlineReached())
    assert machine.phase is Phase.DONE
    return records, machine.ledger


def test_a_plan_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Boards that are recharged may train more than their budget alone pays for; a board has no published workload."""
    assert main(["plan", "solar"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "energy.recharge is left out of this plan: with it, nodes may train more" in shown
    assert "energy.source board" in shown
    assert "cifar10" not in shown
    assert plan(load_scenario("solar", ["policy.name=d-psgd"]))["left_out"] == []
    published = plan(load_scenario("demo"))
    assert (published["left_out"], published["workload"]) == ([], "cifar10")


def test_rounds_are_shown_with_digits_that_matter(capsys: pytest.CaptureFixture[str]) -> None:
    """A mean over nodes has one decimal at most, and none from a hundred on."""
    assert main(["plan", "paper-6-regular"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"xiaomi-12-pro .* 268 ", shown)
    assert "268." not in shown
    assert main(["plan", "demo", "--nodes", "13", "--rounds", "9"]) == 0
    assert not re.search(r"xiaomi-12-pro .*\.\d\d+ +│$", capsys.readouterr().out, re.MULTILINE)
