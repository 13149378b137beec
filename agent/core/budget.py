"""The ledger of a device: integer microjoules, reserved before they are spent and settled afterwards.

The ledger belongs to the device and its budget period, not to a run: a new run does not refill it. It covers the gross
joules of training windows; where a run opts for it, those of sharing and idling too. Integers, because subtracting
floats loses whole rounds (271 affordable instead of 272).
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
    mark: str = ""
    """What the meter's counters said before the window opened, in the driver's words; "" where it has none."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a device may spend on training in a budget period and what it has spent, in microjoules."""

    limit_uj: int | None
    """The budget; None where the device has none."""
    charged_uj: int = 0
    """Settled and forfeited amounts, and those of `background_uj`."""
    forfeited_uj: int = 0
    """The part of `charged_uj` that no reading settled, because the agent died in mid-training."""
    windows: int = 0
    """Training windows charged so far."""
    reservation: Reservation | None = None
    period: str = ""
    """Name of the budget period; a new name is a new budget."""
    credited_uj: int = 0
    """What recharging has given back."""
    background_uj: int = 0
    """The part of `charged_uj` that no training window used: sharing and idling, where they are charged."""
    limit_rounds: int | None = None
    """The budget as a number of training rounds; None where it has no such bound."""

    @property
    def left_uj(self) -> int | None:
        """What can still be reserved, never negative; None means without limit."""
        if self.limit_uj is None:
            return None
        return max(0, self.limit_uj + self.credited_uj - self._taken_uj)

    @property
    def _taken_uj(self) -> int:
        return self.charged_uj + (self.reservation.upper_uj if self.reservation else 0)

    @property
    def left_rounds(self) -> int | None:
        """How many training rounds may still begin; None where only joules bound them."""
        if self.limit_rounds is None:
            return None
        return max(0, self.limit_rounds - self.windows - (self.reservation is not None))

    @property
    def overspent_uj(self) -> int:
        """By how much the charges exceed the budget: 0 for replayed energy, bounded for measured energy."""
        return 0 if self.limit_uj is None else max(0, self.charged_uj - self.credited_uj - self.limit_uj)

    def affords(self, amount_uj: int) -> bool:
        """Say whether one more training round of `amount_uj` is within the budget."""
        return (self.left_uj is None or amount_uj <= self.left_uj) and self.left_rounds != 0

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

    def credit(self, amount_uj: int) -> Ledger:
        """Give back what was recharged; never more than was taken, for a full battery takes no more."""
        if amount_uj < 0:
            raise ContractViolation(f"{amount_uj} uJ cannot be credited")
        room = max(0, self.charged_uj - self.credited_uj)
        return replace(self, credited_uj=self.credited_uj + min(amount_uj, room))

    def charge_background(self, amount_uj: int) -> Ledger:
        """Charge what was spent outside of training windows; nothing can refuse it, so it may exceed the budget."""
        if amount_uj < 0:
            raise ContractViolation(f"{amount_uj} uJ cannot be charged")
        charged, background = self.charged_uj + amount_uj, self.background_uj + amount_uj
        return replace(self, charged_uj=charged, background_uj=background)

    def renew(self, period: str, limit_uj: int | None, limit_rounds: int | None) -> Ledger:
        """Return the ledger of a new budget period; a training under way is settled in it."""
        return Ledger(limit_uj, period=period, limit_rounds=limit_rounds, reservation=self.reservation)

    def affordable(self, cost: Cost) -> int | None:
        """Return how many training rounds fit into what is left (τ in the paper); None means without limit."""
        bounds = [] if self.left_uj is None else [self.left_uj // cost.expected_uj]
        bounds += [] if self.left_rounds is None else [self.left_rounds]
        return min(bounds, default=None)
