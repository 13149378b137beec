"""Counters that wrap, are reset and sleep become joules that never go back; what is not known is counted as missed."""

from __future__ import annotations

import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent.energy.counter import DEFAULT_MAX_W, Clocks, Counted, Known, Moment, count, first, since
from agent.errors import EnergyError
from tests.energy.trees import AMD_RANGE_UJ, INTEL_RANGE_UJ

S = 1_000_000_000
RANGES = st.sampled_from([0, 2**32, AMD_RANGE_UJ + 1, INTEL_RANGE_UJ + 1])
PROPERTY = settings(deadline=None, derandomize=True, max_examples=200)


def one(range_uj: int = INTEL_RANGE_UJ + 1, max_w: float = 100.0) -> Known:
    """Return what is known of a single counter."""
    return Known(("package-0",), (range_uj,), max_w)


def moment(awake_s: float, slept_s: float = 0.0) -> Moment:
    """Return an instant so long after boot."""
    return Moment(round(awake_s * S), round((awake_s + slept_s) * S))


def counted(known: Known, *readings: tuple[int, Moment]) -> Counted:
    """Count through some readings of a single counter."""
    (raw, at), *rest = readings
    state = first(known, (raw,), at)
    for raw, at in rest:
        state = count(state, known, (raw,), at)
    return state


def test_a_wrap_adds_what_there_was_to_the_end() -> None:
    """The fixture of the reference: 262143328000, then 1149, are 2,000 microjoules."""
    state = counted(one(), (262143328000, moment(0)), (1149, moment(1)))
    assert (state.energy_uj, state.resets, state.gaps, state.covered_ns) == ((2000,), 0, 0, S)


def test_what_cannot_be_a_wrap_is_a_reset() -> None:
    """100 W for a second cannot be 262 kJ: only what it shows is known, and 110 J can have been missed."""
    state = counted(one(), (5_000_000, moment(0)), (3, moment(1)), (10, moment(2)))
    assert (state.energy_uj, state.resets, state.gaps, state.covered_ns) == ((10,), 1, 1, S)
    assert state.missed_uj == 110_000_000


def test_a_counter_without_end_never_wraps() -> None:
    """Going back is a reset, however little."""
    state = counted(one(0), (100, moment(0)), (99, moment(1)))
    assert (state.energy_uj, state.resets) == ((99,), 1)


@pytest.mark.parametrize(("now", "energy_uj", "resets"), [(1149, 1149, 1), (262143328500, 500, 0)])
def test_after_a_sleep_nothing_is_sure(now: int, energy_uj: int, resets: int) -> None:
    """Going back after a suspend is a reset, even where a wrap was near; going on may have been one as well."""
    state = counted(one(), (262143328000, moment(0)), (now, moment(1, slept_s=60)))
    assert (state.energy_uj, state.resets, state.gaps, state.covered_ns) == ((energy_uj,), resets, 1, 0)


def test_clocks_that_are_read_one_after_the_other_are_no_sleep() -> None:
    """They differ by microseconds, on a busy machine by much more."""
    state = counted(one(), (262143328000, moment(0)), (1149, moment(1, slept_s=0.9)))
    assert (state.energy_uj, state.resets) == ((2000,), 0)


def test_time_enough_to_go_round_is_not_covered() -> None:
    """65.5 kJ at 100 W are 11 minutes; who looks after 12 knows the least that it can have been."""
    known = one(AMD_RANGE_UJ + 1)
    state = counted(known, (1000, moment(0)), (2000, moment(720)))
    assert (state.energy_uj, state.covered_ns, state.gaps) == ((1000,), 0, 1)
    assert state.missed_uj == known.at_most_uj(720 * S)
    assert counted(known, (1000, moment(0)), (2000, moment(600))).covered_ns == 600 * S


@pytest.mark.parametrize("raw", [-1, INTEL_RANGE_UJ + 2])
def test_out_of_range_is_an_error(raw: int) -> None:
    """It names the counter, what it shows, and what it may show."""
    with pytest.raises(EnergyError, match=f"package-0: the counter shows {raw} uJ, it must be from 0 to 2621433288"):
        first(one(), (raw,), moment(0))
    state = first(one(), (0,), moment(0))
    with pytest.raises(EnergyError, match=f"shows {raw} uJ"):
        count(state, one(), (raw,), moment(1))


def test_counters_must_be_as_many_as_before() -> None:
    """A reader that loses one does not make the total smaller."""
    with pytest.raises(EnergyError, match="0 counters were read where there are 1"):
        count(first(one(), (0,), moment(0)), one(), (), moment(1))


