"""Whether budgets hold on simulated boards that drift, throttle, crash and lose their sensor, and how much is used."""

from __future__ import annotations

import logging
import math
import random
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from agent.core.budget import Cost
from agent.energy.allowance import Terms
from tests.bench.lines import Line
from tests.energy.board import DRIFT, RANGES_UJ, Board, Counter, Physics, Power, S
from tests.energy.board_life import TICK_S, Job, Life, Window

POLICIES = ("greedy", "skiptrain-constrained", "skiptrain-replanned")
KINDS = ("counter", "sampled", "replayed")
RUNS = {"counter": 1_000, "sampled": 300, "replayed": 300}
USE_SEEDS = 200


@contextmanager
def silent() -> Iterator[None]:
    """Keep what the agent has to say of thousands of faults to itself."""
    logger = logging.getLogger("agent")
    before, logger.disabled = logger.level, False
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def physics(chance: random.Random) -> Physics:
    """Return a board of 3 to 12 W; on every tenth a local step takes many seconds."""
    slow = chance.random() < 0.1
    return Physics(
        idle_uw=round(chance.uniform(0.5e6, 3e6)),
        train_uw=round(chance.uniform(3e6, 12e6)),
        step_ns=round((chance.uniform(4, 12) if slow else chance.uniform(0.2, 1.5)) * S),
        local_steps=chance.randrange(1, 6),
        load_ns=round(chance.uniform(0.5, 4) * S),
        latency_ns=round(chance.uniform(0.002, 0.05) * S),
    )


