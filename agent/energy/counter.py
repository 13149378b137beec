"""Makes raw counters, which wrap and are reset, into cumulative microjoules that never go back. All of it is pure."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agent.errors import EnergyError

DEFAULT_MAX_W = 1000.0
"""Where nobody knows what a board can draw: more than any that this agent is for."""
_SLACK_S = 0.1
"""A counter may show in one step what it counted over so much more than the time between two readings."""
SUSPENDED_NS = 1_000_000_000
"""How much further than the awake clock the other one has gone if the machine slept; less is no sleep."""
_NS = 1_000_000_000
_LEAP = 10
"""No reading is doubted for less: the most watts of a profile are no hard bound."""


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Clocks:
    """Nanoseconds since boot; a test gives clocks of its own."""

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    """Stands still while the machine is suspended."""
    boottime_ns: Callable[[], int] = _boottime_ns
    """Goes on while the machine is suspended."""

    def now(self) -> Moment:
        """Read both clocks."""
        return Moment(self.monotonic_ns(), self.boottime_ns())


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant by both clocks, in nanoseconds."""

    awake_ns: int
    boot_ns: int

    @property
    def slept_ns(self) -> int:
        """How long the machine has been suspended since boot."""
        return self.boot_ns - self.awake_ns


@dataclass(frozen=True, slots=True)
class Known:
    """What is known beforehand about some counters."""

    rails: tuple[str, ...]
    ranges_uj: tuple[int, ...]
    """Where each begins anew; 0: it never does."""
    max_w: float = DEFAULT_MAX_W
    """The most that all of them together can count a second."""

    def at_most_uj(self, awake_ns: int) -> int:
        """Return what a counter can have counted in so much awake time."""
        return math.ceil(self.max_w * (awake_ns / 1000 + _SLACK_S * 1e6))


@dataclass(frozen=True, slots=True)
class Counted:
    """What some counters have counted since they were first read; it only ever grows."""

    raw: tuple[int, ...]
    at: Moment
    energy_uj: tuple[int, ...]
    covered_ns: int = 0
    """Awake time over which the energy is known for sure."""
    missed_uj: int = 0
    """What more can at most have been used in the rest."""
    resets: int = 0
    gaps: int = 0
    """Times between two readings that are not covered."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What one counter did between two readings."""

    energy_uj: int
    reset: bool = False


def first(known: Known, raw: Sequence[int], at: Moment) -> Counted:
    """Begin to count; EnergyError names a counter that is out of its range."""
    return Counted(_checked(known, raw), at, (0,) * len(known.rails))


def count(before: Counted, known: Known, raw: Sequence[int], at: Moment) -> Counted:
    """Return what is counted up to `at`.

    A counter that goes back has wrapped when it has a range, the machine did not sleep, and the energy that this makes
    is possible in the time; else it was reset, and what it shows is all that is known of the time since `before`.
    Nothing is sure either where it may have gone round more than once, or may have been reset in a sleep and passed
    its old value since. EnergyError: a counter is out of its range.
    """
    raw = _checked(known, raw)
    awake_ns = max(0, at.awake_ns - before.at.awake_ns)
    slept = at.boot_ns - before.at.boot_ns - awake_ns > SUSPENDED_NS
    at_most_uj = known.at_most_uj(awake_ns)
    ranges = known.ranges_uj
    steps = [_step(*each, 0 if slept else at_most_uj) for each in zip(before.raw, raw, ranges, strict=True)]
    resets = sum(step.reset for step in steps)
    sure = not (slept or resets) and not any(0 < range_uj <= at_most_uj for range_uj in ranges)
    return Counted(
        raw,
        replace(at, awake_ns=before.at.awake_ns + awake_ns),
        tuple(energy + step.energy_uj for energy, step in zip(before.energy_uj, steps, strict=True)),
        before.covered_ns + (awake_ns if sure else 0),
        before.missed_uj + (0 if sure else at_most_uj),
        before.resets + resets,
        before.gaps + (not sure),
    )


def leapt(known: Known, before: Counted, now: Counted) -> str:
    """Return the name of a counter that went on ten times further than it can have, or ""."""
    at_most_uj = _LEAP * known.at_most_uj(now.at.awake_ns - before.at.awake_ns)
    steps = zip(known.rails, before.energy_uj, now.energy_uj, strict=True)
    return next((rail for rail, was, is_ in steps if is_ - was > at_most_uj), "")


def since(known: Known, then: Sequence[int], now: Sequence[int], awake_s: float) -> int | None:
    """Return the microjoules between two readings of the same boot that nobody watched in between.

    None where they cannot be known: other counters, one out of its range, a reset, time enough to go round, or a
    counter without an end, which may have been reset and have passed its old value since.
    """
    try:
        then, now = _checked(known, then), _checked(known, now)
    except EnergyError:
        return None
    if not 0 <= awake_s < math.inf:
        return None
    at_most_uj = known.at_most_uj(round(awake_s * _NS))
    if any(range_uj <= at_most_uj for range_uj in known.ranges_uj):
        return None
    steps = [_step(*each, at_most_uj) for each in zip(then, now, known.ranges_uj, strict=True)]
    if any(step.reset or step.energy_uj > at_most_uj for step in steps):
        return None
    return sum(step.energy_uj for step in steps)


def _step(before_uj: int, now_uj: int, range_uj: int, at_most_uj: int) -> _Step:
    """Tell what one counter did, which can have counted `at_most_uj` if it went round."""
    if now_uj >= before_uj:
        return _Step(now_uj - before_uj)
    wrapped_uj = now_uj - before_uj + range_uj
    return _Step(wrapped_uj) if range_uj and wrapped_uj <= at_most_uj else _Step(now_uj, reset=True)


def _checked(known: Known, raw: Sequence[int]) -> tuple[int, ...]:
    if len(raw) != len(known.rails):
        raise EnergyError(f"{len(raw)} counters were read where there are {len(known.rails)}; check the driver")
    for rail, value, range_uj in zip(known.rails, raw, known.ranges_uj, strict=True):
        if value < 0 or 0 < range_uj < value:
            limit = f"0 to {range_uj}" if range_uj else "0 on"
            raise EnergyError(f"{rail}: the counter shows {value} uJ, it must be from {limit}; check the driver")
    return tuple(raw)
