"""The brokers that the harness starts itself, or is given, behind one small face; the broker does the counting.

A run's totals don't come from its own nodes: `embedded` counts inside amqtt, `mosquitto` is counted from its own log
lines, and about a broker given as HOST:PORT nothing is claimed.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from agent.errors import ConfigError, NetworkError
from sim_harness.broker_counts import BrokerCounts
from sim_harness.mosquitto import MosquittoBroker, stop_process

if TYPE_CHECKING:
    from collections.abc import Callable

_ANSWER_TIMEOUT_S: Final = 30.0
_REACH_TIMEOUT_S: Final = 5.0
_TAIL_LINES: Final = 50


class Broker(Protocol):
    """A broker that nodes can be pointed at."""

    @property
    def name(self) -> str:
        """Return `embedded`, `mosquitto` or `HOST:PORT`."""

    @property
    def host(self) -> str:
        """Return the name or address to connect to."""

    @property
    def port(self) -> int:
        """Return the TCP port to connect to."""

    def counts(self) -> BrokerCounts | None:
        """Return what has passed through, or None if this broker can't be asked.

        Every message that a client has received before the call is in it. Raises `NetworkError` if the broker is dead.
        """

    def close(self) -> None:
        """Stop the broker if the harness started it; a second call does nothing."""


def open_broker(kind: str, workdir: Path) -> Broker:
    """Start a broker of `BROKERS` with its files in `workdir`, or check that one answers at `HOST:PORT`.

    Raises `ConfigError` if there is no such kind or its program is missing, `NetworkError` if it does not come up.
    """
    start = BROKERS.get(kind)
    if start is None:
        return GivenBroker(kind)
    workdir.mkdir(parents=True, exist_ok=True)
    return start(workdir)


class GivenBroker:
    """A broker that somebody else runs."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            kinds = ", ".join(map(repr, BROKERS))
            raise ConfigError(f"broker {address!r} is not known; use {kinds} or HOST:PORT")
        self.name: Final = address
        self.host: Final = host.removeprefix("[").removesuffix("]")
        self.port: Final = int(port)
        try:
            socket.create_connection((self.host, self.port), timeout=_REACH_TIMEOUT_S).close()
        except OSError as error:
            message = f"no broker answers at {address}: {error}; start it, or use the broker 'embedded'"
            raise NetworkError(message) from error

    def counts(self) -> None:
        """Return None: a broker of others tells us nothing."""

    def close(self) -> None:
        """Leave the broker running."""


class EmbeddedBroker:
    """amqtt in a process of its own (MQTT 3.1.1 only); needs no package of the operating system."""

    name: Final = "embedded"
    host: Final = "127.0.0.1"

    def __init__(self, workdir: Path) -> None:
        self._log = workdir / "embedded-broker.log"
        self._lock = threading.Lock()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sim_harness.embedded"],
                cwd=Path(__file__).parents[1],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,
            )
        try:
            self.port: Final = int(self._answer()["port"])
        except BaseException:
            self.close()
            raise

    def counts(self) -> BrokerCounts:
        """Ask the broker's process; see `Broker.counts`."""
        with self._lock:
            if self._process.stdin is None or self._process.stdin.closed:
                raise NetworkError("the embedded broker is closed; ask for its counts before that")
            try:
                self._process.stdin.write(b"counts\n")
            except BrokenPipeError:
                raise self._silent() from None
            return BrokerCounts(**self._answer())

    def close(self) -> None:
        """Stop the process; it holds nothing that needs saving."""
        stop_process(self._process)

    def _answer(self) -> dict[str, Any]:
        stream = self._process.stdout
        if stream is None or not select.select([stream], [], [], _ANSWER_TIMEOUT_S)[0]:
            raise self._silent()
        line = stream.readline()
        if not line:
            raise self._silent()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _silent(self) -> NetworkError:
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        return NetworkError(f"the embedded broker does not answer; the end of its log {self._log}:\n{tail}")


BROKERS: Final[dict[str, Callable[[Path], Broker]]] = {
    "embedded": EmbeddedBroker,
    "mosquitto": MosquittoBroker,
}