def rounds_affordable(chance: random.Random) -> int:
    """Return 3 to 300, small numbers more often."""
    return round(3 * math.pow(100, chance.random() ** 1.5))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one run."""

    seed: int
    kind: str
    life: Life
    limit_uj: int
    max_uw: int

    def periods(self) -> dict[str, list[Window]]:
        """Return the windows by the budget period that they were charged to."""
        periods: dict[str, list[Window]] = {}
        for window in self.life.windows:
            periods.setdefault(window.period, []).append(window)
        return periods

    @property
    def is_calm(self) -> bool:
        """Say whether nothing crashed, and the sensor was well in all windows."""
        return not (self.life.crashes or any(window.faults for window in self.life.windows))

    def excess_uj(self) -> int:
        """Return by how much training really used more than was allowed, at worst of all periods; negative: less."""
        return max((sum(w.true_uj for w in each) - self.limit_uj for each in self.periods().values()), default=0)


def settled(life: Life) -> None:
    """Charge what the last life left open as the next would at most."""
    if life.unsettled is not None:
        life.unsettled.charged_uj = life.unsettled.reserved_uj


def simulate(seed: int, kind: str) -> Outcome:
    """Let one board live, with all that goes wrong drawn from `seed`."""
    chance = random.Random(f"boards {seed} {kind}")  # noqa: S311  no secret
    body = physics(chance)
    board = Board(body, seed)
    count = rounds_affordable(chance) if kind != "sampled" else min(40, rounds_affordable(chance))
    limit_uj = body.round_uj * count + chance.randrange(body.round_uj)
    slots = count + round(count * chance.uniform(0, 1.2)) + 2
    daily = kind != "replayed" and chance.random() < 0.15
    joules = limit_uj / 1e6
    terms = Terms(joules_per_day=joules) if daily else Terms(joules=joules)
    limit_uj = int(joules * 1e6) if int(joules * 1e6) == limit_uj else limit_uj
    guess_uj = round(body.round_uj * chance.uniform(0.7, 1.3))
    prior = None if chance.random() < 0.35 else Cost(guess_uj, guess_uj * 3 // 2)
    max_w = None if chance.random() < 0.2 else body.max_uw / 1e6
    replayed = body.round_uj if kind == "replayed" else None
    job = Job(chance.choice(POLICIES), slots, terms, prior, max_w, seed, replayed, chance.randrange(3))
    sensor: Counter | Power = Power(board)
    if kind != "sampled":
        range_uj = chance.choice(RANGES_UJ)
        sensor = Counter(board, range_uj, range_uj - chance.randrange(1, 2 * limit_uj))
    life = Life(board, job, sensor)
    board.share_done = lambda: life.true_uj / limit_uj
    _trouble(chance, life, round(1.3 * count * body.local_steps * body.step_ns))
    with silent():
        life.live()
    settled(life)
    return Outcome(seed, kind, life, limit_uj, body.max_uw)


def _trouble(chance: random.Random, life: Life, lasts_ns: int) -> None:
    """Plan crashes and deaths of the sensor over a run of about such a length."""
    board, sensor = life.board, life.sensor
    cuts = [chance.choice((0, 0, 1, 2, 3))]
    odds = chance.choice((0.003, 0.02, 0.1))

    def cut(_where: str) -> bool:
        if cuts[0] and chance.random() < odds:
            cuts[0] -= 1
            return True
        return False

    def fault(kind: str) -> None:
        life.noted(sensor.fault)
        sensor.break_(kind)
        life.noted(kind)

    life.cut, life.down = cut, lambda: (chance.uniform(0.5, 200.0), chance.random() < 0.5)
    for _ in range(chance.choice((0, 0, 1, 1, 2, 4))):
        board.after(chance.randrange(lasts_ns), life.crash, physical=True)
    for _ in range(chance.choice((0, 0, 1, 2, 3))):
        begins_ns, kind = chance.randrange(lasts_ns), chance.choice(sensor.faults)
        board.after(begins_ns, lambda kind=kind: fault(kind), physical=True)  # type: ignore[misc]
        if chance.random() < 0.7:
            ends_ns = begins_ns + chance.randrange(1, 1 + round(chance.choice((1.5, 10, 300)) * S))
            board.after(ends_ns, lambda: fault(""), physical=True)


FREEZE_S = 1.0 + TICK_S
"""A counter that freezes is seen once it has not moved for a second, when it is looked at next."""


def slack_uj(outcome: Outcome, window: Window) -> int:
    """Return what a window may really use beyond its reservation: stop latency x max watts, and the meter's bound.

    The guard looks every second at the latest; then the word to stop, and the local step under way, take their time.
    """
    seconds = TICK_S + window.stop_s + (FREEZE_S if "frozen" in window.faults else 0.0)
    return round(seconds * outcome.max_uw) + window.bound_uj


def short_uj(outcome: Outcome, window: Window) -> int:
    """Return by how much less than it used a window may be charged: a whole meter's bound, else what the guard let by.

    Where neither the window's end nor a counter of the same boot settled it, its reservation is what is charged; so it
    is where the sensor was lost, and nobody knows what it can have used at most.
    """
    if window.crashed or window.lost or "frozen" in window.faults:
        return slack_uj(outcome, window)
    return window.bound_uj


def allowed_uj(outcome: Outcome, windows: list[Window]) -> int:
    """Return by how much the windows of one period may pass its budget."""
    if outcome.kind == "replayed":
        return 0
    last = max((slack_uj(outcome, window) for window in windows), default=0)
    return last + sum(short_uj(outcome, window) for window in windows)


def faults_of(outcome: Outcome) -> list[str]:
    """Return every promise that was not kept in a run."""
    life, found = outcome.life, list(outcome.life.trained_blind)
    for period, windows in outcome.periods().items():
        over_uj = sum(window.true_uj for window in windows) - outcome.limit_uj
        if over_uj > allowed_uj(outcome, windows):
            found.append(f"{over_uj} uJ over the budget of period {period!r}")
    for window in life.windows:
        if outcome.kind == "replayed":
            exact = window.charged_uj == outcome.life.job.replayed_uj
            found += [] if exact else [f"a replayed window is not charged exactly: {window}"]
            continue
        if window.true_uj - window.charged_uj > short_uj(outcome, window):
            found.append(f"charged too little: {window}")
        if window.true_uj - window.reserved_uj > slack_uj(outcome, window):
            found.append(f"the guard came too late: {window}")
    if life.disk is None:
        return found  # its sensor was gone before the first start, and for good
    ledger = life.machine.ledger
    charged_uj = sum(window.charged_uj for window in outcome.periods().get(ledger.period, []))
    if ledger.reservation is None and charged_uj != ledger.charged_uj:
        found.append(f"{charged_uj} uJ were charged, the ledger says {ledger.charged_uj}")
    return found


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of many runs."""

    runs: int
    windows: int
    crashes: int
    lost: int
    """Windows in which the sensor was lost."""
    settled: int
    """Crashes that a counter of the same boot has settled."""
    wraps: int
    over: int
    """Runs that used more than was allowed."""
    worst_j: float
    """The largest excess; negative: no run passed its budget."""
    worst_percent: float
    """The largest excess as a share of the budget."""
    calm_j: float
    """The largest excess of the runs without a crash whose sensor lives: heat and drift alone."""
    worst_share: float
    """The largest excess as a share of what stop latency, watts and bounds allow in that run."""


