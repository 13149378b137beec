"""What a schedule costs, told without learning anything: `skiptrain-sim plan`.

`total` is what this very seed will spend: decisions are stateless draws, so the plan takes the same ones as the agents.
`expected` is the mean over all seeds, computed from the policy's own probabilities; `max` is the most that any seed can
spend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.core import events as ev
from agent.core.budget import Cost, Ledger, Reservation
from agent.core.participation import POLICIES, Participant
from agent.core.purse import Purse
from agent.core.round_state import MachineConfig
from agent.core.types import ModelShape, NodeId, RoundKind, RunDescriptor, Schedule
from agent.energy.allowance import Allowance
from agent.energy_config import budget_terms
from sim_harness.devices import FleetDevice
from sim_harness.powered import replayed_window
from sim_harness.scenario import Scenario

UJ_PER_WH = 3_600_000_000
_NEGLIGIBLE = 1e-15
"""Histories less likely than this do not change any printed digit."""


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """One type of device: its budget, and the training rounds of one such node."""

    row: FleetDevice
    limit_uj: int | None
    budget_rounds: int | None
    probability: float
    """Of training in the node's first training round."""
    expected_rounds: float
    max_rounds: int


def plan(scenario: Scenario) -> dict[str, Any]:
    """Return the plan as the JSON of `skiptrain-sim plan --json`; energies in Wh."""
    devices = {row.device: _device_plan(scenario, i) for i, row in _types(scenario)}
    nodes = scenario.node_ids()
    realised = [len(rounds_trained(scenario, i, node)) for i, node in enumerate(nodes)]
    kinds = [devices[scenario.device(i).device] for i in range(len(nodes))]
    schedule = scenario.schedule()
    return {
        "scenario": scenario.name,
        "policy": scenario.policy.name,
        "nodes": scenario.nodes,
        "rounds": scenario.rounds,
        "seed": scenario.seed,
        "energy_source": scenario.energy.source,
        "workload": scenario.energy.workload if scenario.energy.source == "trace" else None,
        "left_out": _left_out(scenario),
        "topology": {"kind": scenario.topology.kind, "degree": scenario.topology_spec().degree},
        "schedule": {
            "train_rounds": schedule.train_rounds,
            "sync_rounds": schedule.sync_rounds,
            "training_slots": schedule.training_slots(),
        },
        "training_rounds": {
            "total": sum(realised),
            "expected": sum(kind.expected_rounds for kind in kinds),
            "max": sum(kind.max_rounds for kind in kinds),
            "per_device": {name: _mean(realised, kinds, kind) for name, kind in devices.items()},
        },
        "energy_wh": {
            "total": _wh(kind.row.spent_uj(count) for count, kind in zip(realised, kinds, strict=True)),
            "expected": _wh(kind.expected_rounds * kind.row.cost_uj for kind in kinds),
            "max": _wh(kind.max_rounds * kind.row.cost_uj for kind in kinds),
            "d_psgd": _wh(scenario.rounds * kind.row.cost_uj for kind in kinds),
        },
        "probability": {name: kind.probability for name, kind in devices.items()},
        "budget_rounds": {name: kind.budget_rounds for name, kind in devices.items()},
    }


def _left_out(scenario: Scenario) -> list[str]:
    """Return the settings that would change a plan which does not know them: how long rounds take is not planned."""
    obeyed = POLICIES[scenario.policy.name].obeys_budget
    recharged = any(scenario.energy_section(i).recharge.watts for i, _ in _types(scenario))
    return ["energy.recharge"] if obeyed and recharged else []


def rounds_trained(scenario: Scenario, index: int, node: NodeId) -> list[int]:
    """Return the rounds that this node will train in: the same decisions as the agent's, energy as in the trace."""
    if scenario.device(index).windows:
        return _rounds_of_recording(scenario, index, node)
    who, ledger = _participant(scenario, index, node), _full(scenario, index)
    found = []
    for round_ in _training_slots(who.schedule):
        if who.decide(round_, ledger).train:
            found.append(round_)
            ledger = _charged(ledger, _cost_uj(who))
    return found


def _rounds_of_recording(scenario: Scenario, index: int, node: NodeId) -> list[int]:
    """Return the same for a recording: what is learnt from one round changes the plan of the next."""
    run = RunDescriptor(
        scenario.name,
        scenario.seed,
        ModelShape(scenario.model.name, (1, 1, 1), 2),
        scenario.schedule(),
        scenario.policy.name,
        scenario.topology_spec(),
    )
    meter = scenario.device(index).meter(scenario.energy.round_j)
    config = MachineConfig(node, run, meter.prior, learns_cost=True)
    purse = Purse(config, _full(scenario, index), None, replace(meter.history, workload=""))
    found: list[int] = []
    for round_ in _training_slots(scenario.schedule()):
        decision, _ = purse.decide(round_, 0, len(found), 0.0)
        if decision.train:
            found.append(round_)
            purse.reserve("", round_)
            cost = meter.close()
            nothing, window = np.zeros(0, np.float32), replayed_window(cost)
            purse.settle(ev.TrainingFinished(round_, nothing, 0.0, cost.energy_uj, cost.quality, window))
    return found


