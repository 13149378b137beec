"""What a node believes of its costs, plans, reserves and decides: the budget's side of the machine."""

from __future__ import annotations

from statistics import median_low

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.budget import Cost, Ledger, Reservation
from agent.core.costs import KEPT, MEDIAN_OF, CostHistory, to_reserve
from agent.core.events import BudgetRenewed, EnergyFlowed, TrainingFailed, TrainingFinished
from agent.core.participation import POLICIES, Slot
from agent.core.purse import Purse
from agent.core.round_state import MachineConfig
from agent.core.types import Quality, WindowDetail
from agent.errors import ContractViolation
from tests.core.alone import ME, Alone, lone_run

AMOUNTS = st.lists(st.integers(0, 10**12), min_size=1, max_size=80)


def learnt(amounts: list[int]) -> CostHistory:
    """Return the history of these rounds."""
    history = CostHistory("toy")
    for amount in amounts:
        history = history.after(amount)
    return history


# --- what a round is believed to cost


@settings(deadline=None, derandomize=True, max_examples=200)
@given(AMOUNTS)
def test_the_expected_cost_is_a_median_and_the_upper_one_is_above_nearly_all(amounts: list[int]) -> None:
    """Of the last 9 and the last 32 rounds; both positive, however odd the rounds were."""
    history = learnt(amounts)
    cost = history.cost()
    assert cost is not None
    last, kept = [max(1, a) for a in amounts[-MEDIAN_OF:]], [max(1, a) for a in amounts[-KEPT:]]
    assert median_low(last) <= cost.expected_uj <= max(last)
    assert cost.upper_uj >= cost.expected_uj >= 1
    assert sum(amount > cost.upper_uj for amount in kept) <= len(kept) // 20 + 1
    assert (history.seen, len(history.recent_uj)) == (len(amounts), len(kept))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(1, 10**12), st.integers(1, 60))
