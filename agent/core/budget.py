"""The ledger of a device: integer microjoules, reserved before they are spent and settled afterwards.

The ledger belongs to the device and its budget period, not to a run: a new run does not refill it. It covers the gross
joules of training windows. Integers, because subtracting floats loses whole rounds (271 affordable instead of 272).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.errors import ContractViolation


@dataclass(frozen=True, slots=True)
class Cost:
    """What one training round is believed to cost, in microjoules; `upper_uj` is what gets reserved."""

    expected_uj: int
    upper_uj: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """Joules set aside for one training round that has not been settled."""

    run: str
    round: int
    upper_uj: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a device may spend on training in a budget period and what it has spent, in microjoules."""

    limit_uj: int | None
    """The budget; None where the device has none."""
    charged_uj: int = 0
    """Settled and forfeited amounts."""
    forfeited_uj: int = 0
    """The part of `charged_uj` that no reading settled, because the agent died in mid-training."""
    windows: int = 0
    """Training windows charged so far."""
    reservation: Reservation | None = None
    period: str = ""
    """Name of the budget period; a new name is a new budget."""

    @property
    def left_uj(self) -> int | None:
        """What can still be reserved, never negative; None means without limit."""
        if self.limit_uj is None:
            return None
        reserved = self.reservation.upper_uj if self.reservation else 0
        return max(0, self.limit_uj - self.charged_uj - reserved)

    @property
    def overspent_uj(self) -> int:
        """By how much the charges exceed the budget: 0 for replayed energy, bounded for measured energy."""
        return 0 if self.limit_uj is None else max(0, self.charged_uj - self.limit_uj)

    def affords(self, amount_uj: int) -> bool:
        """Say whether `amount_uj` can be reserved within the budget."""
        return self.left_uj is None or amount_uj <= self.left_uj

    def reserve(self, reservation: Reservation, *, enforced: bool = True) -> Ledger:
        """Set an amount aside; `enforced` is off for policies that ignore budgets."""
        if self.reservation is not None:
            raise ContractViolation(f"round {self.reservation.round} is reserved and not settled")
        if enforced and not self.affords(reservation.upper_uj):
            raise ContractViolation(f"cannot reserve {reservation.upper_uj} uJ: {self.left_uj} uJ are left")
        return replace(self, reservation=reservation)

    def settle(self, spent_uj: int) -> Ledger:
        """Replace the open reservation by what was really spent."""
        if self.reservation is None:
            raise ContractViolation("nothing is reserved, so nothing can be settled")
        if spent_uj < 0:
            raise ContractViolation(f"a training window cannot cost {spent_uj} uJ")
        return replace(self, charged_uj=self.charged_uj + spent_uj, windows=self.windows + 1, reservation=None)

    def release(self) -> Ledger:
        """Drop the open reservation: no training window was opened, and nothing was spent."""
        if self.reservation is None:
            raise ContractViolation("nothing is reserved, so nothing can be released")
        return replace(self, reservation=None)

    def forfeit(self) -> Ledger:
        """Charge an open reservation in full, as after a crash; without one, change nothing."""
        if self.reservation is None:
            return self
        upper = self.reservation.upper_uj
        return replace(self.settle(upper), forfeited_uj=self.forfeited_uj + upper)

    def affordable(self, cost: Cost) -> int | None:
        """Return how many training rounds fit into what is left (τ in the paper); None means without limit."""
        return None if self.left_uj is None else self.left_uj // cost.expected_uj
