"""Budgets as time passes: days, recharging, shares of a battery, and clocks that lie."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.events import BudgetRenewed, EnergyFlowed
from agent.energy.allowance import Allowance, Now, Terms
from agent.energy.power_supply import Battery
from agent.errors import ConfigError, EnergyError

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


@dataclass
class World:
    """Clocks that a test sets, and a battery."""

    wall: datetime = NOON
    boot_s: float = 1_000.0
    battery: Battery | None = None
    broken: bool = False

    def now(self) -> Now:
        """Read the clocks."""
        return Now(self.wall, self.boot_s)

    def pass_time(self, seconds: float) -> None:
        """Let both clocks go on."""
        self.wall, self.boot_s = self.wall + timedelta(seconds=seconds), self.boot_s + seconds

    def gauge(self) -> Battery | None:
        """Read the battery."""
        if self.broken:
            raise EnergyError("the gauge is gone")
        return self.battery

    def allowance(self, terms: Terms, published: int | None = None) -> Allowance:
        """Return an allowance in this world."""
        return Allowance(terms, published, self.gauge, self.now)


def battery(energy_wh: float, *, charging: bool) -> Battery:
    """Return a battery of 20 Wh."""
    held = round(energy_wh * 3.6e9)
    return Battery(energy_wh / 20, held, 72_000_000_000, charging, None, charging)


@pytest.mark.parametrize(
    ("terms", "published", "limits"),
    [
        (Terms(), 7, (7, None)),
        (Terms(), None, (None, None)),
        (Terms(joules=0.1), 7, (100_000, None)),
        (Terms(joules_per_day=3), 7, (3_000_000, None)),
        (Terms(rounds=272), 7, (None, 272)),
        (Terms(battery_share=0.1, battery_wh=17.8), None, (6_408_000_000, None)),
        (Terms(battery_share=0.1), None, (7_200_000_000, None)),
    ],
)
def test_each_kind_of_budget(terms: Terms, published: int | None, limits: tuple[int | None, int | None]) -> None:
    """In microjoules or in rounds, exactly as the decimal that was written; a gauge tells a battery's size."""
    allowance = World(battery=battery(10, charging=False)).allowance(terms, published)
    assert (allowance.limit_uj, allowance.limit_rounds) == limits


def test_a_share_of_a_battery_needs_its_size() -> None:
    """Without a gauge somebody must say it."""
    with pytest.raises(ConfigError, match=r"set energy\.budget\.battery_wh"):
        World().allowance(Terms(battery_share=0.1))


# --- days


def renewals(allowance: Allowance) -> list[str]:
    """Return the periods of which the machine hears now."""
    return [event.period for event in allowance.poll() if isinstance(event, BudgetRenewed)]


def test_midnight_begins_a_new_budget_once() -> None:
    """The machine hears of the end of the day every hour, and of the new day when it has come."""
    world = World()
    allowance = world.allowance(Terms(joules_per_day=5, period="p"))
    assert allowance.resume("") == "p@2026-11-22"
    (first,) = allowance.poll()
    assert first == BudgetRenewed("p@2026-11-22", 5_000_000, None, 12 * 3600.0)
    assert allowance.poll() == []
    world.pass_time(12 * 3600)
    assert renewals(allowance) == ["p@2026-11-23"]
    world.pass_time(10)
    assert renewals(allowance) == []


@pytest.mark.parametrize("stored", ["", "p", "other@2026-11-22", "p@2026-11-21"])
def test_a_device_that_was_off_begins_the_day_that_it_is(stored: str) -> None:
    """Whatever the ledger's last period was called."""
    assert World().allowance(Terms(joules_per_day=5, period="p")).resume(stored) == "p@2026-11-22"


@pytest.mark.parametrize("wall", [datetime(1970, 1, 1, tzinfo=timezone.utc), NOON - timedelta(days=3)])
def test_a_clock_that_is_behind_begins_no_day(wall: datetime) -> None:
    """Before NTP has set it, the ledger's last day goes on."""
    world = World(wall=wall)
    allowance = world.allowance(Terms(joules_per_day=5, period="p"))
    assert allowance.resume("p@2026-11-22") == "p@2026-11-22"
    assert renewals(allowance) == ["p@2026-11-22"]
    world.wall = NOON
    world.pass_time(86_400)
    assert renewals(allowance) == ["p@2026-11-23"]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 40 * 3600), st.integers(-(10**7), 10**7)), max_size=30))
