"""Energy traces in the form of SkipTrain's authors: one CSV file a workload, one row a device.

Their first file begins with a byte order mark. In their FEMNIST file the column of the battery for training holds the
whole battery while the rounds were counted with half of it, so the column of rounds counts, and the other is warned of.
"""

from __future__ import annotations

import csv
import logging
import re
import stat
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from agent.errors import ConfigError

_log = logging.getLogger(__name__)

_UJ_PER_WH = 3_600_000_000
_DEVICE, _ENERGY, _ROUNDS = "Device Name", "Energy (Wh)", "Number of training rounds"
_BATTERY = "Battery capacity for training"
_MAX_BYTES = 1 << 20
_MOST_UJ = 10**18
"""More than any device has in all its life, and still 64 bits."""
_LEAST_WH, _MOST_WH = Decimal("1e-10"), Decimal(_MOST_UJ) / _UJ_PER_WH


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One device: the cost of a training round in microjoules, and how many the battery's share pays for."""

    device: str
    cost_uj: int
    rounds: int


def read_trace_rows(path: Path) -> tuple[TraceRow, ...]:
    """Return the rows of a file; ConfigError says which line is wrong, and how."""
    text = read_file(path, _MAX_BYTES, "this is no energy trace")
    reader = csv.DictReader(text.removeprefix("\ufeff").splitlines())
    try:
        missing = [name for name in (_DEVICE, _ENERGY, _ROUNDS) if name not in (reader.fieldnames or ())]
        if missing:
            names = ", ".join(map(repr, missing))
            raise ConfigError(f"energy.file {path}:1: no column {names}: this is no energy trace")
        return tuple(_row(path, reader.line_num, row) for row in reader)
    except csv.Error as error:
        raise ConfigError(f"energy.file {path}:{reader.line_num + 1}: {error}: this is no energy trace") from None


def read_file(path: Path, most_bytes: int, too_long: str) -> str:
    """Return the text of an `energy.file`; ConfigError, where it is longer with `too_long`.

    A pipe or a device is refused: it may never end.
    """
    where = f"energy.file {path}"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{where}: cannot be read: it must be a regular file")
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
        if len(data) > most_bytes:
            raise ConfigError(f"{where}: longer than {most_bytes} bytes: {too_long}")
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: this is not text in UTF-8") from None
    except ValueError as error:  # a NUL in its name
        raise ConfigError(f"{where!r}: cannot be read: {error}") from None


def _row(path: Path, number: int, row: dict[str, str | None]) -> TraceRow:
    where = f"energy.file {path}:{number}"
    energy_wh, rounds = _number(where, row, _ENERGY), _number(where, row, _ROUNDS)
    if energy_wh <= 0 or rounds < 0 or rounds % 1:
        raise ConfigError(f"{where}: a round must cost something, and rounds are counted from 0 on")
    cost_uj = max(1, int((energy_wh * _UJ_PER_WH).to_integral_value()))
    if cost_uj * rounds > _MOST_UJ:
        raise ConfigError(
            f"{where}: {int(rounds)} rounds of {energy_wh} Wh are more than {_MOST_UJ} uJ; correct the row"
        )
    if row.get(_BATTERY):
        pays = _number(where, row, _BATTERY) // energy_wh
        if pays != rounds:
            _log.warning(
                "%s: the column %r would pay for %d rounds, %r says %d: the rounds count",
                where,
                _BATTERY,
                pays,
                _ROUNDS,
                rounds,
            )
    return TraceRow(_slug(row[_DEVICE] or ""), cost_uj, int(rounds))


def _number(where: str, row: dict[str, str | None], column: str) -> Decimal:
    try:
        value = Decimal((row[column] or "").strip())
    except InvalidOperation:
        raise ConfigError(f"{where}: column {column!r} is {row[column]!r}, which is no number") from None
    if not value.is_finite():
        raise ConfigError(f"{where}: column {column!r} is {row[column]!r}, which is no finite number")
    if value and not _LEAST_WH <= value.copy_abs() <= _MOST_WH:
        raise ConfigError(
            f"{where}: column {column!r} is {row[column]!r}, which must be from {_LEAST_WH:g} to {_MOST_WH:.3g}"
        )
    return value


def _slug(name: str) -> str:
    """Return `OnePlus Nord 2 5G (Snapdragon)` as `oneplus-nord-2-5g`."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)", "", name).lower()).strip("-")


def find_row(path: Path, device: str) -> TraceRow:
    """Return the row of a device, by its name in the file or a part of it; ConfigError names those that there are."""
    rows = read_trace_rows(path)
    found = [row for row in rows if row.device == device] or [row for row in rows if device in row.device]
    if len(found) != 1:
        names = ", ".join(row.device for row in rows)
        raise ConfigError(f"energy.device {device}: {path} has {len(found) or 'no'} such rows; there are {names}")
    return found[0]
