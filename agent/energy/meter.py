"""What the daemon asks of energy: a training window opens, is watched, and closes with a reading in joules' millionths.

`Meter` is the face; behind it replayed rows (`trace`), recordings, or a device of this board that is measured. Devices
return cumulative microjoules; only here do they become the energy of a window, with what is known of its error.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from agent.core.budget import Cost
from agent.core.costs import CostHistory
from agent.core.types import Quality
from agent.energy.counter import SUSPENDED_NS
from agent.energy.settings import Correction
from agent.errors import EnergyError

if TYPE_CHECKING:
    from agent.energy.device import CounterDevice, DeviceState, SampledDevice

    AnyDevice: TypeAlias = CounterDevice | SampledDevice

_log = logging.getLogger(__name__)

STILL_S = 1.0
"""A source that counts nothing for longer while torch trains does not work."""
POOR_COVERAGE = 0.9
"""A window of which less was really observed is worth a warning."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a window cost, gross, and how well that is known."""

    energy_uj: int
    quality: Quality
    seconds: float = 0.0
    coverage: float = 1.0
    """Share of the window, in [0, 1], in which the source was really observed."""
    bound_uj: int = 0
    """By how much the energy may be wrong, either way."""
    net_uj: int | None = None
    """Without what the idle board would have drawn; None where that is not known."""
    whole_uj: int | None = None
    """What a whole round would have cost, where the source itself says so."""
    load_uj: int | None = None
    """What loading torch and data cost besides, where the source itself says so."""
    warm: bool = True
    """Whether they were loaded then, where the source itself says so."""
    error: str = ""
    """Why the source could not be read to the end of the window: the energy is then what it can have been at most."""


class Meter(Protocol):
    """One device's energy: what is known beforehand, and windows that measure."""

    @property
    def source(self) -> str:
        """Name of the source."""

    @property
    def measured(self) -> bool:
        """Whether windows are really measured; replayed ones are exact, cost what they cost, and know no phases."""

    @property
    def limit_uj(self) -> int | None:
        """The budget that comes with the source; None where the configuration must say it."""

    @property
    def prior(self) -> Cost | None:
        """What a training round costs as far as is known before any was measured."""

    @property
    def learns(self) -> bool:
        """Whether rounds differ in cost, so that what they cost is to be learnt."""

    @property
    def history(self) -> CostHistory:
        """What was learnt of it where the source was recorded; empty elsewhere."""

    def trouble(self) -> str:
        """Return why no training must begin now, or ""."""

    def open(self) -> None:
        """Begin a training window; EnergyError where the source cannot be read."""

    def spent_uj(self) -> int:
        """Return what the open window has cost so far, from any thread; EnergyError: nobody can tell any more."""

    def close(self) -> Reading:
        """Close the window and return what it cost."""

    def lap(self) -> int | None:
        """Return what was spent outside of windows since the last call, in microjoules; None where nobody knows."""

    def mark(self) -> str:
        """Return what a later `since` needs to settle what a crash leaves open; "" where there is no counter for it."""

    def since(self, mark: str) -> int | None:
        """Return the microjoules since `mark` was made, if a counter has gone on counting; None where nobody knows."""

    def end(self) -> None:
        """Stop what it started."""


