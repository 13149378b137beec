"""One emulated device's energy: the meter that replays it and the treasury of a device, on the virtual clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from agent.core import events as ev
from agent.core.budget import Ledger
from agent.core.costs import CostHistory
from agent.core.types import Snapshot, WindowDetail
from agent.energy.allowance import Allowance, Now
from agent.energy.meter import Meter, Reading
from agent.energy.trace import TraceMeter
from agent.energy_config import budget_terms
from agent.treasury import Rules, Treasury
from sim_harness.devices import FleetDevice
from sim_harness.scenario import Scenario

_EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)
"""What calendars show when an emulation begins."""
_LEAST_S = 1e-6
"""A training round takes some time, whatever a recording says."""


@dataclass(slots=True)
class VirtualClock:
    """Seconds since the emulation began; `emulator` moves it."""

    now: float = 0.0

    def __call__(self) -> float:
        """Return them."""
        return self.now


@dataclass(frozen=True, slots=True)
class Calendar:
    """What a device's clocks show."""

    clock: VirtualClock

    def __call__(self) -> Now:
        """Return it."""
        return Now(_EPOCH + timedelta(seconds=self.clock.now), self.clock.now)


class Powered:
    """What powers one node."""

    def __init__(self, scenario: Scenario, index: int, clock: VirtualClock) -> None:
        self.device, self._clock = scenario.device(index), clock
        self._round_j, self._terms = scenario.energy.round_j, budget_terms(scenario.energy_section(index))
        self.recharges = self._terms.recharge_w > 0
        self.switch_on()

    def switch_on(self) -> None:
        """Begin as a device's agent does: a recording from its first window, recharging from this moment on."""
        self.meter = meter_of(self.device, self._round_j)
        allowance = Allowance(self._terms, self.device.published_uj, _no_gauge, Calendar(self._clock))
        self._treasury = Treasury(self.meter, allowance, self._clock, Rules(), _no_gauge)
        self._trained = 0

    def ledger(self, saved: Snapshot | None) -> Ledger:
        """Return the device's ledger as it is switched on."""
        return self._treasury.ledger(saved, state_lost=False)

    def history(self, workload: str) -> CostHistory:
        """Return what was known of the cost of a round before any."""
        return replace(self.meter.history, workload=workload)

    def flows(self) -> list[ev.BudgetRenewed | ev.EnergyFlowed]:
        """Return what was recharged since the last time."""
        return self._treasury.poll()

    def round_s(self) -> float:
        """Return how long the next training round lasts."""
        return max(_LEAST_S, self.device.round_s(self._trained))

    def charge(self) -> Reading:
        """Return what the training round that has ended cost."""
        self._trained += 1
        return self.meter.close()

    def detail(self, reading: Reading) -> WindowDetail | None:
        """Return what the machine learns from."""
        return replayed_window(reading) if self.meter.learns else None


def meter_of(device: FleetDevice, round_j: float | None = None) -> Meter:
    """Return what replays a device's energy from its beginning."""
    return device.meter(round_j) if device.windows else TraceMeter(device.published_uj, device.cost)


def replayed_window(reading: Reading) -> WindowDetail:
    """Return what an agent that replays a recording writes of a training window."""
    return WindowDetail(
        source="recording",
        seconds=round(reading.seconds, 6),
        coverage=1.0,
        bound_uj=0,
        whole_uj=reading.whole_uj,
        load_uj=reading.load_uj,
        warm=reading.warm,
    )


def _no_gauge() -> None:
    """Return None: an emulated device has no battery gauge."""
