"""Windows over devices: joules with their coverage and bound, phases, corrections, and sensors that go."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from agent.core.types import Quality
from agent.energy.device import CounterDevice, SampledDevice
from agent.energy.meter import MeasuredMeter
from agent.energy.settings import Correction
from agent.errors import EnergyError
from tests.energy.clock import Clock, Counter, Power, S
from tests.energy.trees import AMD_RANGE_UJ


class Rig:
    """A clock, a counter or a power, and the meter over them."""

    def __init__(self, tmp_path: Path, reader: Counter | Power, **options: Any) -> None:
        self.clock, self.reader = Clock(), reader
        self.boot = tmp_path / "boot_id"
        self.boot.write_text("boot-1\n")
        self.meter = self.open(**options)

    def open(self, quality: Quality = Quality.MEASURED, **options: Any) -> MeasuredMeter:
        """Return a meter, as of a new process."""
        clocks = self.clock.clocks()
        device: CounterDevice | SampledDevice
        if isinstance(self.reader, Counter):
            device = CounterDevice(self.reader, clocks=clocks)
        else:
            device = SampledDevice(self.reader, clocks=clocks, thread=False)
        clock = self.clock
        fixed: dict[str, Any] = {"boot_id": self.boot, "clock": lambda: clock.now_ns / 1e9}
        return MeasuredMeter("toy", device, quality, **fixed, **options)

    def use(self, joules: float, seconds: float) -> None:
        """Let time pass, in which so much is used."""
        self.clock.pass_s(seconds)
        if isinstance(self.reader, Counter):
            self.reader.uj[0] += round(joules * 1e6)


def test_a_window_is_what_was_used_in_it(tmp_path: Path) -> None:
    """3 J of it in the middle, 10 in all; gross, net of 2 W idle, whole seconds, fully covered."""
    rig = Rig(tmp_path, Counter(), idle_w=2.0)
    rig.use(5, 1)
    rig.meter.open()
    rig.use(3, 1)
    assert rig.meter.spent_uj() == 3_000_000
    rig.use(7, 1)
    reading = rig.meter.close()
    assert (reading.energy_uj, reading.net_uj, reading.quality) == (10_000_000, 6_000_000, Quality.MEASURED)
    assert (reading.seconds, reading.coverage, reading.error) == (2.0, 1.0, "")
    assert 0 < reading.bound_uj < 20_000


def test_phases_add_up_to_everything(tmp_path: Path) -> None:
    """What is spent outside of windows is told once, and nothing of a window is in it."""
    rig = Rig(tmp_path, Counter())
    rig.use(5, 1)
    rig.meter.open()
    rig.use(11, 1)
    assert rig.meter.lap() == 5_000_000
    rig.meter.close()
    rig.use(2, 1)
    assert rig.meter.trouble() == ""
    rig.use(1, 1)
    assert (rig.meter.lap(), rig.meter.lap()) == (3_000_000, 0)


def test_a_correction_is_applied_to_joules_once(tmp_path: Path) -> None:
    """10 J in 2 s, slope 1.1, offset 0.5 W: 12 J; the same for what is spent so far, and for laps."""
    rig = Rig(tmp_path, Counter(), correction=Correction(1.1, 0.5))
    rig.meter.open()
    rig.use(10, 2)
    assert rig.meter.spent_uj() == 12_000_000
    assert rig.meter.close().energy_uj == 12_000_000
    rig.use(10, 2)
    assert rig.meter.lap() == 12_000_000


def test_a_correction_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    """5 W, corrected by -50 W: whoever asks is told, no window costs nothing, and no training begins."""
    counter = Counter(ranges_uj=(AMD_RANGE_UJ + 1,))
    rig = Rig(tmp_path, counter, correction=Correction(offset_w=-50.0), max_w=9.0)
    why = "energy.correction makes -90 J of 10 J in 2 s; correct its offset_w"
    rig.meter.open()
    mark = rig.meter.mark()
    rig.use(10, 2)
    with pytest.raises(EnergyError, match=why):
        rig.meter.spent_uj()
    reading = rig.meter.close()
    assert (reading.energy_uj, reading.quality, reading.error) == (18_000_000, Quality.ESTIMATED, why)
    assert rig.meter.since(mark) is None
    rig.use(10, 2)
    assert rig.meter.lap() is None
    assert rig.meter.trouble() == f"toy: {why}"


def test_a_sensor_that_goes_is_charged_for_at_its_most(tmp_path: Path) -> None:
    """4 J were seen, then nothing for 2 s of a board that draws 9 W at most: 22 J, estimated, half covered."""
    rig = Rig(tmp_path, Counter(), max_w=9.0)
    rig.meter.open()
    rig.use(4, 2)
    rig.meter.spent_uj()
    assert isinstance(rig.reader, Counter)
    rig.reader.broken = "the sensor is gone"
    rig.use(0, 2)
    reading = rig.meter.close()
    assert (reading.energy_uj, reading.quality, reading.error) == (22_000_000, Quality.ESTIMATED, "the sensor is gone")
    assert (reading.coverage, reading.bound_uj) == (0.5, 18_000_000)
    assert rig.meter.trouble() == "toy: the sensor is gone"
    assert rig.meter.lap() is None
    rig.reader.broken = ""
    assert rig.meter.trouble() == ""
    rig.meter.open()
    rig.use(1, 1)
    assert rig.meter.close().energy_uj == 1_000_000


@pytest.mark.parametrize(("seen_s", "charged_uj"), [(2.0, 10_000_000), (0.0, 6_000_000)])
def test_where_nobody_knows_the_most_the_power_goes_on(tmp_path: Path, seen_s: float, charged_uj: int) -> None:
    """3 W before, 2.5 W in the window as far as it was seen, then nothing for 2 s: never 0 W of a board that trains."""
    counter = Counter()
    rig = Rig(tmp_path, counter)
    rig.use(6, 2)
    rig.meter.open()
    rig.use(2.5 * seen_s, seen_s)
    rig.meter.spent_uj()
    counter.broken = "the sensor is gone"
    rig.use(0, 2)
    assert rig.meter.close().energy_uj == charged_uj


def test_a_window_in_which_nothing_was_counted_is_no_window_of_zero_joules(tmp_path: Path) -> None:
    """It took a second and a bit and counted nothing: the meter says so; a short one costs what it can have at most."""
    rig = Rig(tmp_path, Counter(), max_w=9.0)
    rig.meter.open()
    rig.use(0, 0.002)
    short = rig.meter.close()
    assert (short.error, short.energy_uj) == ("", short.bound_uj)
    assert short.bound_uj > 0
    rig.use(1, 0.1)
    rig.meter.open()
    rig.use(0, 1.5)
    reading = rig.meter.close()
    assert "does not move" in reading.error or "counted nothing at all" in reading.error
    assert reading.energy_uj == 13_500_000


def test_a_window_that_was_badly_observed_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sampler that did not get to look for most of a window says how much of it was seen."""
    rig = Rig(tmp_path, Power((5_000_000,)))
    rig.meter.open()
    rig.use(0, 10)
    with caplog.at_level(logging.WARNING):
        reading = rig.meter.close()
    assert reading.energy_uj >= 50_000_000
    assert reading.coverage < 0.1
    assert "energy: toy was observed in" in caplog.text