class MeasuredMeter:
    """Windows over a pyJoules device of this board."""

    limit_uj = None
    measured = learns = True
    history = CostHistory()

    def __init__(
        self,
        source: str,
        device: AnyDevice,
        quality: Quality,
        *,
        prior: Cost | None = None,
        correction: Correction | None = None,
        idle_w: float | None = None,
        max_w: float | None = None,
        boot_id: Path = Path("/proc/sys/kernel/random/boot_id"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take a device that has been read; EnergyError where it cannot be read again."""
        from agent.energy.device import between
        from agent.energy.face import EnergyMeter

        self.source, self.prior, self.device = source, prior, device
        self._between, self._joules = between, EnergyMeter([device])
        self._quality, self._correction = quality, correction or Correction()
        self._idle_w, self._max_w, self._boot_id, self._clock = idle_w, max_w, boot_id, clock
        self._lock = threading.Lock()
        self._opened: DeviceState | None = None
        self._lapped, self._outside_uj = device.state(), 0
        self._last_uj, self._last_s = 0, 0.0
        self._known_w = 0.0

    def trouble(self) -> str:
        """Return why the source cannot be read now, or ""."""
        try:
            self._keep_lap()
        except EnergyError as error:
            return f"{self.source}: {error}"
        return ""

    def open(self) -> None:
        """Begin a training window."""
        self._keep_lap()
        self.device.window(True)
        try:
            self._joules.start("round")
            state = self.device.state()  # behind the joules' reading, at the end too: both windows are equally long
        except BaseException:
            with suppress(EnergyError):  # it goes back to its idle rate all the same
                self.device.window(False)
            raise
        with self._lock:
            self._opened, self._last_uj, self._last_s = state, 0, self._clock()

    def spent_uj(self) -> int:
        """Return the corrected gross energy of the open window so far; EnergyError."""
        if self._opened is None:
            return 0
        used = self._between(self._opened, self.device.state())
        spent = self._correction.apply_uj(used.energy_uj, used.seconds)
        with self._lock:
            self._last_uj, self._last_s = max(self._last_uj, spent), self._clock()
        return spent

    def close(self) -> Reading:
        """Close the window; where the source has gone, with what it can have cost at most, as far as that is known."""
        opened, self._opened = self._opened, None
        if opened is None:
            raise EnergyError("no window is open")
        try:
            self._joules.stop()
            self.device.still_counts()
            used = self._between(opened, self.device.state())
        except EnergyError as error:
            return self._lost(str(error), self._clock() - self._last_s, opened)
        finally:
            with suppress(EnergyError):  # it goes back to its idle rate all the same
                self.device.window(False)
            self._lapped = self._state_or(self._lapped)
        gross_uj = round(sum(self._joules.get_trace()[0].energy.values()))
        if gross_uj <= 0 and used.seconds > STILL_S:
            return self._lost(f"{self.source} counted nothing at all in a training window", used.seconds, opened)
        try:  # a window that was too short for the counter to move costs what it can have cost at most
            energy_uj = max(1, self._correction.apply_uj(gross_uj or used.bound_uj, used.seconds))
        except EnergyError as error:
            return self._lost(str(error), self._clock() - self._last_s, opened)
        if used.coverage < POOR_COVERAGE:
            _log.warning("energy: %s was observed in %.0f %% of a window", self.source, 100 * used.coverage)
        net_uj = None if self._idle_w is None else max(0, energy_uj - round(self._idle_w * 1e6 * used.seconds))
        self._known_w = energy_uj / 1e6 / used.seconds if used.seconds > STILL_S else self._known_w
        bound_uj = round(self._correction.slope * used.bound_uj)
        return Reading(energy_uj, self._quality, used.seconds, used.coverage, bound_uj, net_uj)

    def lap(self) -> int | None:
        """Return the corrected energy outside of windows since the last call; None where it cannot be read."""
        try:
            self._keep_lap()
        except EnergyError:
            return None
        outside, self._outside_uj = self._outside_uj, 0
        return outside

    def mark(self) -> str:
        """Return boot, time, rails, raw counters, and how long the machine has been suspended since boot."""
        raw = self.device.raw()
        if raw is None or self._quality is not Quality.MEASURED:
            return ""  # an estimate counts from the start of its process
        rails, slept_ns = list(self.device.reader.rails), self.device.slept_ns()
        return json.dumps([self._boot(), self._clock(), rails, list(raw), slept_ns])

    def since(self, mark: str) -> int | None:
        """Return what the counters have counted since `mark`, if nothing can have reset them.

        It must be the same boot and the same rails, and the machine must not have slept.
        """
        try:
            boot, at_s, rails, raw, slept_ns = json.loads(mark)
            seconds = self._clock() - at_s
            if not boot or boot != self._boot() or rails != list(self.device.reader.rails) or seconds < 0:
                return None
            if not abs(self.device.slept_ns() - slept_ns) <= SUSPENDED_NS:
                return None
            used_uj = self.device.since(raw, seconds)
            return None if used_uj is None else self._correction.apply_uj(used_uj, seconds)
        except (ValueError, TypeError, EnergyError):
            return None

    def end(self) -> None:
        """End the device's thread."""
        self.device.close()

    def _keep_lap(self) -> None:
        """Add up what was used since the last look; inside of a window nothing."""
        state = self.device.state()
        if self._opened is None:
            used = self._between(self._lapped, state)
            energy_uj = self._correction.apply_uj(used.energy_uj, used.seconds)
            self._outside_uj += energy_uj
            if energy_uj and used.seconds > STILL_S:
                self._known_w = energy_uj / 1e6 / used.seconds
            self._lapped = state

    def _lost(self, why: str, blind_s: float, opened: DeviceState) -> Reading:
        watts = self._max_w or self._seen_w(self._last_s - opened.at_s)
        most_uj = self._last_uj + round(watts * 1e6 * blind_s)
        seen_s = max(0.0, self._last_s + blind_s - opened.at_s)
        coverage = max(0.0, 1.0 - blind_s / seen_s) if seen_s else 0.0
        return Reading(most_uj, Quality.ESTIMATED, seen_s, coverage, most_uj - self._last_uj, error=why)

    def _seen_w(self, seconds: float) -> float:
        """Return the power of the open window, seen for so long, or else the one that was known last."""
        return self._last_uj / 1e6 / seconds if self._last_uj and seconds > 0 else self._known_w

    def _state_or(self, before: DeviceState) -> DeviceState:
        try:
            return self.device.state()
        except EnergyError:
            return before

    def _boot(self) -> str:
        try:
            return self._boot_id.read_text(encoding="ascii").strip()
        except OSError:
            return ""
