"""How true sampled joules are: a bursty load whose joules are known, and what looking at a sensor takes of a core."""

from __future__ import annotations

import statistics
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.core.seeding import generator
from agent.energy.counter import Clocks
from agent.energy.device import SampledDevice, between
from agent.energy.source import Scope
from agent.energy.sysfs import read_int
from tests.bench.lines import Line

HZ = 10.0
LOW_UW, HIGH_UW = 2_600_000, 6_400_000
SHORTEST_MS, LONGEST_MS = 40, 900
WINDOWS = ((60, 1000), (3, 10_000))
"""Seconds of a window, and how many are measured."""
GOALS_PERCENT = {60: 0.5, 3: 2.0}
CPU_GOAL_PERCENT = 1.0
CPU_SECONDS = 10.0
_NS = 1_000_000_000


class BurstyLoad:
    """Power that jumps between two values after times of 40 to 900 ms, equal for equal seeds; a PowerReader, too."""

    scope, rails, hz, idle_hz = Scope.BOARD, ("VDD_IN",), HZ, 0.0

    def __init__(self, seconds: float, seed: int) -> None:
        count = round(seconds * 1000 / SHORTEST_MS) + 2
        lengths = generator(seed, "bench", "bursts").integers(SHORTEST_MS * 1000, LONGEST_MS * 1000 + 1, count)
        starts_us = np.concatenate([[0], np.cumsum(lengths)])
        self._starts_ns: list[int] = [int(start) * 1000 for start in starts_us]
        self._powers_uw = [HIGH_UW if number % 2 else LOW_UW for number in range(len(self._starts_ns))]
        self._before = [0]
        for start, end, power in zip(self._starts_ns, self._starts_ns[1:], self._powers_uw, strict=False):
            self._before.append(self._before[-1] + (end - start) * power)
        self.now_ns = 0

    def clocks(self) -> Clocks:
        """Return the load's own time."""
        return Clocks(lambda: self.now_ns, lambda: self.now_ns)

    def resolution_uw(self) -> int:
        """Return 0: each microwatt shows."""
        return 0

    def read(self) -> tuple[int, ...]:
        """Return the power of this moment."""
        return (self._powers_uw[bisect_right(self._starts_ns, self.now_ns) - 1],)

    def used_uj(self) -> float:
        """Return what was really used up to now."""
        burst = bisect_right(self._starts_ns, self.now_ns) - 1
        return (self._before[burst] + (self.now_ns - self._starts_ns[burst]) * self._powers_uw[burst]) / _NS


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of one window."""

    error: float
    """Of the energy, as a share of it."""
    bound: float
    """The same, as the device bounds it."""


def measure(seconds: float, windows: int, seed: int = 1) -> list[Measured]:
    """Measure so many windows at 10 Hz, each with some idle time before it, so that none begins with a burst."""
    load = BurstyLoad(windows * (seconds + 1), seed)
    pauses = generator(seed, "bench", "pauses").integers(0, _NS, windows)
    device = SampledDevice(load, clocks=load.clocks(), thread=False)
    measured = []
    for pause_ns in pauses:
        load.now_ns += int(pause_ns)
        end_ns = load.now_ns + round(seconds * _NS)
        device.window(open=True)
        start, began_uj = device.state(), load.used_uj()
        while (wait_s := device.sampler.step() or 0.0) * _NS + load.now_ns < end_ns:
            load.now_ns += round(wait_s * _NS)
        load.now_ns = end_ns
        device.window(open=False)
        used, true_uj = between(start, device.state()), load.used_uj() - began_uj
        measured.append(Measured(abs(used.energy_uj - true_uj) / true_uj, used.bound_uj / true_uj))
    return measured


class HwmonBoard:
    """A PowerReader over the files of an INA3221 with three rails: six files a look."""

    scope, rails, hz, idle_hz = Scope.MODULE, ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), HZ, 0.0

    def __init__(self, folder: Path) -> None:
        self._files = [(folder / f"in{rail}_input", folder / f"curr{rail}_input") for rail in (1, 2, 3)]
        for volts, amperes in self._files:
            volts.write_text("5016\n")
            amperes.write_text("605\n")

    def resolution_uw(self) -> int:
        """Return the step of such a chip: 8 mA at 5 V."""
        return 40_000

    def read(self) -> tuple[int, ...]:
        """Return the power of each rail."""
        return tuple(read_int(volts, "a voltage") * read_int(amperes, "a current") for volts, amperes in self._files)


def sampler_cpu(seconds: float) -> float:
    """Return the share of one core that the sampler's thread takes while a window is open."""
    with tempfile.TemporaryDirectory() as folder:
        device = SampledDevice(HwmonBoard(Path(folder)))
        device.window(open=True)
        start = device.state()
        time.sleep(seconds)
        end = device.state()
        device.close()
    return (end.cpu_s - start.cpu_s) / (end.at_s - start.at_s)


def energy() -> Iterator[Line]:
    """Print errors, bounds and CPU time, each beside its goal."""
    for seconds, windows in WINDOWS:
        measured = measure(seconds, windows)
        errors = [100 * one.error for one in measured]
        within = 100 * sum(one.error <= one.bound for one in measured) / windows
        bound = statistics.median(100 * one.bound for one in measured)
        label = f"energy, bursty load at {HZ:g} Hz, {windows:,} windows of {seconds} s"
        yield (
            f"{label}: error",
            f"mean {statistics.mean(errors):.2f} %, max {max(errors):.2f} % (goal: mean {GOALS_PERCENT[seconds]:g} %)",
        )
        yield f"{label}: bound", f"median {bound:.1f} %; {within:.2f} % of the errors are within theirs"
    cpu = 100 * sampler_cpu(CPU_SECONDS)
    yield f"energy, sampler thread at {HZ:g} Hz, six files", f"{cpu:.2f} % of one core (goal: {CPU_GOAL_PERCENT:g} %)"
