"""INA power monitors through hwmon: the Jetsons' INA3221 (JetPack 5 on), and INA219 to INA260 on HATs and UPSes.

mV, mA, µW and µJ as the kernel's Documentation/hwmon/ina{3221,2xx,238}.rst have them. The drivers take 10 mOhm for a
shunt that nobody told them of, and most INA219 boards have 100 mOhm: all is then ten times too much. `shunt_ohms` says
what the driver reckons with.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.energy.jetson_rails import THOR_ONLY, Total, check_flow, choose, drawn_uw, offset_ma
from agent.energy.optional import has, optional_int, optional_text
from agent.energy.source import AbsentError, Place, Scope, Wanted
from agent.energy.sysfs import read_int
from agent.errors import EnergyError

_CHANNELS = {"ina3221": 3}
"""Channels of a chip that has more than one: in4 to in6 are its shunts' voltages, and in7 is their sum."""
CHIPS = frozenset(
    {
        *("ina219", "ina220", "ina226", "ina228", "ina230", "ina231", "ina234", "ina237", "ina238", "ina260"),
        *("ina700", "ina780", "sq52206", *_CHANNELS),
    }
)
_FOLDERS = ("class/hwmon/hwmon*", "bus/i2c/drivers/ina*/*/hwmon/hwmon*", "bus/i2c/devices/*/hwmon/hwmon*")
_ADDRESS = re.compile(r"\d+-[0-9a-f]{4}")
_HZ = 10.0
_IDLE_HZ = 1.0
_SHUNT_STEP_UV = {"ina3221": 40}
_UOHM_PER_OHM = 1_000_000


@dataclass(frozen=True, slots=True)
class Rail:
    """One channel of one chip."""

    name: str
    chip: str
    folder: Path
    channel: int
    labelled: bool
    has_current: bool
    has_power: bool
    has_energy: bool
    shunt_uohm: int | None

    def file(self, kind: str) -> Path:
        """Return where a value of this channel is: in, curr, power, energy."""
        return self.folder / f"{kind}{self.channel}_input"

    def power_uw(self) -> tuple[int, int]:
        """Return what the rail draws, and what that may be off by (0: not known), in µW; EnergyError."""
        current_ma = read_int(self.file("curr"), f"the current of {self.name}") if self.has_current else 0
        if self.has_power:
            power_uw, step_uw = read_int(self.file("power"), f"the power of {self.name}"), 0
        else:
            bus_mv = read_int(self.file("in"), f"the voltage of {self.name}")
            power_uw, step_uw = bus_mv * current_ma, self._step_uw(bus_mv)
        return drawn_uw(power_uw, current_ma, offset_ma(self.shunt_uohm), f"{self.folder}: {self.name}"), step_uw

    def _step_uw(self, bus_mv: int) -> int:
        """Return the power of one step of the shunt's voltage: µV / µOhm x mV = kilo-microwatts."""
        step_uv = _SHUNT_STEP_UV.get(self.chip, 0)
        return step_uv * max(0, bus_mv) * 1000 // self.shunt_uohm if self.shunt_uohm else 0


class _Rails:
    """What both readers have in common: the rails that they read."""

    def __init__(self, rails: Sequence[Rail], scope: Scope) -> None:
        self._rails, self.scope = tuple(rails), scope
        self.rails = tuple(rail.name for rail in rails)

    @property
    def shunt_ohms(self) -> tuple[float | None, ...]:
        """The shunt that the driver reckons with, for each rail; None where it does not say."""
        return tuple(rail.shunt_uohm / _UOHM_PER_OHM if rail.shunt_uohm else None for rail in self._rails)


class InaPower(_Rails):
    """Reads the power of some rails."""

    idle_hz = _IDLE_HZ

    def __init__(self, rails: Sequence[Rail], scope: Scope, wanted: Wanted) -> None:
        super().__init__(rails, scope)
        self.hz, self._wanted = wanted.hz or _HZ, wanted.rails
        self._step_uw = 0

    def resolution_uw(self) -> int:
        """Return the steps of all rails together, at the voltages read last; 0 where a chip's is not known."""
        return self._step_uw

    def read(self) -> tuple[int, ...]:
        """Return the power of each rail in µW; EnergyError as in `drawn_uw` and `check_flow`."""
        readings = [rail.power_uw() for rail in self._rails]
        steps = [step_uw for _, step_uw in readings]
        self._step_uw = sum(steps) if all(steps) else 0
        powers_uw = tuple(power_uw for power_uw, _ in readings)
        check_flow(powers_uw, self._wanted, f"{self._rails[0].folder}: {', '.join(self.rails)}")
        return powers_uw


