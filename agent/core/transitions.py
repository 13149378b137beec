"""Which event does what in which phase, and where that can lead: the RoundMachine's table, as data."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum

from agent.core import events as ev
from agent.core.round_state import Phase


class Do(str, Enum):
    """What a machine does with an event."""

    START = "start"
    TAKE_PEERS = "take note of who is there"
    TAKE_ROSTER = "keep the roster for its round"
    BEGIN_LATE = "begin with who is there"
    ADOPT_LATE = "adopt what arrived"
    TAKE_TRAINED = "settle, publish"
    TAKE_FAILURE = "settle, publish the old model"
    END_TRAINING = "ask training to end, then end it"
    TAKE_UPDATE = "check, keep, mix when all are there"
    TAKE_ROUND = "note the sender's round"
    COUNT_REFUSAL = "count"
    TAKE_BUDGET = "take up the budget of the period"
    TAKE_ENERGY = "credit, charge"
    STOP = "stop with the work saved"
    NOTHING = "mix what arrived, if its time has come"
    REFUSE = "refuse: the driver's fault"


@dataclass(frozen=True, slots=True)
class Rule:
    """What one event does in one phase, and where that can lead besides staying there."""

    do: Do
    leads_to: frozenset[Phase] = frozenset()


_STOPPED = frozenset({Phase.DONE})
_ROUNDS = frozenset({Phase.TRAINING, Phase.COLLECTING, Phase.DONE})
_BEGINS = _ROUNDS | {Phase.JOINING}
_REFUSED, _IGNORED = Rule(Do.REFUSE), Rule(Do.NOTHING)

TRANSITIONS: dict[Phase, dict[type[ev.Event], Rule]] = {
    Phase.IDLE: {
        ev.Started: Rule(Do.START, _BEGINS | {Phase.WAITING}),
        ev.PeersChanged: _REFUSED,
        ev.RosterChanged: _REFUSED,
        ev.TrainingFinished: _REFUSED,
        ev.TrainingFailed: _REFUSED,
        ev.BudgetRenewed: _REFUSED,
        ev.EnergyFlowed: _REFUSED,
        ev.UpdateReceived: _REFUSED,
        ev.RoundAnnounced: _REFUSED,
        ev.UpdateRejected: _REFUSED,
        ev.DeadlineReached: _REFUSED,
        ev.StopRequested: Rule(Do.STOP, _STOPPED),
    },
    Phase.WAITING: {
        ev.Started: _REFUSED,
        ev.PeersChanged: Rule(Do.TAKE_PEERS, _BEGINS),
        ev.RosterChanged: Rule(Do.TAKE_ROSTER),
        ev.TrainingFinished: _REFUSED,
        ev.TrainingFailed: _REFUSED,
        ev.BudgetRenewed: Rule(Do.TAKE_BUDGET),
        ev.EnergyFlowed: Rule(Do.TAKE_ENERGY),
        ev.UpdateReceived: Rule(Do.TAKE_UPDATE, _BEGINS),
        ev.RoundAnnounced: Rule(Do.TAKE_ROUND, _BEGINS),
        ev.UpdateRejected: Rule(Do.COUNT_REFUSAL),
        ev.DeadlineReached: Rule(Do.BEGIN_LATE, _BEGINS),
        ev.StopRequested: Rule(Do.STOP, _STOPPED),
    },
    Phase.JOINING: {
        ev.Started: _REFUSED,
        ev.PeersChanged: Rule(Do.TAKE_PEERS, _ROUNDS),
        ev.RosterChanged: Rule(Do.TAKE_ROSTER),
        ev.TrainingFinished: _REFUSED,
        ev.TrainingFailed: _REFUSED,
        ev.BudgetRenewed: Rule(Do.TAKE_BUDGET, _ROUNDS),
        ev.EnergyFlowed: Rule(Do.TAKE_ENERGY, _ROUNDS),
        ev.UpdateReceived: Rule(Do.TAKE_UPDATE, _ROUNDS),
        ev.RoundAnnounced: Rule(Do.TAKE_ROUND, _ROUNDS),
        ev.UpdateRejected: Rule(Do.COUNT_REFUSAL),
        ev.DeadlineReached: Rule(Do.ADOPT_LATE, _ROUNDS),
        ev.StopRequested: Rule(Do.STOP, _STOPPED),
    },
    Phase.TRAINING: {
        ev.Started: _REFUSED,
        ev.PeersChanged: Rule(Do.TAKE_PEERS),
        ev.RosterChanged: Rule(Do.TAKE_ROSTER),
        ev.TrainingFinished: Rule(Do.TAKE_TRAINED, _ROUNDS),
        ev.TrainingFailed: Rule(Do.TAKE_FAILURE, _ROUNDS),
        ev.BudgetRenewed: Rule(Do.TAKE_BUDGET),
        ev.EnergyFlowed: Rule(Do.TAKE_ENERGY),
        ev.UpdateReceived: Rule(Do.TAKE_UPDATE),
        ev.RoundAnnounced: Rule(Do.TAKE_ROUND),
        ev.UpdateRejected: Rule(Do.COUNT_REFUSAL),
        ev.DeadlineReached: Rule(Do.END_TRAINING),
        ev.StopRequested: Rule(Do.STOP),
    },
    Phase.COLLECTING: {
        ev.Started: _REFUSED,
        ev.PeersChanged: Rule(Do.TAKE_PEERS, _ROUNDS),
        ev.RosterChanged: Rule(Do.TAKE_ROSTER, _ROUNDS),
        ev.TrainingFinished: _REFUSED,
        ev.TrainingFailed: _REFUSED,
        ev.BudgetRenewed: Rule(Do.TAKE_BUDGET, _ROUNDS),
        ev.EnergyFlowed: Rule(Do.TAKE_ENERGY, _ROUNDS),
        ev.UpdateReceived: Rule(Do.TAKE_UPDATE, _ROUNDS),
        ev.RoundAnnounced: Rule(Do.TAKE_ROUND, _ROUNDS),
        ev.UpdateRejected: Rule(Do.COUNT_REFUSAL, _ROUNDS),
        ev.DeadlineReached: Rule(Do.NOTHING, _ROUNDS),
        ev.StopRequested: Rule(Do.STOP, _STOPPED),
    },
    Phase.DONE: {
        ev.Started: _REFUSED,
        ev.PeersChanged: _IGNORED,
        ev.RosterChanged: _IGNORED,
        ev.TrainingFinished: _REFUSED,
        ev.TrainingFailed: _REFUSED,
        ev.BudgetRenewed: _IGNORED,
        ev.EnergyFlowed: _IGNORED,
        ev.UpdateReceived: _IGNORED,
        ev.RoundAnnounced: _IGNORED,
        ev.UpdateRejected: _IGNORED,
        ev.DeadlineReached: _IGNORED,
        ev.StopRequested: _IGNORED,
    },
}
"""Every phase x event pair; the state diagram in ARCHITECTURE.md is drawn from it."""


def state_diagram() -> str:
    """Return the table as a mermaid state diagram: which events can lead from each phase to each other one."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.IDLE.value}"]
    for phase, rules in TRANSITIONS.items():
        for target in Phase:
            names = [event.__name__ for event, rule in rules.items() if target in rule.leads_to]
            if names:
                lines.append(f"    {phase.value} --> {target.value}: {'<br/>'.join(names)}")
    return "\n".join([*lines, f"    {Phase.DONE.value} --> [*]"]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(state_diagram())
