"""Power becomes energy over the time that really passed; a silent sensor is stale, a steady one is not."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.energy.sampler import Integrator, Sampler
from agent.errors import EnergyError
from tests.energy.clock import Clock, Power, S

GAP_NS = S
PROPERTY = settings(deadline=None, derandomize=True, max_examples=200)


def sampler(power: Power, clock: Clock, **options: float) -> Sampler:
    """Return a sampler without a thread."""
    return Sampler(power, clocks=clock.clocks(), **options)


def run(one: Sampler, clock: Clock, seconds: float) -> None:
    """Do what the thread does for so long."""
    end_ns = clock.now_ns + round(seconds * S)
    while (wait_s := one.step()) is not None and clock.now_ns + wait_s * S <= end_ns:
        clock.pass_s(wait_s)
    clock.now_ns = end_ns


def test_the_trapezoid_is_exact_for_a_straight_line() -> None:
    """From 2 W to 6 W in one uneven second are 4 J; a rail of 1 W beside it has 1 J."""
    integrator = Integrator(0, (2_000_000, 1_000_000))
    integrator.add(S // 4, (3_000_000, 1_000_000), GAP_NS)
    integrator.add(S, (6_000_000, 1_000_000), GAP_NS)
    sums = integrator.sums()
    assert (sums.energy_uj, sums.covered_ns, sums.gaps, sums.missed_uj) == ((4_000_000, 1_000_000), S, 0, 0)


def test_the_sums_of_a_bound() -> None:
    """A change of 4 W in half a second may have come at either end: 1 J; evenly spread, its variance is 2^2/12."""
    integrator = Integrator(0, (2_000_000,))
    integrator.add(S // 2, (6_000_000,), GAP_NS)
    assert integrator.sums().worst_uj == 1_000_000
    assert integrator.sums().square_uj2 == pytest.approx(2e6**2 / 12)


@pytest.mark.parametrize(("max_w", "missed_j"), [(None, 12), (25.0, 50)])
def test_a_gap_counts_with_the_larger_end(max_w: float | None, missed_j: int) -> None:
    """Two seconds between 2 W and 6 W: 12 J are charged, and as much as can be drawn may have been missed."""
    integrator = Integrator(0, (2_000_000,), max_w)
    integrator.add(2 * S, (6_000_000,), GAP_NS)
    sums = integrator.sums()
    assert (sums.energy_uj, sums.covered_ns, sums.gaps) == ((12_000_000,), 0, 1)
    assert sums.missed_uj == missed_j * 1_000_000
    assert sums.worst_uj == sums.square_uj2 == 0


def test_each_rail_of_a_gap_has_its_own_larger_end() -> None:
    """One falls, the other rises."""
    integrator = Integrator(0, (2_000_000, 9_000_000))
    integrator.add(2 * S, (6_000_000, 1_000_000), GAP_NS)
    assert integrator.sums().energy_uj == (12_000_000, 18_000_000)


def test_older_samples_are_dropped_and_held_power_goes_on() -> None:
    """Nothing is counted twice: a sample of the time that was held already brings nothing."""
    integrator = Integrator(S, (2_000_000,))
    integrator.add(0, (9_000_000,), GAP_NS)
    integrator.hold(2 * S)
    integrator.hold(2 * S)
    integrator.add(3 * S // 2, (9_000_000,), GAP_NS)
    sums = integrator.sums()
    assert (sums.at_ns, sums.energy_uj, sums.gaps, sums.covered_ns) == (2 * S, (2_000_000,), 1, 0)
    assert sums.missed_uj == 2_000_000


POWER = st.integers(0, 10**9)


@PROPERTY
@given(POWER, st.lists(st.tuples(st.integers(-S, 3 * S), POWER, st.booleans()), max_size=40))
def test_energy_is_exact_grows_and_stays_within_its_ends(start: int, steps: list[tuple[int, int, bool]]) -> None:
    """Each stretch lies between the smaller and the larger of its ends, and all are rounded once, at the end."""
    integrator, at_ns, last = Integrator(0, (start,)), 0, start
    low = high = 0
    for passed_ns, power, held in steps:
        before = integrator.sums()
        if held:
            integrator.hold(at_ns + passed_ns)
        else:
            integrator.add(at_ns + passed_ns, (power,), GAP_NS)
        if passed_ns >= 0:
            at_ns += passed_ns
            ends = (last, last) if held else (last, power)
            low, high = low + min(ends) * passed_ns, high + max(ends) * passed_ns
            last = ends[1]
        sums = integrator.sums()
        assert low // S <= sums.energy_uj[0] <= high // S
        assert sums.energy_uj[0] >= before.energy_uj[0]
        assert sums.covered_ns <= sums.at_ns == at_ns


def test_outside_of_a_window_nobody_looks() -> None:
    """With an idle rate of 0 there is no step, and no reading, until a window opens."""
    clock, power = Clock(), Power()
    one = sampler(power, clock)
    assert (one.step(), power.reads) == (None, 1)
    one.window(open_=True)
    assert (one.step(), power.reads) == (0.1, 2)
    one.window(open_=False)
    assert (one.step(), power.reads) == (None, 3)


def test_two_rates() -> None:
    """Once a second outside, ten times inside."""
    clock, power = Clock(), Power(idle_hz=1.0)
    one = sampler(power, clock)
    run(one, clock, 10)
    assert power.reads == 11
    one.window(open_=True)
    run(one, clock, 10)
    assert power.reads == 112


def test_deadlines_are_absolute() -> None:
    """A thread that comes late by 30 ms each time still looks ten times a second, and what it slept through is lost."""
    clock, power = Clock(), Power()
    one = sampler(power, clock)
    one.window(open_=True)
    for _ in range(100):
        clock.pass_s((one.step() or 0) + 0.03)
    assert clock.now_ns - 100 * S == pytest.approx(10.03 * S)
    clock.pass_s(0.95)
    reads = power.reads
    waits = [one.step(), one.step()]
    assert power.reads == reads + 1
    assert waits[0] == waits[1]
    assert 0 < (waits[0] or 0) <= 0.1


def test_a_window_sees_its_own_edges() -> None:
    """40 ms at 7 W between two looks: no step is due, and the energy is there."""
    clock, power = Clock(), Power((7_000_000,))
    one = sampler(power, clock)
    clock.pass_s(60)
    one.window(open_=True)
    before = one.now().sums
    clock.pass_s(0.04)
    one.window(open_=False)
    after = one.now().sums
    assert after.energy_uj[0] - before.energy_uj[0] == 280_000
    assert after.covered_ns - before.covered_ns == 0.04 * S


def test_the_time_outside_is_a_gap_and_a_late_look_inside_too() -> None:
    """Three periods are let pass; more are integrated at the larger end, and not covered."""
    clock, power = Clock(), Power()
    one = sampler(power, clock, max_w=10.0)
    one.window(open_=True)
    clock.pass_s(0.3)
    assert one.now().sums.gaps == 0
    clock.pass_s(0.31)
    sums = one.now().sums
    assert (sums.gaps, sums.covered_ns, sums.missed_uj) == (1, 0.3 * S, 3_100_000)


def test_constant_power_is_never_stale() -> None:
    """A sensor that says the same for an hour is alive."""
    clock, power = Clock(), Power(idle_hz=0.1)
    one = sampler(power, clock)
    run(one, clock, 3600)
    assert one.now().sums.energy_uj == (3600 * 5_000_000,)


def test_a_silent_sensor_is_stale_and_says_why_until_it_reads_again() -> None:
    """For two seconds its last power is held; then nothing is known, and later it is as good as ever."""
    clock, power = Clock(), Power()
    one = sampler(power, clock)
    one.window(open_=True)
    power.broken = "/sys/x/in1_input: cannot be read (Input/output error)"
    run(one, clock, 1.95)
    held = one.now()
    assert held.sums.energy_uj[0] == 9_750_000
    assert (held.sums.gaps, held.errors) == (1, 20)
    run(one, clock, 0.1)
    with pytest.raises(EnergyError, match=r"VDD_IN: no reading for 2\.0 s \(2 s at most\): /sys/x/in1_input: cannot"):
        one.now()
    power.broken = ""
    clock.pass_s(0.95)
    sums = one.now().sums
    assert (sums.energy_uj[0], sums.gaps) == (15_000_000, 2)


@pytest.mark.parametrize(("hz", "stale_s", "limit_s"), [(10.0, None, 2.0), (1.0, None, 5.0), (10.0, 0.5, 0.5)])
def test_when_it_is_stale(hz: float, stale_s: float | None, limit_s: float) -> None:
    """After five periods, at least two seconds, unless somebody says otherwise."""
    clock, power = Clock(), Power(hz=hz)
    one = Sampler(power, clocks=clock.clocks(), stale_s=stale_s)
    one.window(open_=True)
    power.broken = "gone"
    clock.pass_s(limit_s)
    one.now()
    clock.pass_s(0.001)
    with pytest.raises(EnergyError, match="gone"):
        one.now()


def test_a_window_does_not_open_on_a_stale_sensor_and_closes_all_the_same() -> None:
    """The rate goes back to that of idling, whatever the sensor does."""
    clock, power = Clock(), Power()
    one = sampler(power, clock)
    power.broken = "gone"
    clock.pass_s(3)
    with pytest.raises(EnergyError, match="gone"):
        one.window(open_=True)
    assert one.step() is None
    power.broken = ""
    one.window(open_=True)
    power.broken = "gone"
    clock.pass_s(3)
    with pytest.raises(EnergyError, match="gone"):
        one.window(open_=False)
    assert one.step() is None


@pytest.mark.parametrize("uw", [(-1,), (), (1, 2)])
def test_powers_that_cannot_be(uw: tuple[int, ...]) -> None:
    """A negative power would take joules back; a missing rail would lose some."""
    with pytest.raises(EnergyError, match=r"VDD_IN: powers of .* uW"):
        sampler(Power(uw), Clock())


@pytest.mark.parametrize("error", [OSError("I/O"), ValueError("no number"), EnergyError("gone")])
def test_whatever_a_reader_raises_is_counted(error: Exception) -> None:
    """No exception ends the thread."""
    clock, power = Clock(), Power()
    one = sampler(power, clock)

    def fail() -> tuple[int, ...]:
        raise error

    power.read = fail  # type: ignore[method-assign]
    assert one.now().errors == 1


def test_the_first_look_must_succeed() -> None:
    """There is no power to hold yet."""
    with pytest.raises(EnergyError, match="not plugged in"):
        sampler(Power(broken="not plugged in"), Clock())


def test_the_thread_sleeps_looks_and_ends() -> None:
    """It waits without limit outside of windows, wakes when one opens, and counts its own CPU time."""
    clock, power = Clock(), Power()
    waits: list[float | None] = []
    asleep, due = threading.Semaphore(0), threading.Event()

    def wait(wake: threading.Condition, seconds: float | None) -> None:
        waits.append(seconds)
        asleep.release()
        if seconds is None:
            wake.wait()
        else:
            due.set()
            wake.wait(0)
            clock.pass_s(seconds)

    one = Sampler(power, clocks=clock.clocks(), wait=wait)
    one.start()
    assert asleep.acquire(timeout=60)
    one.window(open_=True)
    for _ in range(20):
        assert asleep.acquire(timeout=60)
    one.window(open_=False)
    one.close()
    sampled = one.now()
    assert waits[0] is None
    assert waits[1:20] == pytest.approx([0.1] * 19, abs=1e-6)
    assert power.reads >= 20
    assert sampled.cpu_s > 0
    assert sampled.errors == 0


def test_close_does_not_wait_for_a_sensor_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread is left in the middle of a reading, and ends when that does."""
    monkeypatch.setattr("agent.energy.sampler._CLOSE_S", 0.01)
    clock, hangs, answers = Clock(), threading.Event(), threading.Event()

    class Hanging(Power):
        def read(self) -> tuple[int, ...]:
            if self.reads:
                hangs.set()
                assert answers.wait(60)
            return super().read()

    one = sampler(Hanging(idle_hz=1.0), clock)
    clock.pass_s(1)
    one.start()
    assert hangs.wait(60)
    one.close()
    assert one._thread is not None
    assert (one._thread.is_alive(), one._thread.daemon) == (True, True)
    answers.set()
    one._thread.join(60)
    assert not one._thread.is_alive()


def test_close_without_a_thread() -> None:
    """It may never have been started."""
    sampler(Power(), Clock()).close()


def test_many_threads_lose_nothing() -> None:
    """Readings from all sides, at the real clock's time: energy never goes back for anybody."""
    one = Sampler(Power(hz=2000.0))
    one.start()
    one.window(open_=True)
    wrong: list[object] = []

    def watch() -> None:
        last = 0
        for _ in range(300):
            now = one.now().sums.energy_uj[0]
            wrong.extend([now] * (now < last))
            last = now

    threads = [threading.Thread(target=watch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one.close()
    assert not wrong
    sums = one.now().sums
    assert sums.energy_uj[0] > 0
