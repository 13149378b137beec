"""Devices with pyJoules' face: what a window used, how sure that is, and when it cannot be known."""

from __future__ import annotations

import errno
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from agent.energy.device import CounterDevice, DeviceState, SampledDevice, between, open_device
from agent.energy.face import EnergyMeter, Rail
from agent.energy.rapl import find
from agent.energy.source import Place, Wanted
from agent.errors import EnergyError
from tests.energy import trees
from tests.energy.clock import Clock, Counter, Power, S
from tests.energy.trees import INTEL_RANGE_UJ, LAYOUTS, Mover


def counting(counter: Counter, clock: Clock, max_w: float | None = None) -> CounterDevice:
    """Return a device over a counter that a test sets."""
    return CounterDevice(counter, max_w=max_w, clocks=clock.clocks(), sleep=clock.pass_s)


def sampled(power: Power, clock: Clock, max_w: float | None = None) -> SampledDevice:
    """Return a device over a power that a test sets, without a thread."""
    return SampledDevice(power, max_w=max_w, clocks=clock.clocks(), thread=False)


def rapl_device(sys: Path, clock: Clock, layout: str = "desktop") -> CounterDevice:
    """Return a device over a tree."""
    trees.rapl(sys, LAYOUTS[layout])
    return CounterDevice(find(Place(sys=sys), Wanted()), clocks=clock.clocks(), sleep=clock.pass_s)


def test_pyjoules_meters_a_wrap_in_mid_window(tmp_path: Path) -> None:
    """Its EnergyMeter takes the device as one of its own: 2,000 microjoules, never a negative number."""
    clock = Clock()
    device = rapl_device(tmp_path, clock)
    meter, mover = EnergyMeter([device]), Mover(tmp_path)
    meter.start(tag="train")
    mover.move(2000)
    clock.pass_s(1)
    meter.stop()
    assert [dict(sample.energy) for sample in meter.get_trace()] == [{"package-0": 2000}]
    assert mover.turns == {"intel-rapl:0": 1, "intel-rapl:0:0": 0, "intel-rapl:0:1": 0, "intel-rapl:1": 0}
    assert device.raw() == (1149,)


def test_pyjoules_meters_a_power() -> None:
    """1 s at 7 W are 7 J, on each rail its own."""
    clock = Clock()
    device = sampled(Power((7_000_000, 500_000), ("VDD_IN", "VDD_MUX")), clock)
    meter = EnergyMeter([device])
    meter.start()
    clock.pass_s(0.25)
    meter.record()
    clock.pass_s(0.75)
    meter.stop()
    samples = [dict(sample.energy) for sample in meter.get_trace()]
    assert samples == [{"VDD_IN": 1_750_000, "VDD_MUX": 125_000}, {"VDD_IN": 5_250_000, "VDD_MUX": 375_000}]


def test_domains_can_be_configured(tmp_path: Path) -> None:
    """In another order, or fewer: energies follow."""
    clock = Clock()
    device = rapl_device(tmp_path, clock, "two packages")
    zero, one = device.available_domains()
    assert (repr(zero), zero == Rail("package-0", CounterDevice)) == ("package-0", True)
    Mover(tmp_path).move(5, "intel-rapl:1")
    device.configure([one, zero])
    assert device.get_energy() == [5, 0]
    device.configure([one])
    assert device.get_energy() == [5]
    assert device.state().energy_uj == 5


def test_several_packages_are_one_total_and_wrap_alone(tmp_path: Path) -> None:
    """Each at its own end."""
    clock = Clock()
    device, mover = rapl_device(tmp_path, clock, "multi-die"), Mover(tmp_path)
    mover.set(INTEL_RANGE_UJ, tmp_path / "class/powercap/intel-rapl:0/energy_uj")
    clock.pass_s(300)
    before = device.state()
    mover.move(10)
    clock.pass_s(1)
    assert between(before, device.state()).energy_uj == 20


def test_what_a_counter_used() -> None:
    """Energy, time, coverage, and a bound of two readings: a step of the counter and a millisecond of power each."""
    clock, counter = Clock(), Counter([1000])
    device = counting(counter, clock)
    device.window(open=True)
    start = device.state()
    counter.uj[0] += 30_000_000
    clock.pass_s(2)
    used = between(start, device.state())
    assert (used.energy_uj, used.seconds, used.coverage, used.mean_w) == (30_000_000, 2.0, 1.0, 15.0)
    assert used.bound_uj == 2 * (62 + 15_000)