def test_no_clock_makes_more_days_than_have_passed(steps: list[tuple[float, int]]) -> None:
    """However the wall clock jumps: less than two days more than the machine was awake for, and none of them twice."""
    world = World()
    allowance = world.allowance(Terms(joules_per_day=5))
    allowance.resume("@2026-11-22")
    began, seen = world.boot_s, ["@2026-11-22"]
    for awake_s, jump_s in steps:
        world.pass_time(awake_s)
        world.wall += timedelta(seconds=jump_s)
        seen += [period for period in renewals(allowance) if period != seen[-1]]
        assert len(seen) - 1 < (world.boot_s - began) / 86_400 + 2
    assert seen == sorted(set(seen))


def test_a_clock_that_jumps_without_time_makes_one_day() -> None:
    """The first jump may be NTP's; the next ones, at the same instant, begin nothing."""
    world = World()
    allowance = world.allowance(Terms(joules_per_day=5, period="p"))
    allowance.resume("p@2026-11-22")
    seen = []
    for _ in range(5):
        world.wall += timedelta(days=1)
        seen += renewals(allowance)
    assert set(seen) == {"p@2026-11-23"}


def test_a_clock_that_is_set_late_still_has_its_midnight() -> None:
    """Unset at boot, set a minute later, and midnight a minute after that."""
    world = World(wall=datetime(1970, 1, 1, tzinfo=timezone.utc))
    allowance = world.allowance(Terms(joules_per_day=5, period="p"))
    allowance.resume("p@2026-11-21")
    world.pass_time(60)
    world.wall = NOON + timedelta(hours=12, seconds=-60)
    assert renewals(allowance) == ["p@2026-11-22"]
    world.pass_time(60)
    assert renewals(allowance) == ["p@2026-11-23"]


@pytest.mark.parametrize(("stored", "warnings"), [("p@2026-11-24", 1), ("p@2026-11-23", 0), ("p@tomorrow", 0)])
def test_a_clock_that_is_far_behind_is_warned_of_once(
    stored: str, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    """By more than a day."""
    allowance = World().allowance(Terms(joules_per_day=5, period="p"))
    with caplog.at_level(logging.WARNING):
        assert allowance.resume(stored) == stored
        allowance.poll()
    assert len(caplog.messages) == warnings
    assert all("the clock is behind the ledger's last day (2026-11-24" in message for message in caplog.messages)


# --- recharging


def given_back(allowance: Allowance) -> int:
    """Return what comes back now, in microjoules."""
    return sum(event.credit_uj for event in allowance.poll() if isinstance(event, EnergyFlowed))


def test_a_panel_gives_its_watts_back_to_the_microjoule() -> None:
    """1.7 W over odd stretches of time: nothing is lost to rounding."""
    world = World()
    allowance = world.allowance(Terms(joules=5, recharge_w=1.7))
    got = 0
    for _ in range(1_000):
        world.pass_time(0.3)
        got += given_back(allowance)
    assert abs(got - 510_000_000) <= 1


def test_what_goes_into_the_battery_is_given_back() -> None:
    """2 Wh charged; what it loses, and what is not seen while the gauge is silent, is not."""
    world = World(battery=battery(10, charging=True))
    allowance = world.allowance(Terms(joules=5, recharge_from_battery=True))
    assert given_back(allowance) == 0
    world.battery = battery(12, charging=True)
    assert given_back(allowance) == 7_200_000_000
    world.battery = battery(11, charging=False)
    assert given_back(allowance) == 0
    world.broken = True
    assert given_back(allowance) == 0
    world.broken, world.battery = False, battery(20, charging=True)
    assert given_back(allowance) == 0
    world.battery = None
    assert given_back(allowance) == 0


def test_a_gauge_that_trembles_gives_nothing_back() -> None:
    """While it charges, only what exceeds the most that was seen counts, through a silence too."""
    world = World()
    allowance = world.allowance(Terms(joules=5, recharge_from_battery=True))
    got = 0
    for energy_wh in (10, 10.01, 9.99) * 50:
        world.battery = battery(energy_wh, charging=True)
        got += given_back(allowance)
    world.broken = True
    got += given_back(allowance)
    world.broken = False
    got += given_back(allowance)
    assert got == 36_000_000
    world.battery = battery(10.02, charging=True)
    assert given_back(allowance) == 36_000_000


def test_after_discharging_the_battery_is_charged_anew() -> None:
    """From where it was seen to discharge last."""
    world = World(battery=battery(12, charging=True))
    allowance = world.allowance(Terms(joules=5, recharge_from_battery=True))
    assert given_back(allowance) == 0
    for energy_wh in (11, 8):
        world.battery = battery(energy_wh, charging=False)
        assert given_back(allowance) == 0
    world.battery = battery(9, charging=True)
    assert given_back(allowance) == 3_600_000_000
