"""A tape of what a program did to the disk, and every state of the disk that a power cut could have left behind it.

The model is that of POSIX and no kinder: what was written to a file is certain after an fsync of the file, what was
done to the names in a folder after an fsync of the folder. All else may have happened, in whole, in part or not at all,
and in another order than it was asked for.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Write:
    """Bytes at a place of a file; `new_size` where it was cut to that size instead."""

    file: int
    offset: int
    content: bytes
    new_size: int | None = None


@dataclass(frozen=True)
class Name:
    """A name in the folder that now means a file, or nothing; and the one that it had before, if it was moved."""

    name: str
    file: int | None
    before: str = ""


@dataclass(frozen=True)
class Sync:
    """All that was written to a file before is on the disk; without a file: all names are."""

    file: int | None


Op = Write | Name | Sync


@dataclass
class Tape:
    """Stands in for `os` in a module: does what is asked for, in one folder, and notes it."""

    folder: Path
    ops: list[Op] = field(default_factory=list)
    _names: dict[str, int] = field(default_factory=dict)
    _handles: dict[int, int | None] = field(default_factory=dict)
    _sizes: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        """Return the system's own constants, and calls that change nothing."""
        assert name.startswith(("O_", "fstat", "strerror")), (
            f"os.{name} is not on the tape: note what it does to the disk"
        )
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        """Open; a file may be made, or emptied."""
        if path == self.folder:
            handle = os.open(path, flags, mode)
            self._handles[handle] = None
            return handle
        assert path.parent == self.folder
        file = self._names.get(path.name)
        if file is None:
            assert flags & os.O_CREAT
            file = self._names[path.name] = len(self._sizes)
            self._sizes.append(0)
            self.ops.append(Name(path.name, file))
        elif flags & os.O_TRUNC:
            self._cut(file, 0)
        handle = os.open(path, flags, mode)
        self._handles[handle] = file
        return handle

    def close(self, handle: int) -> None:
        """Close."""
        del self._handles[handle]
        os.close(handle)

    def write(self, handle: int, content: memoryview) -> int:
        """Write at the end of a file: nothing here writes anywhere else."""
        file = self._handles[handle]
        assert file is not None
        self.ops.append(Write(file, self._sizes[file], bytes(content)))
        self._sizes[file] += len(content)
        return os.write(handle, content)

    def ftruncate(self, handle: int, size: int) -> None:
        """Cut a file."""
        file = self._handles[handle]
        assert file is not None
        self._cut(file, size)
        os.ftruncate(handle, size)

    def fsync(self, handle: int) -> None:
        """Force to the disk."""
        self.ops.append(Sync(self._handles[handle]))
        os.fsync(handle)

    def replace(self, source: Path, target: Path) -> None:
        """Move a file over another one."""
        file = self._names[target.name] = self._names.pop(source.name)
        self.ops.append(Name(target.name, file, source.name))
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        del self._names[path.name]
        self.ops.append(Name(path.name, None))
        path.unlink()

    def _cut(self, file: int, size: int) -> None:
        self.ops.append(Write(file, 0, b"", size))
        self._sizes[file] = size


Files = dict[str, bytes]
"""What a folder holds, by name."""


def left_behind(ops: list[Op], chance: random.Random) -> Iterator[Files]:
    """Yield what a folder may hold after a power cut behind these calls, each state once.

    All ways in which the names that are not certain may have come out, times, for all files at a time, what is not
    certain of them: nothing, all, only the last write, or torn at a place that `chance` draws.
    """
    seen: set[tuple[tuple[str, bytes], ...]] = set()
    certain, open_names, data = _split(ops)
    for kept in itertools.product((False, True), repeat=len(open_names)):
        names = dict(certain)
        for change in itertools.compress(open_names, kept):
            _rename(names, change)
        for how in ("none", "all", "last", *["torn"] * 4):
            files = {name: _content(*data.get(file, ([], [])), how, chance) for name, file in names.items()}
            key = tuple(sorted(files.items()))
            if key not in seen:
                seen.add(key)
                yield files


def _split(ops: list[Op]) -> tuple[dict[str, int], list[Name], dict[int, tuple[list[Write], list[Write]]]]:
    """Return the certain names, the changes of names that are not, and both kinds of writes of each file."""
    certain: dict[str, int] = {}
    open_names: list[Name] = []
    data: dict[int, tuple[list[Write], list[Write]]] = {}
    for op in ops:
        if isinstance(op, Name):
            open_names.append(op)
        elif isinstance(op, Write):
            data.setdefault(op.file, ([], []))[1].append(op)
        elif op.file is None:
            for change in open_names:
                _rename(certain, change)
            open_names = []
        else:
            sure, unsure = data.setdefault(op.file, ([], []))
            sure += unsure
            unsure.clear()
    return certain, open_names, data


def _rename(names: dict[str, int], change: Name) -> None:
    names.pop(change.before, None)
    if change.file is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.file


def _content(sure: list[Write], unsure: list[Write], how: str, chance: random.Random) -> bytes:
    content = bytearray()
    for write in sure:
        _apply(content, write)
    if how == "all":
        kept = list(unsure)
    elif how == "last":
        kept = unsure[-1:]
    elif how == "torn" and unsure:
        kept = [write for write in unsure if chance.random() < 0.5]
        chance.shuffle(kept)
        torn = chance.choice(unsure)
        cut = chance.randint(0, len(torn.content))
        kept.append(Write(torn.file, torn.offset, torn.content[:cut], torn.new_size))
    else:
        kept = []
    for write in kept:
        _apply(content, write)
    return bytes(content)


def _apply(content: bytearray, write: Write) -> None:
    """Do one write; what lies between the old end and it reads as zeros."""
    if write.new_size is not None:
        del content[write.new_size :]
        content.extend(bytes(write.new_size - len(content)))
        return
    end = write.offset + len(write.content)
    content.extend(bytes(max(0, end - len(content))))
    content[write.offset : end] = write.content
