"""One life of the trainer child as the agent sees it: its process, its frames, and the requests left when it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import sysconfig
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import msgspec

from agent.errors import TrainingError
from agent.learning.frames import REPLIES, Failed, Progress, Reply, WorkerConfig, pack_frame, read_frame

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger(__name__)
_CLOSE_TIMEOUT_S = 5.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Open:
    """A request without its answer."""

    finish: Callable[[Reply, bytes], None]
    fail: Callable[[str], None]
    progress: Callable[[int], None] | None = None


class Link:
    """One life of the child: its process, a thread for each direction, and the requests it has not answered."""

    def __init__(self, config: WorkerConfig) -> None:
        self.process = _start(config.threads)
        self._lock = threading.Lock()
        self._unanswered: dict[int, Open] = {}
        self._over = False
        self._reason = ""
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.send(pack_frame(config))
        self._threads = [
            threading.Thread(target=target, name=f"trainer-{target.__name__.strip('_')}", daemon=True)
            for target in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    def open(self, id_: int, request: Open) -> bool:
        """Take on a request; False when the child is over."""
        with self._lock:
            if not self._over:
                self._unanswered[id_] = request
            return not self._over

    def send(self, frame: bytes) -> None:
        """Queue a frame for the child."""
        self._outbox.put(frame)

    def kill(self, reason: str) -> None:
        """Send SIGKILL."""
        self._reason = self._reason or reason
        self.process.kill()

    def close(self) -> None:
        """Close the child's stdin, which ends it, and wait for it."""
        self._reason = self._reason or "the agent closed the trainer"
        self._outbox.put(None)
        try:
            self.process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _write(self) -> None:
        """Own the child's stdin: a full pipe must not hold up the agent."""
        stream = cast("BinaryIO", self.process.stdin)
        try:
            while frame := self._outbox.get():
                stream.write(frame)
                stream.flush()
        except OSError:
            _LOG.debug("the trainer's stdin is closed")  # the reader says why
        with contextlib.suppress(OSError):  # what is still buffered has nobody to go to
            stream.close()

    def _read(self) -> None:
        """Own the child's stdout, and answer what is open when it ends."""
        stream = cast("BinaryIO", self.process.stdout)
        try:
            while frame := read_frame(stream):
                self._dispatch(REPLIES.decode(frame[0]), frame[1])
        except (TrainingError, msgspec.MsgspecError) as error:
            self.kill(f"the trainer was ended, for its answers were not readable: {error}")
        stream.close()
        status = self.process.wait()
        reason = self._reason or how_it_ended(status)
        with self._lock:
            self._over, left = True, list(self._unanswered.values())
        self._outbox.put(None)
        for request in left:
            _call(request.fail, reason)

    def _dispatch(self, reply: Reply, payload: bytes) -> None:
        with self._lock:
            request = self._unanswered.get(reply.id)
            if not isinstance(reply, Progress):
                self._unanswered.pop(reply.id, None)
        if request is None:
            return
        if isinstance(reply, Progress):
            if request.progress:
                _call(request.progress, reply.steps)
        elif isinstance(reply, Failed):
            _call(request.fail, reply.error)
        else:
            _call(request.finish, reply, payload)


def _call(callback: Callable[..., None], *arguments: object) -> None:
    """Call back; an error there is a bug of the caller's and must not end the reader thread."""
    try:
        callback(*arguments)
    except Exception:  # noqa: BLE001  any error of the caller's
        _LOG.exception("a callback of the trainer failed")


def _start(threads: int) -> subprocess.Popen[bytes]:
    """Start a fresh interpreter: a fork would copy the agent's threads' locks."""
    environment = dict(os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    root = str(Path(__file__).parents[2])
    if root != sysconfig.get_path("purelib"):  # run from a checkout, wherever the working folder is
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), root]))
    command = [sys.executable, "-u", "-m", "agent.learning.worker"]
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    except OSError as error:
        raise TrainingError(f"the trainer cannot be started ({error}); {sys.executable} must be runnable") from error


def how_it_ended(status: int) -> str:
    """Return a child's exit status, as subprocess gives it, in words."""
    if status >= 0:
        return f"the trainer exited with status {status}; its own words are in the agent's log"
    name = {known.value: known.name for known in signal.Signals}.get(-status, f"signal {-status}")
    hints = {
        "SIGKILL": "was killed by SIGKILL: out of memory? A smaller model or batch_size needs less",
        "SIGILL": "died of SIGILL: this torch build does not fit this CPU; install one made for it",
    }
    return f"the trainer {hints.get(name, f'was ended by {name}')}"
