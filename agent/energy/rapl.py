"""RAPL: the energy counters of Intel's and AMD's processors, as the kernel's powercap tree shows them.

A zone is a folder `intel-rapl:0` (a package, or psys: the whole board) or `intel-rapl:0:1` (a part of that package).
The same zone shows up below class/powercap (flat links) and devices/virtual/powercap (nested); `intel-rapl-mmio` counts
the same package once more. Source: the kernel's powercap.rst and its drivers powercap_sys.c and intel_rapl_common.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.energy.source import AbsentError, Place, Scope, Wanted
from agent.energy.sysfs import DeniedError, read_int, read_text
from agent.errors import EnergyError

_ROOTS = (("class", "powercap"), ("devices", "virtual", "powercap"))
_ID = re.compile(r"intel-rapl(-mmio)?((:[0-9a-f]+)*)")
_PACKAGE = re.compile(r"package-\d+(-die-\d+)?")
_PARTS_IN_SUM = ("core", "uncore")
"""Subzones that their package's counter holds already; dram is listed below a package and counted beside it."""
_RAW_MAX = 2**32 - 1
"""The hardware counts in 32 bits; the range by this is its unit: 15 to 62 microjoules."""


@dataclass(frozen=True, slots=True)
class Zone:
    """One counter of the tree."""

    id: str
    name: str
    path: Path

    @property
    def parent(self) -> str:
        """The id of the zone that it is a part of; empty for a zone at the top."""
        return self.id.rpartition(":")[0] if self.id.count(":") > 1 else ""

    @property
    def mmio(self) -> bool:
        """Whether it is read in the memory of the device rather than by the processor."""
        return self.id.startswith("intel-rapl-mmio")


@dataclass(frozen=True, slots=True)
class RaplReader:
    """Reads the counters of some zones; each file is opened anew, as a module that is loaded again leaves dead ones."""

    scope: Scope
    rails: tuple[str, ...]
    ranges_uj: tuple[int, ...]
    resolution_uj: int
    files: tuple[Path, ...]

    def read(self) -> tuple[int, ...]:
        """Return each counter in microjoules; EnergyError names the file and what to do."""
        try:
            return tuple(
                read_int(file, f"the energy of {rail}") for rail, file in zip(self.rails, self.files, strict=True)
            )
        except DeniedError as error:
            raise _denied(error) from None