def summary(outcomes: list[Outcome]) -> Summary:
    """Sum up."""
    windows = [window for outcome in outcomes for window in outcome.life.windows]
    crashed = [window for window in windows if window.crashed]
    excess = [outcome.excess_uj() for outcome in outcomes]
    shares = []
    for outcome in outcomes:
        for each in outcome.periods().values():
            over_uj, most_uj = sum(w.true_uj for w in each) - outcome.limit_uj, allowed_uj(outcome, each)
            shares.append(over_uj / most_uj if over_uj > 0 and most_uj else 0.0)
    return Summary(
        runs=len(outcomes),
        windows=sum(window.began for window in windows),
        crashes=sum(outcome.life.crashes for outcome in outcomes),
        lost=sum(window.lost for window in windows),
        settled=sum(window.charged_uj < window.reserved_uj for window in crashed),
        wraps=sum(_wrapped(outcome) for outcome in outcomes),
        over=sum(one > 0 for one in excess),
        worst_j=max(excess) / 1e6,
        worst_percent=max(100 * one / outcome.limit_uj for one, outcome in zip(excess, outcomes, strict=True)),
        calm_j=max((outcome.excess_uj() for outcome in outcomes if outcome.is_calm), default=0) / 1e6,
        worst_share=max(shares, default=0.0),
    )


def _wrapped(outcome: Outcome) -> bool:
    """Say whether the counter of the first boot has wrapped."""
    sensor = outcome.life.sensor
    return isinstance(sensor, Counter) and sensor.wrapped


SLOTS = 400
USES = ("replayed", "noise", "drift")
"""Replayed; measured with noise; with drift and throttling, too. The sensor lives, and nothing crashes."""
_STEADY = Physics(2_000_000, 6_000_000, S, 1, S, S // 100, drifts=False, noisy=True, throttles=False)
_DRIFTING = replace(_STEADY, drifts=True, throttles=True)


def used(policy: str, how: str, seed: int) -> float:
    """Return the share of its budget that a board has really used, where 200 to 260 rounds are affordable of 400."""
    chance = random.Random(f"used {seed}")  # noqa: S311  no secret
    body = _DRIFTING if how == "drift" else _STEADY
    board = Board(body, seed)
    dearest = (1 + DRIFT) * 1.06 if how == "drift" else 1.0  # so that 200 rounds are paid for even so
    limit_uj = round(body.round_uj * chance.uniform(200, 260) * dearest)
    replayed = body.round_uj if how == "replayed" else None
    terms = Terms(joules=limit_uj / 1e6)
    job = Job(policy, SLOTS, terms, None, body.max_uw / 1e6, seed, replayed)
    life = Life(board, job, Counter(board, RANGES_UJ[0], 0))
    board.share_done = lambda: life.true_uj / limit_uj
    with silent():
        life.live()
    return life.true_uj / limit_uj


def boards() -> Iterator[Line]:
    """Print the largest excess over a budget, and what is used of it."""
    for kind in KINDS:
        yield from _held(kind, [simulate(seed, kind) for seed in range(RUNS[kind])])
    for how in USES:
        for policy in POLICIES[1:]:
            shares = [100 * used(policy, how, seed) for seed in range(USE_SEEDS)]
            what = f"mean {statistics.mean(shares):.2f} %, min {min(shares):.2f} %, max {max(shares):.2f} %"
            yield f"boards, budget used, {how}, {policy}", what


def _held(kind: str, outcomes: list[Outcome]) -> Iterator[Line]:
    got, label = summary(outcomes), f"boards, {kind}, {RUNS[kind]:,} runs"
    crashes = f"{got.crashes:,} crashes ({got.settled} settled by a counter)"
    yield (
        f"{label}: what happened",
        f"{got.windows:,} windows, {crashes}, sensor lost in {got.lost}, a wrap in {got.wraps} runs",
    )
    yield f"{label}: promises not kept", f"{sum(bool(faults_of(one)) for one in outcomes)} (goal: 0)"
    of_allowed = f"{100 * got.worst_share:.0f} % of what may be"
    worst = f"{got.worst_j:.3f} J; {got.worst_percent:.2f} % of a budget; {of_allowed}"
    yield f"{label}: largest excess", f"{worst}; without crash or fault {got.calm_j:.3f} J; {got.over} runs above"
