"""Takes every decision of a journal again, from the account that its record holds, and adds up every joule.

Nothing is believed but the records themselves and the configuration, whose digest they carry: a changed joule, draw,
probability or decision is found, as is a joule that is missing between two rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from agent.core.budget import Cost, Ledger
from agent.core.costs import CostHistory
from agent.core.participation import taken_again
from agent.core.types import Decision, NodeId, RoundRecord, RunDescriptor, Snapshot

_UNDRAWN = "catching up"
"""The decision of a late node, which follows from no draw."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a journal is checked against."""

    run: RunDescriptor
    node: NodeId
    prior: Cost | None = None
    """What the configuration says that a round costs."""
    learns: bool = True
    """Whether measured rounds tell it."""
    history: CostHistory = field(default_factory=CostHistory)
    """What a recording says had been learnt before."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing in the records that does not follow from the rest."""

    round: int
    what: str


@dataclass(slots=True)
class Audit:
    """What an audit found; amounts in microjoules."""

    rounds: int = 0
    trained: int = 0
    taken_again: int = 0
    """Decisions that were taken again."""
    undrawn: int = 0
    """Rounds that the node was too late to decide in."""
    unexplained: int = 0
    """Rounds of another run, or of a release that kept no account: only their joules are checked."""
    train_uj: int = 0
    share_uj: int = 0
    idle_uj: int = 0
    bound_uj: int = 0
    """By how much all training windows together may be wrong."""
    outside_uj: int = 0
    """Charged outside of training: what a restart forfeited, and sharing and idling where a run charges them."""
    overspent_uj: int = 0
    """By how much the ledger was over its limit, at most."""
    missing: int = 0
    """Rounds whose records are gone: the last lines before a power cut may be, as only the ledger is synced."""
    findings: list[Finding] = field(default_factory=list)


def audit(records: Sequence[RoundRecord], terms: Terms, last: Snapshot | None = None) -> Audit:
    """Check the records of one device, oldest first; `last` is the state in its journal."""
    result, auditor = Audit(), _Auditor(terms)
    chain = _Chain(result)
    for record in records:
        _add_up(result, record)
        chain.go_on(record)
        checks = (auditor.check(record, result), _inside(record, result))
        result.findings += [Finding(record.round, what) for check in checks for what in check]
    if last is not None:
        chain.end(last)
    return result


def _add_up(result: Audit, record: RoundRecord) -> None:
    result.rounds += 1
    result.trained += record.decision.train
    result.train_uj += record.energy_uj
    result.share_uj += record.share_uj or 0
    result.idle_uj += record.idle_uj or 0
    result.bound_uj += record.window.bound_uj if record.window else 0


class _Auditor:
    """Knows the run, and learns what a round costs as the device did."""

    def __init__(self, terms: Terms) -> None:
        self._terms, self._digest = terms, terms.run.digest().hex()
        self._costs: CostHistory | None = None

    def check(self, record: RoundRecord, result: Audit) -> Iterator[str]:
        """Yield what is wrong with one record by itself."""
        if record.energy_uj < 0:
            yield f"{record.energy_uj} uJ cannot have been spent"
        if record.energy_uj and not record.decision.train:
            yield f"{record.energy_uj} uJ were charged in a round that was not trained"
        if record.decision.train and not record.energy_uj and not record.error:
            yield "it trained, and no joule was charged"
        ours = (record.run, record.node) == (self._digest, self._terms.node)
        if ours and record.account is not None:
            result.taken_again += 1
            yield from self._decision(record)
            yield from self._cost(record)
        elif ours and record.decision.reason == _UNDRAWN:
            result.undrawn += 1
            if record.decision.train:
                yield "it trained in a round that it was too late to decide in"
        else:
            result.unexplained += 1

    def _decision(self, record: RoundRecord) -> Iterator[str]:
        if record.account is None:
            return
        again = taken_again(record.account, self._terms.run, self._terms.node, record.round)
        if again != record.decision:
            yield f"it was decided {_words(record.decision)}; from its account follows {_words(again)}"

    def _cost(self, record: RoundRecord) -> Iterator[str]:
        """Yield where the belief of what a round costs does not follow from the windows before."""
        account, window, terms = record.account, record.window, self._terms
        if account is None:
            return
        if account.seen == terms.history.seen:
            self._costs = terms.history
        if self._costs is not None and self._costs.seen != account.seen:
            self._costs = None  # rounds in between are gone, or were of another workload
        known = self._costs is not None or not terms.learns
        if known:
            learnt = self._costs.cost() if self._costs is not None and terms.learns else None
            cost = learnt or terms.prior
            said = account.expected_uj, account.upper_uj
            if said != (None if cost is None else cost.expected_uj, None if cost is None else cost.upper_uj):
                yield f"a round was believed to cost {said[0]} uJ, {said[1]} at most; what was known says {cost}"
        if self._costs is not None and window is not None and window.whole_uj is not None:
            self._costs = self._costs.after(window.whole_uj)


