"""The power chip of a Raspberry Pi 5: what `vcgencmd pmic_read_adc` says of its twelve rails.

There is no way to it through sysfs, and each look starts a process: 2 to 5 looks a second, and only while a window is
open. The sum lacks all that hangs on 5 V (USB, HATs, NVMe) and the chip's own loss; the meter corrects for that.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from agent.energy.jetson_rails import check_flow
from agent.energy.source import AbsentError, Place, Scope, Wanted
from agent.errors import EnergyError

RAILS = (
    *("3V7_WL_SW", "3V3_SYS", "1V8_SYS", "DDR_VDD2", "DDR_VDDQ", "1V1_SYS"),
    *("0V8_SW", "VDD_CORE", "3V3_DAC", "3V3_ADC", "0V8_AON", "HDMI"),
)
"""3V7_WL_SW feeds the Wi-Fi. EXT5V and BATT have a voltage only."""
TIMEOUT_S = 2.0
_HZ = 4.0
_IDLE_HZ = 0.1
_NO_SUCH_COMMAND = 127
_LINE = re.compile(
    r"\s*(?P<rail>\w+)_(?:A +current|V +volt)\(\d+\)=(?P<value>-?\d{1,4}(?:\.\d{1,12})?)(?P<unit>[AV])\s*"
)
_REFUSED = ("vcio", "vchi", "permission")


@dataclass(frozen=True, slots=True)
class PmicReader:
    """Reads the rails by starting the command once."""

    command: str
    rails: tuple[str, ...]
    scope: Scope
    hz: float
    idle_hz: float = _IDLE_HZ
    timeout_s: float = TIMEOUT_S
    wanted: tuple[str, ...] = ()
    """The rails that somebody named; none where they are all."""

    def resolution_uw(self) -> int:
        """Return 0: Raspberry Pi says nothing of the converter's steps."""
        return 0

    def read(self) -> tuple[int, ...]:
        """Return each rail's power in µW, rounded so that their sum is the rounded sum; EnergyError."""
        said = f"{self.command} pmic_read_adc"
        found = _pairs(_ask(self.command, self.timeout_s), said)
        total_w, sums_uw = 0.0, [0]
        for rail in self.rails:
            amperes, volts = found[rail]
            total_w += max(0.0, amperes) * volts
            sums_uw.append(round(total_w * 1e6))
        powers_uw = tuple(after - before for before, after in pairwise(sums_uw))
        check_flow(powers_uw, self.wanted, said)
        return powers_uw


def find(place: Place, wanted: Wanted) -> PmicReader:
    """Return a reader of all twelve rails, or of those wanted."""
    unknown = [name for name in wanted.rails if name not in RAILS]
    whole = not wanted.rails or set(wanted.rails) == set(RAILS)
    reader = PmicReader(
        command=place.vcgencmd,
        rails=tuple(rail for rail in RAILS if not wanted.rails or rail in wanted.rails),
        scope=Scope.BOARD if whole else Scope.MODULE,
        hz=wanted.hz or _HZ,
        idle_hz=min(wanted.hz or _IDLE_HZ, _IDLE_HZ),
        timeout_s=TIMEOUT_S,
        wanted=wanted.rails,
    )
    reader.read()
    if unknown:
        raise EnergyError(f"rpi-pmic: no rail {', '.join(unknown)}; there are {', '.join(RAILS)}; correct energy.rails")
    return reader


def _ask(command: str, timeout_s: float) -> str:
    """Return what the command prints; AbsentError where this is no Pi 5."""
    line = [command, "pmic_read_adc"]
    said = " ".join(line)
    try:
        done = subprocess.run(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise AbsentError(f"{command}: there is no such command here; it comes with Raspberry Pi OS") from None
    except subprocess.TimeoutExpired:
        raise EnergyError(f"{said}: no answer within {timeout_s:g} s; the firmware hangs: restart the device") from None
    except OSError as error:
        raise EnergyError(f"{said}: cannot be started: {error.strerror}; correct the rights of the file") from None
    text = done.stdout.decode("ascii", "replace")
    first = _first_line(text)
    if "not registered" in text or done.returncode == _NO_SUCH_COMMAND:  # the former with any exit code
        raise AbsentError(f"{said}: this board does not measure its power ({first}); only a Raspberry Pi 5 does")
    if any(word in text.lower() for word in _REFUSED):
        raise EnergyError(f"{said}: may not be asked ({first}); put the service's user into the group video")
    if done.returncode != 0 or "error=" in text:
        raise EnergyError(f"{said}: failed with {done.returncode} ({first}); run it by hand to see why")
    return text


def _first_line(text: str) -> str:
    """Return the start of what was said, fit for one line of a message."""
    lines = text.strip().splitlines() or ["it said nothing"]
    return "".join(letter if letter.isprintable() else "?" for letter in lines[0].strip()[:100])


def _pairs(text: str, where: str) -> Mapping[str, tuple[float, float]]:
    """Return amperes and volts by rail: matched by name, for the two have different numbers."""
    values: dict[tuple[str, str], float] = {}
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found is None and line.strip():
            raise EnergyError(f"{where}: not a rail: {_first_line(line)!r}; update the firmware")
        if found is not None:
            values[found["rail"], found["unit"]] = float(found["value"])
    missing = [f"{rail}_{unit}" for rail in RAILS for unit in "AV" if (rail, unit) not in values]
    if missing:
        raise EnergyError(f"{where}: it does not say {', '.join(missing)}, so there is no total; update the firmware")
    return {rail: (values[rail, "A"], values[rail, "V"]) for rail in RAILS}
