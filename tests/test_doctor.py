"""The doctor with real parts: a trainer child, a mosquitto, mDNS on loopback; sensors are trees and commands."""

from __future__ import annotations

import json
import os
import queue
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.checks import configuration, disk
from agent.checks.calibration import Known
from agent.checks.check import Bench, Check, Finding, Host
from agent.config import DataSection, DiscoverySection, ModelSection, MqttSection, NodeSection
from agent.core.types import NodeId
from agent.doctor import CHECKS, Report, Result, _find, examine, lines, summary
from agent.energy_config import BudgetSection, EnergySection
from agent.journal import Journal
from agent.network.mdns import Mdns, advertise_broker
from agent.network.mqtt import MqttConfig, MqttTransport
from agent.network.transport import Disconnected, Identity, PresenceSeen, SessionConflict, Subscribed
from agent.status import Status, write_status
from sim_harness.brokers import open_broker
from tests.device_rig import device_config, write_config
from tests.energy import trees
from tests.energy.board_trees import bat0, command, fill, ina_hat, place

ROOT = Path(__file__).parents[1]
LOOPBACK = ("127.0.0.1",)
WAIT_S = 30.0
LONG_S = 8.0
"""How long others are listened for: a service is announced a second after it began, on a busy machine later."""
PROFILE = """\
version: 1
about: a board
support: train
energy: {source: ina}
power:
  idle_w: {value: 2.5, source: a meter}
  load_w: {value: 4, source: a meter}
  max_w: {value: 6, source: a meter}
learning: {threads: 4, max_batch_size: 64, memory_mb: 500, source: a guess}
torch: {requirement: "torch>=2.3", note: any}
"""
MEMINFO = {"MemTotal": 2_000_000, "MemAvailable": 1_500_000, "SwapTotal": 0, "SwapFree": 0}


class Device:
    """A device that is well, in a folder; a test spoils what it is about."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.sections: dict[str, Any] = {}
        self.profile(PROFILE)
        self.chip = ina_hat(self.sys)
        bat0(self.sys)
        self.zone(0, "cpu-thermal", 51_000)
        fill(
            self.sys / "devices/system/cpu/cpu0/cpufreq",
            {"scaling_cur_freq": 1_500_000, "cpuinfo_max_freq": 2_400_000, "scaling_governor": "ondemand"},
        )
        self.meminfo()
        self.throttled("throttled=0x0")
        self.energy = EnergySection(
            sysfs_root=str(self.sys), vcgencmd=str(folder / "vcgencmd"), budget=BudgetSection(joules=100.0)
        )
        self.host = Host(
            proc=place(folder).proc,
            run=fill(folder / "run/systemd/timesync", {"synchronized": ""}).parents[1],
            synchronised=lambda: True,
            idle_s=0.2,
            load_s=0.6,
            listen_s=1.0,
        )

    @property
    def sys(self) -> Path:
        """The tree that stands for /sys."""
        return place(self.folder).sys

    def profile(self, text: str) -> None:
        """Write the board's profile, and name it."""
        path = self.folder / "own.yaml"
        path.write_text(text)
        node = NodeSection(
            id="a",
            fleet="fleet",
            state_dir=str(self.folder / "state"),
            runtime_dir=str(self.folder / "rt"),
            profile=str(path),
        )
        self.sections["node"] = node

    def zone(self, number: int, kind: str, millidegrees: int) -> None:
        """Make a thermometer."""
        fill(self.sys / f"class/thermal/thermal_zone{number}", {"type": kind, "temp": millidegrees})

    def meminfo(self, **other: int) -> None:
        """Write /proc/meminfo, in kB."""
        values = {**MEMINFO, **other}
        text = "".join(f"{name}: {value:>12} kB\n" for name, value in values.items())
        place(self.folder).proc.mkdir(exist_ok=True)
        (place(self.folder).proc / "meminfo").write_text(text)

    def throttled(self, says: str) -> None:
        """Let vcgencmd say so."""
        command(self.folder, f'[ "$1" = get_throttled ] || exit 99\necho "{says}"\n')

    def draws(self, power_uw: int) -> None:
        """Let the board draw so much from now on."""
        fresh = self.chip / "fresh"
        fresh.write_text(f"{power_uw}\n")
        fresh.replace(self.chip / "power1_input")

    def broker(self) -> int:
        """Start a mosquitto for it; return its port."""
        opened = open_broker("mosquitto", self.folder / "broker")
        self.stack.callback(opened.close)
        self.sections["mqtt"] = MqttSection(host=opened.host, port=opened.port)
        return opened.port

    def write(self) -> str:
        """Write its configuration; return the path."""
        sections = {"energy": self.energy, **self.sections}
        return str(write_config(device_config(self.folder, **sections), self.folder / "agent.yaml"))

    def examine(self, *, tell: Callable[[Result], None] = lambda _: None) -> Report:
        """Run all checks."""
        report = examine(self.write(), host=self.host, tell=tell)
        for result in report.checks:
            assert "Traceback" not in result.detail
            assert bool(result.fix) is (result.status in ("failed", "warning")), result
        return report

    def ask(self, *names: str) -> Finding:
        """Run the check that loads the configuration, then these; return what the last one found."""
        bench = Bench(self.write(), (), self.host, began=(self.host.wall(), self.host.monotonic()))
        self.stack.callback(bench.close)
        assert configuration.check(bench).status in ("ok", "warning")
        checks = {check.name: check for check in CHECKS}
        findings = [_find(checks[name], bench) for name in names]
        assert bool(findings[-1].fix) is (findings[-1].status in ("failed", "warning")), findings[-1]
        return findings[-1]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Give a stack that closes what a test opens."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def device(tmp_path: Path, stack: ExitStack) -> Device:
    """Give a device that is well."""
    return Device(tmp_path, stack)


