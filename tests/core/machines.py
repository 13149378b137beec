"""Single machines in each phase, and events and updates that fit them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agent.core import events as ev
from agent.core.budget import Ledger
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig, Phase
from agent.core.types import ModelUpdate, NodeId, Params, Quality, Roster, RunDescriptor, params_digest
from tests.core.cluster import COST, N_PARAMS, make_run, names

NODES = names(4)
ME, *OTHERS = NODES


def start(run: RunDescriptor | None = None, *, limit: int | None = None, policy: str = "skiptrain") -> RoundMachine:
    """Return the machine of node a, which is to wait for b, c and d."""
    run = run or make_run(NODES, policy=policy, rounds=30)
    machine = RoundMachine(MachineConfig(ME, run, COST), np.zeros(N_PARAMS, np.float32), Ledger(limit))
    machine.handle(ev.Started(), 0.0)
    return machine


def ready(machine: RoundMachine) -> ev.PeersChanged:
    """Return the event that all others are there and ready."""
    assert machine.roster is not None
    return ev.PeersChanged(dict.fromkeys(map(NodeId, OTHERS), machine.roster.digest().hex()))


def machine_in(phase: Phase) -> RoundMachine:
    """Return a machine in `phase`; its last event was at 2 s."""
    run = make_run(NODES, policy="skiptrain", rounds=30)
    if phase is Phase.IDLE:
        return RoundMachine(MachineConfig(ME, run, COST), np.zeros(N_PARAMS, np.float32), Ledger(None))
    machine = start(run)
    if phase is Phase.JOINING:
        machine.handle(ev.PeersChanged(dict.fromkeys(OTHERS, "")), 1.0)
        for node in OTHERS:
            machine.handle(ev.RoundAnnounced(node, 9), 2.0)
    if phase in {Phase.TRAINING, Phase.COLLECTING}:
        machine.handle(ready(machine), 1.0)
    if phase is Phase.COLLECTING:
        machine.handle(ev.TrainingFinished(0, np.ones(N_PARAMS, np.float32), 0.5, 10, Quality.REPLAYED), 2.0)
    if phase is Phase.DONE:
        machine.handle(ev.StopRequested("enough"), 2.0)
    assert machine.phase is phase
    return machine


def update_for(
    machine: RoundMachine, sender: NodeId, round_: int | None = None, params: Params | None = None
) -> ModelUpdate:
    """Return a right update for `machine` from one of its neighbours."""
    roster = machine.roster or Roster(0, NODES)
    params = np.full(N_PARAMS, ord(sender), np.float32) if params is None else params
    round_ = machine.round if round_ is None else round_
    return ModelUpdate(sender, round_, roster.epoch, roster.digest(), len(NODES) - 1, 0, params, params_digest(params))


def events_of_all_kinds(machine: RoundMachine) -> dict[type[ev.Event], ev.Event]:
    """Return one event of each kind that means something to `machine`."""
    params = np.ones(N_PARAMS, np.float32)
    events: list[ev.Event] = [
        ev.Started(),
        ready(machine) if machine.roster else ev.PeersChanged({}),
        ev.RosterChanged(Roster(1, NODES, 12)),
        ev.TrainingFinished(machine.round, params, 0.5, 10, Quality.REPLAYED),
        ev.TrainingFailed(machine.round, "out of memory", 10, Quality.REPLAYED),
        ev.BudgetRenewed("tomorrow", 5_000, renews_in_s=60.0),
        ev.EnergyFlowed(credit_uj=3, background_uj=2),
        ev.UpdateReceived(update_for(machine, OTHERS[0])),
        ev.RoundAnnounced(OTHERS[0], machine.round + 1),
        ev.UpdateRejected("checksum"),
        ev.DeadlineReached(),
        ev.StopRequested("enough"),
    ]
    return {type(event): event for event in events}


def other(update: ModelUpdate, **changes: object) -> ModelUpdate:
    """Return `update` with some fields changed."""
    return replace(update, **changes)  # type: ignore[arg-type]  # a test changes any field
