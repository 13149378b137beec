"""Files that neither a power cut nor a full disk can half-write: a value in two generations, and lines of records.

All that changes the disk goes through `os` in this module, so that a test can record the calls and replay every state
that a power cut could have left behind them (tests/test_power_cuts.py).
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.errors import JournalError

FORMAT = 1
_MAGIC = "skiptrain-journal"
_HEAD_BYTES = 256
_FILE_MODE = 0o644


@dataclass(frozen=True, slots=True)
class Found:
    """The newest whole generation of one file, and whether a newer one was there and is damaged."""

    generation: int
    body: bytes
    damaged: bool


class DamagedError(JournalError):
    """Something was written, and nothing of it can be read."""


class Generations:
    """One named value in two files, of which a crash can only ever hurt the one being written."""

    def __init__(self, folder: Path, name: str, max_bytes: int, *, dispensable: bool = False) -> None:
        """Take the place; of a `dispensable` value an older one may stand in for what the disk cannot read."""
        self._folder, self._name, self._max_bytes, self._dispensable = folder, name, max_bytes, dispensable
        self._generation: int | None = None

    @property
    def _temporary(self) -> Path:
        return self._folder / f"{self._name}.tmp"

    def clear(self) -> None:
        """Remove what a write left that did not end: on a full disk nothing else could ever be written beside it."""
        with suppress(OSError):
            os.unlink(self._temporary)

    def _path(self, generation: int) -> Path:
        return self._folder / f"{self._name}.{generation % 2}"

    def write(self, body: bytes) -> int:
        """Make `body` durable as the next generation; return the bytes written.

        OSError: the disk did not take it; it may or may not be there after a power cut, and the one before is.
        JournalError: both generations are damaged.
        """
        if self._generation is None:
            self.read()
        generation = (self._generation or 0) + 1
        digest = _digest(self._name, generation, body)
        head = f"{_MAGIC} {FORMAT} {self._name} {generation} {len(body)} {digest}\n".encode()
        temporary = self._temporary
        try:
            _write_synced(temporary, head, body)
            os.replace(temporary, self._path(generation))
        except OSError:
            self.clear()
            raise
        fsync_folder(self._folder)
        self._generation = generation
        return len(head) + len(body)

    def read(self) -> Found | None:
        """Return the newest whole generation, or None where nothing was ever written.

        JournalError: both are damaged, or one cannot be read or was written in a newer format.
        """
        self._generation = 0
        paths = [path for path in (self._path(0), self._path(1)) if path.exists()]
        whole = [found for found in map(self._parse, paths) if found is not None]
        if not paths:
            return None
        if not whole:
            raise DamagedError(f"{self._folder}: {' and '.join(path.name for path in paths)}: nothing whole is left")
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
        except OSError as error:
            if self._dispensable:
                return None
            raise JournalError(f"{path}: cannot be read: {error.strerror}; mend the disk, or its rights") from None
        except (ValueError, IndexError):
            return None
        whole = head[:2] == [_MAGIC, str(FORMAT)] and (name, length) == (self._name, len(body))
        return (generation, body) if whole and digest == _digest(name, generation, body) else None


class Lines:
    """A file of lines, each handed to the system whole or not at all, and bounded by rotation."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._handle: int | None = None
        self._size = 0

    def append(self, line: bytes) -> int:
        """Add one line; return the bytes written. OSError: the disk did not take it, and it is not there."""
        try:
            return self._append(line + b"\n")
        except OSError:
            self.close()  # the next line opens the file anew, and cuts off what is left of this one
            raise

    def _append(self, line: bytes) -> int:
        if self._handle is None:
            self._open()
        if self._max_bytes and self._size + len(line) > self._max_bytes:
            self.close()
            os.replace(self._path, self._path.with_suffix(".jsonl.1"))
            self._open()
        assert self._handle is not None  # noqa: S101  for the type checker
        _write_all(self._handle, line)
        self._size += len(line)
        return len(line)

    def _open(self) -> None:
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _FILE_MODE)
        size = os.fstat(self._handle).st_size
        self._size = _whole_lines_end(self._path, size)
        if self._size < size:
            os.ftruncate(self._handle, self._size)

    def close(self) -> None:
        """Let go of the file."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):  # what some file systems say only now is of lines that need not be durable
                os.close(handle)


def _whole_lines_end(path: Path, size: int) -> int:
    """Return where the last whole line of a file of `size` bytes ends: a power cut may have torn the next one."""
    start = max(0, size - (1 << 20))
    with path.open("rb") as file:
        file.seek(start)
        return start + file.read(size - start).rfind(b"\n") + 1


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, durably; OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):  # another agent of this device was quicker, or it is no folder: opening it tells
        os.mkdir(folder)
    fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable; OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_synced(path: Path, *parts: bytes) -> None:
    """Write a new file and force it to the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
    try:
        _check_room(handle, sum(map(len, parts)))
        for part in parts:
            _write_all(handle, part)
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_room(handle: int, wanted: int) -> None:
    """Raise OSError where a file cannot fit: to find that out by writing it, again and again, would wear a card out."""
    disk = os.fstatvfs(handle)
    if disk.f_blocks and wanted > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_all(handle: int, content: bytes) -> None:
    """Write to the last byte, or raise OSError: a disk that is nearly full takes a part first."""
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


def _digest(name: str, generation: int, body: bytes) -> str:
    """Return the SHA-256 that tells one generation of one file from all others."""
    digest = hashlib.sha256(f"{name} {generation}\n".encode())
    digest.update(body)
    return digest.hexdigest()