def test_a_reset_in_a_window_is_said_and_bounded() -> None:
    """What was counted before it, since the last reading, is missed: at most what the board draws."""
    clock, counter = Clock(), Counter([50_000_000])
    device = counting(counter, clock, max_w=20.0)
    start = device.state()
    clock.pass_s(1)
    counter.uj[0] = 100
    middle = device.state()
    clock.pass_s(1)
    counter.uj[0] = 10_000_100
    end = device.state()
    used = between(start, end)
    assert (used.energy_uj, used.coverage, end.resets, end.gaps) == (10_000_100, 0.5, 1, 1)
    assert 20_000_000 <= used.bound_uj <= 22_100_000
    assert between(middle, end).bound_uj < 30_000


def test_suspend_is_no_wrap(tmp_path: Path) -> None:
    """A counter near its end that begins anew in a sleep has not gone round."""
    clock = Clock()
    device = rapl_device(tmp_path, clock)
    clock.pass_s(1)
    clock.slept_ns += 3600 * S
    Mover(tmp_path).reset(1149)
    state = device.state()
    assert (state.energy_uj, state.resets, state.covered_s) == (1149, 1, 0)


def test_a_counter_that_never_moves_is_an_error() -> None:
    """Within a second; each has to, and the error names the one that does not."""
    clock, counter = Clock(), Counter([1, 2], ("package-0", "package-1"), (0, 0))
    device = counting(counter, clock)
    began_ns = clock.now_ns
    with pytest.raises(EnergyError, match="package-0, package-1: the energy counters do not move"):
        device.check_moving()
    assert clock.now_ns - began_ns == S
    device._sleep = lambda seconds: counter.uj.__setitem__(0, counter.uj[0] + round(seconds * 100))
    with pytest.raises(EnergyError, match=r"^package-1: the energy counter does not move"):
        device.check_moving()
    device._sleep = lambda _: counter.uj.__setitem__(slice(2), [value + 1 for value in counter.uj])
    device.check_moving()


def test_a_counter_that_stops_in_a_window_is_an_error() -> None:
    """Not in the first second, not while anything moves, not outside; also when the window closes."""
    clock, counter = Clock(), Counter([1])
    device = counting(counter, clock)
    clock.pass_s(100)
    device.get_energy()
    device.window(open=True)
    clock.pass_s(1)
    assert device.get_energy() == [0]
    counter.uj[0] += 7
    clock.pass_s(0.5)
    assert device.get_energy() == [7]
    clock.pass_s(1.01)
    with pytest.raises(EnergyError, match="package-0: the energy counter does not move"):
        device.get_energy()
    with pytest.raises(EnergyError, match="does not move"):
        device.window(open=False)
    assert device.get_energy() == [7]


@pytest.mark.parametrize("window_s", [0.5, 1.01])
def test_no_window_opens_while_a_counter_stands_still_that_did_so_in_one(window_s: float) -> None:
    """Else each round would train a second or two blindly before that is seen again; once it moves, all is well."""
    clock, counter = Clock(), Counter([1])
    device = counting(counter, clock)
    device.window(open=True)
    clock.pass_s(window_s)
    with pytest.raises(EnergyError, match="does not move") if window_s > 1 else nullcontext():
        device.window(open=False)
    clock.pass_s(100)
    with pytest.raises(EnergyError, match="does not move"):
        device.window(open=True)
    counter.uj[0] += 1
    device.window(open=True)


def test_a_power_may_stand_still() -> None:
    """Nothing moves, and nothing is wrong."""
    clock = Clock()
    device = sampled(Power(), clock)
    device.check_moving()
    device.window(open=True)
    clock.pass_s(60)
    assert device.get_energy() == [300_000_000]


def test_what_a_power_used() -> None:
    """One change in the middle: half of it over a period at worst; half a step of the sensor all the time."""
    clock, power = Clock(), Power((2_000_000,), step_uw=40_000)
    device = sampled(power, clock)
    device.window(open=True)
    start = device.state()
    clock.pass_s(0.1)
    power.uw = (6_000_000,)
    clock.pass_s(0.1)
    used = between(start, device.state())
    assert (used.energy_uj, used.coverage, used.mean_w) == (800_000, 1.0, pytest.approx(4.0))
    assert used.bound_uj == 400_000 + 4_000


def test_many_changes_count_by_their_variance() -> None:
    """They do not all err on one side: four sigma of 600 changes are far less than the worst case."""
    clock, power = Clock(), Power((2_000_000,))
    device = sampled(power, clock)
    device.window(open=True)
    start = device.state()
    for second in range(600):
        clock.pass_s(0.1)
        power.uw = (6_000_000 if second % 2 == 0 else 2_000_000,)
        device.sampler.step()
    end = device.state()
    assert end.worst_uj - start.worst_uj == pytest.approx(600 * 200_000)
    assert between(start, end).bound_uj == pytest.approx(4 * (600 * 400_000**2 / 12) ** 0.5, rel=1e-6)


