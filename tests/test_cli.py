"""The command line as an operator meets it: real processes, real signals, a real broker."""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import agent.errors
from agent import __version__
from agent.config import MqttSection, PolicySection, RunSection
from agent.errors import AgentError
from agent.journal import Journal, read_records
from sim_harness.brokers import Broker, open_broker
from tests.device_rig import device_config, write_config

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 60.0


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `skiptrain-agent` with these arguments to its end."""
    words = [sys.executable, "-m", "agent", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


class Process:
    """An agent that runs, and its log as it comes."""

    def __init__(self, config: Path) -> None:
        words = [sys.executable, "-m", "agent", "run", "--config", str(config), "--log-level", "info"]
        self.handle = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.log = ""

    def wait_for(self, pattern: str) -> None:
        """Read the log until `pattern` has come."""
        stream, until = self.handle.stderr, time.monotonic() + TIMEOUT_S
        assert stream is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while not re.search(pattern, self.log):
                assert selector.select(until - time.monotonic()), f"{pattern!r} does not come:\n{self.log}"
                part = os.read(stream.fileno(), 65536).decode()
                assert part, f"the agent ended before {pattern!r}:\n{self.log}"
                self.log += part

    def end(self) -> int:
        """Return the exit code."""
        _, rest = self.handle.communicate(timeout=TIMEOUT_S)
        self.log += rest.decode()
        return self.handle.returncode

    def close(self) -> None:
        """Leave no process behind."""
        if self.handle.poll() is None:
            self.handle.kill()
        self.handle.communicate()


@contextmanager
def running(config: Path) -> Iterator[Process]:
    """Run an agent, and end it whatever happens."""
    process = Process(config)
    try:
        yield process
    finally:
        process.close()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Give a broker to all tests of this file."""
    opened = open_broker("embedded", tmp_path_factory.mktemp("broker"))
    yield opened
    opened.close()


def long_run(broker: Broker, folder: Path, me: str, roster: tuple[str, ...]) -> Path:
    """Write the configuration of a node whose run does not end by itself; return its path."""
    config = device_config(
        folder,
        me,
        roster,
        run=RunSection(id="toy", rounds=1_000_000, roster=roster, start_timeout_s=60.0, round_deadline_s=60.0),
        policy=PolicySection(name="skiptrain", train_rounds=2, sync_rounds=1),
        mqtt=MqttSection(host=broker.host, port=broker.port, answer_timeout_s=0.3),
    )
    return write_config(config, folder / f"{me}.yaml")


def test_the_version_is_the_package_s() -> None:
    """`--version` is what a bug report starts with."""
    result = command("--version")
    assert (result.stdout, result.returncode) == (f"skiptrain-agent {__version__}\n", 0)


def test_the_command_line_loads_nothing_heavy() -> None:
    """`status` on a small board must not import torch, paho or zeroconf."""
    script = "import sys, agent.__main__, agent.config, agent.status; print(*sys.modules)"
    words = [sys.executable, "-c", script]
    modules = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "paho", "zeroconf", "PIL"} & set(modules)


def test_two_agents_over_a_broker_tell_what_they_do_and_stop_when_told(tmp_path: Path, broker: Broker) -> None:
    """`status` and `peers`, as text and JSON, of agents in mid-run; then SIGTERM: code 0 and the model saved."""
    paths = [long_run(broker, tmp_path, me, ("a", "b")) for me in "ab"]
    with running(paths[0]) as first, running(paths[1]) as second:
        for process in (first, second):
            process.wait_for(r"round=2 kind=synchronisation .* peers=1/1 rejected=0 .*\n.*round=3 ")
        assert re.search(r"round=0 kind=training train=1 p=1.000 .* energy_j=23.518 loss=\d", first.log)
        _check_status(paths[0], first.handle.pid)
        _check_peers(paths[0])
        for process in (first, second):
            process.handle.send_signal(signal.SIGTERM)
        assert [first.end(), second.end()] == [0, 0]
        assert "ended: stopped by SIGTERM" in first.log
        assert "Traceback" not in first.log + second.log
        after = command("status", "--config", paths[0])
        assert after.returncode == 0
        assert "ended       stopped by SIGTERM" in after.stdout
    journal = Journal(tmp_path / "a" / "state")
    found = journal.recover()
    journal.close()
    assert found.snapshot is not None
    assert found.model is not None
    assert (found.snapshot.finished, found.snapshot.ledger.reservation) == (False, None)
    assert found.model_round == found.snapshot.round
    assert len(read_records(tmp_path / "a" / "state")) >= 3


