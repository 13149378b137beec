"""Builders of RAPL trees as kernels print them, and a hand that moves their counters."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

INTEL_RANGE_UJ = 262143328850
"""The greatest value of a 32-bit counter in units of 2^-14 J, by the kernel's arithmetic."""
AMD_RANGE_UJ = 65532610987
"""The same in units of 2^-16 J."""
NEAR_THE_END_UJ = 262143328000


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone to be built."""

    name: str
    energy_uj: int
    range_uj: int = INTEL_RANGE_UJ
    parts: tuple[Zone, ...] = ()


CORE = Zone("core", 141003127)
UNCORE = Zone("uncore", 8113000)
DRAM = Zone("dram", 52000111)
PSYS = Zone("psys", 990000000)
PACKAGE = Zone("package-0", NEAR_THE_END_UJ, parts=(CORE, UNCORE))

LAYOUTS: Mapping[str, tuple[Zone, ...]] = {
    "desktop": (PACKAGE, PSYS),
    "psys first": (PSYS, PACKAGE),
    "multi-die": (
        Zone("package-0-die-0", 1000, parts=(CORE,)),
        Zone("package-0-die-1", 2000, parts=(CORE,)),
    ),
    "two packages": (
        Zone("package-0", 1000, parts=(CORE, DRAM)),
        Zone("package-1", 2000, parts=(CORE, DRAM)),
    ),
    "amd": (Zone("package-0", 65532610000, AMD_RANGE_UJ, (Zone("core", 123456, AMD_RANGE_UJ),)),),
    "dram subzone": (Zone("package-0", 1000, parts=(CORE, DRAM)),),
    "dram at the top": (Zone("package-0", 1000), DRAM),
}


def rapl(sys: Path, zones: tuple[Zone, ...] = LAYOUTS["desktop"], *, control: str = "intel-rapl") -> Path:
    """Build devices/virtual/powercap below `sys`, and the flat links of class/powercap; return the control's folder."""
    folder = sys / "devices/virtual/powercap" / control
    folder.mkdir(parents=True)
    _write(folder / "enabled", 1)
    for number, zone in enumerate(zones):
        _build(folder, f"{control}:{number:x}", zone)
    links = sys / "class/powercap"
    links.mkdir(parents=True, exist_ok=True)
    for path in (folder, *(path for path in folder.rglob(f"{control}:*") if not path.is_symlink())):
        (links / path.name).symlink_to(os.path.relpath(path, links))
    return folder


def _build(above: Path, id_: str, zone: Zone) -> None:
    folder = above / id_
    folder.mkdir()
    _write(folder / "name", zone.name)
    _write(folder / "energy_uj", zone.energy_uj)
    _write(folder / "max_energy_range_uj", zone.range_uj)
    _write(folder / "enabled", 0)  # of a zone this is about limits of power; it counts all the same
    (folder / "subsystem").symlink_to("../" * (3 + id_.count(":")) + "class/powercap")
    (folder / "device").symlink_to("..")
    for number, part in enumerate(zone.parts):
        _build(folder, f"{id_}:{number:x}", part)


def with_twin(sys: Path) -> None:
    """Add what counts package-0 once more."""
    rapl(sys, (PACKAGE,), control="intel-rapl-mmio")


def only_flat(sys: Path) -> None:
    """Leave only class/powercap, all zones side by side as folders, as a tree that was copied without its links."""
    flat = sys / "class/powercap"
    for link in list(flat.iterdir()):
        real = link.resolve()
        link.unlink()
        link.mkdir()
        for file in real.iterdir():
            if file.is_file():
                shutil.copy(file, link / file.name)
    shutil.rmtree(sys / "devices")


def only_nested(sys: Path) -> None:
    """Leave only devices/virtual/powercap."""
    shutil.rmtree(sys / "class")


def copied(sys: Path) -> None:
    """Put copies where the links were: all zones are there twice and more, and nothing says that they are the same."""
    flat = sys / "class/powercap"
    for link in list(flat.iterdir()):
        real = link.resolve()
        link.unlink()
        shutil.copytree(real, link, ignore=shutil.ignore_patterns("subsystem", "device"))


SHAPES: Mapping[str, Callable[[Path], None]] = {
    "links": lambda _: None,
    "flat": only_flat,
    "nested": only_nested,
    "copies": copied,
    "twin": with_twin,
}


@dataclass
class Mover:
    """Moves counters on as the hardware would, round their end too."""

    sys: Path
    turns: dict[str, int] = field(default_factory=dict)
    """How often each zone has gone round, by its id."""

    def move(self, energy_uj: int, *ids: str) -> None:
        """Let all zones, or only these, count so many microjoules."""
        for path in {path.resolve() for path in self._files() if not ids or path.parent.name in ids}:
            range_uj = int((path.parent / "max_energy_range_uj").read_text()) + 1
            turns, now = divmod(int(path.read_text()) + energy_uj, range_uj)
            self.turns[path.parent.name] = self.turns.get(path.parent.name, 0) + turns
            self.set(now, path)

    def reset(self, energy_uj: int = 0) -> None:
        """Let all zones begin anew, as when the module is loaded again."""
        for path in self._files():
            self.set(energy_uj, path)

    @staticmethod
    def set(energy_uj: int, path: Path) -> None:
        """Replace a counter at one go: no reader sees a file that is cut and not filled yet."""
        fresh = path.with_name("energy_uj.new")
        _write(fresh, energy_uj)
        fresh.replace(path)

    def _files(self) -> list[Path]:
        roots = (self.sys / "class/powercap", self.sys / "devices/virtual/powercap")
        found = {file.resolve() for root in roots for file in [*root.glob("*/energy_uj"), *root.rglob("energy_uj")]}
        return sorted(found)


def _write(path: Path, value: object) -> None:
    path.write_text(f"{value}\n", encoding="utf-8")
