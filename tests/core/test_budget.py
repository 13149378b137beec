"""The ledger: integers that are reserved, settled or forfeited, and never come back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.budget import Cost, Ledger, Reservation
from agent.errors import ContractViolation

AMOUNT = st.integers(0, 10**12)


def reservation(amount: int, round_: int = 0) -> Reservation:
    """Return a reservation of some run."""
    return Reservation("run", round_, amount)


def test_reserve_then_settle() -> None:
    """What is reserved cannot be reserved again; settling replaces it by what was really spent."""
    reserved = Ledger(100).reserve(reservation(40))
    assert (reserved.left_uj, reserved.charged_uj) == (60, 0)
    settled = reserved.settle(25)
    assert (settled.left_uj, settled.charged_uj, settled.windows, settled.reservation) == (75, 25, 1, None)


def test_measured_cost_may_exceed_the_reservation_and_says_by_how_much() -> None:
    """A measurement is charged in full even when it is over: nothing is left, never less than nothing."""
    ledger = Ledger(100).reserve(reservation(100)).settle(130)
    assert (ledger.charged_uj, ledger.left_uj, ledger.overspent_uj) == (130, 0, 30)


def test_forfeit_charges_once() -> None:
    """A reservation that nobody settled is charged in full; a second forfeit changes nothing."""
    ledger = Ledger(100).reserve(reservation(40)).forfeit()
    assert (ledger.charged_uj, ledger.forfeited_uj, ledger.windows) == (40, 40, 1)
    assert ledger.forfeit() == ledger


def test_no_limit_means_no_limit() -> None:
    """Without a budget everything is affordable, nothing is overspent, and spending is counted all the same."""
    ledger = Ledger(None).reserve(reservation(10**15)).settle(10**15)
    assert (ledger.left_uj, ledger.overspent_uj, ledger.charged_uj) == (None, 0, 10**15)
    assert ledger.affords(10**18)
    assert ledger.affordable(Cost(1, 1)) is None


def test_a_policy_that_ignores_budgets_still_keeps_books() -> None:
    """`enforced=False` reserves beyond the limit, and the overspending shows."""
    ledger = Ledger(10).reserve(reservation(40), enforced=False)
    assert ledger.left_uj == 0
    assert ledger.settle(40).overspent_uj == 30


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: Ledger(10).reserve(reservation(11)), "cannot reserve 11 uJ: 10 uJ are left"),
        (lambda: Ledger(100).reserve(reservation(1, 3)).reserve(reservation(1)), "round 3 is reserved and not settled"),
        (lambda: Ledger(100).settle(1), "nothing is reserved"),
        (lambda: Ledger(100).reserve(reservation(1)).settle(-1), "cannot cost -1 uJ"),
    ],
)
def test_broken_contracts_are_refused(broken: object, message: str) -> None:
    """Each misuse names what is wrong."""
    assert callable(broken)
    with pytest.raises(ContractViolation, match=message):
        broken()


@settings(deadline=None, derandomize=True, max_examples=200)
@given(AMOUNT, st.lists(st.tuples(AMOUNT, st.sampled_from(["exact", "less", "forfeit"])), max_size=30))
def test_obeying_never_exceeds_the_budget(limit: int, steps: list[tuple[int, str]]) -> None:
    """Whoever reserves within the budget and spends no more than reserved stays within it, to the microjoule."""
    ledger = Ledger(limit)
    for amount, how in steps:
        if not ledger.affords(amount):
            with pytest.raises(ContractViolation):
                ledger.reserve(reservation(amount))
            continue
        before = ledger
        ledger = ledger.reserve(reservation(amount))
        ledger = ledger.forfeit() if how == "forfeit" else ledger.settle(amount if how == "exact" else amount // 2)
        assert ledger.left_uj is not None
        assert 0 <= ledger.charged_uj <= limit
        assert ledger.left_uj == limit - ledger.charged_uj
        assert ledger.charged_uj >= before.charged_uj
