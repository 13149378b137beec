"""Whether a node trains in a round: the participation policies of SkipTrain (arXiv 2407.01283) and one of our own.

To add a policy: a frozen dataclass with the three members of `Policy`, and one line in `POLICIES`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from agent.core.budget import Cost, Ledger
from agent.core.seeding import uniform
from agent.core.types import Account, Decision, NodeId, RoundKind, RunDescriptor, Schedule


@dataclass(frozen=True, slots=True)
class Slot:
    """What a policy may know when a training round comes."""

    slots_total: int
    """T_train: training rounds of the run from this node's first round on, or of the budget period where it ends first.
    """
    slots_left: int
    """Training rounds that are left of them, this one included."""
    affordable_at_start: int | None
    """τ: training rounds that the budget paid for when this node began; None without a budget, or not known yet."""
    left_uj: int | None
    expected_uj: int | None
    """None: nobody knows yet what a round costs; the first one tells."""
    left_rounds: int | None = None


class Policy(Protocol):
    """A rule that turns a training slot into a probability of training."""

    @property
    def obeys_schedule(self) -> bool:
        """Whether synchronisation rounds exist for it; if not, every round is a training round."""

    @property
    def obeys_budget(self) -> bool:
        """Whether it stops when the budget cannot pay for another training round."""

    def probability(self, slot: Slot) -> float:
        """Return the probability in [0, 1] of training in this slot, given that the budget can pay for it."""


@dataclass(frozen=True, slots=True)
class Always:
    """Train in every training round: `d-psgd`, `greedy` and `skiptrain` differ in what they obey."""

    obeys_schedule: bool
    obeys_budget: bool

    def probability(self, slot: Slot) -> float:  # noqa: ARG002  the same in every slot
        """Return 1."""
        return 1.0


@dataclass(frozen=True, slots=True)
class Constrained:
    """SkipTrain-constrained as published: p = min(τ / T_train, 1), fixed when the node begins."""

    obeys_schedule: bool = True
    obeys_budget: bool = True

    def probability(self, slot: Slot) -> float:
        """Return min(τ / T_train, 1)."""
        if slot.affordable_at_start is None:
            return 1.0
        return min(1.0, slot.affordable_at_start / max(1, slot.slots_total))


@dataclass(frozen=True, slots=True)
class Replanned:
    """Constrained, planned anew in every slot: p = min(1, left / (expected cost of a round * slots left))."""

    obeys_schedule: bool = True
    obeys_budget: bool = True

    def probability(self, slot: Slot) -> float:
        """Return the share of the slots left that the joules left can pay for."""
        share, slots = 1.0, max(1, slot.slots_left)
        if slot.left_uj is not None and slot.expected_uj is not None:
            share = min(share, slot.left_uj / (slot.expected_uj * slots))
        return share if slot.left_rounds is None else min(share, slot.left_rounds / slots)


POLICIES: dict[str, Policy] = {
    "d-psgd": Always(obeys_schedule=False, obeys_budget=False),
    "greedy": Always(obeys_schedule=False, obeys_budget=True),
    "skiptrain": Always(obeys_schedule=True, obeys_budget=False),
    "skiptrain-constrained": Constrained(),
    "skiptrain-replanned": Replanned(),
}


def effective_schedule(policy: Policy, schedule: Schedule) -> Schedule:
    """Return the schedule that `policy` follows: without synchronisation rounds where it knows none."""
    return schedule if policy.obeys_schedule else replace(schedule, train_rounds=1, sync_rounds=0)


def decide(policy: Policy, kind: RoundKind, slot: Slot, draw: float, *, affordable: bool) -> Decision:
    """Return the decision for one round; `draw` is uniform in [0, 1) and used in training slots only."""
    if kind is RoundKind.SYNCHRONISATION:
        return Decision(False, 0.0, draw, "synchronisation round")
    if policy.obeys_budget and not affordable:
        return Decision(False, 0.0, draw, "budget spent")
    probability = policy.probability(slot)
    train = draw < probability
    return Decision(train, probability, draw, "drawn to train" if train else "drawn to skip")


def taken_again(account: Account, run: RunDescriptor, node: NodeId, round_: int) -> Decision:
    """Return the decision of `round_` that follows from `account`, on whatever machine, however often it is asked."""
    rule, cost = POLICIES[run.policy], None
    if account.expected_uj is not None and account.upper_uj is not None:
        cost = Cost(account.expected_uj, account.upper_uj)
    who = Participant(
        rule,
        effective_schedule(rule, run.schedule),
        run.seed,
        node,
        cost,
        account.first_round,
        account.affordable_at_start,
        account.until_round,
        account.relay,
        account.load_uj,
    )
    return who.decide(round_, account.ledger)


@dataclass(frozen=True, slots=True)
class Participant:
    """One node in one run, as far as deciding goes; the machine and the planner both ask it."""

    policy: Policy
    schedule: Schedule
    """The effective one."""
    seed: int
    node: NodeId
    cost: Cost | None
    """None: not known yet."""
    first_round: int
    """The first round that the budget is planned for."""
    affordable_at_start: int | None
    until_round: int | None = None
    """The round in which the budget will be renewed; None: not before the run ends."""
    relay: bool = False
    """Whether this node never trains, whatever the policy."""
    load_uj: int = 0
    """What loading torch and data costs besides."""

    def slot(self, round_: int, left_uj: int | None, left_rounds: int | None = None) -> Slot:
        """Return what the policy may know in `round_` with `left_uj` in the budget."""
        expected_uj = None if self.cost is None else self.cost.expected_uj
        total, left = self._slots(self.first_round), self._slots(round_)
        return Slot(total, left, self.affordable_at_start, left_uj, expected_uj, left_rounds)

    def _slots(self, start: int) -> int:
        """Return the training rounds from `start` on that this budget must last for."""
        slots = self.schedule.training_slots
        return slots(start) - (0 if self.until_round is None else slots(max(start, self.until_round)))

    def decide(self, round_: int, ledger: Ledger) -> Decision:
        """Return the decision for `round_`; the same on every machine, however often it is asked."""
        draw, kind = uniform(self.seed, self.node, round_, "participation"), self.schedule.kind(round_)
        if self.relay and kind is RoundKind.TRAINING:
            return Decision(False, 0.0, draw, "relay")
        slot = self.slot(round_, ledger.left_uj, ledger.left_rounds)
        affordable = ledger.affords(self.load_uj + (1 if self.cost is None else self.cost.expected_uj))
        return decide(self.policy, kind, slot, draw, affordable=affordable)
