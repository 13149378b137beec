"""Agents as processes of their own, whose logs and journals a test can wait for."""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from agent.core.types import RoundRecord, Snapshot
from agent.durable import Generations
from agent.journal import read_records
from sim_harness.fleet import NodeFiles, lay_out, load_data
from sim_harness.scenario import load_scenario

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 120.0
_IN_MOVED_TO = 0x80
_LIBC = ctypes.CDLL(None, use_errno=True)


class LiveAgent:
    """One `skiptrain-agent run`, over all its lives; the log is read as it comes."""

    def __init__(self, files: NodeFiles, prefix: Sequence[str] = ()) -> None:
        """Take the node; `prefix` is the command that its process is started by."""
        self.files, self._prefix = files, prefix
        self.lines: list[str] = []
        self._grown = threading.Condition()
        self._silent = False
        self._reader = threading.Thread()
        self.process: subprocess.Popen[str] | None = None

    def start(self, *settings: str) -> None:
        """Begin a life, with settings that win over its configuration."""
        command = [*self._prefix, sys.executable, "-m", "agent", "run", "--config", str(self.files.config)]
        command += [word for setting in settings for word in ("--set", setting)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._silent = False
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,))
        self._reader.start()

    def _read(self, stream: Iterator[str]) -> None:
        for line in stream:
            with self._grown:
                self.lines.append(line.rstrip("\n"))
                self._grown.notify_all()
        with self._grown:
            self._silent = True
            self._grown.notify_all()

    def wait_for(self, pattern: str, start: int = 0) -> int:
        """Wait for a line of the log, from the one numbered `start` on; return the number of the line after it."""
        wanted = re.compile(pattern)
        for number in itertools.count(start):
            line = self._line(number)
            if line is None:
                break
            if wanted.search(line):
                return number + 1
        raise AssertionError(f"{self.files.node} never said {pattern!r}:\n" + "\n".join(self.lines[-20:]))

    def _line(self, number: int) -> str | None:
        """Wait for one line of the log; None where it does not come."""
        with self._grown:
            self._grown.wait_for(lambda: number < len(self.lines) or self._silent, TIMEOUT_S)
            return self.lines[number] if number < len(self.lines) else None

    def round(self, number: int) -> None:
        """Wait until it has ended the round `number`, or a later one."""
        later = "|".join(str(n) for n in range(number, number + 200))
        self.wait_for(rf" round=({later}) ")

    def kill(self) -> None:
        """Cut its power: the agent and its trainer child, which leads a group of its own, end at once."""
        assert self.process is not None
        children = _children(self.process.pid)
        self.process.kill()
        for pid in children:
            _kill(pid)
        self._over()

    def end(self, number: signal.Signals | None = None) -> int:
        """Wait for its end, after a signal where one is given; return its exit code."""
        assert self.process is not None
        if number is not None:
            self.process.send_signal(number)
        self.process.wait(TIMEOUT_S)
        assert not [line for line in self.lines if "Traceback" in line]
        return self._over()

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def _over(self) -> int:
        """Wait for the end of a life, and of its log."""
        assert self.process is not None
        assert self.process.stderr is not None
        code = self.process.wait()
        self._reader.join()
        self.process.stderr.close()
        return code

    # --- its journal, read while it runs

    def state(self) -> Snapshot | None:
        """Return the newest durable state."""
        found = Generations(self.files.state, "state", 1 << 20).read()
        return None if found is None else msgspec.json.decode(found.body, type=Snapshot)

    def records(self) -> list[RoundRecord]:
        """Return the accounts of its rounds."""
        return read_records(self.files.state)

    def freeze_when(self, wanted: Callable[[Snapshot], bool]) -> Snapshot:
        """Stop it (SIGSTOP) at a moment at which its durable state is as wanted; return that state."""
        assert self.process is not None
        for _ in renames(self.files.state):
            self.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
            state = self.state()
            if state is not None and wanted(state):
                return state
            self.process.send_signal(signal.SIGCONT)
        raise AssertionError(f"{self.files.node} was never as wanted; it is at {self.state()}")


def renames(folder: Path) -> Iterator[None]:
    """Yield at each file that is moved into `folder`: a journal's writes end so."""
    handle = _LIBC.inotify_init1(os.O_CLOEXEC)
    assert handle >= 0
    try:
        assert _LIBC.inotify_add_watch(handle, bytes(folder), _IN_MOVED_TO) >= 0
        until = time.monotonic() + TIMEOUT_S
        while select.select([handle], [], [], max(0.0, until - time.monotonic()))[0]:
            os.read(handle, 1 << 16)
            yield
    finally:
        os.close(handle)


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _kill(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)


@contextmanager
def live_fleet(folder: Path, address: tuple[str, int], *settings: str) -> Iterator[list[LiveAgent]]:
    """Lay a fleet of the demo out in `folder`, for a broker; none of its agents is started, all are ended."""
    scenario = load_scenario("demo", ["discovery.mdns=false", "discovery.static=true", "evaluation.every=0", *settings])
    agents = [LiveAgent(files) for files in lay_out(scenario, load_data(scenario), folder, "fleet", address)]
    try:
        yield agents
    finally:
        for agent in agents:
            agent.close()