def statuses(report: Report) -> dict[str, str]:
    """Return what became of each check."""
    return {result.name: result.status for result in report.checks}


# --- the whole


def test_a_device_that_is_well(device: Device, stack: ExitStack) -> None:
    """Every check is ok and tells its numbers; the board draws more from the moment the trainer is there."""
    device.broker()
    fleet = f"f{uuid.uuid4().hex[:8]}"
    device.sections["node"] = NodeSection(**{**_fields(device.sections["node"]), "fleet": fleet})
    device.sections["discovery"] = DiscoverySection(mdns=True, interfaces=LOOPBACK)
    device.host = replace(device.host, listen_s=LONG_S)
    peer = Mdns(fleet, NodeId("b"), lambda _item: True, interfaces=LOOPBACK)
    stack.callback(peer.close)
    peer.start()
    heard = []

    def tell(result: Result) -> None:
        heard.append(result.name)
        if result.name == "torch":
            device.draws(4_500_000)

    report = device.examine(tell=tell)
    found = {result.name: result for result in report.checks}
    assert heard == [check.name for check in CHECKS]
    assert {name: result.status for name, result in found.items() if result.status != "ok"} in ({}, {"disk": "warning"})
    assert (report.ok, report.exit_code) == (True, 0)
    for name, wanted in {
        "configuration": r"node a of fleet \w+, run toy; profile .*own.yaml: support train",
        "data": "digits; test set: digits",
        "sensor": r"ina \(board: .*\), measured: 2\.\d\d W ± .* over 0\.\d s, 100% observed",
        "torch": r"torch \d.*: one local step of small-cnn, batch 8, in \d+\.\d{3} s",
        "calibration": r"at rest 2\.\d\d W; training 4\.\d\d W .* round of 4 steps costs about \S+ J \(energy\.round_j",
        "battery": r"83%, discharging, giving 4\.21 W; ina says 2\.\d\d W",
        "broker": r"127\.0\.0\.1:\d+, MQTT 5: round trip \d+\.\d ms, 0 agents of fleet \w+ online",
        "mdns": r"heard on 127\.0\.0\.1; 1 other nodes of fleet \w+ seen \(b\)",
        "clock": r"20\d\d-.* UTC, synchronised \(by the kernel\)",
        "disk": r"fsync in \d+\.\d ms, \d+ MiB free of \d+ MiB needed",
        "memory": r"1536 MB of 2048 MB available, 500 MB needed \(by the profile\); no swap",
        "temperature": r"51\.0 °C \(cpu-thermal .*\), 1500 of 2400 MHz, governor ondemand, get_throttled 0x0",
    }.items():
        assert re.search(wanted, found[name].detail), found[name].detail
    assert not (device.folder / "state").exists()


def _fields(section: NodeSection) -> dict[str, Any]:
    return {name: getattr(section, name) for name in section.__struct_fields__}