def _words(decision: Decision) -> str:
    word = "to train" if decision.train else "to skip"
    return f"{word} (p {decision.probability!r}, draw {decision.draw!r}, {decision.reason})"


def _inside(record: RoundRecord, result: Audit) -> Iterator[str]:
    """Yield where a round's training is not in the ledger at its end."""
    account, charged = record.account, record.charged_uj
    if account is None or charged is None or account.ledger.period != record.period:
        return
    ledger = account.ledger
    missing = record.energy_uj - (charged - ledger.charged_uj)
    if missing > 0:
        yield f"{missing} uJ that it spent were not charged"
    if ledger.limit_uj is not None:
        result.overspent_uj = max(result.overspent_uj, charged - ledger.credited_uj - ledger.limit_uj)


@dataclass(slots=True)
class _Chain:
    """Follows the ledger from record to record."""

    result: Audit
    before: RoundRecord | None = None
    since: Ledger | None = None
    """The ledger that the joules are counted from: that of the last account."""
    spent_uj: int = 0
    """What the records after it spent in training."""
    passed: int = 0
    """Rounds after it without a record: a late node passed them over, or their records are gone."""

    def go_on(self, record: RoundRecord) -> None:
        """Check that the ledger of `record` goes on where the one before ended."""
        before = self.before
        if before is not None and before.charged_uj is not None:
            self._pass_over(record.run, record.round, late=record.account is None)
            if record.account is not None:
                self._compare(before, record.account.ledger)
            elif record.charged_uj is not None and record.period == before.period:
                self._find_gone(before, record.charged_uj - record.energy_uj)
        self._take(record)

    def end(self, last: Snapshot) -> None:
        """Check that the ledger on disk goes on where the last record ended."""
        before = self.before
        if before is None or before.charged_uj is None:
            return
        late = last.decision is None or last.decision.reason == _UNDRAWN
        self._pass_over(last.run, last.round, late=late)
        if (last.run, last.round) != (before.run, before.round):
            self.spent_uj += last.energy_uj  # of a round that has no record yet, as the agent was stopped in it
        self._compare(before, last.ledger)

    def _pass_over(self, run: str, round_: int, *, late: bool) -> None:
        """Count the rounds between; where no late node passed them over, nobody knows what they spent."""
        between = round_ - self.before.round - 1 if self.before is not None and run == self.before.run else 0
        if late:
            self.passed += max(0, between)
        elif between > 0:
            self.result.missing += between
            self.since = None

    def _compare(self, before: RoundRecord, ledger: Ledger) -> None:
        """Find what is gone from a ledger that came after `before`, and what nothing explains in it."""
        if ledger.period != before.period:
            return
        self._find_gone(before, ledger.charged_uj)
        was = self.since
        if was is None or was.period != ledger.period:
            return
        outside = ledger.charged_uj - was.charged_uj - self.spent_uj
        extra = outside - (ledger.background_uj - was.background_uj)
        self.result.outside_uj += max(0, outside)
        if extra <= ledger.forfeited_uj - was.forfeited_uj:
            return
        if self.passed:
            self.result.missing += self.passed
        else:
            self._find(before, f"{extra} uJ more were charged than it says that it spent")

    def _find_gone(self, before: RoundRecord, charged_uj: int) -> None:
        gone = (before.charged_uj or 0) - charged_uj
        if gone > 0:
            self._find(before, f"{gone} uJ that had been charged are gone from the ledger that follows")

    def _find(self, before: RoundRecord, what: str) -> None:
        self.result.findings.append(Finding(before.round, what))

    def _take(self, record: RoundRecord) -> None:
        """Count on from this record."""
        self.before = record
        if record.account is not None:
            self.since, self.spent_uj, self.passed = record.account.ledger, 0, 0
        self.spent_uj += record.energy_uj
        if record.charged_uj is None:
            self.since = None
        elif self.since is None or self.since.period != record.period:
            # all that was ever charged besides may explain what comes: there is no account to tell when it was
            self.since = Ledger(None, charged_uj=record.charged_uj, period=record.period)
            self.spent_uj = self.passed = 0
