"""The INA3221 of a Jetson with JetPack 4: the old driver ina3221x, an iio tree of milliwatts with channels 0 to 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.energy.jetson_rails import check_flow, choose, drawn_uw, offset_ma
from agent.energy.optional import has, optional_text
from agent.energy.source import AbsentError, Place, Scope, Wanted
from agent.energy.sysfs import read_int
from agent.errors import EnergyError

_BUSES = ("bus/i2c/drivers/ina3221x/*", "bus/i2c/devices/*")
_FOLDERS = ("iio:device*", "iio_device")
_CHANNELS = range(3)
_HZ = 10.0
_UW_PER_MW = 1000


@dataclass(frozen=True, slots=True)
class Rail:
    """One channel of one chip."""

    name: str
    folder: Path
    channel: int
    has_power: bool

    def power_uw(self) -> int:
        """Return what the rail draws in µW; EnergyError."""
        current_ma = self._value("current", "mA")
        if self.has_power:
            power_uw = self._value("power", "mW") * _UW_PER_MW
        else:
            power_uw = self._value("voltage", "mV") * current_ma
        return drawn_uw(power_uw, current_ma, offset_ma(None), f"{self.folder}: {self.name}")

    def _value(self, kind: str, unit: str) -> int:
        return read_int(self.folder / f"in_{kind}{self.channel}_input", f"the {kind} of {self.name} in {unit}")


@dataclass(frozen=True, slots=True)
class IioReader:
    """Reads the power of some rails."""

    channels: tuple[Rail, ...]
    scope: Scope
    wanted: tuple[str, ...] = ()
    """The rails that somebody named; none where they are the board's total."""
    hz: float = _HZ
    idle_hz: float = 1.0

    @property
    def rails(self) -> tuple[str, ...]:
        """The labels."""
        return tuple(rail.name for rail in self.channels)

    def resolution_uw(self) -> int:
        """Return 0: this driver does not say which shunts it reckons with."""
        return 0

    def read(self) -> tuple[int, ...]:
        """Return the power of each rail in µW; EnergyError as in `drawn_uw` and `check_flow`."""
        powers_uw = tuple(rail.power_uw() for rail in self.channels)
        check_flow(powers_uw, self.wanted, f"{self.channels[0].folder}: {', '.join(self.rails)}")
        return powers_uw


def find(place: Place, wanted: Wanted) -> IioReader:
    """Return a reader of the rails that add up to this Jetson's total."""
    where = f"{place.sys}/bus/i2c/drivers/ina3221x"
    there: dict[str, Rail] = {}
    for rail in _channels(place.sys):
        if rail.name in there:
            raise EnergyError(
                f"{rail.folder}: a second rail {rail.name}, beside {there[rail.name].folder}; mend the labels"
            )
        there[rail.name] = rail
    if not there:
        raise AbsentError(f"{where}: no sensor of a Jetson with JetPack 4")
    total = choose(there, wanted.rails, where)
    reader = IioReader(tuple(there[name] for name in total.rails), total.scope, wanted.rails, wanted.hz or _HZ)
    reader.read()
    return reader


def _channels(sys: Path) -> Iterator[Rail]:
    """Give the channels that are connected; each chip once, by its address, by whichever way it was found."""
    chips: dict[str, Path] = {}
    for bus in _BUSES:
        for pattern in _FOLDERS:
            for folder in sorted(sys.glob(f"{bus}/{pattern}")):
                chips.setdefault(folder.parent.name, folder)
    for folder in chips.values():
        for channel in _CHANNELS:
            name = optional_text(folder / f"rail_name_{channel}")
            if name and name.upper() != "NC":
                yield Rail(name, folder, channel, has(folder / f"in_power{channel}_input"))
