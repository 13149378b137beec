"""A node's budget in a run: what is planned with, decided, reserved, charged, credited, renewed and learnt.

The machine asks it in each round; it knows neither peers nor models.
"""

from __future__ import annotations

from dataclasses import replace

from agent.core.budget import Cost, Ledger, Reservation
from agent.core.costs import CostHistory, to_reserve
from agent.core.events import BudgetRenewed, EnergyFlowed, TrainingFailed, TrainingFinished
from agent.core.participation import POLICIES, effective_schedule, taken_again
from agent.core.round_state import MachineConfig
from agent.core.types import Account, Decision, Quality, Snapshot, WindowDetail


class Purse:
    """One node's ledger, and its plan of spending it."""

    def __init__(self, config: MachineConfig, ledger: Ledger, snapshot: Snapshot | None, costs: CostHistory) -> None:
        self._config = config
        self._policy = POLICIES[config.run.policy]
        self.schedule = effective_schedule(self._policy, config.run.schedule)
        self.ledger = ledger.forfeit()
        self.costs = costs if costs.workload == config.workload else CostHistory(config.workload)
        self.affordable = snapshot.affordable_at_start if snapshot else None
        """τ, once it is known."""
        self.plan_from = snapshot.plan_from if snapshot else None
        """The round in which the budget was last renewed; None: not in this run."""
        self._cold = config.learns_cost
        self._renews_at: float | None = None
        self._paced: tuple[int, float] | None = None

    @property
    def cost(self) -> Cost | None:
        """What a training round is believed to cost now; None where nothing tells yet."""
        return (self.costs.cost() if self._config.learns_cost else None) or self._config.cost

    def decide(self, round_: int, first_round: int, trained: int, now: float) -> tuple[Decision, Account]:
        """Return whether to train in `round_`, and what that was taken from."""
        cost = self.cost
        if self.affordable is None and cost is not None:
            possible = self.ledger.affordable(cost)
            before = trained if self.plan_from is None else 0  # the rounds that told the cost belong to the plan
            self.affordable = None if possible is None else possible + before
        account = Account(
            ledger=self.ledger,
            expected_uj=None if cost is None else cost.expected_uj,
            upper_uj=None if cost is None else cost.upper_uj,
            seen=self.costs.seen,
            first_round=first_round if self.plan_from is None else self.plan_from,
            affordable_at_start=self.affordable,
            until_round=self._until(round_, now),
            relay=self._config.relay,
            load_uj=self._load_uj or 0,
        )
        return taken_again(account, self._config.run, self._config.node, round_), account

    def reserve(self, run: str, round_: int) -> int | None:
        """Set aside what `round_` may cost; return where its training must end, None where nothing bounds it."""
        obeys = self._policy.obeys_budget
        left_uj = self.ledger.left_uj if obeys else None
        amount = to_reserve(self.cost, left_uj, self.ledger.limit_uj, self._load_uj)
        self.ledger = self.ledger.reserve(Reservation(run, round_, amount), enforced=obeys)
        return None if left_uj is None else amount

    @property
    def _load_uj(self) -> int | None:
        """What loading torch and data will cost besides: 0 where a trainer has them, None where nobody knows."""
        return self.costs.load_uj if self._cold else 0

    def settle(self, event: TrainingFinished | TrainingFailed) -> int:
        """Charge what a training cost, learn from it, and return what was charged.

        Replayed energy never passes the budget: of a recorded round that did, what was left is charged.
        """
        if event.quality is Quality.NONE and event.energy_uj == 0:
            self.ledger = self.ledger.release()
            return 0
        spent, unreserved = event.energy_uj, replace(self.ledger, reservation=None)
        if event.quality is Quality.REPLAYED and self._policy.obeys_budget and unreserved.left_uj is not None:
            spent = min(spent, unreserved.left_uj)
        self.ledger = self.ledger.settle(spent)
        if self._config.learns_cost:
            self._cold = event.window is None or not event.window.warm
            self._learn(event.window)
        return spent

    def _learn(self, window: WindowDetail | None) -> None:
        if window is not None and window.whole_uj is not None:
            self.costs = self.costs.after(window.whole_uj)
        if window is not None and window.load_uj is not None:
            self.costs = replace(self.costs, load_uj=window.load_uj)

    def renew(self, event: BudgetRenewed, next_round: int, now: float) -> bool:
        """Plan with the budget of the period that has begun; of the present one only its end is news (False)."""
        self._renews_at = None if event.renews_in_s is None else now + event.renews_in_s
        if event.period == self.ledger.period:
            return False
        self.ledger = self.ledger.renew(event.period, event.limit_uj, event.limit_rounds)
        self.affordable, self.plan_from = None, next_round
        return True

    def flow(self, event: EnergyFlowed) -> None:
        """Credit what was recharged, charge what was spent."""
        self.ledger = self.ledger.credit(event.credit_uj).charge_background(event.background_uj)

    def keep_pace(self, round_: int, now: float) -> None:
        """Remember when the first round of this process began: it tells how long rounds take."""
        self._paced = self._paced or (round_, now)

    def _until(self, round_: int, now: float) -> int | None:
        """Return the round in which the budget will be renewed, at the pace so far; None where that is not known."""
        first, since = self._paced or (round_, now)
        if self._renews_at is None or round_ <= first or now <= since:
            return None
        return round_ + max(1, int((self._renews_at - now) * (round_ - first) / (now - since)))
