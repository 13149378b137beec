"""What the nodes of a scenario are powered by: published rows, or recordings of real devices, replayed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from agent.core.budget import Cost
from agent.energy.recording import RecordedMeter, Window, known_cost, read_recording, windows_of
from agent.energy.trace import published_row


@dataclass(frozen=True, slots=True)
class FleetDevice:
    """One type of device."""

    device: str
    """The row's name, or the recording's file without its suffix."""
    cost_uj: int
    """Of a training round; of a recording the mean one."""
    published_uj: int | None
    """The budget that comes with a row."""
    windows: tuple[Window, ...] = ()
    """What a recording's rounds cost, one after the other; none for a row, whose rounds all cost the same."""
    file: str = ""

    def meter(self, round_j: float | None = None) -> RecordedMeter:
        """Return a meter that replays the recording from its beginning."""
        prior = None if round_j is None else known_cost(round_j)
        return RecordedMeter(read_recording(Path(self.file)).head, self.windows, prior)

    def spent_uj(self, rounds: int) -> int:
        """Return what the first so many training rounds cost."""
        if not self.windows:
            return rounds * self.cost_uj
        whole, rest = divmod(rounds, len(self.windows))
        costs = [window.energy_uj for window in self.windows]
        return whole * sum(costs) + sum(costs[:rest])

    @property
    def cost(self) -> Cost:
        """What every round costs, where all cost the same."""
        return Cost(self.cost_uj, self.cost_uj)


def published_device(workload: str, device: str, scale: float) -> FleetDevice:
    """Return a published row as a device; ConfigError."""
    row = published_row(workload, device)
    return FleetDevice(device, row.cost_uj, row.limit_uj(scale))


@lru_cache
def recorded_device(file: str, round_s: float | None) -> FleetDevice:
    """Return a recording as a device; ConfigError."""
    windows = windows_of(read_recording(Path(file)), round_s, f"energy.files {file}")
    mean = sum(window.energy_uj for window in windows) // len(windows)
    return FleetDevice(Path(file).stem, max(1, mean), None, windows, file)
