"""The processes of a live fleet: one a node, or several nodes a process, started, watched and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import AgentError
from sim_harness.fleet import NodeFiles

OWN_PROCESS_NODES = 32
"""Up to so many nodes each agent has processes of its own; beyond, several share one and its torch."""
HOSTS = 4
"""Processes that share the nodes of a larger fleet."""
STOP_S = 15.0
_POLL_S = 0.2
_TAIL_LINES = 15


@dataclass(slots=True)
class _Process:
    nodes: list[NodeFiles]
    handle: subprocess.Popen[bytes]
    ended: bool = False


@dataclass(slots=True)
class Agents:
    """The running fleet; `close` leaves no process behind."""

    processes: list[_Process] = field(default_factory=list)

    def start(self, nodes: Sequence[NodeFiles], workers: int = 0) -> None:
        """Start `workers` processes for all nodes; 0: one each up to 32 nodes, else four."""
        count = workers or (len(nodes) if len(nodes) <= OWN_PROCESS_NODES else HOSTS)
        alone = count >= len(nodes)
        groups = [[node] for node in nodes] if alone else [list(nodes[i::count]) for i in range(count)]
        for group in groups:
            command = [sys.executable, "-m"]
            if alone:
                command += ["agent", "run", "--config", str(group[0].config)]
            else:
                command += ["sim_harness.host", *(str(node.config) for node in group)]
            with group[0].log.open("ab") as log:
                handle = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=_environment(),
                    start_new_session=True,
                )
            self.processes.append(_Process(group, handle))

    def wait(self, on_poll: Callable[[], float], patience_s: float) -> None:
        """Return when every agent has ended well; `on_poll` returns when (monotonic) the fleet last got on.

        AgentError: one ended badly, or none got on for `patience_s`.
        """
        while not all(process.ended for process in self.processes):
            for process in self.processes:
                self._look_at(process)
            if time.monotonic() - on_poll() > patience_s:
                late = [node for process in self.processes if not process.ended for node in process.nodes]
                raise AgentError(
                    f"no agent got on for {patience_s:.0f} s; {len(late)} have not ended, such as {late[0].node}:\n"
                    f"{tail(late[0].log)}"
                )
            time.sleep(_POLL_S)
        on_poll()

    def close(self) -> None:
        """Ask whoever still runs to stop, then end it."""
        running = [process.handle for process in self.processes if process.handle.poll() is None]
        for handle in running:
            handle.terminate()
        until = time.monotonic() + STOP_S
        for handle in running:
            _end(handle, max(0.1, until - time.monotonic()))

    def _look_at(self, process: _Process) -> None:
        code = process.handle.poll()
        if code is None or process.ended:
            return
        process.ended = True
        if code != 0:
            first = process.nodes[0]
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise AgentError(f"the agent of {first.node} {how}; the end of {first.log}:\n{tail(first.log)}")


def _end(handle: subprocess.Popen[bytes], within_s: float) -> None:
    try:
        handle.wait(within_s)
    except subprocess.TimeoutExpired:
        os.killpg(handle.pid, signal.SIGKILL)
        handle.wait()


def tail(path: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-_TAIL_LINES:])


def _environment() -> dict[str, str]:
    """Return the environment of an agent: this project importable, few memory arenas, one thread for its arithmetic."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
