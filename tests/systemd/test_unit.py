"""The files for systemd, checked by systemd's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = SYSTEMD / "skiptrain-agent.service"


def tool(name: str) -> str:
    """Return the path of one of systemd's tools; without it the test fails."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is missing; install it with 'sudo apt-get install systemd'")
    return path


def test_systemd_finds_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` prints nothing; its exit status alone would forgive a misspelt key."""
    unit = tmp_path / UNIT.name
    unit.write_text(
        re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", UNIT.read_text(), flags=re.MULTILINE)
    )
    command = [tool("systemd-analyze"), "verify", "--man=no", str(unit)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.returncode == 0


def test_the_unit_keeps_its_promises() -> None:
    """What the agent relies on: readiness, a watchdog, no restart on a bad configuration, its own directories."""
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    parser.read(UNIT)
    promised = {
        "Type": "notify",
        "User": "skiptrain",
        "Restart": "on-failure",
        "RestartPreventExitStatus": "2 78",
        "StateDirectory": "skiptrain",
        "RuntimeDirectory": "skiptrain",
        "ConfigurationDirectory": "skiptrain",
        "ExecStart": "/opt/skiptrain/current/bin/skiptrain-agent run --config /etc/skiptrain/agent.yaml",
    }
    service = parser["Service"]
    assert {key: service.get(key) for key in promised} == promised
    assert service["WatchdogSec"]
    assert service["TimeoutStopSec"]


def test_the_user_of_the_unit_is_made(tmp_path: Path) -> None:
    """`systemd-sysusers` makes the unit's user, with no shell and its home in the state directory."""
    (tmp_path / "etc").mkdir()
    command = [tool("systemd-sysusers"), f"--root={tmp_path}", "-"]
    text = (SYSTEMD / "skiptrain-sysusers.conf").read_text()
    subprocess.run(command, input=text, text=True, capture_output=True, check=True)
    name, _, _, _, _, home, shell = (tmp_path / "etc" / "passwd").read_text().strip().split(":")
    assert (name, home, shell) == ("skiptrain", "/var/lib/skiptrain", "/usr/sbin/nologin")
