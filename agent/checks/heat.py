"""How hot the board is, whether it is throttled or short of power, and how fast its processor runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from agent.checks.check import Bench, Finding, failed, ok, skipped, warning
from agent.energy.optional import optional_int, optional_text
from agent.energy.source import Place
from agent.errors import EnergyError

WARM_C, HOT_C = 80.0, 90.0
SANE_C = (-40.0, 150.0)
"""Zones outside are no thermometers."""
NO_THERMOMETER = re.compile("pmic", re.IGNORECASE)
"""On Jetsons the zone of the power chip says 50 or 100 degrees, whatever the truth."""
BITS = ("too low a voltage", "the clock capped", "throttled", "the soft limit of temperature")
"""Bits 0 to 3 of get_throttled; 16 higher: it was so at some time since the start. Source: Raspberry Pi's vcgencmd."""
VCGENCMD_S = 5.0
_THROTTLED = re.compile(r"throttled=0x([0-9a-fA-F]+)")
_COOL = "cool the board: is its fan turning, its heat sink on, the room for air free?"
_SUPPLY = "use the supply made for the board and a short cable"


def check(bench: Bench) -> Finding:
    """Read all thermometers, the firmware's word on throttling where there is one, and the clock of the processor."""
    place = bench.place
    temperatures, throttled = _temperatures(place.sys), _throttled(place)
    if not temperatures and throttled is None:
        return skipped(f"no thermometer below {place.sys}, and no {place.vcgencmd}")
    parts = []
    hottest_c = None
    if temperatures:
        hottest = max(temperatures, key=lambda name: temperatures[name])
        hottest_c = temperatures[hottest]
        parts.append(f"{hottest_c:.1f} °C ({hottest}, the hottest of {len(temperatures)})")
    parts += _processor(place.sys)
    return _judge(hottest_c, throttled, parts)


def _judge(hottest_c: float | None, throttled: int | str | None, parts: list[str]) -> Finding:
    bits = throttled if isinstance(throttled, int) else 0
    now, before = _named(bits), _named(bits >> 16)
    if isinstance(throttled, int):
        parts.append(f"get_throttled 0x{throttled:x}" + (f": now {', '.join(now)}" if now else ""))
    line = ", ".join(parts)
    fix = " and ".join(
        ([_SUPPLY] if BITS[0] in now + before else []) + ([_COOL] if set(BITS[1:]) & {*now, *before} else [])
    )
    if hottest_c is not None and hottest_c >= HOT_C:
        return failed(line, _COOL)
    if now:
        return failed(line, fix)
    if hottest_c is not None and hottest_c >= WARM_C:
        return warning(line, _COOL)
    if before:
        return warning(f"{line}: since the start there was {', '.join(before)}", f"{fix}; a restart clears these marks")
    if isinstance(throttled, str):
        return warning(f"{line}; throttling is not known: {throttled}", "put the agent's user into the group video")
    return ok(line)


def _named(bits: int) -> list[str]:
    return [name for number, name in enumerate(BITS) if bits >> number & 1]


def _temperatures(sys: Path) -> dict[str, float]:
    """Return degrees by zone; zones that are asleep or no thermometers are left out."""
    found = {}
    for zone in sorted((sys / "class/thermal").glob("thermal_zone*")):
        try:
            millidegrees = optional_int(zone / "temp", "the temperature")
            kind = optional_text(zone / "type")
        except EnergyError:
            continue
        if millidegrees is None or NO_THERMOMETER.search(kind):
            continue
        if SANE_C[0] < millidegrees / 1000 < SANE_C[1]:
            found[f"{kind} {zone.name}".strip()] = millidegrees / 1000
    return found


def _throttled(place: Place) -> int | str | None:
    """Return what a Raspberry Pi's firmware says; why it does not; or None: this is no Pi."""
    try:
        done = subprocess.run(
            [place.vcgencmd, "get_throttled"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=VCGENCMD_S,
            check=False,
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return f"{place.vcgencmd} gave no answer within {VCGENCMD_S:g} s"
    except OSError as error:
        return f"{place.vcgencmd} cannot be started: {error.strerror}"
    text = done.stdout.decode("ascii", "replace").strip()
    found = _THROTTLED.search(text)
    return int(found[1], 16) if found else f"{place.vcgencmd} says {(text.splitlines() or ['nothing'])[0][:80]!r}"


def _processor(sys: Path) -> list[str]:
    """Return the clock of the first processor and its governor, where they are known."""
    folder = sys / "devices/system/cpu/cpu0/cpufreq"
    try:
        now_khz = optional_int(folder / "scaling_cur_freq", "the clock")
        most_khz = optional_int(folder / "cpuinfo_max_freq", "the greatest clock")
        governor = optional_text(folder / "scaling_governor")
    except EnergyError:
        return []
    if now_khz is None:
        return []
    most = f" of {most_khz / 1000:.0f}" if most_khz else ""
    return [f"{now_khz / 1000:.0f}{most} MHz" + (f", governor {governor}" if governor else "")]
