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
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, TypeVar, cast

import msgspec

from agent.errors import TrainingError
from agent.learning.frames import REPLIES, Failed, Progress, Reply, WorkerConfig, pack_frame, read_frame

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger(__name__)
_CLOSE_TIMEOUT_S = 2.0
_DRAIN_TIMEOUT_S = 1.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
"""glibc would give a step's memory back and fault it in again in the next: a quarter of GN-LeNet's CPU time."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Open(Generic[Answer]):
    """A request without its answer."""

    read: Callable[[Reply, bytes], Answer]
    """Make the answer of a reply; where that raises, `fail` makes it."""
    fail: Callable[[Failed], Answer]
    done: Callable[[Answer], None]
    progress: Callable[[int], None] | None = None


class Link:
    """One life of the child: its process, three threads around it, and the requests it has not answered.

    No callback is made while another one runs, and none of a request after its answer.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self.process = _start(config.threads)
        self._lock = threading.Lock()
        self._calling = threading.RLock()
        self._unanswered: dict[int, Open[Any]] = {}
        self._over = False
        self._reason = ""
        self._dead = threading.Event()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.send(pack_frame(config))
        self._writer, self._reader, self._waiter = (
            threading.Thread(target=target, name=f"trainer-{target.__name__.strip('_')}", daemon=True)
            for target in (self._write, self._read, self._wait)
        )
        for thread in (self._writer, self._reader, self._waiter):
            thread.start()

    def open(self, id_: int, request: Open[Any]) -> bool:
        """Take on a request; False when the child is over."""
        with self._lock:
            if not self._over:
                self._unanswered[id_] = request
            return not self._over

    def send(self, frame: bytes) -> None:
        """Queue a frame for the child."""
        self._outbox.put(frame)

    def kill(self, reason: str) -> None:
        """Send SIGKILL to the child and all that it started, and answer what is open without waiting for its end."""
        with self._lock:
            self._over = True
            left, self._unanswered = self._unanswered, {}
        self._outbox.put(None)
        if not self._dead.is_set():
            _kill_group(self.process.pid)
        with self._calling:
            for id_, request in left.items():
                _answer(request, Failed(id_, reason))

    def close(self) -> None:
        """Close the child's stdin, which ends it, wait for it, and kill it where that takes long."""
        self._reason = "the agent closed the trainer"
        self._outbox.put(None)
        if not self._dead.wait(_CLOSE_TIMEOUT_S):
            self.kill(self._reason)
        for thread in (self._writer, self._reader, self._waiter):
            if thread is not threading.current_thread():
                thread.join(_DRAIN_TIMEOUT_S)

    def _write(self) -> None:
        """Own the child's stdin: a full pipe must not hold up the agent."""
        stream = cast("BinaryIO", self.process.stdin)
        try:
            while frame := self._outbox.get():
                stream.write(frame)
                stream.flush()
        except OSError:
            _LOG.debug("the trainer's stdin is closed")  # the waiter says why
        with contextlib.suppress(OSError):  # what is still buffered has nobody to go to
            stream.close()

    def _read(self) -> None:
        """Own the child's stdout."""
        stream, reason = cast("BinaryIO", self.process.stdout), "it closed its pipe"
        try:
            while frame := read_frame(stream):
                self._dispatch(REPLIES.decode(frame[0]), frame[1])
        except (TrainingError, msgspec.MsgspecError) as error:
            reason = f"its answers were not readable: {error}"
        stream.close()
        if not self._dead.wait(_DRAIN_TIMEOUT_S):  # where it died, the waiter knows of what
            self.kill(f"the trainer was ended, for {reason}")

    def _wait(self) -> None:
        """Wait for the child's end, not for the pipe's, which what it forked may hold open; answer what is open."""
        status = self.process.wait()
        _kill_group(self.process.pid)
        self._dead.set()
        self._reader.join(_DRAIN_TIMEOUT_S)  # it may have answered before it died
        self.kill(self._reason or how_it_ended(status))

    def _dispatch(self, reply: Reply, payload: bytes) -> None:
        with self._calling:
            with self._lock:
                request = self._unanswered.get(reply.id)
                if not isinstance(reply, Progress):
                    self._unanswered.pop(reply.id, None)
            if request is None:
                return
            if not isinstance(reply, Progress):
                _answer(request, reply, payload)
            elif request.progress:
                _call(request.progress, reply.steps)


def _answer(request: Open[Any], reply: Reply, payload: bytes = b"") -> None:
    """Answer a request, whatever is wrong with the reply."""
    try:
        answer = request.fail(reply) if isinstance(reply, Failed) else request.read(reply, payload)
    except Exception as error:  # noqa: BLE001  whatever is wrong with it, the request needs its answer
        _LOG.exception("an answer of the trainer cannot be read")
        answer = request.fail(Failed(reply.id, f"the trainer's answer cannot be read: {error}"))
    _call(request.done, answer)


def _call(callback: Callable[[Any], None], argument: object) -> None:
    """Call back; an error there is a bug of the caller's and must not end a thread of the link."""
    try:
        callback(argument)
    except Exception:  # noqa: BLE001  any error of the caller's
        _LOG.exception("a callback of the trainer failed")


def _kill_group(pid: int) -> None:
    """Send SIGKILL to what is left of the process group that the child leads."""
    with contextlib.suppress(ProcessLookupError):  # nobody is left
        os.killpg(pid, signal.SIGKILL)


def _start(threads: int) -> subprocess.Popen[bytes]:
    """Start a fresh interpreter (a fork would copy the agent's threads' locks), in a group that can be killed whole."""
    command = [sys.executable, "-u", "-m", "agent.learning.worker"]
    pipe, environment = subprocess.PIPE, child_environment(threads)
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)
    except OSError as error:
        raise TrainingError(f"the trainer cannot be started ({error}); {sys.executable} must be runnable") from error


def child_environment(threads: int) -> dict[str, str]:
    """Return the environment that torch is to start in; what malloc is told here, the agent's own environment wins."""
    environment = {**_HEAP, **os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    root = str(Path(__file__).parents[2])
    if root != sysconfig.get_path("purelib"):  # run from a checkout, wherever the working folder is
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), root]))
    return environment


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
