"""What the daemon asks of a source of energy: a training window opens, is watched, and closes with a reading.

To add a source: one file, one line in `METERS`. A source that is absent or stale raises EnergyError: never zero joules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from agent.core.budget import Cost
from agent.core.types import Quality
from agent.energy.trace import TraceMeter


@dataclass(frozen=True, slots=True)
class EnergySettings:
    """The part of the configuration that says where joules come from and how many there are."""

    source: str
    device: str
    workload: str
    budget_scale: float


class Reading(Protocol):
    """What a window cost, gross, and how that is known."""

    @property
    def energy_uj(self) -> int:
        """Microjoules."""

    @property
    def quality(self) -> Quality:
        """Measured, estimated or replayed."""


class Meter(Protocol):
    """One device's energy: a budget, what a training round is believed to cost, and windows that measure it."""

    @property
    def limit_uj(self) -> int | None:
        """The budget of the period in microjoules; None without one."""

    @property
    def cost(self) -> Cost:
        """What a training round costs, as far as is known."""

    def open(self) -> None:
        """Begin a training window."""

    def spent_uj(self) -> int:
        """Return what the open window has cost so far; the daemon ends the training before it passes its limit."""

    def close(self) -> Reading:
        """Close the window and return what it cost."""


METERS: Mapping[str, Callable[[EnergySettings], Meter]] = MappingProxyType(
    {"trace": lambda settings: TraceMeter.published(settings.workload, settings.device, settings.budget_scale)}
)
