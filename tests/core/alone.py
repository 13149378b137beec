"""One machine alone, whose training rounds cost what a list says: for tests of what it decides and writes down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agent.core import effects as fx
from agent.core import events as ev
from agent.core.budget import Cost, Ledger
from agent.core.costs import CostHistory
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig
from agent.core.types import NodeId, Quality, RoundRecord, RunDescriptor, Schedule, Snapshot, WindowDetail
from tests.core.cluster import make_run

ME = NodeId("a")


def lone_run(policy: str, rounds: int = 40, seed: int = 1, schedule: tuple[int, int] = (2, 1)) -> RunDescriptor:
    """Return a run of one node."""
    return replace(
        make_run((ME,), policy=policy, rounds=rounds), seed=seed, schedule=Schedule(schedule[0], schedule[1], rounds)
    )


@dataclass
class Alone:
    """A machine and what it has done; each training round costs the next of `costs`, over and over."""

    run: RunDescriptor
    costs: Sequence[int]
    ledger: Ledger
    prior: Cost | None = None
    learns: bool = True
    history: CostHistory = field(default_factory=CostHistory)
    relay: bool = False
    seconds_a_round: float = 1.0
    records: list[RoundRecord] = field(default_factory=list)
    saved: Snapshot | None = None
    guards: list[int | None] = field(default_factory=list)
    """Where each training had to end."""
    now: float = 0.0

    def __post_init__(self) -> None:
        config = MachineConfig(ME, self.run, self.prior, learns_cost=self.learns, workload="toy", relay=self.relay)
        history = replace(self.history, workload="toy")
        self.machine = RoundMachine(config, np.zeros(3, np.float32), self.ledger, None, history)
        self._next = self._cycle()
        self._answers: list[ev.Event] = []
        self.do(ev.Started())

    def _cycle(self) -> Iterator[int]:
        while True:
            yield from self.costs

    def go(self, rounds: int | None = None) -> list[RoundRecord]:
        """Go through so many rounds, or all of them; return the records so far."""
        until = None if rounds is None else len(self.records) + rounds
        while self.machine.phase.value != "done" and (until is None or len(self.records) < until):
            self.now += self.seconds_a_round
            self.do(self._answers.pop() if self._answers else ev.UpdateRejected("none"))
        return self.records

    def do(self, event: ev.Event) -> None:
        """Hand in an event and do what it asks for."""
        for effect in self.machine.handle(event, self.now):
            match effect:
                case fx.SaveState(snapshot):
                    self.saved = snapshot
                case fx.AppendRecord(record):
                    self.records.append(record)
                case fx.StartTraining(round_, params, _, guard_uj):
                    self.guards.append(guard_uj)
                    self._answers.append(self._trained(round_, params, guard_uj))
                case _:
                    pass

    def _trained(self, round_: int, params: object, guard_uj: int | None) -> ev.Event:
        whole = next(self._next)
        spent = whole if guard_uj is None else min(whole, guard_uj)
        window = WindowDetail("toy", 1.0, 1.0, 0, None, whole)
        return ev.TrainingFinished(round_, params, 0.5, spent, Quality.MEASURED, window)  # type: ignore[arg-type]
