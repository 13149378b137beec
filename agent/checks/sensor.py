"""Whether there is a source of energy readings that moves, and what the idle board draws."""

from __future__ import annotations

import threading
from dataclasses import replace

from agent.checks.check import Bench, Finding, Power, failed, ok, skipped, warning
from agent.core.types import Quality
from agent.energy.meter import POOR_COVERAGE, MeasuredMeter, Reading
from agent.energy.open import open_meter


def check(bench: Bench) -> Finding:
    """Open the meter as the agent does, and measure the board at rest; EnergyError, ConfigError."""
    if bench.config.is_relay:
        return skipped("a relay never trains, and measures nothing")
    place = bench.settings.place
    meter = bench.meter = open_meter(replace(bench.config.found_energy(), place=place))
    if not isinstance(meter, MeasuredMeter):
        return skipped(f"energy.source {meter.source}: published or recorded joules are replayed, nothing is measured")
    meter.open()
    threading.Event().wait(bench.host.idle_s)
    reading = meter.close()
    if reading.error:
        what, _, fix = reading.error.partition("; ")
        return failed(f"{meter.source}: {what}", fix or "check the sensor, its driver and energy.rails")
    power = bench.idle = power_of(reading)
    device = meter.device.reader
    kind = "estimated" if reading.quality is Quality.ESTIMATED else "measured"
    busy = "; an agent is running, so this is no idle board" if bench.agent_runs else ""
    line = f"{meter.source} ({device.scope.value}: {', '.join(device.rails)}), {kind}: {said(power)}{busy}"
    if power.coverage < POOR_COVERAGE:
        return warning(
            line, "a reading takes too long, or the machine is too busy: look for what else reads the sensor"
        )
    return ok(line)


def power_of(reading: Reading) -> Power:
    """Return the mean power of a window."""
    seconds = max(reading.seconds, 1e-9)
    return Power(reading.energy_uj / 1e6 / seconds, reading.bound_uj / 1e6 / seconds, reading.coverage, reading.seconds)


def said(power: Power) -> str:
    """Return a power in words."""
    return f"{power.watts:.2f} W ± {power.bound_w:.2f} over {power.seconds:.1f} s, {power.coverage:.0%} observed"