def test_a_clock_that_stands_still_is_no_matter() -> None:
    """Two readings in one instant: energy is counted, time is not."""
    state = counted(one(), (5, moment(1)), (9, moment(1)), (11, moment(0.5)))
    assert (state.energy_uj, state.covered_ns, state.at) == ((6,), 0, Moment(S, S // 2))


def test_the_real_clocks_tell_sleep() -> None:
    """Of a machine that was never suspended both are the same; none goes back."""
    before, after = Clocks().now(), Clocks().now()
    assert before.awake_ns <= after.awake_ns <= time.monotonic_ns()
    assert before.boot_ns <= after.boot_ns


@PROPERTY
@given(RANGES, st.integers(0, 10**18), st.lists(st.tuples(st.integers(0, 10**8), st.floats(0.001, 30)), max_size=40))
def test_what_a_counter_counts_is_what_was_used(range_uj: int, start: int, steps: list[tuple[int, float]]) -> None:
    """Through any number of wraps, to the microjoule, all of the time covered."""
    known = one(range_uj, max_w=1000.0)
    assume(all(energy_uj <= known.at_most_uj(round(seconds * S)) for energy_uj, seconds in steps))
    assume(all(not range_uj or known.at_most_uj(round(seconds * S)) < range_uj for _, seconds in steps))
    true_uj, at_s = start, 0.0
    readings = [(start % range_uj if range_uj else start, moment(0))]
    for energy_uj, seconds in steps:
        true_uj, at_s = true_uj + energy_uj, at_s + seconds
        readings.append((true_uj % range_uj if range_uj else true_uj, moment(at_s)))
    state = counted(known, *readings)
    assert (state.energy_uj, state.resets, state.gaps) == ((true_uj - start,), 0, 0)
    assert state.covered_ns == readings[-1][1].awake_ns


@PROPERTY
@given(
    st.lists(RANGES, min_size=1, max_size=3),
    st.floats(1, 2000),
    st.lists(st.tuples(st.integers(0, 2**32), st.floats(0, 1000), st.floats(0, 100)), min_size=1, max_size=30),
)
def test_no_readings_at_all_make_it_go_back(
    ranges: list[int], max_w: float, steps: list[tuple[int, float, float]]
) -> None:
    """Energy, time, misses and resets only grow, each rail by itself; covered time is never more than time."""
    known = Known(tuple(map(str, range(len(ranges)))), tuple(ranges), max_w)
    state = first(known, (0,) * len(ranges), moment(0))
    awake_s = slept_s = 0.0
    for raw, passed_s, more_s in steps:
        awake_s, slept_s = awake_s + passed_s, slept_s + more_s
        before, at = state, moment(awake_s, slept_s)
        state = count(state, known, [(raw * (rail + 1)) % 2**32 for rail in range(len(ranges))], at)
        assert all(now >= then for now, then in zip(state.energy_uj, before.energy_uj, strict=True))
        for name in ("covered_ns", "missed_uj", "resets", "gaps"):
            assert getattr(state, name) >= getattr(before, name)
        assert state.covered_ns <= state.at.awake_ns
        assert (state.gaps > before.gaps) == (state.missed_uj > before.missed_uj)


@PROPERTY
@given(RANGES.filter(bool), st.integers(0, 10**12), st.integers(0, 10**8), st.floats(0, 10**6))
def test_since_is_right_or_unknown(range_uj: int, start: int, energy_uj: int, awake_s: float) -> None:
    """Two readings that nobody watched between: the true energy, or None where it could be another."""
    known = one(range_uj)
    assume(energy_uj <= known.max_w * 1e6 * awake_s)
    found = since(known, (start % range_uj,), ((start + energy_uj) % range_uj,), awake_s)
    assert found in (energy_uj, None)
    assert (found is None) == (known.at_most_uj(round(awake_s * S)) >= range_uj)


@pytest.mark.parametrize(
    ("then", "now", "awake_s"),
    [
        ((), (5,), 1.0),
        ((1, 2), (5,), 1.0),
        ((-1,), (5,), 1.0),
        ((10**15,), (5,), 1.0),
        ((5_000_000,), (3,), 1.0),
        ((0,), (200_000_000,), 1.0),
        ((1,), (2,), -1.0),
        ((1,), (2,), float("nan")),
        ((1,), (2,), float("inf")),
        ((1,), (2,), 1e9),
    ],
)
def test_since_does_not_guess(then: tuple[int, ...], now: tuple[int, ...], awake_s: float) -> None:
    """Other counters, garbage, a reset, more than can be, or a time that says nothing."""
    assert since(one(), then, now, awake_s) is None


def test_since_of_a_counter_without_end() -> None:
    """It may have been reset and have gone on from zero past its old value: nothing is known."""
    assert since(one(0), (5,), (9,), 1.0) is None
    assert since(one(0), (9,), (5,), 1e9) is None


def test_without_a_limit_a_kilowatt_is_thought_possible() -> None:
    """So most wraps are seen where no profile says what the board draws."""
    assert Known(("a",), (0,)).max_w == DEFAULT_MAX_W == 1000