def find(place: Place, wanted: Wanted) -> RaplReader:
    """Return a reader of all packages, and of a `dram` zone beside them; or of the zones that are wanted.

    A zone is wanted by its name, or as `package-0/core` where several have that name. AbsentError: there are no zones.
    EnergyError: there are, and they are switched off, not such as wanted, or cannot be read.
    """
    zones = _without_twins(_zones(place.sys))
    if not zones:
        raise AbsentError(f"no RAPL zones below {place.sys.joinpath(*_ROOTS[0])}")
    _check_enabled(place.sys)
    labels = _labels(zones)
    chosen = _named(zones, labels, wanted.rails) if wanted.rails else _default(zones, labels)
    ranges_uj = [_range_uj(zone) for zone in chosen]
    reader = RaplReader(
        scope=Scope.BOARD if chosen[0].name == "psys" else Scope.PACKAGE,
        rails=tuple(labels[zone.id] for zone in chosen),
        ranges_uj=tuple(greatest + 1 for greatest in ranges_uj),  # the file gives the greatest value that is shown
        resolution_uj=sum(-(-greatest // _RAW_MAX) for greatest in ranges_uj),
        files=tuple(zone.path / "energy_uj" for zone in chosen),
    )
    reader.read()
    return reader


def _zones(sys: Path) -> list[Zone]:
    """Return each zone once, in the order of their ids."""
    found: dict[str, Zone] = {}
    real: set[Path] = set()
    for root in _ROOTS:
        for path in _folders(sys.joinpath(*root)):
            if path.name in found or path.resolve() in real or not (path / "name").is_file():
                continue
            found[path.name] = Zone(path.name, read_text(path / "name"), path)
            real.add(path.resolve())
    return sorted(found.values(), key=lambda zone: [zone.mmio, *(int(part, 16) for part in zone.id.split(":")[1:])])


def _folders(folder: Path) -> Iterator[Path]:
    """Yield all folders with names of zones, nested ones too; sysfs' own links back (`subsystem`, `device`) are not."""
    try:
        inside = sorted(path for path in folder.iterdir() if _ID.fullmatch(path.name) and path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise EnergyError(f"{folder}: cannot be listed ({error.strerror}); mend its rights") from None
    for path in inside:
        if ":" in path.name:
            yield path
        yield from _folders(path)


def _without_twins(zones: Sequence[Zone]) -> list[Zone]:
    """Leave out what is counted through `mmio` too."""
    names = {zone.name for zone in zones if not zone.mmio and not zone.parent}
    twins = {zone.id for zone in zones if zone.mmio and zone.name in names}
    return [zone for zone in zones if not {zone.id, zone.parent} & twins]


def _labels(zones: Sequence[Zone]) -> dict[str, str]:
    """Return what each zone is called, by id: its name, with the package's where several have it, else its id."""
    names = {zone.id: zone.name for zone in zones}
    full = {zone.id: f"{names[zone.parent]}/{zone.name}" if zone.parent in names else zone.name for zone in zones}
    short = list(names.values())
    return {
        id_: name if short.count(name) == 1 else full[id_] if list(full.values()).count(full[id_]) == 1 else id_
        for id_, name in names.items()
    }


def _default(zones: Sequence[Zone], labels: dict[str, str]) -> list[Zone]:
    """Return all packages, and memory that is counted beside them."""
    top = [zone for zone in zones if not zone.parent]
    packages = [zone for zone in top if _PACKAGE.fullmatch(zone.name)]
    if not packages:
        raise EnergyError(
            f"RAPL has no package zone, only {_listed(labels)}; name in energy.rails those that make up the total"
        )
    return packages + [zone for zone in top if zone.name == "dram"]


def _named(zones: Sequence[Zone], labels: dict[str, str], rails: Sequence[str]) -> list[Zone]:
    """Return the zones of these names; EnergyError where they are not clear, or would be counted twice."""
    full = {zone.id: f"{labels.get(zone.parent, '')}/{zone.name}" for zone in zones}
    chosen: dict[str, Zone] = {}
    for rail in rails:
        fitting = [zone for zone in zones if rail in (zone.id, zone.name, labels[zone.id], full[zone.id])]
        exact = [zone for zone in fitting if not zone.parent] or fitting
        if not exact:
            raise EnergyError(f"RAPL has no zone {rail}, only {_listed(labels)}; correct energy.rails")
        if len(exact) > 1:
            raise EnergyError(
                f"several RAPL zones are called {rail}; write {' or '.join(labels[zone.id] for zone in exact)} in "
                "energy.rails"
            )
        chosen[exact[0].id] = exact[0]
    for zone in chosen.values():
        twice = zone.name == "psys" and len(chosen) > 1
        if twice or (zone.name in _PARTS_IN_SUM and zone.parent in chosen):
            holder = "psys" if twice else labels[zone.parent]
            raise EnergyError(
                f"RAPL's {holder} holds what the other zones count; name it alone, or them, in energy.rails"
            )
    return list(chosen.values())


def _range_uj(zone: Zone) -> int:
    path = zone.path / "max_energy_range_uj"
    try:
        greatest = read_int(path, f"the range of {zone.name}")
    except DeniedError as error:
        raise _denied(error) from None
    if greatest <= 0:
        raise EnergyError(f"{path}: the range of {zone.name} is {greatest} uJ; check the driver")
    return greatest


def _check_enabled(sys: Path) -> None:
    for root in _ROOTS:
        path = sys.joinpath(*root, "intel-rapl", "enabled")
        try:
            off = read_text(path) == "0"
        except EnergyError:  # older kernels have no such file, and without it nothing is switched off
            off = False
        if off:
            raise EnergyError(f"{path}: RAPL is switched off; write 1 to this file")


def _denied(error: DeniedError) -> EnergyError:
    return EnergyError(
        f"{error.path}: may not be read by this user (since Linux 5.10 only by root); give the agent's group read "
        "access by tmpfiles.d or udev, see docs/energy.md"
    )


def _listed(labels: dict[str, str]) -> str:
    return ", ".join(labels.values())