def test_without_a_configuration_only_the_machine_is_looked_at(device: Device) -> None:
    """The first failure gives the code; what needs the configuration is skipped and says so."""
    report = examine(str(device.folder / "none.yaml"), host=device.host, sysfs_root=str(device.sys))
    found = {result.name: result for result in report.checks}
    assert (report.ok, report.exit_code, found["configuration"].exit_code) == (False, 78, 78)
    assert "none.yaml: cannot be read" in found["configuration"].detail
    assert found["broker"].detail == "configuration failed"
    assert statuses(report) == {
        **dict.fromkeys(statuses(report), "skipped"),
        "configuration": "failed",
        "clock": "ok",
        "temperature": "ok",
    }


def test_the_first_failure_of_several_gives_the_code(device: Device) -> None:
    """Data, broker and temperature fail: 65; torch and the watts in training are not looked at."""
    device.sections["data"] = DataSection(source="npz", path=str(device.folder / "gone.npz"))
    device.sections["mqtt"] = MqttSection(host="127.0.0.1", port=1)
    device.zone(1, "gpu", 95_000)
    report = device.examine()
    found = {result.name: result for result in report.checks}
    failures = {result.name: result.exit_code for result in report.checks if result.exit_code}
    assert (failures, report.exit_code) == ({"data": 65, "broker": 69, "temperature": 73}, 65)
    assert found["torch"].detail == "data failed"
    assert found["calibration"].detail == "torch was skipped: data failed"
    assert lines(found["broker"])[1].lstrip().startswith("fix: start the broker")
    assert summary(report) == "3 failed, 0 warnings; exit code 65"


