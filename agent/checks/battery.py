"""How full the battery is, whether it is charging, and whether its gauge agrees with the sensor."""

from __future__ import annotations

from agent.checks.check import Bench, Finding, failed, ok, skipped, warning
from agent.energy.meter import MeasuredMeter
from agent.energy.power_supply import Battery, gauge

APART = 2.0
"""Gauge and sensor that differ by more than this factor don't see the same board."""


def check(bench: Bench) -> Finding:
    """Read the gauges; EnergyError."""
    battery, least = gauge(bench.place), bench.config.energy.min_battery
    if battery is None:
        if least:
            return failed(
                f"energy.min_battery is {least:.0%}, and there is no battery gauge below {bench.place.sys}",
                "take energy.min_battery out, or enable the gauge: the agent does not train without it",
            )
        return skipped(f"no battery gauge below {bench.place.sys}")
    line = f"{battery.share:.0%}, {_doing(battery)}"
    if battery.power_uw is not None:
        line += f", giving {battery.power_uw / 1e6:.2f} W"
    if battery.share < least:
        return warning(
            f"{line}: below energy.min_battery of {least:.0%}, so nothing is trained",
            "charge it, or lower energy.min_battery",
        )
    return _compared(bench, battery, line)


def _doing(battery: Battery) -> str:
    if battery.charging:
        return "charging"
    return "on mains" if battery.on_mains else "discharging"


def _compared(bench: Bench, battery: Battery, line: str) -> Finding:
    """Hold the gauge against the sensor, where the battery alone feeds the board and both are known."""
    meter, idle = bench.meter, bench.idle
    alone = not (battery.charging or battery.on_mains) and battery.power_uw is not None and battery.power_uw > 0
    if not alone or idle is None or not isinstance(meter, MeasuredMeter) or meter.source == "power-supply":
        return ok(line)
    gauge_w = (battery.power_uw or 0) / 1e6
    line = f"{line}; {meter.source} says {idle.watts:.2f} W"
    if idle.watts <= 0 or not 1 / APART <= gauge_w / idle.watts <= APART:
        return warning(
            f"{line}: more than {APART:g} times apart",
            "gauges are slow: ask again at rest; else the sensor sees another part of the board than the battery feeds",
        )
    return ok(line)
