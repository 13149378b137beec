"""What every source of energy is to the rest: where it looks, what it may be asked for, and how it is read.

A source finds its hardware and reads it, nothing more: a reader of counters says cumulative microjoules as the hardware
has them (they may wrap), a reader of power says microwatts of this moment. `agent.energy.device` makes pyJoules devices
of both, with cumulative microjoules that never go back; `agent.energy.meter` alone makes joules of those.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeAlias

from agent.errors import EnergyError


class Scope(str, Enum):
    """How much of a device a source sees."""

    BOARD = "board"
    MODULE = "module rail"
    PACKAGE = "package"
    BATTERY = "battery"
    GPU = "gpu"


class AbsentError(EnergyError):
    """This source's hardware is not there at all; any other EnergyError says that it is there and cannot be used."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where sources look; a test gives a tree of its own."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    vcgencmd: str = "vcgencmd"
    """The Raspberry Pi's command, by name (looked for in PATH) or by path."""
    nvml: object = None
    """A stand-in for the module pynvml; None: that module."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a source is asked for; all of it optional."""

    rails: tuple[str, ...] = ()
    """The rails that add up to the total, by name; empty: the source's own rule for this board."""
    idle_w: float | None = None
    """What the board draws when nothing runs, from its profile."""
    max_w: float | None = None
    """The most that the board can draw."""
    hz: float = 0.0
    """How often to look at a power; 0: as often as is right for the source."""


class CounterReader(Protocol):
    """Reads counters of energy that the hardware keeps."""

    @property
    def scope(self) -> Scope:
        """How much of the device the sum of the rails is."""

    @property
    def rails(self) -> tuple[str, ...]:
        """Names of the counters; the total is the sum of all of them."""

    @property
    def ranges_uj(self) -> tuple[int, ...]:
        """At which value each counter begins anew; 0: it never does, and going back means that it was reset."""

    @property
    def resolution_uj(self) -> int:
        """The smallest step that is sure to show; what one reading of the sum may be off by."""

    def read(self) -> tuple[int, ...]:
        """Return each counter in microjoules, as the hardware has it; EnergyError says where, what, and what to do."""


class PowerReader(Protocol):
    """Reads the power of this moment."""

    @property
    def scope(self) -> Scope:
        """How much of the device the sum of the rails is."""

    @property
    def rails(self) -> tuple[str, ...]:
        """Names of the rails; the total is the sum of all of them."""

    @property
    def hz(self) -> float:
        """How often to look while a training window is open."""

    @property
    def idle_hz(self) -> float:
        """How often to look outside of windows; 0: not at all."""

    def resolution_uw(self) -> int:
        """Return what one reading of the sum may be off by: the sensor's smallest step; 0 where it is not known."""

    def read(self) -> tuple[int, ...]:
        """Return the power of each rail in microwatts, never negative; EnergyError as above."""


Reader: TypeAlias = CounterReader | PowerReader


class Find(Protocol):
    """How a source is found: the one function of its module that the registry knows."""

    def __call__(self, place: Place, wanted: Wanted) -> Reader:
        """Return a reader that has been read once; AbsentError or EnergyError say why there is none."""
