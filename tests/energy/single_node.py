"""One machine that learns alone, its energy from a meter and its journal on disk: what a recording has to replay."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from agent.core import effects as fx
from agent.core import events as ev
from agent.core.budget import Ledger
from agent.core.costs import CostHistory
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig
from agent.core.types import NodeId, RoundRecord, WindowDetail
from agent.energy.meter import Meter, Reading
from agent.journal import Journal
from tests.core.cluster import N_PARAMS, make_run

ME = NodeId("a")
WORKLOAD = "toy 2x8 on 1 rapl"


def machine(
    policy: str, meter: Meter, budget_uj: int | None, costs: CostHistory | None = None, rounds: int = 60
) -> RoundMachine:
    """Return a node that is alone in its run and learns what rounds cost."""
    run = make_run((ME,), policy=policy, rounds=rounds)
    config = MachineConfig(ME, run, meter.prior, learns_cost=meter.learns, workload=WORKLOAD)
    return RoundMachine(config, np.zeros(N_PARAMS, np.float32), Ledger(budget_uj), costs=costs)


def drive(
    node: RoundMachine,
    meter: Meter,
    *,
    train: Callable[[int], object] = lambda _round: None,
    share: Callable[[int, Reading], int | None] = lambda _round, reading: reading.whole_uj,
    journal: Journal | None = None,
    fails: frozenset[int] = frozenset(),
) -> list[RoundRecord]:
    """Run a node to its end; return its records.

    `train` is what happens in a round's window, `share` says what the whole round would have cost; rounds in `fails`
    cost something and give no model.
    """
    records: list[RoundRecord] = []
    now, todo = 0.0, deque(node.handle(ev.Started(), 0.0))
    while True:
        if not todo:
            assert node.deadline is not None
            now = max(now, node.deadline)
            todo.extend(node.handle(ev.DeadlineReached(), now))
            continue
        effect = todo.popleft()
        now += 0.001
        match effect:
            case fx.StartTraining():
                meter.open()
                train(effect.round)
                todo.extend(node.handle(_answer(effect, meter, share, fails), now))
            case fx.SaveState() if journal:
                journal.save_state(effect.snapshot)
            case fx.AppendRecord():
                records.append(effect.record)
                if journal:
                    journal.append(effect.record)
            case fx.RunFinished():
                return records


def _answer(
    effect: fx.StartTraining, meter: Meter, share: Callable[[int, Reading], int | None], fails: frozenset[int]
) -> ev.TrainingFinished | ev.TrainingFailed:
    """Return what the daemon tells the machine of a training."""
    reading = meter.close()
    whole_uj = None if effect.round in fails else share(effect.round, reading)
    detail = WindowDetail(
        meter.source, round(reading.seconds, 6), reading.coverage, reading.bound_uj, reading.net_uj, whole_uj
    )
    if effect.round in fails:
        return ev.TrainingFailed(effect.round, "NaN", reading.energy_uj, reading.quality, detail)
    return ev.TrainingFinished(effect.round, effect.params, 0.5, reading.energy_uj, reading.quality, detail)


def charges(records: list[RoundRecord]) -> list[object]:
    """Return all of a run that a replay must repeat to the bit."""
    return [(one.round, one.decision, one.account, one.energy_uj, one.charged_uj) for one in records]