class InaCounter(_Rails):
    """Reads the accumulators of some rails: INA228 and its kin have one."""

    resolution_uj = 0

    @property
    def ranges_uj(self) -> tuple[int, ...]:
        """Return 0 for each: where 40 bits end depends on the shunt, so going back is a reset.

        They have no sign: what charges a battery counts as drawn, which is never too little.
        """
        return (0,) * len(self.rails)

    def read(self) -> tuple[int, ...]:
        """Return the microjoules of each rail."""
        return tuple(read_int(rail.file("energy"), f"the energy of {rail.name}") for rail in self._rails)


def find(place: Place, wanted: Wanted) -> InaPower | InaCounter:
    """Return a reader of the total's rails: of their accumulators where all have one, else of their power."""
    there = {rail.name: rail for rail in _named(list(_channels(place.sys)))}
    if not there:
        raise AbsentError(f"{place.sys}/class/hwmon: no INA sensor; load its overlay or driver if the board has one")
    total = _total(there, wanted, f"{place.sys}/class/hwmon")
    rails = [there[name] for name in total.rails]
    alone = all(rail.chip not in _CHANNELS for rail in rails)
    scope = Scope.BOARD if alone else total.scope  # a HAT feeds the board through its chip
    if all(rail.has_energy for rail in rails):
        counter = InaCounter(rails, scope)
        counter.read()
        return counter
    reader = InaPower(rails, scope, wanted)
    reader.read()
    return reader


def _total(there: dict[str, Rail], wanted: Wanted, where: str) -> Total:
    """Return which rails add up; a chip of one channel that is alone and has no label measures the whole board."""
    rails = list(there.values())
    if len(rails) == 1 and not rails[0].labelled and not wanted.rails:
        return Total((rails[0].name,), Scope.BOARD)
    return choose(there, wanted.rails, where)


def _channels(sys: Path) -> Iterator[Rail]:
    """Give the channels that are connected and switched on; each chip once, by whichever way it was found."""
    folders: dict[str, Path] = {}
    for pattern in _FOLDERS:
        for folder in sorted(sys.glob(pattern)):
            folders.setdefault(folder.resolve().name, folder)
    for folder in folders.values():
        chip = _chip(folder)
        for channel in range(1, _CHANNELS.get(chip, 1) + 1) if chip in CHIPS else ():
            rail = _rail(folder, chip, channel)
            if rail is not None:
                yield rail


def _chip(folder: Path) -> str:
    """Return what a hwmon calls itself; "" for one that does not say, or is just being taken away."""
    try:
        return optional_text(folder / "name").lower()
    except EnergyError:
        return ""


def _rail(folder: Path, chip: str, channel: int) -> Rail | None:
    """Return one channel, or None where nothing is connected to it."""
    several = chip in _CHANNELS
    label = optional_text(folder / f"in{channel}_label") or ("" if several else optional_text(folder / "label"))
    if label.upper() == "NC" or optional_int(folder / f"in{channel}_enable", "the switch of a channel") == 0:
        return None
    values = {kind for kind in ("in", "curr", "power", "energy") if has(folder / f"{kind}{channel}_input")}
    if "power" not in values and not {"in", "curr"} <= values:
        return None
    shunt = folder / (f"shunt{channel}_resistor" if several else "shunt_resistor")
    return Rail(
        name=label or (f"{chip}-{channel}" if several else chip),
        chip=chip,
        folder=folder,
        channel=channel,
        labelled=bool(label),
        has_current="curr" in values,
        has_power="power" in values,
        has_energy="energy" in values,
        shunt_uohm=optional_int(shunt, "the shunt in µOhm"),
    )


def _named(rails: list[Rail]) -> Iterator[Rail]:
    """Give the rails under names that tell them apart: where two have the same, with the address on the bus."""
    if any(rail.name == THOR_ONLY for rail in rails):
        rails = [replace(rail, name="VIN") if rail.name == "ina238" else rail for rail in rails]
    often = Counter(rail.name for rail in rails)
    for rail in rails:
        yield rail if often[rail.name] == 1 else replace(rail, name=f"{rail.name}@{_address(rail.folder)}")


def _address(folder: Path) -> str:
    """Return the chip's address on its bus ("1-0040"), or the hwmon's name where the tree does not show it."""
    names = [*folder.resolve().parts[-3:], (folder / "device").resolve().name]
    return next((name for name in names if _ADDRESS.fullmatch(name)), folder.name)
