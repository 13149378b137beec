"""An audit takes each decision again, and finds whatever was changed in a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from agent.audit import Audit, Terms, audit
from agent.core.budget import Cost, Ledger
from agent.core.events import BudgetRenewed, EnergyFlowed
from agent.core.participation import POLICIES
from agent.core.types import Decision, RoundKind, RoundRecord
from tests.core.alone import ME, Alone, lone_run

COSTS = (1_000, 1_300, 900, 1_100, 2_000, 1_000, 1_050)


def history(policy: str = "skiptrain-replanned", limit: int = 16_000) -> Alone:
    """Return a run that is over."""
    alone = Alone(lone_run(policy), COSTS, Ledger(limit))
    alone.go()
    return alone


def checked(alone: Alone, records: list[RoundRecord] | None = None) -> Audit:
    """Audit what a run left behind."""
    terms = Terms(alone.run, ME, alone.prior, alone.learns)
    return audit(alone.records if records is None else records, terms, alone.saved)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("prior", [None, Cost(1_000, 1_500)])
def test_what_a_machine_writes_is_explained_whole(policy: str, prior: Cost | None) -> None:
    """Every decision and every belief of every policy follows from the records alone; all joules are there."""
    alone = Alone(lone_run(policy), COSTS, Ledger(16_000), prior)
    alone.go()
    found = checked(alone)
    assert found.findings == []
    assert (found.rounds, found.taken_again, found.unexplained) == (40, 40, 0)
    assert found.train_uj == alone.machine.ledger.charged_uj
    assert found.outside_uj == 0


def test_exact_costs_are_explained_as_well() -> None:
    """As with a trace: nothing is learnt, and each round costs what was believed."""
    alone = Alone(lone_run("skiptrain-constrained"), (1_000,), Ledger(12_000), Cost(1_000, 1_000), learns=False)
    alone.go()
    assert checked(alone).findings == []


CHANGES: dict[str, Callable[[RoundRecord], RoundRecord]] = {
    "a joule less spent": lambda r: replace(r, energy_uj=r.energy_uj - 1),
    "a joule more spent": lambda r: replace(r, energy_uj=r.energy_uj + 1),
    "less charged": lambda r: replace(r, charged_uj=(r.charged_uj or 0) - 1),
    "another draw": lambda r: replace(r, decision=replace(r.decision, draw=0.99)),
    "another probability": lambda r: replace(r, decision=replace(r.decision, probability=0.5)),
    "another decision": lambda r: replace(r, decision=replace(r.decision, train=not r.decision.train)),
    "another reason": lambda r: replace(r, decision=replace(r.decision, reason="drawn to win")),
    "another window": lambda r: replace(r, window=replace(r.window, whole_uj=10**7) if r.window else None),
    "another belief": lambda r: replace(r, account=replace(r.account, expected_uj=1) if r.account else None),
    "another guard": lambda r: replace(r, account=replace(r.account, upper_uj=10**9) if r.account else None),
    "another budget": lambda r: replace(
        r, account=replace(r.account, ledger=replace(r.account.ledger, limit_uj=10**9)) if r.account else None
    ),
    "a refund": lambda r: replace(
        r, account=replace(r.account, ledger=replace(r.account.ledger, charged_uj=0)) if r.account else None
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_is_found(change: str) -> None:
    """In any trained round that is neither the first nor among the last."""
    alone = history()
    trained = [i for i, record in enumerate(alone.records) if record.decision.train]
    for i in trained[2:-3]:
        records = list(alone.records)
        records[i] = CHANGES[change](records[i])
        found = checked(alone, records)
        if change == "a joule more spent":
            assert any("were not charged" in each.what for each in found.findings), i
        elif change == "a joule less spent":
            assert found.findings or found.outside_uj == 1, i
        else:
            assert found.findings, (i, records[i])


def test_a_round_trained_in_secret_is_found() -> None:
    """A skipped round that claims joules, and a trained one that claims none."""
    alone = history()
    skipped = next(i for i, r in enumerate(alone.records) if not r.decision.train and r.kind is RoundKind.TRAINING)
    records = list(alone.records)
    records[skipped] = replace(records[skipped], energy_uj=5)
    assert "that was not trained" in checked(alone, records).findings[0].what


def test_renewed_recharged_and_charged_budgets_are_explained() -> None:
    """A day's end, a panel's credit, and what sharing cost: charged outside of training, and nothing is missing."""
    alone = Alone(lone_run("skiptrain-replanned"), COSTS, Ledger(5_000, period="@1"))
    alone.do(BudgetRenewed("@1", 5_000, None, 20.0))
    alone.go(8)
    alone.do(EnergyFlowed(credit_uj=700, background_uj=40))
    alone.go(8)
    alone.do(BudgetRenewed("@2", 5_000, None, 20.0))
    alone.go()
    found = checked(alone)
    assert found.findings == []
    assert found.outside_uj == 40
    assert alone.machine.ledger.period == "@2"


def test_records_of_another_run_are_only_added_up() -> None:
    """They cannot be taken again, and are counted as such."""
    alone = history()
    found = audit(alone.records, Terms(lone_run("greedy"), ME))
    assert (found.taken_again, found.unexplained, found.findings) == (0, 40, [])


def test_a_ledger_on_disk_that_lost_joules_is_found() -> None:
    """The state must hold at least what the last record says."""
    alone = history()
    assert alone.saved is not None
    alone.saved = replace(alone.saved, ledger=replace(alone.saved.ledger, charged_uj=3))
    assert "gone from the ledger that follows" in checked(alone).findings[-1].what


def late(record: RoundRecord) -> RoundRecord:
    """Return the record of a round that the node came too late for."""
    return replace(record, account=None, decision=Decision(False, 0.0, 0.0, "catching up"), energy_uj=0, window=None)


def more(record: RoundRecord, by: int) -> RoundRecord:
    """Return a record with so much more in the ledger, before and after it."""
    account = record.account
    if account is not None:
        ledger = replace(account.ledger, charged_uj=account.ledger.charged_uj + by)
        account = replace(account, ledger=ledger)
    return replace(record, account=account, charged_uj=(record.charged_uj or 0) + by)


def skipped_after_training(alone: Alone) -> int:
    """Return the index of a round that was not trained, the round before it was, and many come after."""
    pairs = zip(alone.records, alone.records[1:], strict=False)
    return next(i for i, (a, b) in enumerate(pairs, 1) if i > 3 and a.decision.train and not b.decision.train)


def test_joules_charged_while_catching_up_are_found() -> None:
    """Where no account is written, the next one tells; what a crash forfeited explains them."""
    alone = history()
    i, records = skipped_after_training(alone), list(alone.records)
    records[i] = late(records[i])
    assert alone.saved is not None
    good = checked(alone, records)
    assert (good.findings, good.undrawn, good.missing) == ([], 1, 0)
    worse = [*records[:i], *(more(record, 7) for record in records[i:])]
    state = replace(alone.saved, ledger=replace(alone.saved.ledger, charged_uj=alone.saved.ledger.charged_uj + 7))
    found = audit(worse, Terms(alone.run, ME), state)
    assert [each.what for each in found.findings if "follow" not in each.what] == [
        "7 uJ more were charged than it says that it spent"
    ]
    assert found.outside_uj == 7


def test_a_late_node_passes_rounds_over() -> None:
    """It jumped: no record is missing, unless joules were charged in between."""
    alone = history("greedy")
    records = [*alone.records[:25], late(alone.records[30]), *alone.records[31:]]
    found = checked(alone, records)
    assert (found.findings, found.missing) == ([], 0)
    assert alone.records[3].energy_uj > 0
    records = [*alone.records[:3], late(alone.records[5]), *alone.records[6:]]
    found = checked(alone, records)
    assert (found.findings, found.missing) == ([], 2)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_lines_that_a_power_cut_took_are_counted(policy: str) -> None:
    """Wherever they are missing: nothing is wrong but that, and what is gone from the ledger is still found."""
    alone = history(policy)
    for start in range(1, 40):
        records = [*alone.records[:start], *alone.records[start + 3 :]]
        found = checked(alone, records)
        lost = 40 - len(records)
        at_the_end = start + lost == 40
        trained = any(record.decision.train for record in alone.records[start : start + 3])
        assert found.findings == [], start
        assert found.missing in ({0, lost} if at_the_end and not trained else {lost}), start
    records = [*alone.records[:20], *(more(record, -alone.machine.ledger.charged_uj) for record in alone.records[23:])]
    assert any("gone from the ledger that follows" in each.what for each in checked(alone, records).findings)
