"""The words to systemd, received on real datagram sockets."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

import pytest

from agent.errors import ConfigError
from agent.service import STATUS_LENGTH, Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """Listen like systemd does, and give the environment that names the socket."""
    path = str(tmp_path / "notify")
    name = path if request.param == "path" else "@" + path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(10)
        receiver.bind(path if request.param == "path" else "\0" + path)
        yield receiver, {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "120000000", "WATCHDOG_PID": str(os.getpid())}


def test_a_service_says_ready_alive_what_it_does_and_stopping(manager: tuple[socket.socket, dict[str, str]]) -> None:
    """Each word is one datagram, in order, with its status, over both kinds of socket."""
    receiver, environment = manager
    notifier = Notifier(environment)
    notifier.ready("waiting for 3 nodes")
    notifier.watchdog()
    notifier.status("round 17 of 1000, 6 of 8 peers")
    notifier.stopping("asked to")
    assert [receiver.recv(4096).decode() for _ in range(4)] == [
        "READY=1\nSTATUS=waiting for 3 nodes",
        "WATCHDOG=1",
        "STATUS=round 17 of 1000, 6 of 8 peers",
        "STOPPING=1\nSTATUS=asked to",
    ]


def test_what_the_manager_knows_is_not_said_again(manager: tuple[socket.socket, dict[str, str]]) -> None:
    """A status that is the same wakes nobody, and the watchdog is fed four times a period at most."""
    receiver, environment = manager
    now_s = 100.0
    notifier = Notifier(environment, clock=lambda: now_s)
    for moment_s, status in ((100.0, "a"), (114.9, "a"), (115.0, "b"), (116.0, "a")):
        now_s = moment_s
        notifier.watchdog()
        notifier.status(status)
    notifier.stopping("end")
    words = [receiver.recv(4096).decode() for _ in range(6)]
    assert words == ["WATCHDOG=1", "STATUS=a", "WATCHDOG=1", "STATUS=b", "STATUS=a", "STOPPING=1\nSTATUS=end"]


def test_what_the_manager_did_not_take_is_said_again(tmp_path: Path) -> None:
    """A status that was lost is no status that is known."""
    path = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": path})
    notifier.status("a")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(10)
        receiver.bind(path)
        notifier.status("a")
        assert receiver.recv(4096) == b"STATUS=a"


@pytest.mark.parametrize(
    "text",
    ["a\nMAINPID=1", "a\r\nWATCHDOG=trigger\x00", "a\u2028FDSTORE=1\x85b", "\ud800" * 5, "x" * 100_000, "é\n" * 9999],
)
def test_a_hostile_status_stays_one_short_line(manager: tuple[socket.socket, dict[str, str]], text: str) -> None:
    """No status can smuggle in another assignment, break the encoding, or outgrow its datagram."""
    receiver, environment = manager
    Notifier(environment).status(text)
    message = receiver.recv(1 << 16).decode()
    assert message.startswith("STATUS=")
    assert message.isprintable()
    assert len(message) <= len("STATUS=") + STATUS_LENGTH


def test_the_watchdog_is_fed_twice_within_its_limit() -> None:
    """The period is half of WATCHDOG_USEC, as sd_watchdog_enabled(3) advises."""
    assert Notifier({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": "42"}, pid=42).watchdog_period_s == 60.0
    assert Notifier({"WATCHDOG_USEC": "3000000"}).watchdog_period_s == 1.5


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "41"}])
def test_a_watchdog_meant_for_nobody_or_another_is_not_ours(environment: dict[str, str]) -> None:
    """A child that inherits the environment of the service must not feed its watchdog."""
    assert Notifier(environment, pid=42).watchdog_period_s is None


def test_without_a_watchdog_nothing_is_fed(manager: tuple[socket.socket, dict[str, str]]) -> None:
    """The first datagram that comes is the status, as the watchdog's was not sent."""
    receiver, environment = manager
    notifier = Notifier({"NOTIFY_SOCKET": environment["NOTIFY_SOCKET"]})
    notifier.watchdog()
    notifier.status("here")
    assert receiver.recv(4096) == b"STATUS=here"


def test_on_a_terminal_nothing_is_sent_and_nothing_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Without NOTIFY_SOCKET all words are silent."""
    notifier = Notifier({})
    notifier.ready("a")
    notifier.status("b")
    notifier.watchdog()
    notifier.stopping("c")
    assert not caplog.records


def test_a_manager_that_is_gone_is_logged_and_the_work_goes_on(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A socket that nobody listens on costs a warning, not the training."""
    with caplog.at_level(logging.WARNING):
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("a")
    assert "READY=1" in caplog.text


@pytest.mark.parametrize(
    "environment",
    [{"NOTIFY_SOCKET": "vsock:2:1234"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-1"}],
)
def test_an_environment_that_makes_no_sense_is_an_error(environment: dict[str, str]) -> None:
    """The error names the variable and its value."""
    ((name, value),) = environment.items()
    with pytest.raises(ConfigError, match=f"{name} is '{value}'"):
        Notifier(environment)
