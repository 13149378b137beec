"""One emulation over several real processes: the files of one process, byte for byte; nobody waits for the dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from agent.errors import AgentError, ConfigError
from sim_harness import distributed
from sim_harness.distributed import MESSAGE_BYTES, World, interface_to, messages, open_world, share_of
from sim_harness.emulation import run_emulated
from sim_harness.mosquitto import free_port
from sim_harness.scenario import load_scenario

ROOT = Path(__file__).parents[2]
ENDS_S = 100
"""No run lasts so long; one that does hangs."""
SCENARIO = """
name: parts
nodes: 18
rounds: 9
seed: 3
policy: {name: skiptrain-constrained, train_rounds: 2, sync_rounds: 1}
topology: {kind: regular, degree: 4}
data: {source: digits, partition: {kind: shard, shards: 2}}
learning: {batch_size: 16, local_steps: 3}
energy: {devices: [xiaomi-12-pro, poco-x3], budget_scale: 0.02}
network:
  delay_s: [0.0, 2.0]
  loss: 0.05
  churn: {mean_up_s: 400, mean_down_s: 60, share: 0.5}
  stragglers: {share: 0.3, factor: 3}
evaluation: {every: 3, samples: 100}
engine: {workers: 1}
"""
EMULATE = ("-m", "sim_harness", "emulate")
FILES = ("rounds.csv", "evaluation.csv", "consensus.csv")
TIMES = {"wall_s", "phase_s", "processes", "cut_edges", "exchanged_bytes"}


@dataclass(frozen=True)
class Ended:
    """A process that has ended, and all that it said."""

    code: int
    said: str


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the scenario's file."""
    path = tmp_path_factory.mktemp("scenario") / "parts.yaml"
    path.write_text(SCENARIO, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the files of one process."""
    out = tmp_path_factory.mktemp("alone")
    run_emulated(load_scenario(str(scenario)), out, Console(quiet=True))
    return out


def run(commands: Sequence[Sequence[str | Path]], variables: Sequence[Mapping[str, str]] = ()) -> list[Ended]:
    """Run the commands side by side, each with the variables of its own, to their ends."""
    started = []
    for i, command in enumerate(commands):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(variables[i] if variables else {})}
        words = [str(word) for word in command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(words, cwd=ROOT, env=environment, text=True, **pipes))
    try:
        said = [process.communicate(timeout=ENDS_S)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [Ended(process.returncode, text) for process, text in zip(started, said, strict=True)]


def pair(*words: str | Path) -> list[Ended]:
    """Run python with those words twice, as torchrun would."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    variables = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return run([[sys.executable, *words]] * 2, variables)


def torchrun(*options: str) -> list[str]:
    """Return the command of torchrun with those options."""
    return [sys.executable, "-m", "torch.distributed.run", *options, *EMULATE]


def assert_equal_runs(ours: Path, alone: Path, processes: int) -> None:
    """Fail unless all files of evidence are those of one process, byte for byte, and no time but times differs."""
    for name in FILES:
        assert (ours / name).read_bytes() == (alone / name).read_bytes(), name
    summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in (ours, alone)]
    assert (summaries[0]["processes"], summaries[1]["processes"]) == (processes, 1)
    assert summaries[0]["exchanged_bytes"] > 0
    kept, expected = ({key: value for key, value in values.items() if key not in TIMES} for values in summaries)
    assert kept == expected


def test_three_processes_of_torchrun_do_what_one_does(scenario: Path, alone: Path, tmp_path: Path) -> None:
    """Delays, loss, churn and stragglers included; the first process alone speaks."""
    out = tmp_path / "out"
    options = ("--nproc-per-node", "3", "--master-port", str(free_port()))
    [ended] = run([[*torchrun(*options), scenario, "--out", out]])
    assert ended.code == 0, ended.said
    assert ended.said.count("; files in ") == 1
    assert_equal_runs(out, alone, 3)


