"""Recordings of a device's energy, and their replay: the same windows cost the same joules, so decisions are the same.

A recording is a CSV file. Its first line is a comment with JSON: what was measured, and what was known of a round's
cost before. Rows `sample` hold the energy since the recording began; rows `window` hold, in order, what each training
round that ended meanwhile cost. A replay takes window after window, and begins anew behind the last. Where there are no
windows, as no agent was training, each training round takes the next `energy.round_s` of the samples.
"""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TextIO

import msgspec

from agent.core.budget import Cost
from agent.core.costs import CostHistory
from agent.core.types import Quality
from agent.energy.meter import Reading
from agent.energy.settings import EnergySettings
from agent.errors import ConfigError

MAGIC = "# skiptrain energy recording 1 "
COLUMNS = ("kind", "t_s", "energy_uj", "whole_uj", "seconds", "round")
_MAX_BYTES = 1 << 28


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording says of itself."""

    source: str
    scope: str
    rails: tuple[str, ...]
    quality: str
    node: str = ""
    expected_uj: int | None = None
    upper_uj: int | None = None
    """What was known of a round's cost before any was measured."""
    history: CostHistory = msgspec.field(default_factory=CostHistory)
    """What had been learnt of it when the recording began."""


@dataclass(frozen=True, slots=True)
class Window:
    """What one training round cost."""

    energy_uj: int
    whole_uj: int | None
    seconds: float
    round: int = -1


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording, read."""

    head: Head
    samples: tuple[tuple[float, int], ...]
    """(seconds since it began, microjoules since it began), both growing."""
    windows: tuple[Window, ...]


class Writer:
    """Writes a recording line by line, so that what there is survives an interruption."""

    def __init__(self, file: TextIO, head: Head) -> None:
        self._file = file
        file.write(MAGIC + msgspec.json.encode(head).decode() + "\n")
        self._rows = csv.writer(file, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def sample(self, t_s: float, energy_uj: int) -> None:
        """Write the energy up to `t_s`."""
        self._rows.writerow(("sample", f"{t_s:.6f}", energy_uj, "", "", ""))
        self._file.flush()

    def window(self, window: Window) -> None:
        """Write what a training round cost."""
        whole = "" if window.whole_uj is None else window.whole_uj
        self._rows.writerow(("window", "", window.energy_uj, whole, f"{window.seconds:.6f}", window.round))
        self._file.flush()


def read_recording(path: Path) -> Recording:
    """Read a recording; ConfigError says which line is wrong, and how."""
    where = f"energy.file {path}"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{where}: longer than {_MAX_BYTES} bytes; record less, or less often")
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: this is not text in UTF-8") from None
    if not first.startswith(MAGIC):
        raise ConfigError(f"{where}:1: this is no recording of `skiptrain-agent energy record`")
    try:
        head = msgspec.json.decode(first.removeprefix(MAGIC), type=Head)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{where}:1: {error}") from None
    samples: list[tuple[float, int]] = []
    windows: list[Window] = []
    for number, row in enumerate(csv.reader(rest.splitlines()), 2):
        if tuple(row) == COLUMNS:
            continue
        try:
            _take(row, samples, windows)
        except (ValueError, IndexError):
            raise ConfigError(f"{where}:{number}: {','.join(row)!r} is no row of a recording") from None
    return Recording(head, tuple(samples), tuple(windows))


def _take(row: Sequence[str], samples: list[tuple[float, int]], windows: list[Window]) -> None:
    kind, t_s, energy_uj, whole, seconds, round_ = row
    if int(energy_uj) < 0:
        raise ValueError(energy_uj)
    if kind == "window":
        windows.append(Window(int(energy_uj), int(whole) if whole else None, float(seconds), int(round_)))
        return
    sample = float(t_s), int(energy_uj)
    if kind != "sample" or (samples and (sample[0] <= samples[-1][0] or sample[1] < samples[-1][1])):
        raise ValueError(kind)
    samples.append(sample)


def cut(samples: Sequence[tuple[float, int]], round_s: float) -> tuple[Window, ...]:
    """Cut samples into windows of `round_s`, energy between two samples by the straight line; the rest is left out."""
    if not samples or not round_s > 0:
        return ()
    times, start = [t for t, _ in samples], samples[0][0]
    edges = [start + i * round_s for i in range(int((times[-1] - start) / round_s) + 1)]
    at = [_energy_at(samples, times, edge) for edge in edges]
    return tuple(Window(later - before, later - before, round_s) for before, later in pairwise(at))


def _energy_at(samples: Sequence[tuple[float, int]], times: Sequence[float], at_s: float) -> int:
    i = min(bisect_right(times, at_s), len(samples) - 1)
    (t0, e0), (t1, e1) = samples[max(0, i - 1)], samples[i]
    return e1 if t1 <= t0 else round(e0 + (e1 - e0) * (at_s - t0) / (t1 - t0))


class RecordedMeter:
    """A device whose training windows cost what they cost when they were recorded, one after the other."""

    source = "recording"
    measured = False
    learns = True
    limit_uj = None

    def __init__(self, head: Head, windows: Iterable[Window], prior: Cost | None = None) -> None:
        self._windows, self._next = tuple(windows), 0
        self.history = head.history
        known = head.expected_uj is not None and head.upper_uj is not None
        self.prior = prior or (Cost(head.expected_uj or 1, head.upper_uj or 1) if known else None)

    def trouble(self) -> str:
        """Return "": a recording is always there."""
        return ""

    def open(self) -> None:
        """Nothing is measured."""

    def spent_uj(self) -> int:
        """Return 0: a replayed window is charged as a whole when it closes."""
        return 0

    def close(self) -> Reading:
        """Return what the next window of the recording cost."""
        window = self._windows[self._next % len(self._windows)]
        self._next += 1
        return Reading(window.energy_uj, Quality.REPLAYED, window.seconds, whole_uj=window.whole_uj)

    def lap(self) -> None:
        """Return None: only training is replayed."""

    def mark(self) -> str:
        """Return "": there is no counter."""
        return ""

    def since(self, mark: str) -> None:
        """Return None: there is no counter."""

    def end(self) -> None:
        """Nothing was started."""


def windows_of(recording: Recording, round_s: float | None, where: str) -> tuple[Window, ...]:
    """Return the windows of a recording, or those of `round_s` that its samples are cut into; ConfigError."""
    if recording.windows:
        return recording.windows
    if round_s is None:
        raise ConfigError(
            f"{where}: no training round was recorded; set energy.round_s to cut it into rounds of that many seconds, "
            "or record while the agent trains, with its --config"
        )
    windows = cut(recording.samples, round_s)
    if not windows:
        raise ConfigError(f"{where}: shorter than energy.round_s, {round_s:g} s; record for longer")
    return windows


def open_recording(settings: EnergySettings) -> RecordedMeter:
    """Return the meter that replays `settings.file`; ConfigError."""
    recording = read_recording(Path(settings.file))
    windows = windows_of(recording, settings.round_s, f"energy.file {settings.file}")
    prior = None if settings.round_j is None else known_cost(settings.round_j)
    return RecordedMeter(recording.head, windows, prior)


def known_cost(round_j: float) -> Cost:
    """Return the cost of a round of which somebody says what it takes; half as much again is set aside for it."""
    expected = max(1, round(round_j * 1e6))
    return Cost(expected, expected + expected // 2)
