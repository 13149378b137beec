"""pyJoules devices over any reader: cumulative microjoules that never go back, with all that bounds their error."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from agent.energy.counter import DEFAULT_MAX_W, Clocks, Counted, Known, count, first, leapt, since
from agent.energy.face import Device, Rail
from agent.energy.sampler import Sampled, Sampler
from agent.energy.source import CounterReader, PowerReader, Reader
from agent.errors import EnergyError

_NS = 1_000_000_000
_LAG_S = 0.001
"""How old a counter may be when it is read: RAPL's are renewed about every millisecond (Khan et al. 2018)."""
_STILL_NS = 1 * _NS
_POLL_S = 0.05
_FINE_POLL_S = 0.002
_REST_NS = 50_000_000
"""So long a counter that works may stand still while a machine trains."""
_SIGMAS = 4


@dataclass(frozen=True, slots=True)
class DeviceState:
    """All that a device has counted up to one moment; a window is what lies `between` two states of one device."""

    energy_uj: int
    """Sum of the rails."""
    at_s: float
    """Monotonic clock."""
    covered_s: float
    """Time that was really observed."""
    worst_uj: float = 0.0
    square_uj2: float = 0.0
    missed_uj: float = 0.0
    """Sums of sampler.Sums, of which a counter has only the last."""
    steps_uj: float = 0.0
    """What the sensor's smallest step adds to the error while time passes: half a step of power, each second."""
    edge_uj: float = 0.0
    """What the reading at this moment may be off by."""
    lag_s: float = 0.0
    """How old the reading at this moment may have been."""
    resets: int = 0
    gaps: int = 0
    errors: int = 0
    cpu_s: float = 0.0
    """CPU time of the sampler's thread."""


@dataclass(frozen=True, slots=True)
class Used:
    """What was used between two states."""

    energy_uj: int
    seconds: float
    coverage: float
    """Share of the time that was really observed, 0 to 1."""
    bound_uj: int
    """What the energy may be off by, either way."""
    mean_w: float


def between(start: DeviceState, end: DeviceState) -> Used:
    """Return what was used from one state of a device to a later one."""
    energy_uj, seconds = end.energy_uj - start.energy_uj, end.at_s - start.at_s
    mean_w = energy_uj / 1e6 / seconds if seconds > 0 else 0.0
    coverage = (end.covered_s - start.covered_s) / seconds if seconds > 0 else 1.0
    sigma_uj = max(0.0, end.square_uj2 - start.square_uj2) ** 0.5
    changes_uj = min(end.worst_uj - start.worst_uj, _SIGMAS * sigma_uj)
    edges_uj = start.edge_uj + end.edge_uj + (start.lag_s + end.lag_s) * mean_w * 1e6
    rest_uj = end.steps_uj - start.steps_uj + end.missed_uj - start.missed_uj
    bound_uj = math.ceil(changes_uj + edges_uj + rest_uj)
    return Used(energy_uj, seconds, min(1.0, max(0.0, round(coverage, 9))), bound_uj, mean_w)


