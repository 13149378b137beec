"""Makes joules of a power that has to be looked at: an integrator, and the thread that feeds it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.energy.counter import Clocks
from agent.energy.source import PowerReader
from agent.errors import EnergyError

_NS = 1_000_000_000
_HALF_UNITS = 2 * _NS
"""Energy is summed up exactly, in microwatts x half nanoseconds; so many are a microjoule."""
_GAP_PERIODS = 3
_STALE_PERIODS = 5
_STALE_S = 2.0
_CLOSE_S = 2.0
"""So long a reading may take when the agent ends; the thread is a daemon, and ends with the process."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What an integrator knows after its last sample; all of it only ever grows."""

    at_ns: int
    energy_uj: tuple[int, ...]
    covered_ns: int
    """Time between samples that were close enough."""
    worst_uj: float
    """What the integral may be off by: each change of power came right before or right after a sample."""
    square_uj2: float
    """Its variance, when each change came at any instant between two samples with equal chance."""
    missed_uj: float
    """What can at most have been used in the gaps."""
    gaps: int


class Integrator:
    """Sums up power by the trapezoidal rule over the time that really passed."""

    def __init__(self, at_ns: int, powers_uw: Sequence[int], max_w: float | None = None) -> None:
        """Begin with one sample, the power of each rail; `max_w`: the most that all rails together can draw."""
        self._at_ns, self._powers = at_ns, tuple(powers_uw)
        self._half_units = [0] * len(self._powers)
        self._covered_ns = self._gaps = 0
        self._worst_uj = self._square_uj2 = self._missed_uj = 0.0
        self._max_uw = math.ceil(max_w * 1e6) if max_w else 0

    def add(self, at_ns: int, powers_uw: Sequence[int], max_gap_ns: int) -> None:
        """Take the next sample; one that is older than the last is dropped.

        A gap longer than `max_gap_ns` is integrated all the same, at the larger power of its ends.
        """
        passed_ns, powers = at_ns - self._at_ns, tuple(powers_uw)
        if passed_ns < 0:
            return
        if passed_ns <= max_gap_ns:
            halves = [one + other for one, other in zip(self._powers, powers, strict=True)]
            change_uj = abs(sum(powers) - sum(self._powers)) * passed_ns / _NS
            self._worst_uj += change_uj / 2
            self._square_uj2 += change_uj**2 / 12
            self._covered_ns += passed_ns
        else:
            halves = [2 * max(pair) for pair in zip(self._powers, powers, strict=True)]
            self._miss(passed_ns, sum(powers))
        self._sum_up(halves, passed_ns)
        self._at_ns, self._powers = at_ns, powers

    def hold(self, at_ns: int) -> None:
        """Go on with the last power up to now, where the sensor gives none; the time counts as a gap."""
        passed_ns = at_ns - self._at_ns
        if passed_ns <= 0:
            return
        self._miss(passed_ns, sum(self._powers))
        self._sum_up([2 * power for power in self._powers], passed_ns)
        self._at_ns = at_ns

    def sums(self) -> Sums:
        """Return what is known up to the last sample; energies in whole microjoules, rounded down."""
        return Sums(
            self._at_ns,
            tuple(units // _HALF_UNITS for units in self._half_units),
            self._covered_ns,
            self._worst_uj,
            self._square_uj2,
            self._missed_uj,
            self._gaps,
        )

    def _miss(self, passed_ns: int, power_uw: int) -> None:
        self._gaps += 1
        self._missed_uj += max(self._max_uw, power_uw, sum(self._powers)) * passed_ns / _NS

    def _sum_up(self, halves: Sequence[int], passed_ns: int) -> None:
        for rail, half in enumerate(halves):
            self._half_units[rail] += half * passed_ns


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a sampler knows at one moment."""

    sums: Sums
    errors: int
    cpu_s: float


class Sampler:
    """Looks at a power often while a window is open, seldom or never outside, and at once when it is asked.

    The thread is optional: whoever does not `start()` it calls `step()` itself, at the times that it returns.
    """

    def __init__(
        self,
        reader: PowerReader,
        *,
        max_w: float | None = None,
        clocks: Clocks | None = None,
        wait: Callable[[threading.Condition, float | None], object] = threading.Condition.wait,
        stale_s: float | None = None,
    ) -> None:
        """Look once; EnergyError where that fails. `wait` is how the thread waits to be due or to be woken."""
        self._reader, self._clocks, self._wait = reader, clocks or Clocks(), wait
        self._period_ns = _period_ns(reader.idle_hz)
        self._stale_s = stale_s
        self._reading = threading.Lock()
        self._lock = threading.Lock()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed, self._rates, self._cpu_ns, self._errors, self._trouble = False, 0, 0, 0, ""
        at_ns, powers = self._look()
        self._integrator = Integrator(at_ns, powers, max_w)
        self._fresh_ns = at_ns
        self._due_ns = at_ns + self._period_ns

    def start(self) -> None:
        """Let a thread do the steps."""
        self._thread = threading.Thread(target=self._run, name="energy-sampler", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the reading that it may be in; one that hangs is left behind."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def window(self, *, open_: bool) -> None:
        """Look now, and as often as the window asks for from now on.

        EnergyError: the sensor is stale. A window then does not open; one that is open is closed all the same.
        """
        try:
            self.now()
        except EnergyError:
            if open_:
                raise
            self._at_rate(self._reader.idle_hz)
            raise
        self._at_rate(self._reader.hz if open_ else self._reader.idle_hz)

    def now(self) -> Sampled:
        """Look now and return what is known; EnergyError says since when the sensor has been stale, and why.

        A look that fails is no matter until the sensor is stale: so long its last power is taken to go on.
        """
        if not self._look_and_add():
            now_ns = self._clocks.monotonic_ns()
            age_s, stale_s = (now_ns - self._fresh_ns) / _NS, self._stale_after_s()
            if age_s > stale_s:
                rails = ", ".join(self._reader.rails)
                raise EnergyError(f"{rails}: no reading for {age_s:.1f} s ({stale_s:g} s at most): {self._trouble}")
            with self._lock:
                self._integrator.hold(now_ns)
        with self._lock:
            return Sampled(self._integrator.sums(), self._errors, self._cpu_ns / _NS)

    def step(self) -> float | None:
        """Look if it is time to; return the seconds until it is again, None: not before a window opens."""
        with self._wake:
            period_ns, due_ns = self._period_ns, self._due_ns
        if not period_ns:
            return None
        now_ns = self._clocks.monotonic_ns()
        if now_ns >= due_ns:
            self._look_and_add()
            now_ns = self._clocks.monotonic_ns()
            due_ns += (1 + (now_ns - due_ns) // period_ns) * period_ns  # what was slept through is not made up for
            with self._wake:
                if self._period_ns == period_ns:
                    self._due_ns = due_ns
        return max(0, due_ns - now_ns) / _NS

    def _run(self) -> None:
        while True:
            rates = self._rates
            wait_s = self.step()
            self._cpu_ns = time.thread_time_ns()
            with self._wake:
                if self._closed:
                    return
                if rates == self._rates:  # else a window has opened or closed since
                    self._wait(self._wake, wait_s)

    def _at_rate(self, hz: float) -> None:
        with self._wake:
            self._rates += 1
            self._period_ns = _period_ns(hz)
            self._due_ns = self._clocks.monotonic_ns() + self._period_ns
            self._wake.notify_all()

    def _look_and_add(self) -> bool:
        """Take a sample; False where there is none, and `_trouble` says why."""
        if not self._reading.acquire(timeout=_STALE_S):
            self._trouble = "the sensor has not answered; check it and its driver"
            return False
        try:
            at_ns, powers = self._look()
            with self._lock:
                self._integrator.add(at_ns, powers, self._max_gap_ns())
            self._fresh_ns = at_ns
        except (EnergyError, OSError, ValueError) as error:
            self._errors, self._trouble = self._errors + 1, str(error)
            return False
        finally:
            self._reading.release()
        return True

    def _look(self) -> tuple[int, tuple[int, ...]]:
        """Return one reading, and the middle of the time that it took."""
        before_ns = self._clocks.monotonic_ns()
        powers = self._reader.read()
        if any(power < 0 for power in powers) or len(powers) != len(self._reader.rails):
            raise EnergyError(f"{', '.join(self._reader.rails)}: powers of {powers} uW; check the sensor's driver")
        return (before_ns + self._clocks.monotonic_ns()) // 2, powers

    def _max_gap_ns(self) -> int:
        return _GAP_PERIODS * (self._period_ns or _period_ns(self._reader.hz))

    def _stale_after_s(self) -> float:
        period_s = (self._period_ns or _period_ns(self._reader.hz)) / _NS
        return max(_STALE_PERIODS * period_s, _STALE_S) if self._stale_s is None else self._stale_s


def _period_ns(hz: float) -> int:
    return round(_NS / hz) if hz > 0 else 0
