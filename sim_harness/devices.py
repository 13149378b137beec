"""What the nodes of a scenario are powered by: published rows, recordings of real devices, or boards as said to be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from agent.core.budget import Cost
from agent.energy.recording import Head, RecordedMeter, Window, Writer, known_cost, read_recording, windows_of
from agent.energy.trace import published_row
from agent.errors import ConfigError
from agent.profile import load_profile

_NO_RECORDING = Head(source="trace", scope="", rails=(), quality="replayed")


@dataclass(frozen=True, slots=True)
class FleetDevice:
    """One type of device."""

    device: str
    """The row's name, the recording's file without its suffix, or the board's name."""
    cost_uj: int
    """Of a training round; of a recording the mean one."""
    published_uj: int | None
    """The budget that comes with a row."""
    train_s: float
    """How long a training round lasts; of a recording the mean one."""
    windows: tuple[Window, ...] = ()
    """What a recording's rounds cost, one after the other; none for a row, whose rounds all cost the same."""
    head: Head = _NO_RECORDING
    """What a recording says of itself."""

    def meter(self, round_j: float | None = None) -> RecordedMeter:
        """Return a meter that replays the recording from its beginning."""
        return RecordedMeter(self.head, self.windows, None if round_j is None else known_cost(round_j))

    def write(self, path: Path) -> None:
        """Write the recording to a file, as a device's agent replays it."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = Writer(file, self.head)
            for window in self.windows:
                writer.window(window)

    def round_s(self, done: int) -> float:
        """Return how long a training round lasts after so many of them."""
        return self.windows[done % len(self.windows)].seconds if self.windows else self.train_s

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


@lru_cache
def published_device(workload: str, device: str, scale: float) -> FleetDevice:
    """Return a published row as a device; ConfigError."""
    row = published_row(workload, device)
    return FleetDevice(device, row.cost_uj, row.limit_uj(scale), row.seconds)


@lru_cache
def recorded_device(file: str, round_s: float | None) -> FleetDevice:
    """Return a recording as a device; ConfigError."""
    recording = read_recording(Path(file))
    windows = windows_of(recording, round_s, f"energy.files {file}")
    mean_uj = sum(window.energy_uj for window in windows) // len(windows)
    mean_s = sum(window.seconds for window in windows) / len(windows)
    return FleetDevice(Path(file).stem, max(1, mean_uj), None, mean_s, windows, recording.head)


@lru_cache
def board_device(profile: str, name: str, round_s: float, load_w: float | None) -> FleetDevice:
    """Return a board as a recording of one round that draws `load_w`, by default the profile's; ConfigError."""
    board = load_profile(profile)
    if board.support != "train":
        raise ConfigError(f"{profile} does not train: {' '.join(board.reason.split())}")
    if load_w is None and board.power.load_w is None:
        raise ConfigError(f"nobody has said what {profile} draws under load; set load_w (watts)")
    watts = load_w or (board.power.load_w.value if board.power.load_w else 0.0)
    cost_uj = max(1, round(watts * round_s * 1e6))
    head = Head(source="scenario", scope="board", rails=(), quality="estimated", expected_uj=cost_uj, upper_uj=cost_uj)
    return FleetDevice(name, cost_uj, None, round_s, (Window(cost_uj, cost_uj, round_s, 0),), head)
