"""Whatever comes in costs a counter: 100,000 hostile payloads, all the way into real machines."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from random import Random

import pytest

from agent.core.wire import PARTIAL_PER_SENDER
from tests.fuzz.conftest import Tables
from tests.fuzz.payloads import KINDS, attempt, seeded
from tests.fuzz.reasons import ROOT, reasons
from tests.fuzz.victim import LOOKAHEAD, SENDERS, SHAPES, Victim

PAYLOADS = 100_000
TRACED = 20_000
"""So many of them are sent while every allocation is traced, which makes all of it five times as slow."""
SHARES = (8, 5, 4, 3, 1)
"""How often a payload is for each of SHAPES."""
MODELS_BYTES = len(SENDERS) * (PARTIAL_PER_SENDER + LOOKAHEAD + 1) * sum(4 * shape.n_params for shape in SHAPES)
"""What senders x (two models in assembly and three whole ones) take, over all victims: 434 kB."""
OVERHEAD_BYTES = 400_000
"""For everything else: the machines, one round's mixing, the payloads themselves, and Python's own caches."""
AT_LEAST = 100


def flood(rng: Random, victims: list[Victim], count: int) -> Counter[str]:
    """Send `count` payloads or a few more; return how many of each kind."""
    sent: Counter[str] = Counter()
    while sent.total() < count:
        (victim,) = rng.choices(victims, SHARES)
        for payload in attempt(rng, victim.scene):
            victim.take(payload.sender, payload.message)
            sent[payload.kind] += 1
        victim.go_on(rng)
    return sent


def test_a_hundred_thousand_hostile_payloads(tables: Tables) -> None:
    """None raises, none is taken that is not what it says, memory stays bounded, and every reason is given often."""
    rng = seeded(1)
    victims = [Victim(shape) for shape in SHAPES]
    tracemalloc.start()
    try:
        sent = flood(rng, victims, TRACED)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    sent += flood(rng, victims, PAYLOADS - TRACED)
    outcomes = sum((victim.outcomes for victim in victims), Counter[str]())
    tables[f"{sent.total():,} hostile payloads: what was sent"] = sent
    tables[f"{sent.total():,} hostile payloads: what became of them"] = outcomes
    tables["hostile payloads: memory"] = {"peak, bytes": peak_bytes, "bound, bytes": MODELS_BYTES + OVERHEAD_BYTES}
    assert peak_bytes < MODELS_BYTES + OVERHEAD_BYTES
    assert outcomes.total() == sent.total() >= PAYLOADS
    assert set(sent) == set(KINDS)
    assert set(outcomes) == reasons() | {"a part", "a model"}
    assert min(outcomes.values()) >= AT_LEAST
    assert min(victim.runs for victim in victims) >= 3


def test_the_flood_repeats_itself() -> None:
    """Equal seeds send equal payloads, which have equal outcomes."""
    first, second = ([Victim(shape) for shape in SHAPES] for _ in range(2))
    assert flood(seeded(2), first, 1_000) == flood(seeded(2), second, 1_000)
    assert [victim.outcomes for victim in first] == [victim.outcomes for victim in second]


def test_the_reasons_are_read_from_the_code() -> None:
    """The reader of the sources finds those that are there today, of every place that gives any."""
    assert {"truncated", "not finite", "duplicate", "too early", "other roster", "no such round"} <= reasons()
    assert len(reasons()) == 19


@pytest.mark.parametrize("reason", sorted(reasons()))
def test_every_reason_is_documented(reason: str) -> None:
    """docs/hostile-bytes.md has a row for each."""
    page = (ROOT / "docs" / "hostile-bytes.md").read_text(encoding="utf-8")
    assert f"\n| `{reason}` | " in page