def test_a_gap_widens_the_bound() -> None:
    """By all that the board can draw in that time."""
    clock = Clock()
    device = sampled(Power(), clock, max_w=25.0)
    device.window(open=True)
    start = device.state()
    clock.pass_s(1)
    end = device.state()
    used = between(start, end)
    assert (used.energy_uj, used.coverage, used.bound_uj, end.gaps) == (5_000_000, 0.0, 25_000_000, 1)


def test_between_one_state_and_itself() -> None:
    """No time, no energy, no power."""
    state = DeviceState(5, 1.0, 1.0)
    used = between(state, state)
    assert (used.energy_uj, used.seconds, used.coverage, used.mean_w) == (0, 0.0, 1.0, 0.0)
    assert between(state, replace(state, energy_uj=7, at_s=2.0, covered_s=9.0)).coverage == 1.0


@pytest.mark.parametrize("broken", ["/sys/x/energy_uj: is not there", "/sys/x/energy_uj: it must be a whole number"])
def test_unknown_is_an_error_and_never_zero(broken: str) -> None:
    """A counter that cannot be read now, a power that cannot be read for two seconds; both go on afterwards."""
    clock, counter, power = Clock(), Counter([5]), Power()
    devices = counting(counter, clock), sampled(power, clock)
    clock.pass_s(3)
    counter.broken = power.broken = broken
    for device in devices:
        for ask in (device.get_energy, device.state, device.check_moving, lambda one=device: one.window(open=True)):
            with pytest.raises(EnergyError, match=broken):
                ask()
    counter.broken = power.broken = ""
    counter.uj[0] += 9
    assert [device.get_energy() for device in devices] == [[9], [15_000_000]]
    assert [device.state().errors for device in devices] == [4, 4]


def test_a_vanishing_tree_is_an_error(tmp_path: Path) -> None:
    """The module is unloaded in mid-window, and comes back with its counters at zero."""
    clock = Clock()
    device, powercap = rapl_device(tmp_path, clock), tmp_path / "devices/virtual/powercap"
    device.window(open=True)
    powercap.rename(tmp_path / "gone")
    with pytest.raises(EnergyError, match="energy_uj: is not there"):
        device.get_energy()
    (tmp_path / "gone").rename(powercap)
    Mover(tmp_path).reset(300)
    clock.pass_s(0.5)
    assert device.get_energy() == [INTEL_RANGE_UJ + 1 - trees.NEAR_THE_END_UJ + 300]  # so little is taken for a wrap
    assert device.state().resets == 0


def test_permission_that_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so when it is read, too."""
    device = rapl_device(tmp_path, Clock())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(EnergyError, match="group read access"):
        device.state()


def test_a_crash_is_settled_by_a_counter_of_the_same_boot() -> None:
    """A new device knows what was used since another one's last reading, if the time does not allow two answers."""
    clock, counter = Clock(), Counter([262143328000], ranges_uj=(INTEL_RANGE_UJ + 1,))
    before = counting(counter, clock, max_w=25.0).raw()
    counter.uj[0] = 1149
    clock.pass_s(30)
    after = counting(counter, clock, max_w=25.0)
    assert after.since(before, 30.0) == 2000
    assert after.since(before, 1e6) is None
    assert after.since((1, 2), 30.0) is None


def test_a_power_settles_nothing() -> None:
    """Nobody looked while the agent was down."""
    device = sampled(Power(), Clock())
    assert device.raw() is None
    assert device.since((1,), 1.0) is None


def test_open_device_tells_readers_apart() -> None:
    """By what they are; a sampled one gets its thread, and `close` ends it."""
    clock = Clock()
    counter = open_device(Counter(), max_w=25.0, clocks=clock.clocks())
    power = open_device(Power(), max_w=25.0, clocks=clock.clocks())
    assert isinstance(counter, CounterDevice)
    assert isinstance(power, SampledDevice)
    names = [thread.name for thread in threading.enumerate()]
    assert "energy-sampler" in names
    for device in (counter, power):
        device.close()
    assert power.sampler._thread is not None
    assert not power.sampler._thread.is_alive()


def test_a_reader_that_cannot_be_read_makes_no_device() -> None:
    """Neither of counters nor of powers."""
    for reader in (Counter(broken="gone"), Power(broken="gone"), Counter([-1])):
        with pytest.raises(EnergyError):
            open_device(reader)
