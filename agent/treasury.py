"""Energy around a machine: the meter and the budget as the daemon uses them, from the first reading to the last charge.

The machine decides and charges; here is what it must hear for that, and what a reservation needs so that a crash can be
settled by a counter that went on counting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.core.budget import Ledger, Reservation
from agent.core.costs import CostHistory, to_reserve
from agent.core.events import BudgetRenewed, EnergyFlowed
from agent.core.types import RoundRecord, Snapshot
from agent.energy.allowance import Allowance
from agent.energy.meter import Meter
from agent.errors import EnergyError

_log = logging.getLogger(__name__)

POLL_S = 10.0
"""How often the budget is looked after: gauges are slow, and counters wrap after minutes at the soonest."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a configuration says of spending."""

    charge_background: bool = False
    """Whether sharing and idling are charged, too."""
    min_battery: float = 0.0
    """Below this share of the battery nothing is trained."""


class Treasury:
    """One device's meter and allowance."""

    def __init__(
        self,
        meter: Meter,
        allowance: Allowance,
        clock: Callable[[], float],
        rules: Rules | None = None,
        battery: Callable[[], float | None] = lambda: None,
    ) -> None:
        """Take what was opened; `battery` returns how full it is, in [0, 1], None without one; EnergyError."""
        self.meter, self.allowance = meter, allowance
        self._clock, self._rules, self._battery = clock, rules or Rules(), battery
        self._due = clock()
        self._marked = Reservation("", -1, 0)
        self._outside_uj: int | None = None
        """Spent outside of windows, and in no record yet; None where the source does not measure it."""
        self._idle_uj: int | None = None
        self._owed_uj = 0
        self.trouble = ""
        """Why nothing can be trained for energy's sake; "" while it can."""

    def ledger(self, snapshot: Snapshot | None, *, state_lost: bool) -> Ledger:
        """Return the device's ledger under today's budget, what a crash left open as well settled as can be.

        A lost generation of the state may have held one more reservation: as much is charged as one was ever made for.
        """
        limit, rounds = self.allowance.limit_uj, self.allowance.limit_rounds
        period = self.allowance.resume(snapshot.ledger.period if snapshot else "")
        if snapshot is None:
            return Ledger(limit, period=period, limit_rounds=rounds)
        if snapshot.ledger.period != period:
            return snapshot.ledger.renew(period, limit, rounds)
        ledger = replace(snapshot.ledger, limit_uj=limit, limit_rounds=rounds)
        if ledger.reservation is not None:
            return replace(ledger, reservation=self._settled(ledger.reservation))
        if state_lost:
            lost = Reservation(snapshot.run, snapshot.round, self._usual_uj(snapshot.costs, ledger))
            _log.warning("what the lost state had reserved is unknown: %.3f J are charged for it", lost.upper_uj / 1e6)
            return replace(ledger, reservation=lost)
        return ledger

    def _settled(self, open_: Reservation) -> Reservation:
        """Lower what a crash left reserved to what a counter says was spent since, if there is one."""
        spent_uj = self.meter.since(open_.mark) if open_.mark else None
        if spent_uj is None or 0 < open_.upper_uj <= spent_uj:  # it went on counting after the training, too
            return open_
        _log.warning(
            "round %d was interrupted: the counter says %.3f J since its training began, of %.3f J reserved",
            open_.round,
            spent_uj / 1e6,
            open_.upper_uj / 1e6,
        )
        return replace(open_, upper_uj=spent_uj)

    def _usual_uj(self, costs: CostHistory, ledger: Ledger) -> int:
        """Return what would be reserved for one round."""
        cost = (costs.cost() if self.meter.learns else None) or self.meter.prior
        return to_reserve(cost, ledger.left_uj, ledger.limit_uj, costs.load_uj if self.meter.learns else 0)

    def marked(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with the counters of the moment in a new reservation, in an old one with its first."""
        open_ = snapshot.ledger.reservation
        if open_ is None:
            return snapshot
        if (open_.run, open_.round) != (self._marked.run, self._marked.round):
            self._marked = replace(open_, mark=self.meter.mark())
        ledger = replace(snapshot.ledger, reservation=replace(open_, mark=self._marked.mark))
        return replace(snapshot, ledger=ledger)

    def unfit(self) -> str:
        """Return why nothing must be trained now, or ""; the sensor is looked at."""
        trouble = self.meter.trouble() or self._low()
        if trouble and trouble != self.trouble:
            _log.error("energy: %s; this node shares and averages, but does not train", trouble)
        elif self.trouble and not trouble:
            _log.warning("energy: can be read again; this node trains")
        self.trouble = trouble
        return trouble

    def _low(self) -> str:
        if not self._rules.min_battery:
            return ""
        try:
            share = self._battery()
        except EnergyError as error:
            return str(error)
        if share is None:
            return "energy.min_battery is set, and there is no battery gauge; take it out, or mend the gauge"
        if share < self._rules.min_battery:
            return f"the battery is at {share:.0%}, below energy.min_battery of {self._rules.min_battery:.0%}"
        return ""

    def poll(self) -> list[BudgetRenewed | EnergyFlowed]:
        """Return what the machine must hear, now and then; what is owed for sharing and idling at once."""
        owed, self._owed_uj = self._owed_uj, 0
        events: list[BudgetRenewed | EnergyFlowed] = [EnergyFlowed(background_uj=owed)] if owed else []
        if self._clock() < self._due:
            return events
        self._due = self._clock() + POLL_S
        self._lap()  # a counter must be read now and then, or it wraps unseen
        return events + self.allowance.poll()

    def last_charge(self) -> list[EnergyFlowed]:
        """Return what is owed for sharing and idling at the end of the agent."""
        self._lap()
        owed, self._owed_uj = self._owed_uj, 0
        return [EnergyFlowed(background_uj=owed)] if owed else []

    def begin_rounds(self) -> None:
        """Note what was spent in no round at all, now that there is one."""
        self._lap()
        self._idle_uj, self._outside_uj = self._outside_uj, None

    def account(self, record: RoundRecord) -> RoundRecord:
        """Return the record of a round that has ended with what sharing in it, and idling before it, cost."""
        self._lap()
        share, idle = self._outside_uj, self._idle_uj
        self._outside_uj = self._idle_uj = None
        return replace(record, share_uj=share, idle_uj=idle)

    def _lap(self) -> None:
        """Add up what is spent outside of windows."""
        spent = self.meter.lap()
        if spent is None:
            return
        self._outside_uj = spent + (self._outside_uj or 0)
        if self._rules.charge_background:
            self._owed_uj += spent
