"""Eclipse Mosquitto as a broker of the harness: started on a free loopback port, counted by its own log."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Final

from agent.errors import ConfigError, NetworkError
from sim_harness.broker_counts import BrokerCounts

if TYPE_CHECKING:
    from pathlib import Path

SBIN: Final = ("/usr/sbin", "/usr/local/sbin")
"""Where systems put the broker, and where a user's PATH often does not look."""

_LOOPBACK: Final = "127.0.0.1"
_ANSWER_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 5.0
_PORT_TRIES: Final = 5
_TAIL_LINES: Final = 50

_PUBLISH: Final = re.compile(
    rb"(Received PUBLISH from|Sending PUBLISH to) .* \(d\d, q\d, r\d, m\d+, '(.*)', \.\.\. \((\d+) bytes\)\)"
)
_TRAFFIC: Final = re.compile(rb"(Sending|Received) (PUB(LISH|ACK|REC|REL|COMP)|PING(REQ|RESP)) ")

_CONFIG: Final = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
set_tcp_nodelay true
# The protocol's own limit: from 2.1 the default is 2 MB. Never message_size_limit: clients would resend for ever.
max_packet_size 268435455
# Memory is at worst clients x inflight x model; what waits beyond it is held once for all of its receivers.
max_inflight_messages 4
max_queued_messages 10000
max_queued_bytes 0
sys_interval 0
log_dest stderr
log_timestamp false
log_type all
connection_messages true
"""


class MosquittoBroker:
    """A mosquitto of our own; its log is read as it comes and never kept."""

    name: Final = "mosquitto"
    host: Final = _LOOPBACK

    def __init__(self, workdir: Path, port: int = 0) -> None:
        """Start it; on `port` where clients know it already, else on a free one."""
        program = find_mosquitto()
        config = workdir / "mosquitto.conf"
        for _ in range(_PORT_TRIES):
            self.port = port or free_port()
            # Started as root it would give up root before it can read a private directory.
            config.write_text(_CONFIG.format(port=self.port) + ("user root\n" if os.geteuid() == 0 else ""))
            # In a session of its own a Ctrl-C at the terminal leaves it alive until its counts are read.
            self._process = subprocess.Popen(
                [program, "-c", config],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._log = _Log(self._process)
            running = self._log.expect(rb"mosquitto version \S+ running")
            self._log.start()
            # A connection too, as a stop that comes before its event loop would be forgotten.
            if _seen(running) and self._read_all():
                return
            self.close()
            if "Address already in use" not in self._log.tail():
                break
        raise NetworkError(f"mosquitto did not start with {config}; the end of its log:\n{self._log.tail()}")

    def counts(self) -> BrokerCounts:
        """Return what mosquitto has logged until now; see `Broker.counts`."""
        if not self._read_all():
            raise NetworkError(f"mosquitto does not answer; the end of its log:\n{self._log.tail()}")
        return self._log.counts()

    def kill(self) -> None:
        """End it as a power cut does; `close` is still to be called."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Stop the process and the thread that reads its log."""
        stop_process(self._process, self._log)

    def _read_all(self) -> bool:
        """Wait until the log is read up to a mark, a connection of our own, that is made now; False if none comes."""
        with socket.socket() as probe:
            probe.bind((_LOOPBACK, 0))
            mark = self._log.expect(rb"New connection from \S+:%d on port " % probe.getsockname()[1])
            probe.settimeout(_ANSWER_TIMEOUT_S)
            return probe.connect_ex((self.host, self.port)) == 0 and _seen(mark)


class _Log(threading.Thread):
    """Reads the log: counts PUBLISH lines, and remembers the last lines that are not traffic."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(name="mosquitto-log", daemon=True)
        self._stream = process.stderr or ()
        self._counts = BrokerCounts()
        self._unknown = b""
        self._lock = threading.Lock()
        self._ended = False
        self._lines: deque[bytes] = deque(maxlen=_TAIL_LINES)
        self._marks: list[tuple[re.Pattern[bytes], Future[bool]]] = []

    def run(self) -> None:
        """Read until mosquitto ends."""
        for line in self._stream:
            if _TRAFFIC.match(line):
                self._count(line.rstrip())
            else:
                self._remember(line.rstrip())
        with self._lock:
            self._ended = True
            for _, future in self._marks:
                future.set_result(False)

    def expect(self, pattern: bytes) -> Future[bool]:
        """Return what becomes True when a line that begins like `pattern` is read, False when the log ends before."""
        future: Future[bool] = Future()
        with self._lock:
            if self._ended:
                future.set_result(False)
            else:
                self._marks.append((re.compile(pattern), future))
        return future

    def counts(self) -> BrokerCounts:
        """Return the counts of the lines read so far; raises `NetworkError` if one of them could not be understood."""
        if self._unknown:
            line = self._unknown.decode(errors="replace")
            raise NetworkError(f"this mosquitto logs messages in an unknown way, use the broker 'embedded': {line}")
        return self._counts

    def tail(self) -> str:
        """Return the last lines that are not traffic."""
        with self._lock:
            return b"\n".join(self._lines).decode(errors="replace")

    def _count(self, line: bytes) -> None:
        match = _PUBLISH.fullmatch(line)
        if match is not None:
            topic, payload_bytes = match[2].decode(errors="replace"), int(match[3])
            add = self._counts.received if match[1].startswith(b"Received") else self._counts.sent
            self._counts = add(topic, payload_bytes)
        elif b" PUBLISH " in line:
            self._unknown = line

    def _remember(self, line: bytes) -> None:
        with self._lock:
            self._lines.append(line)
            for mark in [mark for mark in self._marks if mark[0].match(line)]:
                self._marks.remove(mark)
                mark[1].set_result(True)


def find_mosquitto() -> str:
    """Return the path of the broker's program; raises `ConfigError` that says how to get it."""
    places = os.pathsep.join([os.environ.get("PATH", ""), *SBIN])
    program = shutil.which("mosquitto", path=places)
    if program is None:
        raise ConfigError(
            "the broker 'mosquitto' is not installed: no such program on PATH or in /usr/sbin; "
            "install it with 'sudo apt-get install mosquitto', or use the broker 'embedded'"
        )
    return program


def stop_process(process: subprocess.Popen[bytes], reader: threading.Thread | None = None) -> None:
    """End `process`, then the thread that reads from it, then its pipes; a second call does nothing."""
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if reader is not None:
        reader.join()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def free_port() -> int:
    """Return a TCP port of the loopback that nobody uses now; another program may still be faster to take it."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _seen(mark: Future[bool]) -> bool:
    """Wait for a mark in the log; False if the log ends, or says nothing for too long."""
    try:
        return mark.result(_ANSWER_TIMEOUT_S)
    except FutureTimeoutError:
        return False
