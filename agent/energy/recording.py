"""Recordings of a device's energy, and their replay: the same windows cost the same joules, so decisions are the same.

A recording is a CSV file. Its first line is a comment with JSON: what was measured, and what was known of a round's
cost before. Rows `sample` hold the energy since the recording began; rows `window` hold, in order, what each training
round that ended meanwhile cost. A replay takes window after window, and begins anew behind the last. Where there are no
windows, as no agent was training, each training round takes the next `energy.round_s` of the samples.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, TextIO

import msgspec

from agent.core.budget import Cost
from agent.core.costs import KEPT, CostHistory
from agent.core.types import Quality
from agent.energy.authors_csv import read_file
from agent.energy.meter import Reading
from agent.energy.settings import EnergySettings
from agent.errors import ConfigError

MAGIC = "# skiptrain energy recording 1 "
COLUMNS = ("kind", "t_s", "energy_uj", "whole_uj", "seconds", "round", "load_uj", "warm")
_MAX_BYTES = 1 << 28
_MOST_UJ, _MOST_ROUND_UJ = 10**18, 10**15
"""So much a recording, and one round of it, may cost: more than any device draws."""
_MOST_WINDOWS = 1_000_000
_SHOWN = 80

_Cost = Annotated[int, msgspec.Meta(ge=1, le=2 * _MOST_ROUND_UJ)]


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording says of itself."""

    source: str
    scope: str
    rails: tuple[str, ...]
    quality: str
    node: str = ""
    expected_uj: _Cost | None = None
    upper_uj: _Cost | None = None
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
    load_uj: int | None = None
    """What loading torch and data cost besides, in a trainer's first round."""
    warm: bool = True
    """Whether torch and data were loaded when it ended."""


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
        self._rows.writerow(("sample", f"{t_s:.6f}", energy_uj, "", "", "", "", ""))
        self._file.flush()

    def window(self, window: Window) -> None:
        """Write what a training round cost."""
        whole, load = ("" if amount is None else amount for amount in (window.whole_uj, window.load_uj))
        self._rows.writerow(
            ("window", "", window.energy_uj, whole, f"{window.seconds:.6f}", window.round, load, int(window.warm))
        )
        self._file.flush()


def read_recording(path: Path) -> Recording:
    """Read a recording; ConfigError says which line is wrong, and how."""
    where = f"energy.file {path}"
    first, _, rest = read_file(path, _MAX_BYTES, "record less, or less often").partition("\n")
    if not first.startswith(MAGIC):
        raise ConfigError(f"{where}:1: this is no recording of skiptrain-agent energy record")
    head = _head(first.removeprefix(MAGIC), f"{where}:1")
    samples: list[tuple[float, int]] = []
    windows: list[Window] = []
    lines = rest.splitlines()
    rows = csv.reader(lines)
    try:
        for row in rows:
            if tuple(row) != COLUMNS:
                _take(row, samples, windows)
    except (ValueError, csv.Error):
        line = lines[rows.line_num - 1]
        shown = repr(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}...")
        raise ConfigError(f"{where}:{rows.line_num + 1}: {shown} is no row of a recording") from None
    return Recording(head, tuple(samples), tuple(windows))


def _head(text: str, where: str) -> Head:
    """Return what the first line says; ConfigError."""
    try:
        head = msgspec.json.decode(text, type=Head)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(f"{where}: {error}") from None
    recent_uj = head.history.recent_uj
    if len(recent_uj) > KEPT or not all(1 <= cost_uj <= _MOST_ROUND_UJ for cost_uj in recent_uj):
        raise ConfigError(f"{where}: history.recent_uj must be {KEPT} costs at most, each from 1 to {_MOST_ROUND_UJ}")
    if head.history.seen < 0:
        raise ConfigError(f"{where}: history.seen must be 0 or more")
    if head.expected_uj is not None and head.upper_uj is not None and head.expected_uj > head.upper_uj:
        raise ConfigError(f"{where}: expected_uj is more than upper_uj")
    return head


def _number(text: str, least: int, most: int) -> int:
    value = int(text)
    if not least <= value <= most:
        raise ValueError(text)
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return value


def _take(row: Sequence[str], samples: list[tuple[float, int]], windows: list[Window]) -> None:
    kind, t_s, energy_uj, whole, seconds, round_, load, warm = row if len(row) == len(COLUMNS) else (*row, "", "")
    if kind == "window":
        whole_uj = _number(whole, 1, _MOST_ROUND_UJ) if whole else None
        load_uj = _number(load, 0, _MOST_ROUND_UJ) if load else None
        spent_uj = _number(energy_uj, 0, _MOST_ROUND_UJ)
        windows.append(Window(spent_uj, whole_uj, _seconds(seconds), int(round_), load_uj, warm != "0"))
        return
    sample = _seconds(t_s), _number(energy_uj, 0, _MOST_UJ)
    if kind != "sample" or (samples and (sample[0] <= samples[-1][0] or sample[1] < samples[-1][1])):
        raise ValueError(kind)
    samples.append(sample)


def cut(samples: Sequence[tuple[float, int]], round_s: float) -> tuple[Window, ...]:
    """Cut samples into windows of `round_s`, energy between two samples by the straight line; the rest is left out.

    ConfigError: a million windows and more.
    """
    if not samples or not 0 < round_s < math.inf:
        return ()
    times, start = [t for t, _ in samples], samples[0][0]
    if (times[-1] - start) / round_s >= _MOST_WINDOWS:
        raise ConfigError(
            f"energy.round_s: {round_s:g} s cuts a recording of {times[-1] - start:g} s into more than {_MOST_WINDOWS} "
            "rounds; set it to the length of a training round"
        )
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
        whole_uj, load_uj = window.whole_uj, window.load_uj
        return Reading(
            window.energy_uj, Quality.REPLAYED, window.seconds, whole_uj=whole_uj, load_uj=load_uj, warm=window.warm
        )

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
