"""What the kernel counts of a process, read from /proc."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_EVERYONES = ("libc.", "libc-", "ld-", "libm.", "libm-")
"""How the names of files begin that every process maps."""
_TICKS_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process that are in memory."""

    pss: int
    """Each page that n processes share counts 1/n, and so the less, the more Python there is on the machine."""
    alone: int
    """The same, but all pages of files other than the C library's count whole: as if no other Python ran here."""
    rss: int
    """Each page counts whole: what the process takes where nobody shares with it."""
    anonymous: int
    """Of its own making; the rest are pages of files, which the kernel can drop and read again."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process has used up since its start, and holds now."""

    cpu_s: float
    """User and system time of all its threads; its children's is not in it."""
    said_bytes: int
    """Handed to write calls of any kind: files in memory and pipes, too."""
    disk_bytes: int
    """Sent to be written to a disk."""
    wakeups: int
    """Times that a thread that is still there gave up its core to wait."""
    preemptions: int
    """Times that such a thread was made to give it up."""
    threads: int
    files: int
    """Open file descriptors."""


def memory(pid: int) -> Memory:
    """Return what the process `pid` holds in memory now."""
    pss = rss = anonymous = common = 0
    everyones = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, *words = line.split()
        if not key.endswith(":"):
            everyones = Path(words[-1]).name.startswith(_EVERYONES)
        elif key == "Pss:":
            pss, common = pss + int(words[0]), common - everyones * int(words[0])
        elif key == "Rss:":
            rss, common = rss + int(words[0]), common + everyones * int(words[0])
        elif key == "Anonymous:":
            anonymous += int(words[0])
    return Memory(1024 * pss, 1024 * (rss - common), 1024 * rss, 1024 * anonymous)


def usage(pid: int) -> Usage:
    """Return what the process `pid` has used so far."""
    said, disk = numbers(f"/proc/{pid}/io", "wchar", "write_bytes")
    voluntary, forced = switches(pid)
    threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Usage(cpu_s(pid), said, disk, voluntary, forced, threads, files)


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU time that all threads of a process, ended ones too, have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICKS_S


def running_s(pid: int) -> float:
    """Return the seconds that the threads which a process has now have been running, to the nanosecond."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def switches(pid: int) -> tuple[int, int]:
    """Return the voluntary and the forced context switches of the threads that a process has now."""
    keys = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    pairs = [numbers(str(task / "status"), *keys) for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


def children(pid: int) -> list[int]:
    """Return the processes that any thread of a process has started and that have not ended."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for task in tasks for word in (task / "children").read_text().split()]


def numbers(path: str, *keys: str) -> tuple[int, ...]:
    """Return the numbers behind `key:` in one of the kernel's tables."""
    text = Path(path).read_text()
    return tuple(int(re.findall(rf"^{key}:\s*(\d+)", text, re.MULTILINE)[0]) for key in keys)
