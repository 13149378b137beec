"""What a device must not forget: the state (round, decision, ledger), the model, and the records of its rounds.

State and model are each kept in two generations, written in turn: to a temporary file, fsync, rename, fsync of the
folder. A file begins with one line of text: magic, format, name, generation, length, and the SHA-256 of name,
generation and what follows. The newest whole generation counts; where the newest on disk is damaged, the one before is
taken and a warning says so. docs/journal.md states the bytes written in a round.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import numpy as np

from agent.core.types import Params, RoundRecord, Snapshot
from agent.errors import JournalError

T = TypeVar("T")

FORMAT = 1
_MAGIC = "skiptrain-journal"
_HEAD_BYTES = 256
_STATE_BYTES = 1 << 20
_RUN_BYTES = 16
ROTATE_BYTES = 8 << 20
"""rounds.jsonl and evaluations.jsonl grow to this size, then begin anew; one older file of each is kept."""


@dataclass(frozen=True, slots=True)
class Found:
    """The newest whole generation of one file, and whether a newer one was there and is damaged."""

    generation: int
    body: bytes
    damaged: bool


class _DamagedError(JournalError):
    """Something was written, and nothing of it can be read."""


class Generations:
    """One named value in two files, of which a crash can only ever hurt the one being written."""

    def __init__(self, folder: Path, name: str, max_bytes: int) -> None:
        self._folder, self._name, self._max_bytes = folder, name, max_bytes
        self._generation: int | None = None

    def _path(self, generation: int) -> Path:
        return self._folder / f"{self._name}.{generation % 2}"

    def write(self, body: bytes) -> int:
        """Make `body` durable as the next generation; return the bytes written. Raises OSError, JournalError."""
        if self._generation is None:
            self.read()
        generation = (self._generation or 0) + 1
        digest = _digest(self._name, generation, body)
        head = f"{_MAGIC} {FORMAT} {self._name} {generation} {len(body)} {digest}\n".encode()
        temporary = self._folder / f"{self._name}.tmp"
        with temporary.open("wb") as file:
            file.write(head)
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path(generation))
        _fsync_folder(self._folder)
        self._generation = generation
        return len(head) + len(body)

    def read(self) -> Found | None:
        """Return the newest whole generation, or None where nothing was ever written.

        JournalError: both are damaged, or one was written in a newer format.
        """
        self._generation = 0
        paths = [path for path in (self._path(0), self._path(1)) if path.exists()]
        whole = [found for found in map(self._parse, paths) if found is not None]
        if not paths:
            return None
        if not whole:
            raise _DamagedError(f"{self._folder}: {' and '.join(path.name for path in paths)}: nothing whole is left")
        generation, body = max(whole)
        self._generation = generation
        return Found(generation, body, damaged=len(whole) < len(paths))

    def _parse(self, path: Path) -> tuple[int, bytes] | None:
        try:
            with path.open("rb") as file:
                head = file.readline(_HEAD_BYTES).decode("ascii").split()
                length = int(head[4]) if len(head) > 4 else 0  # noqa: PLR2004  MAGIC FORMAT NAME GENERATION LENGTH
                body = file.read(min(max(0, length), self._max_bytes, path.stat().st_size) + 1)
            if head[:1] == [_MAGIC] and int(head[1]) > FORMAT:
                raise JournalError(
                    f"{path}: written by a newer release (format {head[1]}); update this one, or move it away"
                )
            name, generation, digest = head[2], int(head[3]), head[5]
        except (ValueError, IndexError, OSError):
            return None
        whole = head[:2] == [_MAGIC, str(FORMAT)] and (name, length) == (self._name, len(body))
        return (generation, body) if whole and digest == _digest(name, generation, body) else None


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
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("a")
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
        self._model = Generations(folder, "model", 1 << 32)
        self._records = _Lines(folder / "rounds.jsonl", lines_bytes)
        self._evaluations = _Lines(folder / "evaluations.jsonl", lines_bytes)
        self.bytes_written = 0

    def recover(self) -> Recovered:
        """Return what is there; JournalError when the ledger cannot be known."""
        warnings = []
        state, model = self._read_state(), None
        try:
            model = self._model.read()
        except _DamagedError as error:  # a lost model is no lost joule
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
        except _DamagedError as error:
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

    def append_record(self, record: RoundRecord) -> None:
        """Add the account of a round; OSError when the disk does not take it."""
        self.bytes_written += self._records.append(msgspec.json.encode(record))

    def append_evaluation(self, record: EvaluationRecord) -> None:
        """Add an evaluation; OSError when the disk does not take it."""
        self.bytes_written += self._evaluations.append(msgspec.json.encode(record))

    def close(self) -> None:
        """Let go of the folder; what was written stays."""
        self._records.close()
        self._evaluations.close()
        self._lock.close()


class _Lines:
    """A file of JSON lines, flushed at each line and bounded by rotation."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._file: IO[bytes] | None = None

    def append(self, line: bytes) -> int:
        if self._file is None:
            _end_torn_line(self._path)
            self._file = self._path.open("ab")
        if self._max_bytes and self._file.tell() + len(line) > self._max_bytes:
            self._file.close()
            self._path.replace(self._path.with_suffix(".jsonl.1"))
            self._file = self._path.open("ab")
        self._file.write(line + b"\n")
        self._file.flush()
        return len(line) + 1

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a line that the disk did not take: `append` has said so
                self._file.close()


def _end_torn_line(path: Path) -> None:
    """Drop the part of a last line that a power cut left behind."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 20)))
        tail = file.read()
        file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)


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
    while True:
        before = _model_files(folder)
        try:
            found = Generations(folder, "model", 1 << 32).read()
        except _DamagedError:
            if before == _model_files(folder):
                raise
            continue  # the agent replaced a generation between two looks at it
        if found is None:
            return None
        if found.damaged and before != _model_files(folder):
            continue
        run, round_, params = _unpack_model(found.body)
        return SavedModel(run, round_, params, found.generation, found.damaged)


def _model_files(folder: Path) -> list[tuple[int, int]]:
    """Return what changes whenever a generation of the model is replaced; JournalError where one is unreadable."""
    seen = []
    for path in (folder / "model.0", folder / "model.1"):
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
            found += [_parse_line(path, number, line, type_) for number, line in enumerate(lines, 1)]
    return found


def _parse_line(path: Path, number: int, line: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(line, type=type_)
    except msgspec.MsgspecError as error:
        raise JournalError(f"{path}:{number}: damaged: {error}; remove that line") from None


def _digest(name: str, generation: int, body: bytes) -> str:
    """Return the SHA-256 that tells one generation of one file from all others."""
    digest = hashlib.sha256(f"{name} {generation}\n".encode())
    digest.update(body)
    return digest.hexdigest()


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