class CounterDevice(Device):  # type: ignore[misc]  # pyJoules has no types
    """A device whose hardware counts joules; it needs no thread."""

    def __init__(
        self,
        reader: CounterReader,
        *,
        max_w: float | None = None,
        clocks: Clocks | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Read once and configure all rails; EnergyError. `sleep` is how `check_moving` waits."""
        self.reader, self._clocks, self._sleep = reader, clocks or Clocks(), sleep
        self._known = Known(reader.rails, reader.ranges_uj, max_w or DEFAULT_MAX_W)
        self._lock = threading.Lock()
        self._counted = first(self._known, reader.read(), self._clocks.now())
        self._errors = 0
        self._still_since_ns: int | None = None
        self._opened: tuple[int, ...] | None = None
        self._stuck: tuple[int, ...] | None = None
        self._moved_ns = self._counted.at.awake_ns
        super().__init__()
        self.configure()

    def available_domains(self) -> list[Rail]:
        """Return all rails."""
        return _domains(self)

    def get_energy(self) -> list[int]:
        """Return the microjoules of each configured rail since the device was made; EnergyError."""
        return _configured(self, self._read().energy_uj)

    def state(self) -> DeviceState:
        """Read, and return all that is known; EnergyError."""
        counted = self._read()
        return DeviceState(
            energy_uj=sum(counted.energy_uj),
            at_s=counted.at.awake_ns / _NS,
            covered_s=counted.covered_ns / _NS,
            missed_uj=counted.missed_uj,
            edge_uj=self.reader.resolution_uj,
            lag_s=_LAG_S,
            resets=counted.resets,
            gaps=counted.gaps,
            errors=self._errors,
        )

    def window(self, open: bool) -> None:  # noqa: A002  it says which edge of a window this is
        """Read now; while a window is open, counters that all stand still are an error.

        No other window opens before one of them has moved.
        """
        try:
            now = self._read()
        finally:
            self._still_since_ns = None
        if open:
            if now.raw == self._stuck:
                raise _never_moves(self._known.rails, _STILL_NS)
            self._still_since_ns, self._opened = now.at.awake_ns, now.raw
        elif now.raw == self._opened:
            self._stuck = now.raw  # a window of less than a second, in which nothing was counted

    def check_moving(self) -> None:
        """Wait for each counter to move; EnergyError names those that do not within a second."""
        before, tries = self._read().raw, round(_STILL_NS / _NS / _POLL_S)
        still = list(self._known.rails)
        for _ in range(tries):
            self._sleep(_POLL_S)
            now = self._read().raw
            still = [rail for rail, *pair in zip(self._known.rails, before, now, strict=True) if pair[0] == pair[1]]
            if not still:
                return
        raise _never_moves(still, _STILL_NS)

    def still_counts(self) -> None:
        """See that the counters have not stopped since they were last looked at; EnergyError after a second."""
        for _ in range(round(_STILL_NS / _NS / _FINE_POLL_S)):
            if self._counted.at.awake_ns - self._moved_ns <= _REST_NS:
                return
            self._sleep(_FINE_POLL_S)
            self._read()
        raise _never_moves(self._known.rails, _STILL_NS)

    def raw(self) -> tuple[int, ...]:
        """Return the counters as the hardware had them at the last reading."""
        with self._lock:
            return self._counted.raw

    def slept_ns(self) -> int:
        """Return how long the machine has been suspended since boot, in nanoseconds."""
        return self._clocks.now().slept_ns

    def since(self, raw_then: Sequence[int], awake_s: float) -> int | None:
        """Return the microjoules since the same boot's counters showed `raw_then`, `awake_s` ago; None: not known."""
        return since(self._known, raw_then, self._read().raw, awake_s)

    def close(self) -> None:
        """Nothing is held."""

    def _read(self) -> Counted:
        with self._lock:
            try:
                before, self._counted = self._counted, self._confirmed(self._counted)
            except EnergyError:
                self._errors += 1
                raise
            if self._counted.raw != before.raw:
                self._moved_ns = self._counted.at.awake_ns
            self._see_movement(before, self._counted)
            return self._counted

    def _confirmed(self, before: Counted) -> Counted:
        """Read, and once more where that looks like a reset or a leap: one wild reading must not count."""
        for _ in range(2):
            now = count(before, self._known, self.reader.read(), self._clocks.now())
            leap = leapt(self._known, before, now)
            if not leap and now.resets == before.resets:
                return now
        if leap:
            seconds = (now.at.awake_ns - before.at.awake_ns) / _NS
            raise EnergyError(
                f"{leap}: the counter leapt further in {seconds:.1f} s than any board draws; check the driver"
            )
        return now

    def _see_movement(self, before: Counted, now: Counted) -> None:
        """Raise EnergyError where nothing has moved for a second of an open window."""
        if self._still_since_ns is None:
            return
        if now.raw != before.raw:
            self._still_since_ns = now.at.awake_ns
        elif now.at.awake_ns - self._still_since_ns > _STILL_NS:
            self._stuck = now.raw
            raise _never_moves(self._known.rails, now.at.awake_ns - self._still_since_ns)


class SampledDevice(Device):  # type: ignore[misc]  # pyJoules has no types
    """A device that says only what it draws at the moment: a thread looks, and sums up."""

    def __init__(
        self,
        reader: PowerReader,
        *,
        max_w: float | None = None,
        clocks: Clocks | None = None,
        thread: bool = True,
        stale_s: float | None = None,
    ) -> None:
        """Look once and configure all rails; EnergyError. Without a thread, somebody calls `sampler.step()`."""
        self.reader = reader
        self.sampler = Sampler(reader, max_w=max_w, clocks=clocks, stale_s=stale_s)
        self._half_step_uw = reader.resolution_uw() / 2
        super().__init__()
        self.configure()
        if thread:
            self.sampler.start()

    def available_domains(self) -> list[Rail]:
        """Return all rails."""
        return _domains(self)

    def get_energy(self) -> list[int]:
        """Return the microjoules of each configured rail since the device was made; EnergyError: it is stale."""
        return _configured(self, self.sampler.now().sums.energy_uj)

    def state(self) -> DeviceState:
        """Look, and return all that is known; EnergyError: the sensor is stale."""
        now: Sampled = self.sampler.now()
        sums, at_s = now.sums, now.sums.at_ns / _NS
        return DeviceState(
            energy_uj=sum(sums.energy_uj),
            at_s=at_s,
            covered_s=sums.covered_ns / _NS,
            worst_uj=sums.worst_uj,
            square_uj2=sums.square_uj2,
            missed_uj=sums.missed_uj,
            steps_uj=self._half_step_uw * at_s,
            gaps=sums.gaps,
            errors=now.errors,
            cpu_s=now.cpu_s,
        )

    def window(self, open: bool) -> None:  # noqa: A002  it says which edge of a window this is
        """Look now, and from now on as often as the window asks for; EnergyError: the sensor is stale."""
        self.sampler.window(open_=open)

    def check_moving(self) -> None:
        """Look; a power may stand still. EnergyError: the sensor is stale."""
        self.sampler.now()

    def still_counts(self) -> None:
        """Do nothing: a power may stand still."""

    def raw(self) -> None:
        """Return None: there is no counter that could settle what a crash left open."""

    def slept_ns(self) -> int:
        """Return 0: it matters to counters only."""
        return 0

    def since(self, raw_then: Sequence[int], awake_s: float) -> None:
        """Return None: nobody looked in between."""

    def close(self) -> None:
        """End the thread."""
        self.sampler.close()


def open_device(
    reader: Reader, *, max_w: float | None = None, clocks: Clocks | None = None, thread: bool = True
) -> CounterDevice | SampledDevice:
    """Make the device that fits a reader; EnergyError where its first reading fails."""
    if hasattr(reader, "ranges_uj"):
        return CounterDevice(cast("CounterReader", reader), max_w=max_w, clocks=clocks)
    return SampledDevice(reader, max_w=max_w, clocks=clocks, thread=thread)


def _domains(device: CounterDevice | SampledDevice) -> list[Rail]:
    return [Rail(name, type(device)) for name in device.reader.rails]


def _configured(device: CounterDevice | SampledDevice, energy_uj: Sequence[int]) -> list[int]:
    """Return the energies in the order that pyJoules was told."""
    by_rail = dict(zip(device.reader.rails, energy_uj, strict=True))
    domains: Any = device.get_configured_domains()
    return [by_rail[domain.name] for domain in domains]


def _never_moves(rails: Sequence[str], still_ns: int) -> EnergyError:
    names, noun = ", ".join(rails), "counter does" if len(rails) == 1 else "counters do"
    return EnergyError(
        f"{names}: the energy {noun} not move ({still_ns / _NS:.1f} s); check the driver, or leave it out in "
        "energy.rails"
    )
