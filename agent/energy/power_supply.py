"""Battery gauges: how full the battery is, for a stop in time; and its discharge as a power, where that is measured.

µV, µA, µW, µAh, µWh and percent, as docs.kernel.org/power/power_supply_class.html has them. Some gauges show a current
that flows out as negative and some as positive: only the status tells the direction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.energy.optional import has, optional_int, optional_text
from agent.energy.source import AbsentError, Place, Scope, Wanted
from agent.energy.sysfs import read_int, read_text
from agent.errors import EnergyError

_FOLDER = "class/power_supply"
_STORES = ("Battery", "UPS")
_UJ_PER_UWH = 3600
_MICRO = 1_000_000
_PERCENT = 100
_HZ = 1.0
_IDLE_HZ = 0.1


@dataclass(frozen=True, slots=True)
class Battery:
    """All batteries of the device together; None: a gauge among them does not know."""

    share: float
    """How full, from 0 to 1."""
    energy_uj: int | None
    full_uj: int | None
    charging: bool
    power_uw: int | None
    """What the batteries give; negative: what they take."""
    on_mains: bool


def gauge(place: Place) -> Battery | None:
    """Return what the gauges say, or None where there are none; EnergyError names the one that cannot be read."""
    supplies = _supplies(place.sys)
    cells = [_battery(supply) for supply in supplies if _kind(supply) in _STORES]
    if not cells:
        return None
    energy_uj = _sum(cell.energy_uj for cell in cells)
    full_uj = _sum(cell.full_uj for cell in cells)
    weights = [cell.full_uj or 1 if full_uj else 1 for cell in cells]
    share = sum(cell.share * weight for cell, weight in zip(cells, weights, strict=True)) / sum(weights)
    return Battery(
        share=share,
        energy_uj=energy_uj,
        full_uj=full_uj,
        charging=any(cell.charging for cell in cells),
        power_uw=_sum(cell.power_uw for cell in cells),
        on_mains=any(_online(supply) for supply in supplies),
    )


@dataclass(frozen=True, slots=True)
class DischargeReader:
    """Reads what the batteries give, for as long as they alone feed the board."""

    folders: tuple[Path, ...]
    hz: float = _HZ
    idle_hz: float = _IDLE_HZ
    scope: Scope = Scope.BATTERY

    @property
    def rails(self) -> tuple[str, ...]:
        """The names of the batteries."""
        return tuple(folder.name for folder in self.folders)

    def resolution_uw(self) -> int:
        """Return 0: gauges do not say their steps."""
        return 0

    def read(self) -> tuple[int, ...]:
        """Return the power of each battery in µW; EnergyError while it says nothing about the board."""
        statuses = [_status(folder) for folder in self.folders]
        for folder, status in zip(self.folders, statuses, strict=True):
            if status == "Charging":
                raise EnergyError(f"{folder}: charging: the battery's power says nothing about the board; unplug it")
        if "Discharging" not in statuses:
            raise EnergyError(
                f"{self.folders[0]}: the status is {statuses[0]!r}, so the battery does not feed the board"
            )
        powers_uw = tuple(_magnitude_uw(folder) for folder in self.folders)
        if None in powers_uw or not any(powers_uw):
            raise EnergyError(
                f"{self.folders[0]}: no power while it discharges; use another source, and this as a gauge"
            )
        return tuple(power_uw or 0 for power_uw in powers_uw)


def find(place: Place, wanted: Wanted) -> DischargeReader:
    """Return a reader of all batteries, or of those wanted by name."""
    where = place.sys / _FOLDER
    there = {folder.name: folder for folder in _supplies(place.sys) if _kind(folder) in _STORES}
    if not there:
        raise AbsentError(f"{where}: no battery gauge")
    missing = [name for name in wanted.rails if name not in there]
    if missing:
        raise EnergyError(f"{where}: no {', '.join(missing)}; there are {', '.join(there)}; correct energy.rails")
    folders = tuple(folder for name, folder in there.items() if not wanted.rails or name in wanted.rails)
    for folder in folders:
        if _magnitude_uw(folder) is None:
            raise EnergyError(
                f"{folder}: shows neither power_now nor current_now with voltage_now; "
                f"it can only be used as a gauge, so choose another source"
            )
    reader = DischargeReader(folders, wanted.hz or _HZ)
    reader.read()
    return reader


def _supplies(sys: Path) -> list[Path]:
    """Return the supplies of the device itself; a wireless mouse has a battery too (scope Device)."""
    return [
        folder
        for folder in sorted((sys / _FOLDER).glob("*"))
        if optional_text(folder / "scope") != "Device"
        and optional_int(folder / "present", "whether the battery is there") != 0
    ]


def _kind(folder: Path) -> str:
    return read_text(folder / "type")


def _online(folder: Path) -> bool:
    """Return whether a supply that is no battery feeds the device now."""
    return _kind(folder) not in _STORES and optional_int(folder / "online", "whether the supply is on") not in (None, 0)


def _status(folder: Path) -> str:
    return optional_text(folder / "status") or "Unknown"


def _battery(folder: Path) -> Battery:
    """Return one battery's gauge; a gauge's own percentage counts more than its charge: it knows load and cold."""
    energy_uj, full_uj = _energy_uj(folder, "now"), _energy_uj(folder, "full")
    percent = optional_int(folder / "capacity", "the percentage")
    if percent is not None and not 0 <= percent <= _PERCENT:
        raise EnergyError(f"{folder / 'capacity'}: {percent} is no percentage; calibrate the gauge, or do without it")
    if percent is None and (energy_uj is None or not full_uj):
        raise EnergyError(f"{folder}: shows neither capacity nor energy or charge with its full value; do without it")
    share = percent / _PERCENT if percent is not None else min(1.0, (energy_uj or 0) / (full_uj or 1))
    status = _status(folder)
    return Battery(share, energy_uj, full_uj, status == "Charging", _signed_uw(folder, status), on_mains=False)


def _energy_uj(folder: Path, when: str) -> int | None:
    """Return the energy `now` or when `full`: as such, or as the charge at the voltage of this moment."""
    energy_uwh = optional_int(folder / f"energy_{when}", "the energy in µWh")
    if energy_uwh is None:
        charge_uah = optional_int(folder / f"charge_{when}", "the charge in µAh")
        voltage_uv = optional_int(folder / "voltage_now", "the voltage in µV")
        if charge_uah is None or voltage_uv is None:
            return None
        energy_uwh = charge_uah * voltage_uv // _MICRO
    if energy_uwh < 0:
        raise EnergyError(f"{folder}: an energy below zero ({energy_uwh} µWh); calibrate the gauge, or do without it")
    return energy_uwh * _UJ_PER_UWH


def _magnitude_uw(folder: Path) -> int | None:
    """Return how much flows, whichever way; None: not measured."""
    if has(folder / "power_now"):
        return abs(read_int(folder / "power_now", "the power in µW"))
    current_ua = optional_int(folder / "current_now", "the current in µA")
    voltage_uv = optional_int(folder / "voltage_now", "the voltage in µV")
    return None if current_ua is None or voltage_uv is None else abs(current_ua) * voltage_uv // _MICRO


def _signed_uw(folder: Path, status: str) -> int | None:
    """Return what the battery gives (negative: takes); None where its way is not known."""
    size_uw = _magnitude_uw(folder)
    sign = {"Discharging": 1, "Charging": -1}.get(status)
    if size_uw is None or (sign is None and size_uw > 0):
        return None
    return size_uw * (sign or 0)


def _sum(values: Iterable[int | None]) -> int | None:
    """Return the sum, or None where a part of it is not known."""
    known = list(values)
    return None if None in known else sum(value or 0 for value in known)