def test_a_check_that_crashes_is_a_failed_check(device: Device) -> None:
    """Its error is named, and there is something to do."""
    finding = _find(Check("x", 70, lambda _bench: Finding("ok", str(1 // 0))), Bench(device.write(), (), device.host))
    assert (finding.status, finding.detail) == (
        "failed",
        "the check itself failed: ZeroDivisionError: integer division or modulo by zero",
    )
    assert finding.fix


def test_the_command_as_people_and_programs_read_it(device: Device) -> None:
    """Real processes: aligned lines with fixes, JSON with every field, the profile and tree of the command line."""
    device.sections["mqtt"] = MqttSection(host="127.0.0.1", port=1)
    device.sections["data"] = DataSection(source="npz", path=str(device.folder / "gone.npz"))
    given = ("--config", device.write(), "--sysfs-root", str(device.sys), "--set", "learning.local_steps=2")
    text = _command(*given)
    assert (text.returncode, text.stderr) == (65, "")
    shown = text.stdout.splitlines()
    assert [line.split()[0] for line in shown if not line.startswith(" ")][:-1] == [check.name for check in CHECKS]
    assert re.search(r"^broker +failed +127\.0\.0\.1:1: .*\n +fix: start the broker", text.stdout, re.MULTILINE)
    assert shown[-1].endswith("exit code 65")
    coded = _command(*given, "--json", "--profile", "raspberry-pi-5-ina219")
    page = json.loads(coded.stdout)
    assert (coded.returncode, page["ok"], page["exit_code"]) == (65, False, 65)
    assert [check.keys() for check in page["checks"]] == [
        {"name": None, "status": None, "detail": None, "fix": None, "exit_code": None, "seconds": None}.keys()
    ] * len(CHECKS)
    assert "profile raspberry-pi-5-ina219: support train" in page["checks"][0]["detail"]
    wrong = _command(*given, "--profile", "rasberry-pi-5")
    assert wrong.returncode == 78
    assert "raspberry-pi-5" in wrong.stdout
    assert "Traceback" not in text.stderr + coded.stderr + wrong.stderr


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "agent", "doctor", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_relay_needs_neither_data_nor_torch_nor_sensor(device: Device) -> None:
    """Its profile says why it does not train."""
    ending = PROFILE.partition("power:")[2].partition("learning:")[0]
    relay = PROFILE.replace("support: train", "support: relay\nreason: too small").partition("power:")[0]
    device.profile(f"{relay}power:{ending}learning: {{memory_mb: 100, source: a guess}}\ntorch: null\n")
    report = device.examine()
    found = statuses(report)
    assert {found[name] for name in ("data", "sensor", "torch", "calibration")} == {"skipped"}
    assert "support relay (too small)" in report.checks[0].detail


# --- one check each


def test_no_sensor_a_broken_one_and_one_that_stands_still(device: Device, tmp_path: Path) -> None:
    """Each is one line with its fix."""
    (device.chip / "power1_input").write_text("garbage\n")
    assert "power" in failure(device.ask("sensor"))
    device.energy = _energy(device, sysfs_root=str(tmp_path / "empty"))
    assert "ina" in failure(device.ask("sensor")).lower()
    trees.rapl(tmp_path / "still")
    device.energy = _energy(device, sysfs_root=str(tmp_path / "still"), source="rapl")
    assert "does not move" in failure(device.ask("sensor"))


def test_replayed_joules_are_no_sensor(device: Device) -> None:
    """Nothing is measured, nothing compared."""
    device.energy = _energy(device, source="trace")
    assert device.ask("sensor").detail.startswith("energy.source trace: published")


def failure(finding: Finding) -> str:
    """Return what a finding says that must be a failure."""
    assert finding.status == "failed", finding
    assert finding.fix
    return finding.detail


def _energy(device: Device, **other: Any) -> EnergySection:
    section = device.energy
    return EnergySection(**{**{name: getattr(section, name) for name in section.__struct_fields__}, **other})


@pytest.mark.parametrize(
    ("body", "detail", "fix"),
    [
        ("os.kill(os.getpid(), signal.SIGILL)", "died of SIGILL", "pip install 'torch>=2.3' (any)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL", "use a smaller model"),
        ("raise ValueError('no such layer')", "no such layer", "install"),
    ],
)
def test_a_trainer_that_dies_is_explained(
    device: Device, monkeypatch: pytest.MonkeyPatch, body: str, detail: str, fix: str
) -> None:
    """A user's model ends a real child in the way that a wrong torch build, or too little memory, does."""
    (device.folder / "mine.py").write_text(f"import os, signal\ndef make(shape, classes):\n    {body}\n")
    monkeypatch.setenv("PYTHONPATH", str(device.folder))
    device.sections["model"] = ModelSection(name="mine:make", input_shape=(1, 8, 8), classes=10)
    finding = device.ask("torch")
    assert detail in failure(finding)
    assert fix in finding.fix


def test_a_torch_that_cannot_be_imported(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child says so, and the fix is in the profile or the extra."""
    (device.folder / "torch.py").write_text("raise ImportError('libcudart.so: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(device.folder))
    assert "torch" in failure(device.ask("torch"))


@pytest.mark.parametrize(
    ("power_uw", "detail", "fix"),
    [
        (27_920_000, "W at rest is more than 1.25 x max_w", "about ten times too much (the driver reckons with"),
        (279_200, "W at rest is less than 0.5 x idle_w", "about a tenth"),
        (9_000_000, "W at rest is more than 1.25 x max_w", "a wrong rail"),
    ],
)
def test_watts_that_cannot_be_this_board_s(device: Device, power_uw: int, detail: str, fix: str) -> None:
    """The numbers, and the likeliest reason by their ratio; what else there is to do is in each."""
    device.draws(power_uw)
    finding = device.ask("sensor", "torch", "calibration")
    assert detail in failure(finding)
    assert finding.fix.startswith(fix)
    assert "docs/profiles.md" in finding.fix


def test_watts_are_said_by_whom_they_come_from() -> None:
    """Who has to correct a number must know in which file it stands."""
    assert str(Known(2.5, 4.0, 6.0)) == "the profile says idle_w 2.5, load_w 4, max_w 6"
    assert str(Known(2.5, None, 6.0, frozenset({"idle_w", "max_w"}))) == "the configuration says idle_w 2.5, max_w 6"


def test_a_number_of_the_configuration_is_not_the_profile_s(device: Device) -> None:
    """It wins over the profile's."""
    device.energy = msgspec.structs.replace(device.energy, max_w=5.5)
    device.draws(9_000_000)
    detail = failure(device.ask("sensor", "torch", "calibration"))
    assert "(the configuration says max_w 5.5, the profile says idle_w 2.5, load_w 4): " in detail


def test_training_that_draws_nothing_is_a_warning(device: Device) -> None:
    """The rail may feed something else."""
    finding = device.ask("sensor", "torch", "calibration")
    assert (finding.status, finding.detail[:36]) == ("warning", "training draws no more than rest: at")
    assert "energy.rails" in finding.fix


def test_without_the_board_s_watts_the_numbers_are_for_a_profile(device: Device) -> None:
    """They are measured all the same."""
    device.profile(re.sub(r"\{value.*?\}", "null", PROFILE))
    finding = device.ask("sensor", "torch", "calibration")
    assert finding.status == "skipped"
    assert re.search(r"into a profile of your own .*: at rest 2\.\d\d W; training 2\.\d\d W .*round_j", finding.detail)


def test_beside_a_running_agent_the_watts_are_its_too(device: Device) -> None:
    """Its page is there, its process lives: no board at rest, and memory that it has is not missing."""
    folder = device.folder / "rt"
    folder.mkdir()
    write_status(
        folder,
        Status(
            node="a",
            fleet="fleet",
            run="toy",
            pid=os.getpid(),
            phase="training",
            round=0,
            rounds=6,
            decision="trains",
            trained=0,
            connection="",
            peers_online=0,
            neighbours=0,
            budget_j=None,
            spent_j=0.0,
            left_j=None,
            energy_source="ina",
            journal_bytes=0,
            network={},
            ended="",
        ),
    )
    assert device.ask("sensor").detail.endswith("an agent is running, so this is no idle board")
    finding = device.ask("sensor", "torch", "calibration")
    assert (finding.status, "an agent is running" in finding.detail) == ("ok", True)
    device.meminfo(MemAvailable=300_000)
    assert device.ask("memory").status == "ok"


def test_batteries(device: Device) -> None:
    """Too empty to train is a warning; a gauge that is missed, or says nonsense, is a failure."""
    device.energy = _energy(device, min_battery=0.9)
    assert "83%, discharging" in device.ask("battery").detail
    assert device.ask("battery").status == "warning"
    fill(device.sys / "class/power_supply/BAT0", {"capacity": 830})
    assert "830 is no percentage" in failure(device.ask("battery"))
    fill(device.sys / "class/power_supply/BAT0", {"type": "Mains"})
    assert "no battery gauge" in failure(device.ask("battery"))
    device.energy = _energy(device, min_battery=0.0)
    assert device.ask("battery").status == "skipped"


def test_a_gauge_and_a_sensor_that_see_different_boards(device: Device) -> None:
    """2.79 W beside 9 W."""
    fill(device.sys / "class/power_supply/BAT0", {"power_now": 9_000_000})
    assert device.ask("sensor", "battery").status == "warning"
    fill(device.sys / "class/power_supply/BAT0", {"status": "Charging"})
    assert device.ask("sensor", "battery").status == "ok"


def test_brokers_that_are_not_there(device: Device, stack: ExitStack) -> None:
    """Nobody listens, the name is unknown, somebody listens who never answers."""
    device.sections["mqtt"] = MqttSection(host="127.0.0.1", port=1)
    assert "nothing listens on port 1" in failure(device.ask("broker"))
    device.sections["mqtt"] = MqttSection(host="no-such-host.invalid")
    assert "no-such-host.invalid is not known here" in failure(device.ask("broker"))
    silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    device.sections["mqtt"] = MqttSection(host="127.0.0.1", port=silent.getsockname()[1], answer_timeout_s=0.2)
    assert "does not answer as a broker does" in failure(device.ask("broker"))


def test_a_broker_that_refuses_this_user(device: Device, tmp_path: Path, stack: ExitStack) -> None:
    """A wrong password, a file that is not there; the right one gets in."""
    port = _strict_broker(tmp_path, stack)
    secret = tmp_path / "password"
    device.sections["mqtt"] = MqttSection(host="127.0.0.1", port=port, username="a", password_file=str(secret))
    assert "password: cannot be read" in failure(device.ask("broker"))
    secret.write_text("wrong\n")
    finding = device.ask("broker")
    assert "refuses the session" in failure(finding)
    assert "mqtt.password_file" in finding.fix
    secret.write_text("right\n")
    assert device.ask("broker").status == "ok"


def _strict_broker(folder: Path, stack: ExitStack) -> int:
    passwords, config = folder / "passwords", folder / "mosquitto.conf"
    passwords.write_text("a:right\n")
    subprocess.run(["mosquitto_passwd", "-U", passwords], check=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    root = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(f"{root}listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n")
    words = ["mosquitto", "-c", str(config)]
    path = f"{os.environ['PATH']}:/usr/sbin"
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "PATH": path})
    stack.callback(process.communicate)
    stack.callback(process.kill)
    assert process.stderr is not None
    while "running" not in (line := process.stderr.readline()):
        assert line, "mosquitto did not start"
    return port


def test_a_broker_of_an_old_kind_is_a_warning(device: Device, stack: ExitStack) -> None:
    """It knows no MQTT 5."""
    opened = open_broker("embedded", device.folder / "broker")
    stack.callback(opened.close)
    device.sections["mqtt"] = MqttSection(host=opened.host, port=opened.port, answer_timeout_s=1.0)
    finding = device.ask("broker")
    assert (finding.status, "MQTT 3.1.1: round trip" in finding.detail) == ("warning", True)


def test_an_agent_of_the_same_name_is_not_disturbed(device: Device, stack: ExitStack) -> None:
    """It is seen online, keeps its session, and hears of nobody new."""
    port, box = device.broker(), queue.SimpleQueue[Any]()
    me = Identity("fleet", NodeId("a"), "toy", "ab" * 16, "0")
    agent = MqttTransport(MqttConfig("127.0.0.1", port), me, lambda item: box.put(item) or True)
    stack.callback(agent.close, "the end")
    agent.start()
    first = list(_until(box, frozenset()))
    assert ", 1 agents of fleet fleet online" in device.ask("broker").detail
    agent.watch(frozenset([NodeId("b")]))
    heard = [*first, *_until(box, frozenset(["b"]))]
    assert not [item for item in heard if isinstance(item, (Disconnected, SessionConflict, PresenceSeen))]


def _until(box: queue.SimpleQueue[Any], peers: frozenset[str]) -> Iterator[Any]:
    """Yield what is posted, up to the subscription to the models of `peers`."""
    while True:
        yield (item := box.get(timeout=WAIT_S))
        if isinstance(item, Subscribed) and item.peers == peers:
            return


def test_a_broker_found_over_mdns(device: Device, stack: ExitStack) -> None:
    """By its announcement for this fleet; without one the fix says so."""
    port, fleet = device.broker(), f"f{uuid.uuid4().hex[:8]}"
    device.sections["node"] = NodeSection(**{**_fields(device.sections["node"]), "fleet": fleet})
    device.sections["mqtt"] = MqttSection()
    device.sections["discovery"] = DiscoverySection(mdns=True, interfaces=LOOPBACK)
    assert f"no broker of fleet {fleet}" in failure(device.ask("broker"))
    device.host = replace(device.host, listen_s=LONG_S)
    stack.callback(advertise_broker(fleet, port, lambda _item: True, interfaces=LOOPBACK).close)
    finding = device.ask("broker")
    assert finding.detail.startswith(f"127.0.0.1:{port} (found over mDNS), MQTT 5")


def test_mdns_on_an_interface_that_is_not_there(device: Device) -> None:
    """The address is named; switched off it is not looked at."""
    device.sections["discovery"] = DiscoverySection(mdns=True, interfaces=("192.0.2.1",))
    assert "is not heard on 192.0.2.1" in failure(device.ask("mdns"))
    device.sections["discovery"] = DiscoverySection(mdns=False)
    assert device.ask("mdns").detail == "discovery.mdns is off"


def test_clocks(device: Device) -> None:
    """A year that cannot be is a failure; what nobody keeps right, or what jumps, a warning."""
    good = device.host
    device.host = replace(good, wall=lambda: 86400.0)
    assert "1970-01-02 00:00:00 UTC" in failure(device.ask("clock"))
    device.host = replace(good, synchronised=lambda: False)
    assert device.ask("clock").detail.endswith("synchronised (systemd/timesync/synchronized)")
    device.host = replace(good, synchronised=lambda: False, run=device.folder / "no")
    assert device.ask("clock").detail.endswith("UTC, not synchronised")
    device.host = replace(good, synchronised=lambda: None, run=device.folder / "no")
    assert (device.ask("clock").status, "nobody says" in device.ask("clock").detail) == ("warning", True)
    walls = iter([1.8e9, 1.8e9 + 3600])
    device.host = replace(good, wall=lambda: next(walls))
    assert "jumped by +3600.0 s" in device.ask("clock").detail
    assert Host().synchronised() in (True, False, None)


def test_the_disk_while_an_agent_has_its_journal_open(device: Device) -> None:
    """Its lock is not touched, and nothing is left behind."""
    journal = Journal(device.folder / "state")
    before = sorted(path.name for path in (device.folder / "state").iterdir())
    assert device.ask("disk").status in ("ok", "warning")
    assert sorted(path.name for path in (device.folder / "state").iterdir()) == before
    journal.close()


def test_disks_that_take_nothing(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that cannot be written, a file instead of a folder, a disk that is full or read-only."""
    node = _fields(device.sections["node"])
    device.sections["node"] = NodeSection(**{**node, "state_dir": "/proc/skiptrain"})
    assert "/proc cannot be written" in failure(device.ask("disk"))
    (device.folder / "file").touch()
    device.sections["node"] = NodeSection(**{**node, "state_dir": str(device.folder / "file")})
    assert "Not a directory" in failure(device.ask("disk"))
    real = os.statvfs("/")

    class Full:
        f_bavail, f_frsize, f_blocks, f_flag = 100, real.f_frsize, real.f_blocks, os.ST_RDONLY

    monkeypatch.setattr(disk.os, "statvfs", lambda _path: Full)
    finding = device.ask("disk")
    assert "mounted read-only" in failure(finding)
    device.sections["node"] = NodeSection(**node)
    assert "0 MiB free of 37 MiB needed" in failure(device.ask("disk"))


def test_memories(device: Device) -> None:
    """Less than the profile asks for is a failure, a warning where swap makes up for it."""
    device.meminfo(MemAvailable=300_000)
    assert failure(device.ask("memory")).startswith("307 MB of 2048 MB available, 500 MB needed (by the profile)")
    device.meminfo(MemAvailable=300_000, SwapTotal=900_000, SwapFree=800_000)
    assert device.ask("memory").detail.endswith("swap 102 of 921 MB used")
    assert device.ask("memory").status == "warning"
    (place(device.folder).proc / "meminfo").write_text("nothing\n")
    assert device.ask("memory").status == "skipped"
    device.meminfo()
    device.sections["node"] = NodeSection(**{**_fields(device.sections["node"]), "profile": ""})
    assert "500 MB needed (by the size of the model)" in device.ask("memory").detail


@pytest.mark.parametrize(
    ("millidegrees", "throttled", "status", "detail"),
    [
        (79_000, "throttled=0x0", "ok", "79.0 °C"),
        (84_500, "throttled=0x0", "warning", "84.5 °C"),
        (90_000, "throttled=0x0", "failed", "90.0 °C"),
        (50_000, "throttled=0xf0006", "failed", "0xf0006: now the clock capped, throttled"),
        (50_000, "throttled=0x50005", "failed", "now too low a voltage, throttled"),
        (50_000, "throttled=0x50000", "warning", "since the start there was too low a voltage, throttled"),
        (50_000, "VCHI initialization failed", "warning", "throttling is not known: "),
        (900_000, "throttled=0x8", "failed", "now the soft limit of temperature"),
    ],
)
def test_temperatures(device: Device, millidegrees: int, throttled: str, status: str, detail: str) -> None:
    """Degrees and the bits of the firmware; the power chip of a Jetson, which always says 100, is no thermometer."""
    device.zone(0, "cpu-thermal", millidegrees)
    device.zone(1, "PMIC-Die", 100_000)
    device.throttled(throttled)
    finding = device.ask("temperature")
    assert (finding.status, detail in finding.detail) == (status, True), finding


def test_a_board_without_thermometers(device: Device, tmp_path: Path) -> None:
    """Nothing to look at."""
    device.energy = _energy(device, sysfs_root=str(tmp_path / "empty"), vcgencmd="no-such-vcgencmd")
    assert device.ask("temperature").status == "skipped"


def test_the_pages_list_each_check_with_its_code() -> None:
    """docs/doctor.md and docs/exit-codes.md, in the order of the registry; no code is used twice."""
    wanted = [(check.name, check.exit_code) for check in CHECKS]
    assert len({code for _, code in wanted}) == len(wanted)
    for page, pattern in (
        ("doctor", r"^\| `(\w+)` \|.*?\| (\d+) \|"),
        ("exit-codes", r"^\| (\d+) \| doctor: (\w+) \|"),
    ):
        rows = re.findall(pattern, (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE)
        listed = [(name, int(code)) for name, code in (row if page == "doctor" else row[::-1] for row in rows)]
        assert sorted(listed) == sorted(wanted)
        assert page != "doctor" or listed == wanted