@lru_cache(maxsize=1 << 16)
def _charged(ledger: Ledger, cost_uj: int) -> Ledger:
    """Return the ledger after one more training round; nodes of one type have the same ones."""
    return ledger.reserve(Reservation("", 0, cost_uj)).settle(cost_uj)


def _types(scenario: Scenario) -> Iterator[tuple[int, FleetDevice]]:
    for i in range(min(scenario.nodes, scenario.device_types())):
        yield i, scenario.device(i)


def _participant(scenario: Scenario, index: int, node: NodeId) -> Participant:
    cost = scenario.device(index).cost_uj
    policy, schedule = POLICIES[scenario.policy.name], scenario.schedule()
    affordable = _full(scenario, index).affordable(Cost(cost, cost))
    return Participant(policy, schedule, scenario.seed, node, Cost(cost, cost), 0, affordable)


def _full(scenario: Scenario, index: int) -> Ledger:
    """Return a node's ledger before its first round; without limits where the policy ignores budgets."""
    limit_uj, limit_rounds = scenario.limits(index)
    return Ledger(limit_uj, limit_rounds=limit_rounds)


@lru_cache(maxsize=1)
def _training_slots(schedule: Schedule) -> tuple[int, ...]:
    return tuple(round_ for round_ in range(schedule.total_rounds) if schedule.kind(round_) is RoundKind.TRAINING)


def _device_plan(scenario: Scenario, index: int) -> DevicePlan:
    row, full = scenario.device(index), _full(scenario, index)
    who = _participant(scenario, index, NodeId("any"))
    slots = who.schedule.training_slots()
    expected, most = _distribution(who, full)
    budget_rounds = _budget_rounds(scenario, index)
    first = _probability(who, 0, full, 0) if slots else 0.0
    return DevicePlan(row, full.limit_uj, budget_rounds, first, expected, most)


def _budget_rounds(scenario: Scenario, index: int) -> int | None:
    """Return how many rounds the budget pays for, whether or not the policy obeys it; None without a budget."""
    device = scenario.device(index)
    allowance = Allowance(budget_terms(scenario.energy_section(index)), device.published_uj)
    return Ledger(allowance.limit_uj, limit_rounds=allowance.limit_rounds).affordable(device.cost)


def _probability(who: Participant, round_: int, full: Ledger, done: int) -> float:
    """Return with what probability a node trains in a training round, after so many of them."""
    left_uj = None if full.limit_uj is None else full.limit_uj - done * _cost_uj(who)
    left_rounds = None if full.limit_rounds is None else full.limit_rounds - done
    if (left_uj is not None and left_uj < _cost_uj(who)) or left_rounds == 0:
        return 0.0
    return who.policy.probability(who.slot(round_, left_uj, left_rounds))


def _cost_uj(who: Participant) -> int:
    """Return what a training round costs: the rows are exact."""
    return who.cost.expected_uj if who.cost else 0


def _distribution(who: Participant, full: Ledger) -> tuple[float, int]:
    """Return mean and maximum of the number of training rounds, over all draws."""
    slots, affordable = _training_slots(who.schedule), full.affordable(Cost(_cost_uj(who), _cost_uj(who)))
    most = len(slots) if affordable is None else min(len(slots), affordable)
    chances = np.zeros(most + 1)
    chances[0] = 1.0
    for round_ in slots:
        moved = chances * _probabilities(who, round_, full, chances)
        chances -= moved
        chances[1:] += moved[:-1]
        chances[chances < _NEGLIGIBLE] = 0.0
    return float(chances @ np.arange(most + 1)), most


def _probabilities(
    who: Participant, round_: int, full: Ledger, chances: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the probability of training after each number of training rounds that has a chance; 0 for the last.

    No policy gets keener as its budget goes: where the answer is the same at both ends it is not asked in between.
    """
    answers = np.zeros(len(chances))
    possible = np.flatnonzero(chances[:-1])

    def ask(done: int) -> float:
        return _probability(who, round_, full, done)

    if len(possible):
        first = ask(int(possible[0]))
        same = first == ask(int(possible[-1]))
        answers[possible] = first if same else [ask(int(done)) for done in possible]
    return answers


def _mean(realised: list[int], kinds: list[DevicePlan], kind: DevicePlan) -> float:
    """Return the mean training rounds of the nodes of one type; a whole number where it is one."""
    own = [count for count, other in zip(realised, kinds, strict=True) if other is kind]
    mean = sum(own) / len(own)
    return int(mean) if mean.is_integer() else mean


def _wh(amounts_uj: Iterator[float]) -> float:
    return sum(amounts_uj) / UJ_PER_WH