_NUMBERS = count()


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Return two network namespaces that reach each other as 10.77.0.1 and 10.77.0.2, as two hosts do."""
    names = [f"skiptrain-{os.getpid()}-{next(_NUMBERS)}{end}" for end in "ab"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "va", "netns", names[0], "type", "veth", "peer", "name", "vb", "netns", names[1])
        for name, end, address in zip(names, ("va", "vb"), ("10.77.0.1/24", "10.77.0.2/24"), strict=True):
            _ip("-n", name, "addr", "add", address, "dev", end)
            for link in ("lo", end):
                _ip("-n", name, "link", "set", link, "up")
        yield names[0], names[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    """Run `ip`; fail the test with what to do where it cannot."""
    try:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.fail("no command `ip`: .ci/system-packages test installs it")
    except subprocess.CalledProcessError as error:
        pytest.fail(f"ip {' '.join(words)}: {error.stderr.strip()}; this test makes network namespaces, run it as root")


def test_two_hosts_do_what_one_does(scenario: Path, alone: Path, tmp_path: Path, namespaces: tuple[str, str]) -> None:
    """A torchrun in each of two network namespaces; the second one leaves no files."""
    port = str(free_port())
    options = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "10.77.0.1", "--master-port", port)
    commands = [
        ["ip", "netns", "exec", name, *torchrun(*options, "--node-rank", str(i)), scenario, "--out", tmp_path / str(i)]
        for i, name in enumerate(namespaces)
    ]
    first, second = run(commands)
    assert (first.code, second.code) == (0, 0), first.said + second.said
    assert_equal_runs(tmp_path / "0", alone, 2)
    assert not list((tmp_path / "1").iterdir())


def test_a_run_that_one_process_must_stop_goes_on_to_the_same_end(scenario: Path, alone: Path, tmp_path: Path) -> None:
    """A signal to the second process alone: both stop at the same event; only as many can go on."""
    out = tmp_path / "out"
    struck = (ROOT / "tests" / "sim_harness" / "struck.py", "1", "SIGTERM", "4")
    first, second = pair(*struck, "emulate", scenario, "--out", out)
    assert (first.code, second.code) == (130, 130), first.said + second.said
    assert "--resume" in first.said
    assert second.said == ""
    with pytest.raises(ConfigError, match="one of 2 process"):
        run_emulated(load_scenario(str(scenario)), out, Console(quiet=True), resume=True)
    first, second = pair(*EMULATE, scenario, "--out", out, "--resume")
    assert (first.code, second.code) == (0, 0), first.said + second.said
    assert_equal_runs(out, alone, 2)


def test_nobody_waits_for_a_process_that_was_killed(scenario: Path, tmp_path: Path) -> None:
    """The other one says so, in one line and with exit code 1."""
    struck = (ROOT / "tests" / "sim_harness" / "struck.py", "1", "SIGKILL", "4")
    first, second = pair(*struck, "emulate", scenario, "--out", tmp_path / "out")
    assert second.code < 0
    assert first.code == 1
    assert "skiptrain-sim: process 0 of 2 has lost another one" in first.said
    assert "Traceback" not in first.said


def test_a_first_process_that_nobody_reaches_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be reached is said, and what to do; it does not wait for ever."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "1", "WORLD_SIZE": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(distributed, "SILENCE_S", 0.5)
    with pytest.raises(AgentError, match=r"cannot reach each other.*start all of them again"):
        World(1, 2).connect()


def test_a_process_alone_is_no_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun, or in a torchrun of one, nothing is different; half an environment is an error."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert open_world() is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="LOCAL_RANK"):
        open_world()
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "0")
    with pytest.raises(ConfigError, match="LOCAL_RANK 0 of LOCAL_WORLD_SIZE 0; start with torchrun"):
        open_world()
    for name, value in (("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    assert open_world() is None


@pytest.mark.parametrize(("cores", "size"), [(8, 3), (2, 2), (2, 5), (1, 1)])
def test_processes_of_a_host_share_its_cores(cores: int, size: int) -> None:
    """Every core belongs to somebody; to one only, where there are enough."""
    shares = [share_of(list(range(cores)), rank, size) for rank in range(size)]
    assert {core for share in shares for core in share} == set(range(cores))
    assert all(shares)
    assert cores < size or sum(map(len, shares)) == cores


def test_small_arrays_travel_together_and_large_ones_alone() -> None:
    """In their order, and none is lost."""
    arrays = [np.empty(size, np.float32) for size in (10, 10, MESSAGE_BYTES // 4, 1, MESSAGE_BYTES, 5)]
    groups = list(messages(arrays))
    assert [id(array) for group in groups for array in group] == [id(array) for array in arrays]
    assert [[array.size for array in group] for group in groups] == [
        [10, 10, MESSAGE_BYTES // 4],
        [1, MESSAGE_BYTES],
        [5],
    ]
    assert list(messages([])) == []


def test_the_interface_is_the_one_that_leads_to_the_first_host() -> None:
    """The loopback for a run on one machine; none for a host that nobody knows."""
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("nowhere.invalid") == ""