class Slow(Power):
    """A power whose sensor hangs for ten seconds, and then has no answer, from one reading on."""

    clock: Clock
    hangs_at = -1

    def read(self) -> tuple[int, ...]:
        """Return the set powers, or hang."""
        if 0 <= self.hangs_at <= self.reads:
            self.broken = "no answer"
            self.clock.pass_s(10)
        return super().read()


@pytest.mark.parametrize("reading", [2, 3])
def test_a_window_that_does_not_open_leaves_the_sensor_alone(tmp_path: Path, reading: int) -> None:
    """It hangs after the rate was raised: nobody goes on looking ten times a second."""
    power = Slow()
    rig = Rig(tmp_path, power)
    power.clock, power.hangs_at = rig.clock, power.reads + reading
    with pytest.raises(EnergyError, match="no answer"):
        rig.meter.open()
    assert isinstance(rig.meter.device, SampledDevice)
    assert rig.meter.device.sampler.step() is None
    assert rig.meter.spent_uj() == 0


# --- what a crash leaves open


def test_a_counter_of_the_same_boot_knows_what_a_crash_cost(tmp_path: Path) -> None:
    """7 J since the mark, in another process."""
    rig = Rig(tmp_path, Counter(ranges_uj=(AMD_RANGE_UJ + 1,)))
    mark = rig.meter.mark()
    rig.use(7, 3)
    assert rig.open().since(mark) == 7_000_000


def test_a_sleep_settles_nothing(tmp_path: Path) -> None:
    """The counter may have begun anew in it; clocks that are read one after the other are no sleep."""
    rig = Rig(tmp_path, Counter(ranges_uj=(AMD_RANGE_UJ + 1,)))
    mark = rig.meter.mark()
    rig.use(7, 3)
    rig.clock.slept_ns += S
    assert rig.open().since(mark) == 7_000_000
    rig.clock.slept_ns += 1
    assert rig.open().since(mark) is None


def test_a_counter_without_an_end_settles_nothing(tmp_path: Path) -> None:
    """A reset of it cannot be told once it has passed its old value."""
    rig = Rig(tmp_path, Counter([5]))
    mark = rig.meter.mark()
    rig.use(7, 3)
    assert rig.open().since(mark) is None


@pytest.mark.parametrize(
    "mark",
    [
        "",
        "{",
        "[1]",
        "[1,2,3,4]",
        '["boot-1", 0, ["package-0"], [0]]',
        '["boot-1", 0, ["package-0"], [0], NaN]',
        "null",
        '"x"',
    ],
)
def test_a_mark_that_is_none_settles_nothing(tmp_path: Path, mark: str) -> None:
    """Whatever stands in the journal."""
    assert Rig(tmp_path, Counter(ranges_uj=(AMD_RANGE_UJ + 1,))).meter.since(mark) is None


def test_another_boot_a_reset_or_an_estimate_settle_nothing(tmp_path: Path) -> None:
    """Then the reservation stays charged."""
    rig = Rig(tmp_path, Counter([5_000_000], ranges_uj=(AMD_RANGE_UJ + 1,)))
    mark = rig.meter.mark()
    rig.use(1, 1)
    rig.boot.write_text("boot-2\n")
    assert rig.open().since(mark) is None
    rig.boot.write_text("boot-1\n")
    assert rig.open().since(mark) == 1_000_000
    assert isinstance(rig.reader, Counter)
    rig.reader.uj[0] = 3
    assert rig.open().since(mark) is None
    assert rig.open(Quality.ESTIMATED).mark() == ""
    rig.boot.unlink()
    assert rig.open().since(rig.open().mark()) is None


def test_a_power_has_no_counter_to_settle_with(tmp_path: Path) -> None:
    """Nobody looked while the agent was gone."""
    assert Rig(tmp_path, Power()).meter.mark() == ""
