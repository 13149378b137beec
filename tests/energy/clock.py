"""A virtual clock, and readers that show whatever a test sets."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.energy.counter import Clocks
from agent.energy.source import Scope
from agent.errors import EnergyError

S = 1_000_000_000


@dataclass
class Clock:
    """Time that passes when a test says so."""

    now_ns: int = 100 * S
    slept_ns: int = 0

    def clocks(self) -> Clocks:
        """Return the clocks to inject."""
        return Clocks(lambda: self.now_ns, lambda: self.now_ns + self.slept_ns)

    def pass_s(self, seconds: float) -> None:
        """Let awake time pass."""
        self.now_ns += round(seconds * S)


@dataclass
class Power:
    """A PowerReader."""

    uw: tuple[int, ...] = (5_000_000,)
    rails: tuple[str, ...] = ("VDD_IN",)
    hz: float = 10.0
    idle_hz: float = 0.0
    step_uw: int = 0
    broken: str = ""
    scope: Scope = Scope.MODULE
    reads: int = 0

    def resolution_uw(self) -> int:
        """Return the set step."""
        return self.step_uw

    def read(self) -> tuple[int, ...]:
        """Return the set powers, or fail as set."""
        self.reads += 1
        if self.broken:
            raise EnergyError(self.broken)
        return self.uw


@dataclass
class Counter:
    """A CounterReader."""

    uj: list[int] = field(default_factory=lambda: [0])
    rails: tuple[str, ...] = ("package-0",)
    ranges_uj: tuple[int, ...] = (0,)
    resolution_uj: int = 62
    broken: str = ""
    scope: Scope = Scope.PACKAGE

    def read(self) -> tuple[int, ...]:
        """Return the set counters, or fail as set."""
        if self.broken:
            raise EnergyError(self.broken)
        return tuple(self.uj)
