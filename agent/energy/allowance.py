"""The budget of a device: how much a period allows, when the next one begins, and what recharging gives back.

Nothing here spends: the ledger does, in the core. A clock that is wrong, or that somebody sets back and forth, must not
make joules: a day that has been is never begun again, and there are never more new days than the machine was awake for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from fractions import Fraction
from typing import Protocol

from agent.core.events import BudgetRenewed, EnergyFlowed
from agent.errors import ConfigError, EnergyError

_log = logging.getLogger(__name__)

_UJ_PER_J = 1_000_000
_UJ_PER_WH = 3_600_000_000
_DAY_S = 86_400.0
_FIRST_YEAR = 2026
"""A clock that shows an earlier one has not been set yet."""


@dataclass(frozen=True, slots=True)
class Terms:
    """One budget: at most one of the first four is given."""

    joules: float | None = None
    joules_per_day: float | None = None
    battery_share: float | None = None
    rounds: int | None = None
    battery_wh: float | None = None
    """The battery, where no gauge tells its size."""
    recharge_w: float = 0.0
    """What the device gets back on average, day and night: a solar panel's yield."""
    recharge_from_battery: bool = False
    """Whether what the gauge sees going into the battery is given back."""
    period: str = ""

    @property
    def is_given(self) -> bool:
        """Whether they say how much may be spent."""
        return any(term is not None for term in (self.joules, self.joules_per_day, self.battery_share, self.rounds))


class Gauge(Protocol):
    """What is known of a battery now; None where there is none."""

    def __call__(self) -> BatteryState | None:
        """Read it; EnergyError."""


class BatteryState(Protocol):
    """A battery, as `agent.energy.power_supply` reads it."""

    @property
    def energy_uj(self) -> int | None:
        """What is in it."""

    @property
    def full_uj(self) -> int | None:
        """What it can hold."""

    @property
    def charging(self) -> bool:
        """Whether energy goes into it."""


@dataclass(frozen=True, slots=True)
class Now:
    """The clocks at one moment."""

    wall: datetime
    """UTC; may be wrong, and may jump."""
    boot_s: float
    """Since boot, suspension included."""


def _now() -> Now:
    return Now(datetime.now(timezone.utc), time.clock_gettime(time.CLOCK_BOOTTIME))


class Allowance:
    """A device's budget as time passes; `poll` tells the machine what has changed."""

    def __init__(
        self,
        terms: Terms,
        limit_uj: int | None = None,
        gauge: Gauge = lambda: None,
        clock: Callable[[], Now] = _now,
    ) -> None:
        """Take the terms; `limit_uj` is the budget that came with the source, for where they say none.

        ConfigError: a share of a battery whose size nobody tells.
        """
        self._terms, self._gauge, self._clock = terms, gauge, clock
        self.limit_uj, self.limit_rounds = self._limits(limit_uj), terms.rounds
        self._began = self._polled = clock()
        self._days = 0
        self._credit_uj = Fraction(0)
        self._peak_uj: int | None = None
        self._silent = True
        self._warned = False
        self.period = terms.period
        self._told: tuple[str, int] | None = None

    def resume(self, period: str) -> str:
        """Return the period to begin with where the ledger's last one was `period`."""
        self.period = self._period_of_today(period)
        return self.period

    def poll(self) -> list[BudgetRenewed | EnergyFlowed]:
        """Return what has changed since the last time."""
        events: list[BudgetRenewed | EnergyFlowed] = []
        now = self._clock()
        if self._terms.joules_per_day is not None:
            self.period = self._period_of_today(self.period)
            told = self.period, now.wall.hour
            if told != self._told:
                self._told = told
                left_s = (_midnight(now.wall) - now.wall).total_seconds()
                events.append(BudgetRenewed(self.period, self.limit_uj, self.limit_rounds, left_s))
        credit = self._recharged(now)
        if credit:
            events.append(EnergyFlowed(credit_uj=credit))
        self._polled = now
        return events

    def _limits(self, published_uj: int | None) -> int | None:
        terms = self._terms
        if terms.battery_share is not None:
            return int(Fraction(str(terms.battery_share)) * self._battery_uj())
        joules = terms.joules if terms.joules is not None else terms.joules_per_day
        if joules is not None:
            return int(Fraction(str(joules)) * _UJ_PER_J)
        return None if terms.rounds is not None else published_uj

    def _battery_uj(self) -> int:
        if self._terms.battery_wh is not None:
            return int(Fraction(str(self._terms.battery_wh)) * _UJ_PER_WH)
        state = self._gauge()
        if state is None or state.full_uj is None:
            raise ConfigError(
                "energy.budget.battery_share: no gauge tells how much the battery holds; set energy.budget.battery_wh"
            )
        return state.full_uj

    def _period_of_today(self, last: str) -> str:
        """Return the name of the period that it is now, given the last one's."""
        terms = self._terms
        if terms.joules_per_day is None:
            return terms.period
        now, prefix = self._clock(), f"{terms.period}@"
        today = f"{prefix}{now.wall:%Y-%m-%d}"
        if not last.startswith(prefix):
            return today  # of other terms: whatever the clock shows
        if today <= last or now.wall.year < _FIRST_YEAR:
            self._warn_if_behind(last.removeprefix(prefix), now.wall.date())
            return last
        if self._days >= (now.boot_s - self._began.boot_s) / _DAY_S + 1:
            return last  # more days have come than can have passed
        self._days += 1
        return today

    def _recharged(self, now: Now) -> int:
        passed_s = max(0.0, now.boot_s - self._polled.boot_s)
        self._credit_uj += Fraction(str(self._terms.recharge_w)) * _UJ_PER_J * Fraction(passed_s)
        self._credit_uj += self._from_battery()
        whole = int(self._credit_uj)
        self._credit_uj -= whole
        return whole

    def _warn_if_behind(self, last: str, today: date) -> None:
        """Say once that no day begins while the clock is behind the ledger's last one; a time zone is no matter."""
        with suppress(ValueError):  # a name that is no date
            if not self._warned and date.fromisoformat(last) - today > timedelta(days=1):
                self._warned = True
                _log.warning(
                    "energy: the clock is behind the ledger's last day (%s, and it shows %s): no new day's budget "
                    "begins before that day is over; set the clock",
                    last,
                    today,
                )

    def _from_battery(self) -> int:
        """Return what has gone into the battery since the last look; a gauge that fails gives nothing.

        Only what exceeds the most that this charging has seen: a gauge whose readings go up and down gives nothing.
        """
        if not self._terms.recharge_from_battery:
            return 0
        try:
            state = self._gauge()
        except EnergyError:
            state = None
        held_uj = None if state is None else state.energy_uj
        silent, self._silent = self._silent, held_uj is None
        if state is None or held_uj is None:
            return 0
        peak_uj = held_uj if self._peak_uj is None else self._peak_uj
        self._peak_uj = max(peak_uj, held_uj) if state.charging else held_uj
        return 0 if silent or not state.charging else self._peak_uj - peak_uj


def _midnight(now: datetime) -> datetime:
    return (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
