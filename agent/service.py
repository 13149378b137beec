"""What the agent tells systemd: that it is ready, what it is doing, that it is alive, that it stops (sd_notify(3))."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from typing import TYPE_CHECKING, Final

from agent.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

STATUS_LENGTH: Final = 200
"""Characters of a status that `systemctl status` gets to show."""

_SEND_TIMEOUT_S: Final = 1.0

_log = logging.getLogger(__name__)


class Notifier:
    """Speaks to the service manager over NOTIFY_SOCKET; without one, as on a terminal, it is silent.

    What the manager knows already is not said again: each word wakes it, too. `environment` is `os.environ` in the
    service. Raises `ConfigError` if what systemd put there can't be understood.
    """

    def __init__(
        self, environment: Mapping[str, str], pid: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog_period_s: Final = _watchdog_period_s(environment, os.getpid() if pid is None else pid)
        """Seconds between two calls of `watchdog`: half of what the unit allows; None if nobody watches."""
        self._clock = clock
        self._fed_s = -math.inf
        self._said = ""

    def ready(self, status: str) -> None:
        """Say that the start is over; the unit becomes active."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """Say in one line what is being done."""
        line = _status(status)
        if line != self._said and self._send(line):
            self._said = line

    def watchdog(self) -> None:
        """Say that the work goes on, at most four times a period; call it from where the work is done, as often as is.

        Else a hung daemon would stay unseen.
        """
        period_s, now = self.watchdog_period_s, self._clock()
        if period_s is not None and now - self._fed_s >= period_s / 4 and self._send("WATCHDOG=1"):
            self._fed_s = now

    def stopping(self, status: str) -> None:
        """Say that the stop has begun."""
        self._send("STOPPING=1", _status(status))

    def _send(self, *lines: str) -> bool:
        """Send one datagram; a manager that does not take it is logged, and never stops the agent's work."""
        if not self._address:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(_SEND_TIMEOUT_S)
            try:
                channel.connect(self._address)
                channel.sendall("\n".join(lines).encode())
            except OSError as error:
                _log.warning("systemd did not take %s: %s", lines[0], error)
                return False
        return True


def _address(text: str) -> str:
    """Return the socket's address for `connect`; an abstract one is written with `@` for its leading zero byte."""
    if text.startswith("@"):
        return "\0" + text[1:]
    if text and not text.startswith("/"):
        raise ConfigError(f"NOTIFY_SOCKET is {text!r}; the agent knows paths and abstract sockets (@name) only")
    return text


def _watchdog_period_s(environment: Mapping[str, str], pid: int) -> float | None:
    """Return half of WATCHDOG_USEC in seconds, if it is there and meant for the process `pid`."""
    limit_us = environment.get("WATCHDOG_USEC", "")
    if not limit_us or environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    if not limit_us.isdecimal() or int(limit_us) == 0:
        raise ConfigError(f"WATCHDOG_USEC is {limit_us!r}; it must be a number of microseconds above 0")
    return int(limit_us) / 2e6


def _status(text: str) -> str:
    """Return the STATUS line for `text`, cut to one line that can hold no other assignment."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return "STATUS=" + (line if len(line) <= STATUS_LENGTH else line[: STATUS_LENGTH - 1] + "…")