def _check_status(path: Path, pid: int) -> None:
    page = _page(path)
    for _ in range(20):  # a page may be a second old
        page = page if page["round"] >= 2 else _page(path)
    assert (page["node"], page["fleet"], page["run"], page["pid"]) == ("a", "fleet", "toy", pid)
    assert page["phase"] in {"training", "collecting"}
    assert (page["rounds"], page["peers_online"], page["neighbours"]) == (1_000_000, 1, 1)
    assert page["round"] >= 2
    assert page["connection"].startswith("connected (MQTT ")
    assert (page["budget_j"], page["spent_j"] > 0, page["journal_bytes"] > 0) == (6396.9912, True, True)
    text = command("status", "--config", path)
    assert text.returncode == 0
    assert re.match(r"a of fleet fleet, run toy: (training|collecting), round \d+/1000000\n", text.stdout)
    for line in (
        r"  decision    .*; trained in \d+ rounds",
        r"  energy      [\d.]+ J spent on training, [\d.]+ of 6397.0 J left \(trace\)",
        r"  broker      connected \(MQTT .*\)",
        r"  peers       1 online, 1 neighbours",
        r"  refused     .+; \d+ with a bad topic, presence or record",
        r"  journal     \d+ bytes written since the start",
    ):
        assert re.search(f"^{line}$", text.stdout, re.MULTILINE), line


def _page(path: Path) -> dict[str, Any]:
    page: dict[str, Any] = json.loads(command("status", "--json", "--config", path).stdout)
    return page


def _check_peers(path: Path) -> None:
    (peer,) = json.loads(command("peers", "--json", "--config", path).stdout)
    assert (peer["node"], peer["online"], peer["neighbour"]) == ("b", True, True)
    assert peer["sources"].keys() == {"static", "mqtt"}
    head, row = command("peers", "--config", path).stdout.splitlines()
    assert head.split()[:4] == ["NODE", "ONLINE", "NEIGHBOUR", "ADDRESS"]
    assert re.fullmatch(r"b +yes +yes +- +mqtt \d+, static 0", row)


def test_a_node_that_waits_stops_when_told(tmp_path: Path, broker: Broker) -> None:
    """SIGINT counts like SIGTERM; the page says what it waits for until then."""
    path = long_run(broker, tmp_path, "c", ("c", "d"))
    with running(path) as process:
        process.wait_for("connected to the broker")
        assert "c of fleet fleet, run toy: waiting, round 0/1000000\n" in command("status", "--config", path).stdout
        process.handle.send_signal(signal.SIGINT)
        assert process.end() == 0
        assert "ended: stopped by SIGINT" in process.log


def test_the_page_of_exit_codes_lists_every_error() -> None:
    """docs/exit-codes.md has the class and code of each error that there is, and no other."""
    text = (ROOT / "docs" / "exit-codes.md").read_text()
    listed = {(name, int(code)) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.MULTILINE)}
    errors = [kind for kind in vars(agent.errors).values() if isinstance(kind, type) and issubclass(kind, AgentError)]
    assert listed == {(kind.__name__, kind.exit_code) for kind in errors}
    unit = (ROOT / "systemd" / "skiptrain-agent.service").read_text()
    prevented = re.findall(r"RestartPreventExitStatus=(.*)", unit)
    assert " ".join(re.findall(r"^\| (\d+) \|.*\| no: ", text, re.MULTILINE)) == prevented[0]