def test_equal_rounds_are_learnt_exactly(amount: int, times: int) -> None:
    """No rounding: a constant cost is expected to the microjoule."""
    cost = learnt([amount] * times).cost()
    assert cost == Cost(amount, amount + amount // 2)


def test_one_strange_round_changes_no_plan() -> None:
    """It raises what is reserved, as it may come again, and not what is expected."""
    cost = learnt([1_000] * 8 + [50_000]).cost()
    assert cost == Cost(1_000, 75_000)


def test_a_drift_is_followed_within_five_rounds() -> None:
    """30 % more from one round to the next."""
    cost = learnt([1_000] * 20 + [1_300] * 5).cost()
    assert cost is not None
    assert cost.expected_uj == 1_300


@pytest.mark.parametrize(
    ("cost", "left", "load", "amount"),
    [
        (None, 1_000, 0, 200),
        (None, 150, 0, 150),
        (None, None, None, 0),
        (None, 1_000, None, 200),
        (None, 1_000, 100, 350),
        (Cost(10, 15), 100, 0, 15),
        (Cost(10, 15), 12, 0, 12),
        (Cost(10, 15), None, None, 15),
        (Cost(10, 15), 1_000, 20, 45),
        (Cost(10, 15), 1_000, None, 215),
    ],
)
def test_never_more_than_what_is_left_is_reserved(
    cost: Cost | None, left: int | None, load: int | None, amount: int
) -> None:
    """A tenth of the budget of 2,000 for a round, or for loading torch, of which nobody knows the cost."""
    assert to_reserve(cost, left, 2_000, load) == amount


# --- the ledger


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    st.integers(0, 10**9),
    st.lists(st.tuples(st.sampled_from(["train", "credit", "background", "forfeit"]), st.integers(0, 10**8))),
)
def test_a_ledger_balances_whatever_happens(limit: int, happenings: list[tuple[str, int]]) -> None:
    """Nothing is left beyond the limit, credits never exceed charges, and each joule stands in one place."""
    ledger, charged, background = Ledger(limit), 0, 0
    for kind, amount in happenings:
        if kind == "credit":
            ledger = ledger.credit(amount)
        elif kind == "background":
            ledger, charged, background = ledger.charge_background(amount), charged + amount, background + amount
        elif ledger.affords(amount):
            ledger = ledger.reserve(Reservation("run", 0, amount))
            ledger = ledger.settle(amount // 2) if kind == "train" else ledger.forfeit()
            charged += amount // 2 if kind == "train" else amount
        assert ledger.charged_uj == charged
        assert ledger.background_uj == background
        assert ledger.credited_uj <= ledger.charged_uj
        assert ledger.left_uj is not None
        assert 0 <= ledger.left_uj <= limit
        assert ledger.left_uj - ledger.overspent_uj == limit + ledger.credited_uj - charged


def test_recharging_pays_a_debt_first() -> None:
    """What was overspent is not forgotten, and a full battery takes no more."""
    ledger = Ledger(100).reserve(Reservation("run", 0, 100)).settle(130)
    assert (ledger.left_uj, ledger.overspent_uj) == (0, 30)
    assert ledger.credit(50).left_uj == 20
    assert ledger.credit(1_000).left_uj == 100


@pytest.mark.parametrize("wrong", [Ledger(1).credit, Ledger(1).charge_background])
def test_amounts_are_never_negative(wrong: object) -> None:
    """A driver that says so has a fault."""
    with pytest.raises(ContractViolation):
        wrong(-1)  # type: ignore[operator]


def test_a_budget_of_rounds_ends_after_so_many() -> None:
    """A round that was interrupted counts; joules do not bound it."""
    ledger = Ledger(None, limit_rounds=2)
    assert (ledger.left_uj, ledger.left_rounds, ledger.affordable(Cost(5, 5))) == (None, 2, 2)
    ledger = ledger.reserve(Reservation("run", 0, 5))
    assert ledger.left_rounds == 1
    ledger = ledger.forfeit().reserve(Reservation("run", 1, 5)).settle(5)
    assert (ledger.left_rounds, ledger.affords(0)) == (0, False)


# --- policies


def test_a_round_of_unknown_cost_is_trained_to_know_it() -> None:
    """Whatever the policy: the first round tells."""
    slot = Slot(10, 10, None, 500, None)
    assert {name: policy.probability(slot) for name, policy in POLICIES.items()} == dict.fromkeys(POLICIES, 1.0)


@pytest.mark.parametrize(("rounds", "probability"), [(None, 0.5), (2, 0.2), (9, 0.5)])
def test_the_tighter_of_joules_and_rounds_decides(rounds: int | None, probability: float) -> None:
    """For the policy that plans anew in each slot."""
    slot = Slot(10, 10, 5, 500, 100, rounds)
    assert POLICIES["skiptrain-replanned"].probability(slot) == probability


@pytest.mark.parametrize("policy", ["greedy", "skiptrain-constrained", "skiptrain-replanned"])
def test_an_unknown_cost_is_learnt_and_the_budget_holds(policy: str) -> None:
    """The first round may take a tenth of the budget; none passes its guard, and so none passes the budget."""
    alone = Alone(lone_run(policy, 60), (1_000, 1_400, 800), Ledger(20_000))
    records = alone.go()
    assert alone.guards[0] == 2_000
    assert records[0].decision.train
    assert records[0].account is not None
    assert records[0].account.expected_uj is None
    assert alone.machine.ledger.overspent_uj == 0
    assert alone.machine.trained > 5


def test_a_last_round_is_cut_to_what_is_left() -> None:
    """1,000 are expected, 1,500 would be reserved, 1,200 are left: it trains within them. The first one loads, too."""
    alone = Alone(lone_run("greedy", 9), (1_000,), Ledger(3_200), Cost(1_000, 1_500))
    alone.go()
    assert alone.guards == [1_500 + 320, 1_500, 1_200]
    assert (alone.machine.ledger.charged_uj, alone.machine.trained) == (3_000, 3)


def test_a_relay_never_trains_and_says_why() -> None:
    """It takes part in every round all the same."""
    alone = Alone(lone_run("skiptrain", 6), (1_000,), Ledger(None), Cost(1, 1), learns=False, relay=True)
    reasons = {(record.decision.train, record.decision.reason) for record in alone.go()}
    assert reasons == {(False, "relay"), (False, "synchronisation round")}
    assert alone.guards == []


def failed(round_: int, energy_uj: int, load_uj: int | None) -> TrainingFailed:
    """Return a training that the guard ended before its first local step."""
    window = WindowDetail("toy", 1.0, 1.0, 0, load_uj=load_uj, warm=False)
    return TrainingFailed(round_, "ended", energy_uj, Quality.MEASURED, window)


def test_a_start_that_is_dearer_than_what_was_set_aside_is_learnt() -> None:
    """Loading took more than a tenth of the budget: the next one is for all that it may take, or there is none."""
    run = lone_run("greedy", 9, schedule=(1, 0))
    purse = Purse(MachineConfig(ME, run, None, learns_cost=True), Ledger(1_000), None, CostHistory())
    assert purse.decide(0, 0, 0, 0.0)[0].train
    assert purse.reserve("", 0) == 100
    purse.settle(failed(0, 150, 300))
    assert purse.decide(1, 0, 0, 1.0)[0].train
    assert purse.reserve("", 1) == 100 + 450
    purse.settle(failed(1, 560, 1_120))
    decision, account = purse.decide(2, 0, 0, 2.0)
    assert (decision.train, decision.reason, account.load_uj) == (False, "budget spent", 1_120)


def test_a_trainer_that_has_loaded_needs_no_more_for_it() -> None:
    """After a round that went well only the round itself is reserved; after one that failed, loading is, too."""
    run = lone_run("greedy", 9, schedule=(1, 0))
    config = MachineConfig(ME, run, Cost(100, 150), learns_cost=True)
    purse = Purse(config, Ledger(100_000), None, CostHistory(load_uj=400))
    assert purse.decide(0, 0, 0, 0.0)[1].load_uj == 400
    assert purse.reserve("", 0) == 150 + 600
    window = WindowDetail("toy", 1.0, 1.0, 0, None, 100, 380)
    purse.settle(TrainingFinished(0, np.zeros(3, np.float32), 0.5, 480, Quality.MEASURED, window))
    assert purse.decide(1, 0, 1, 1.0)[1].load_uj == 0
    assert purse.reserve("", 1) == 150
    purse.settle(failed(1, 20, None))
    assert purse.decide(2, 0, 1, 2.0)[1].load_uj == 380


def test_replayed_energy_is_never_over() -> None:
    """A recorded round that cost more than what is left costs what is left."""
    run = lone_run("greedy", 9, schedule=(1, 0))
    purse = Purse(MachineConfig(ME, run, Cost(10, 15), learns_cost=True), Ledger(40), None, CostHistory())
    purse.decide(0, 0, 0, 0.0)
    purse.reserve("", 0)
    assert purse.settle(TrainingFailed(0, "", 60, Quality.REPLAYED)) == 40
    assert (purse.ledger.overspent_uj, purse.ledger.left_uj) == (0, 0)


# --- days


def test_a_daily_budget_is_planned_to_the_days_end() -> None:
    """With 60 of 600 rounds a day, 20 affordable in the 40 slots of a day: half of its slots, not a twentieth."""
    alone = Alone(lone_run("skiptrain-replanned", 600), (1_000,), Ledger(20_000, period="@1"), Cost(1_000, 1_000))
    for day in range(1, 6):
        alone.do(BudgetRenewed(f"@{day}", 20_000, None, 60.0))
        before = alone.machine.trained
        alone.go(60)
        assert 15 <= alone.machine.trained - before <= 20, day
        assert alone.machine.ledger.overspent_uj == 0


def test_the_end_of_a_period_settles_a_training_under_way_in_the_new_one() -> None:
    """Its reservation moves over: no joule is lost between two periods."""
    ledger = Ledger(10, period="@1").reserve(Reservation("run", 3, 4)).renew("@2", 20, None)
    assert (ledger.left_uj, ledger.period) == (16, "@2")
    assert ledger.settle(3).charged_uj == 3


def test_news_of_the_same_period_spend_nothing() -> None:
    """Only when it ends is new."""
    alone = Alone(lone_run("greedy", 6), (10,), Ledger(1_000, period="@1"), Cost(10, 10))
    alone.go(2)
    before = alone.machine.ledger
    alone.do(BudgetRenewed("@1", 5_000_000, None, 1.0))
    assert alone.machine.ledger == before


def test_what_is_charged_in_the_background_is_saved_at_once() -> None:
    """A crash may forget a credit, but no charge."""
    alone = Alone(lone_run("greedy", 6), (10,), Ledger(1_000), Cost(10, 10))
    alone.go(2)
    alone.do(EnergyFlowed(background_uj=7))
    assert alone.saved is not None
    assert alone.saved.ledger.background_uj == 7
    alone.do(EnergyFlowed(credit_uj=5))
    assert alone.saved.ledger.credited_uj == 0
    assert alone.machine.ledger.credited_uj == 5
