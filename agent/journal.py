"""What a device must not forget: the state (round, decision, ledger), the model, and the records of its rounds.

State and model are each kept in two generations, written in turn: to a temporary file, fsync, rename, fsync of the
folder. A file begins with one line of text: magic, format, name, generation, length, and the SHA-256 of name,
generation and what follows. The newest whole generation counts; where the newest on disk is damaged, the one before is
taken and a warning says so. docs/journal.md states the bytes written in a round.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import numpy as np

from agent.core.types import Params, RoundRecord, Snapshot
from agent.durable import DamagedError, Found, Generations, Lines, make_folder
from agent.errors import JournalError

_log = logging.getLogger(__name__)

T = TypeVar("T")

_STATE_BYTES = 1 << 20
_MODEL_BYTES = 1 << 32
_RUN_BYTES = 16
ROTATE_BYTES = 8 << 20
"""rounds.jsonl and evaluations.jsonl grow to this size, then begin anew; one older file of each is kept."""


class EvaluationRecord(msgspec.Struct, frozen=True):
    """One evaluation of the node's model; one row of evaluation.csv."""

    round: int
    node: str
    accuracy: float | None
    own_accuracy: float | None
    loss: float | None


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a journal held when it was opened."""

    snapshot: Snapshot | None
    model_round: int
    model: Params | None
    warnings: tuple[str, ...]
    state_lost: bool
    """The newest state was damaged: one more reservation than the snapshot knows of may have been made."""


class Journal:
    """One device's state folder, locked for one process."""

    def __init__(self, folder: Path, lines_bytes: int = ROTATE_BYTES) -> None:
        """Open, and create where needed; JournalError when it is in use or cannot be written."""
        self.folder = folder
        try:
            make_folder(folder)
            self._lock = _open_lock(folder / "lock")
        except OSError as error:
            raise JournalError(
                f"{folder}: cannot be opened for writing: {error.strerror}; check node.state_dir"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise JournalError(
                f"{folder}: in use by another agent; give each agent a node.state_dir of its own"
            ) from None
        self._state = Generations(folder, "state", _STATE_BYTES)
        self._model = Generations(folder, "model", _MODEL_BYTES, dispensable=True)
        self._state.clear()
        self._model.clear()
        self._records = Lines(folder / "rounds.jsonl", lines_bytes)
        self._evaluations = Lines(folder / "evaluations.jsonl", lines_bytes)
        self.bytes_written = 0

    def recover(self) -> Recovered:
        """Return what is there; JournalError when the ledger cannot be known."""
        warnings = []
        state, model = self._read_state(), None
        try:
            model = self._model.read()
        except DamagedError as error:  # a lost model is no lost joule
            warnings.append(f"{error}; going on from the run's first weights")
        snapshot = None
        if state is not None:
            try:
                snapshot = msgspec.json.decode(state.body, type=Snapshot)
            except msgspec.MsgspecError as error:
                raise JournalError(f"{self.folder}: the state is whole but not understood: {error}") from None
            if state.damaged:
                warnings.append(
                    f"{self.folder}: the newest state was damaged; went back to generation {state.generation}"
                )
        if model is not None and model.damaged:
            warnings.append(f"{self.folder}: the newest model was damaged; went back to generation {model.generation}")
        run, number, params = ("", -1, None) if model is None else _unpack_model(model.body)
        if snapshot is not None and run != snapshot.run:
            number, params = -1, None  # the model of an earlier run is no part of this one
        return Recovered(snapshot, number, params, tuple(warnings), state_lost=state is not None and state.damaged)

    def _read_state(self) -> Found | None:
        try:
            return self._state.read()
        except DamagedError as error:
            raise JournalError(
                f"{error}, so that what this device has spent is unknown; restore a backup, or move the folder away to "
                "begin with a new ledger"
            ) from None

    def save_state(self, snapshot: Snapshot) -> None:
        """Make the state durable before returning; OSError when the disk does not take it."""
        self.bytes_written += self._state.write(msgspec.json.encode(snapshot))

    def save_model(self, run: str, round_: int, params: Params) -> None:
        """Make the model of `run` (its digest in hex) after `round_`, shape (n,), durable; OSError as above."""
        head = bytes.fromhex(run).ljust(_RUN_BYTES, b"\0") + round_.to_bytes(8, "little")
        self.bytes_written += self._model.write(head + np.ascontiguousarray(params, dtype="<f4").tobytes())

    def append(self, record: RoundRecord | EvaluationRecord) -> None:
        """Add the account of a round, or an evaluation; OSError when the disk does not take it."""
        lines = self._records if isinstance(record, RoundRecord) else self._evaluations
        self.bytes_written += lines.append(msgspec.json.encode(record))

    def close(self) -> None:
        """Let go of the folder; what was written stays."""
        self._records.close()
        self._evaluations.close()
        self._lock.close()


def _open_lock(path: Path) -> IO[str]:
    """Open the lock; on a disk that is read-only now, as a failing card gets, one that is there will do."""
    try:
        return path.open("a")
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return path.open()


def _unpack_model(body: bytes) -> tuple[str, int, Params]:
    run, round_ = body[:_RUN_BYTES].hex(), int.from_bytes(body[_RUN_BYTES : _RUN_BYTES + 8], "little")
    return run, round_, np.frombuffer(body, dtype="<f4", offset=_RUN_BYTES + 8).astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class SavedModel:
    """The newest whole model of a journal folder."""

    run: str
    """Digest of its run in hex."""
    round: int
    params: Params
    generation: int
    damaged: bool
    """A newer one was there, and cannot be read."""


def read_model(folder: Path) -> SavedModel | None:
    """Return the newest whole model, or None where none was ever written; without locking, the agent may be running.

    JournalError: the folder cannot be read, or nothing whole is left in it.
    """
    found = _newest(folder, Generations(folder, "model", _MODEL_BYTES, dispensable=True), "model")
    if found is None:
        return None
    run, round_, params = _unpack_model(found.body)
    return SavedModel(run, round_, params, found.generation, found.damaged)


def read_snapshot(folder: Path) -> Snapshot | None:
    """Return the newest whole state, or None where none was ever written; without locking, as `read_model`.

    JournalError: the folder cannot be read, nothing whole is left in it, or what is there is not understood.
    """
    found = _newest(folder, Generations(folder, "state", _STATE_BYTES), "state")
    if found is None:
        return None
    try:
        return msgspec.json.decode(found.body, type=Snapshot)
    except msgspec.MsgspecError as error:
        raise JournalError(f"{folder}: the state is whole but not understood: {error}") from None


def _newest(folder: Path, generations: Generations, name: str) -> Found | None:
    """Return the newest whole generation of a file that an agent may be writing."""
    while True:
        before = _files(folder, name)
        try:
            found = generations.read()
        except DamagedError:
            if before == _files(folder, name):
                raise
            continue  # the agent replaced a generation between two looks at it
        if found is None or not found.damaged or before == _files(folder, name):
            return found


def _files(folder: Path, name: str) -> list[tuple[int, int]]:
    """Return what changes whenever a generation is replaced; JournalError where one is unreadable."""
    seen = []
    for path in (folder / f"{name}.0", folder / f"{name}.1"):
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise JournalError(
                f"{path}: cannot be read: {error.strerror}; check node.state_dir and its rights"
            ) from None
        seen.append((status.st_ino, status.st_mtime_ns))
    return seen


def read_records(folder: Path) -> list[RoundRecord]:
    """Return the records that a journal folder holds, oldest first; for reports, without locking.

    A crash after a record and before the next state makes a node end that round again: its last account counts.
    """
    last = {(record.run, record.round): record for record in _read_lines(folder, "rounds", RoundRecord)}
    return list(last.values())


def read_evaluations(folder: Path) -> list[EvaluationRecord]:
    """Return the evaluations that a journal folder holds, oldest first; for reports, without locking."""
    return _read_lines(folder, "evaluations", EvaluationRecord)


def _read_lines(folder: Path, name: str, type_: type[T]) -> list[T]:
    """Return what the whole lines say; a last line without its end is being written, or was torn by a power cut."""
    found: list[T] = []
    for path in (folder / f"{name}.jsonl.1", folder / f"{name}.jsonl"):
        with suppress(FileNotFoundError):
            lines = path.read_bytes().split(b"\n")[:-1]
            for number, line in enumerate(lines, 1):
                _, hole, whole = line.rpartition(b"\0")
                if hole:
                    _log.warning("%s:%d: a power cut left a hole here; what it swallowed is gone", path, number)
                if whole or not hole:
                    found.append(_parse_line(path, number, whole, type_))
    return found


def _parse_line(path: Path, number: int, line: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(line, type=type_)
    except msgspec.MsgspecError as error:
        raise JournalError(f"{path}:{number}: damaged: {error}; remove that line") from None
