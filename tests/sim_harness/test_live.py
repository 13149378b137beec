"""Live runs: real agents, real brokers, real discovery; what they decide, leave behind, and how they fail."""

from __future__ import annotations

import csv
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console
from rich.progress import Progress

from agent.config import load_config
from agent.core.seeding import seed64
from agent.core.types import NodeId
from agent.core.wire import HEADER_BYTES
from agent.daemon import Daemon
from agent.device import worker_config
from agent.errors import AgentError, DataError, JournalError
from agent.journal import Journal
from agent.learning.child import make_trainer
from agent.learning.data import hold_out
from agent.learning.factory import describe
from agent.learning.trainer import Evaluation, TorchTrainer, TrainOutcome, TrainTask
from agent.learning.worker import WorkerConfig
from agent.status import Status
from sim_harness import host
from sim_harness.__main__ import main
from sim_harness.broker_counts import BrokerCounts
from sim_harness.brokers import open_broker
from sim_harness.emulated_evidence import CONSENSUS_COLUMNS
from sim_harness.emulation import run_emulated
from sim_harness.evidence import EVALUATION_COLUMNS, ROUND_COLUMNS, Totals, collect, counted, summary
from sim_harness.fleet import NodeFiles, lay_out, load_data
from sim_harness.live import _Watch, run_live
from sim_harness.planning import plan, rounds_trained
from sim_harness.scenario import Scenario, load_scenario

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120.0
DEMO_TIMEOUT_S = 300.0
NODES, ROUNDS, DEGREE, N_PARAMS = 4, 6, 2, 6186
SETTINGS = (f"topology.degree={DEGREE}", "energy.budget_scale=0.01")
"""Budgets of 2, 3, 6 and 2 training rounds for the four that the schedule has: there is something to decide."""

SUMMARY_KEYS = {
    *("scenario", "engine", "nodes", "rounds", "seed", "policy", "topology.kind", "topology.degree"),
    *("accuracy.mean", "accuracy.std", "accuracy.min", "accuracy.max", "accuracy.consensus"),
    *("energy_j.train", "energy_j.share", "energy_j.idle", "energy_j.total", "energy_j.d_psgd_equivalent"),
    *("rounds_ended", "training_rounds.total", "training_rounds.max", "training_rounds.failed"),
    *("budget.limit_j", "budget.spent_j", "budget.overspent_nodes"),
    *("messages.delivered", "messages.missing", "messages.rejected", "messages.expected", "messages.mixed"),
    *("messages.counted_by", "bytes.published", "bytes.delivered", "params_sha256"),
    *("wall_s", "phase_s.set_up", "phase_s.run", "phase_s.evaluation"),
    *("per_node[].node", "per_node[].device", "per_node[].limit_j", "per_node[].spent_j", "per_node[].credited_j"),
    *("per_node[].training_rounds", "per_node[].accuracy"),
}
COLUMNS = {
    "rounds.csv": (
        *("node", "round", "kind", "decision", "probability", "reason", "energy_j", "energy_quality", "loss"),
        *("peers_expected", "peers_received", "rejected", "digest_published", "mixed", "train_s", "collect_s", "error"),
        *("bound_j", "coverage", "share_j", "idle_j"),
    ),
    "evaluation.csv": ("round", "node", "accuracy", "own_accuracy", "loss"),
}
EMULATED_COLUMNS = {"consensus.csv": ("round", "accuracy", "loss", "distance_rms", "nodes")}
EMULATED_KEYS = {"engine_detail", "virtual_s", "unfinished_nodes", "processes", "cut_edges", "exchanged_bytes"}


@dataclass(frozen=True, slots=True)
class Ended:
    """A finished `skiptrain-sim`: how it ended, what it said, and which of its processes were still there."""

    code: int
    out: str
    err: str
    left: list[str]


@dataclass(frozen=True, slots=True)
class Sim:
    """A started `skiptrain-sim`, all of whose descendants can be found again by a mark in their environment."""

    process: subprocess.Popen[str]
    mark: str

    @classmethod
    def start(cls, *arguments: str) -> Sim:
        """Start `skiptrain-sim` with `arguments`."""
        mark = f"SKIPTRAIN_TEST_MARK={uuid.uuid4()}"
        name, _, value = mark.partition("=")
        command = [sys.executable, "-m", "sim_harness", *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return cls(subprocess.Popen(command, cwd=ROOT, env={**os.environ, name: value}, **pipes), mark)

    def end(self, timeout_s: float = TIMEOUT_S) -> Ended:
        """Wait for its end, then for that of whatever it left, but not for long."""
        out, err = self.process.communicate(timeout=timeout_s)
        left = [name for pid, name in self._descendants() if not gone(pid)]
        return Ended(self.process.returncode, out, err, left)

    def _descendants(self) -> Iterator[tuple[int, str]]:
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name), (folder / "cmdline").read_text().replace("\0", " ")


def gone(pid: int) -> bool:
    """Return whether a process is gone within 5 s."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 5.0)[0])
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run's folder, as read back from its files."""

    folder: Path
    summary: dict[str, Any]
    rounds: list[dict[str, str]]

    @classmethod
    def read(cls, folder: Path) -> Outcome:
        """Read summary.json and rounds.csv."""
        return cls(folder, json.loads((folder / "summary.json").read_text()), rows(folder / "rounds.csv"))

    def scenario(self) -> Scenario:
        """Return the scenario that was run, from the file that tells."""
        return load_scenario(str(self.folder / "scenario.yaml"))

    def decisions(self) -> list[tuple[str, ...]]:
        """Return what each node decided in each round, and why."""
        return [tuple(row[key] for key in ("node", "round", "kind", "decision", "reason")) for row in self.rounds]


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def small(*settings: str) -> Scenario:
    """Return the demo with four nodes and six rounds."""
    return load_scenario("demo", [f"nodes={NODES}", f"rounds={ROUNDS}", *SETTINGS, *settings])


def live(folder: Path, broker: str, *settings: str) -> Outcome:
    """Run the small demo from within this process."""
    run_live(small(*settings), broker, folder, Console(file=StringIO()))
    return Outcome.read(folder)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Run the small demo once as a user does, on the embedded broker."""
    folder = tmp_path_factory.mktemp("live") / "made" / "embedded"
    arguments = ["--nodes", str(NODES), "--rounds", str(ROUNDS), "--broker", "embedded", "--out", str(folder)]
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    ended = Sim.start("live", "demo", *arguments, *settings).end()
    assert (ended.code, ended.err, ended.left) == (0, "", [])
    assert "48 mixed of 48 expected" in " ".join(ended.out.split())
    return Outcome.read(folder)


def test_a_run_leaves_the_documented_files(embedded: Outcome) -> None:
    """Tables have the columns, and summary.json the keys, that this test spells out."""
    for name, columns in COLUMNS.items():
        header = (embedded.folder / name).read_text(encoding="utf-8").splitlines()[0]
        assert tuple(header.split(",")) == columns
    assert set(flat(embedded.summary)) == SUMMARY_KEYS
    assert (embedded.folder / "report.png").read_bytes().startswith(b"\x89PNG")
    scenario = embedded.scenario()
    assert scenario == small("engine.kind=sequential", "engine.precision=fp32")
    nodes = {path.name: {item.name for item in path.iterdir()} for path in (embedded.folder / "nodes").iterdir()}
    assert nodes == {node: {"agent.log", "agent.yaml", "data.npz", "run", "state"} for node in scenario.node_ids()}
    evaluated = [(int(row["round"]), row["node"]) for row in rows(embedded.folder / "evaluation.csv")]
    assert evaluated == [(round_, node) for round_ in (2, 5) for node in scenario.node_ids()]


def test_docs_files_md_lists_every_column_and_key() -> None:
    """docs/files.md and the code name the same columns in the same order, and the same keys."""
    assert COLUMNS == {"rounds.csv": ROUND_COLUMNS, "evaluation.csv": EVALUATION_COLUMNS}
    assert EMULATED_COLUMNS == {"consensus.csv": CONSENSUS_COLUMNS}
    sections = (ROOT / "docs" / "files.md").read_text(encoding="utf-8").split("\n## ")
    documented = {text.partition("\n")[0]: tuple(re.findall(r"\n\| `([^`]+)` \|", text)) for text in sections[1:]}
    keys = documented.pop("summary.json")
    assert documented == COLUMNS | EMULATED_COLUMNS
    assert len(keys) == len(SUMMARY_KEYS | EMULATED_KEYS)
    assert set(keys) == SUMMARY_KEYS | EMULATED_KEYS


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the paths of all keys of nested objects."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                yield from flat(item, f"{prefix}{key}[].")
        else:
            yield f"{prefix}{key}"


def test_the_agents_decide_what_the_plan_says(embedded: Outcome) -> None:
    """Each node trains in exactly the planned rounds, for exactly the planned joules."""
    scenario = embedded.scenario()
    for i, node in enumerate(scenario.node_ids()):
        own = [row for row in embedded.rounds if row["node"] == node]
        assert [int(row["round"]) for row in own] == list(range(ROUNDS))
        trained = [int(row["round"]) for row in own if row["decision"] == "train"]
        assert trained == rounds_trained(scenario, i, node)
        assert [row["kind"] for row in own] == ["training", "training", "synchronisation"] * 2
        assert not any(row["error"] for row in own)
    planned, summary = plan(scenario), embedded.summary
    assert 0 < summary["training_rounds"]["total"] == planned["training_rounds"]["total"] < 4 * NODES
    assert summary["energy_j"]["train"] == pytest.approx(planned["energy_wh"]["total"] * 3600)
    assert summary["energy_j"]["d_psgd_equivalent"] == pytest.approx(planned["energy_wh"]["d_psgd"] * 3600)


def test_rows_summary_and_ledgers_agree_on_every_joule(embedded: Outcome) -> None:
    """rounds.csv, per_node, the totals and the ledgers in the journals hold the same sums, within the budgets."""
    spent_j = {}
    for i, entry in enumerate(embedded.summary["per_node"]):
        journal = Journal(embedded.folder / "nodes" / entry["node"] / "state")
        snapshot = journal.recover().snapshot
        journal.close()
        assert snapshot is not None
        own = [row for row in embedded.rounds if row["node"] == entry["node"]]
        charged_uj = sum(round(float(row["energy_j"]) * 1e6) for row in own)
        assert snapshot.ledger.charged_uj == charged_uj == round(entry["spent_j"] * 1e6)
        assert snapshot.ledger.windows == entry["training_rounds"] == sum(row["decision"] == "train" for row in own)
        limit_uj = snapshot.ledger.limit_uj
        assert limit_uj is not None
        assert charged_uj <= limit_uj == embedded.scenario().limit_uj(i) == round(entry["limit_j"] * 1e6)
        spent_j[entry["node"]] = charged_uj / 1e6
    assert embedded.summary["energy_j"]["train"] == pytest.approx(sum(spent_j.values()))
    assert embedded.summary["budget"]["spent_j"] == embedded.summary["energy_j"]["train"]
    assert embedded.summary["budget"]["overspent_nodes"] == []


def test_the_broker_counts_what_the_agents_say(embedded: Outcome) -> None:
    """Where nothing is missing, delivered (by the broker) = expected = mixed (by the agents), to the byte."""
    expected = NODES * ROUNDS * DEGREE
    assert embedded.summary["messages"] == {
        "delivered": expected,
        "missing": 0,
        "rejected": 0,
        "expected": expected,
        "mixed": expected,
        "counted_by": "broker",
    }
    message_bytes = HEADER_BYTES + 4 * N_PARAMS
    assert embedded.summary["bytes"] == {
        "published": NODES * ROUNDS * message_bytes,
        "delivered": expected * message_bytes,
    }


def test_what_is_mixed_is_what_was_published(embedded: Outcome) -> None:
    """Each digest in `mixed` is the one that its sender published in that round; weights are 1/3 and add up to 1."""
    published = {(row["node"], row["round"]): row["digest_published"] for row in embedded.rounds}
    for row in embedded.rounds:
        parts = [part.split(":") for part in row["mixed"].split(" ")]
        assert len(parts) == DEGREE + 1
        assert all(published[node, row["round"]] == digest for node, digest, _ in parts)
        assert [float(weight) for *_, weight in parts] == pytest.approx([1 / 3] * 3)


def test_the_agents_found_each_other_over_mdns(embedded: Outcome) -> None:
    """No agent was told of a peer or of the broker: each status page names mDNS as a source of all its peers."""
    nodes = embedded.scenario().node_ids()
    for node in nodes:
        folder = embedded.folder / "nodes" / node
        config = (folder / "agent.yaml").read_text()
        assert "host: ''" in config
        assert "peers: []" in config
        assert "roster: []" in config
        status = cast("dict[str, Any]", json.loads((folder / "run" / "status.json").read_text()))
        assert set(status) == set(Status.__struct_fields__)
        assert {peer["node"] for peer in status["peers"] if "mdns" in peer["sources"]} == {*nodes} - {node}


def test_equal_seeds_give_equal_runs_on_another_broker(embedded: Outcome, tmp_path: Path) -> None:
    """On mosquitto (MQTT 5) the same scenario gives the same decisions and the same parameters, bit for bit."""
    other = live(tmp_path / "run", "mosquitto")
    assert other.decisions() == embedded.decisions()
    assert other.summary["messages"] == embedded.summary["messages"]
    assert other.summary["params_sha256"] == embedded.summary["params_sha256"]
    assert other.summary["accuracy"] == embedded.summary["accuracy"]


def test_agents_that_share_processes_learn_the_same(embedded: Outcome, tmp_path: Path) -> None:
    """With two processes for four nodes nothing but the number of processes changes."""
    other = live(tmp_path / "run", "mosquitto", "engine.workers=2")
    assert other.decisions() == embedded.decisions()
    assert other.summary["params_sha256"] == embedded.summary["params_sha256"]


def test_another_seed_gives_another_run(embedded: Outcome, tmp_path: Path) -> None:
    """The seed reaches data, weights and decisions; and peers can come from a list instead of mDNS."""
    settings = ("seed=2", "engine.workers=1", "discovery.mdns=false", "discovery.static=true")
    other = live(tmp_path / "run", "mosquitto", *settings)
    assert other.summary["messages"]["missing"] == 0
    assert other.summary["params_sha256"] != embedded.summary["params_sha256"]
    assert other.decisions() != embedded.decisions()


def test_an_emulation_gives_what_real_agents_give(embedded: Outcome, tmp_path: Path) -> None:
    """With the `sequential` engine: every decision, digest and weight, every evaluation, and the last models."""
    same_as_emulated(embedded, emulated(tmp_path / "run"))
    other = emulated(tmp_path / "other", "seed=2")
    assert other.summary["params_sha256"] != embedded.summary["params_sha256"]
    assert other.decisions() != embedded.decisions()


def test_an_emulation_replays_boards_as_real_agents_do(tmp_path: Path) -> None:
    """Recorded energy whose cost is learnt, and a policy that plans anew each round."""
    settings = (
        *("policy.name=skiptrain-replanned", "energy.source=board", "energy.budget.joules=70"),
        "energy.boards=[{profile: raspberry-pi-4b, round_s: 9.0}, {profile: raspberry-pi-5, round_s: 3.5}]",
        *("discovery.mdns=false", "discovery.static=true", "engine.workers=1"),
    )
    real = live(tmp_path / "live", "mosquitto", *settings)
    assert {row["decision"] for row in real.rounds} == {"train", "skip"}
    same_as_emulated(real, emulated(tmp_path / "emulated", *settings))


def emulated(folder: Path, *settings: str) -> Outcome:
    """Emulate the small demo as a device trains."""
    run_emulated(small("engine.kind=sequential", *settings), folder, Console(file=StringIO()))
    return Outcome.read(folder)


def same_as_emulated(real: Outcome, other: Outcome) -> None:
    """Assert that two runs are the same to the bit, but for the time that things took."""
    timeless = [key for key in ROUND_COLUMNS if key not in {"train_s", "collect_s"}]
    assert [[row[key] for key in timeless] for row in real.rounds] == [
        [row[key] for key in timeless] for row in other.rounds
    ]
    name = "evaluation.csv"
    assert (real.folder / name).read_bytes() == (other.folder / name).read_bytes()
    for key in ("params_sha256", "accuracy", "energy_j", "budget", "training_rounds", "per_node", "bytes"):
        assert real.summary[key] == other.summary[key], key
    counts = {"counted_by": "emulator"}
    assert real.summary["messages"] | counts == other.summary["messages"]


def test_agents_without_neighbours_run_and_say_so(tmp_path: Path) -> None:
    """Degree 0 shows what no mixing does: nothing is shared or awaited, and each agent's log has one clear warning."""
    settings = ("nodes=2", "rounds=3", "topology.degree=0", "discovery.mdns=false", "discovery.static=true")
    outcome = live(tmp_path / "run", "mosquitto", *settings, "engine.workers=1")
    assert {outcome.summary["messages"][key] for key in ("delivered", "expected", "mixed", "missing")} == {0}
    assert [int(row["round"]) for row in outcome.rounds] == [0, 1, 2] * 2
    log = (outcome.folder / "nodes" / "n000" / "agent.log").read_text()
    assert log.count("topology.degree is 0: this node has no neighbours") == 2


def test_without_a_way_to_find_peers_nothing_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without mDNS and without a list: EX_CONFIG and one line, before any file is written."""
    assert main(["live", "demo", "--out", str(tmp_path / "run"), "--set", "discovery.mdns=false"]) == 78
    said = capsys.readouterr().err
    assert "--set discovery.mdns=false: no way to find peers" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["live", "demo"], ["demo"]])
@pytest.mark.parametrize("where", ["kept", "kept/file", "kept/file/below"])
def test_what_is_there_already_is_not_touched(
    command: list[str], where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--out that is not empty, is a file, or lies below a file: EX_CONFIG, and all stays as it was."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("mine")
    assert main([*command, "--out", str(tmp_path / where)]) == 78
    assert f"--out {tmp_path / where}: " in capsys.readouterr().err
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["kept", "kept/file"]
    assert (tmp_path / "kept" / "file").read_text() == "mine"


def test_a_model_that_nobody_can_build_is_said_before_the_run(tmp_path: Path) -> None:
    """A factory that is not there is an error of the command line, and leaves no files."""
    ended = Sim.start("live", "demo", "--out", str(tmp_path / "run"), "--set", "model.name=no_such_module:make").end()
    assert (ended.code, ended.left) == (78, [])
    assert "no module 'no_such_module'" in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


ONLY_IN_THE_HARNESS = """
import os
from torch import nn

def make(input_shape, classes):
    if "MALLOC_ARENA_MAX" in os.environ:
        raise RuntimeError("no such luck on a device")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


def test_an_agent_that_dies_ends_the_run_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code and the end of its log are shown; the others are stopped, and no process stays."""
    (tmp_path / "only_in_the_harness.py").write_text(ONLY_IN_THE_HARNESS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    arguments = ["--nodes", "2", "--broker", "mosquitto", "--out", str(tmp_path / "run")]
    ended = Sim.start("live", "demo", *arguments, "--set", "model.name=only_in_the_harness:make").end()
    assert (ended.code, ended.left) == (1, [])
    assert re.search(r"the agent of n00[01] ended with exit code \d+; the end of .*/agent\.log:\n", ended.err)
    assert "no such luck on a device" in ended.err
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_harness_that_is_ended_ends_its_agents(tmp_path: Path) -> None:
    """SIGTERM in mid-run: exit code 130, and no agent, trainer or broker stays."""
    seen = threading.Event()
    watcher = mqtt.Client(CallbackAPIVersion.VERSION2)
    watcher.on_message = lambda *_: seen.set()
    with closing(open_broker("mosquitto", tmp_path / "broker")) as broker:
        watcher.connect(broker.host, broker.port)
        watcher.subscribe("skiptrain/v1/+/+/status")
        watcher.loop_start()
        arguments = ["--nodes", "2", "--rounds", "100000", "--broker", f"127.0.0.1:{broker.port}"]
        sim = Sim.start("live", "demo", *arguments, "--out", str(tmp_path / "run"))
        assert seen.wait(TIMEOUT_S)
        sim.process.terminate()
        ended = sim.end()
        watcher.disconnect()
        watcher.loop_stop()
    assert (ended.code, ended.left) == (130, [])
    assert ended.err == "skiptrain-sim: interrupted; all agents were stopped\n"


def test_the_agents_of_a_shared_process_end_together(tmp_path: Path) -> None:
    """SIGTERM in mid-run: every agent saves its work and says why it ended, and the process ends well."""
    scenario = small("nodes=2", "rounds=100000", "discovery.mdns=false", "discovery.static=true")
    with closing(open_broker("mosquitto", tmp_path / "broker")) as broker:
        nodes = lay_out(scenario, load_data(scenario), tmp_path, "fleet", (broker.host, broker.port))
        command = [sys.executable, "-m", "sim_harness.host", *(str(node.config) for node in nodes)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert any("round=2 " in line for line in process.stderr)
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=20.0)
    assert process.returncode == 0, rest
    assert rest.count("ended: stopped by SIGTERM") == 2
    for node in nodes:
        journal = Journal(node.state)
        found = journal.recover()
        journal.close()
        assert found.snapshot is not None
        assert found.snapshot.round >= 2
        assert found.snapshot.ledger.reservation is None
        assert found.model is not None


def test_a_fault_of_the_shared_trainer_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a user's model raises, the bench answers, and serves the next."""

    def broken(*_: object) -> TorchTrainer:
        raise ZeroDivisionError("in a layer")

    monkeypatch.setattr(host, "_trainer", broken)
    (config,) = worker_configs(tmp_path, 1)
    answers = asked(config)
    assert [answer.error for answer in answers] == ["the trainer failed: ZeroDivisionError: in a layer"] * 2
    assert [answer.fatal for answer in answers] == [None, None]


def test_what_no_shared_trainer_can_ever_do_is_said_with_its_class(tmp_path: Path) -> None:
    """Data that is not there is a DataError for the daemon, which then ends with that exit code."""
    (config,) = worker_configs(tmp_path, 1)
    answers = asked(msgspec.structs.replace(config, path=str(tmp_path / "none.npz")))
    assert [answer.fatal for answer in answers] == [DataError, DataError]


def test_nodes_of_a_process_share_one_test_set(tmp_path: Path) -> None:
    """Each node trains on data of its own; the common test set is in memory once, and gives what a device's gives."""
    configs = worker_configs(tmp_path, 3)
    trainers = [host._trainer(config) for config in configs]
    assert len({id(trainer._test) for trainer in trainers}) == 1
    assert len({trainer._train.x.tobytes() for trainer in trainers}) == 3
    params = describe(configs[0].model, 1).initial_params
    assert [trainer.evaluate(params, 0) for trainer in trainers] == [
        make_trainer(config).evaluate(params, 0) for config in configs
    ]


def worker_configs(folder: Path, nodes: int) -> list[WorkerConfig]:
    """Return what the trainers of a small fleet laid out in `folder` are told."""
    scenario = small(f"nodes={nodes}", "discovery.static=true")
    files = lay_out(scenario, load_data(scenario), folder, "fleet", ("127.0.0.1", 1883))
    return [worker_config(load_config(node.config)) for node in files]


def asked(config: WorkerConfig) -> list[TrainOutcome | Evaluation]:
    """Return what a shared trainer answers to one training and one evaluation."""
    bench = host.Bench()
    trainer = host.BenchTrainer(bench, config)
    answers: list[TrainOutcome | Evaluation] = []
    trainer.submit_train(TrainTask(0, np.zeros(3, np.float32), 1, 1, 1, 0.1), answers.append)
    trainer.submit_evaluate(np.zeros(3, np.float32), 0, answers.append)
    bench.close()
    return answers


def test_one_failed_agent_of_a_shared_process_stops_the_others() -> None:
    """The exit code is the failed one's, and the others hear of it rather than wait for it for ever."""

    class Failing:
        def run(self) -> str:
            raise JournalError("the disk is full")

    codes: list[int] = []
    reasons: list[str] = []
    host._run(cast("Daemon", Failing()), codes, reasons.append)
    assert codes == [74]
    assert reasons == [f"stopped because {threading.current_thread().name} failed"]


@pytest.mark.timeout(2 * DEMO_TIMEOUT_S)
def test_the_demo_learns_the_task_within_its_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`skiptrain-sim demo`: eight real agents learn from each other what none learns alone, and nobody overspends.

    Table, totals and picture are those of that run; a folder that was named is never cleared.
    """
    folder = tmp_path / "demo"
    monkeypatch.setenv("COLUMNS", "200")  # no name is cut
    ended = Sim.start("demo", "--out", str(folder)).end(DEMO_TIMEOUT_S)
    assert (ended.code, ended.err, ended.left) == (0, "", [])
    outcome = Outcome.read(folder)
    scenario, summary = outcome.scenario(), outcome.summary
    assert scenario == load_scenario("demo", ["engine.kind=sequential", "engine.precision=fp32"])
    assert summary["accuracy"]["mean"] >= 0.85
    assert summary["budget"]["overspent_nodes"] == []
    planned = plan(scenario)
    assert summary["energy_j"]["train"] == pytest.approx(planned["energy_wh"]["total"] * 3600)
    assert summary["energy_j"]["train"] < summary["energy_j"]["d_psgd_equivalent"] / 2
    links = scenario.nodes * scenario.rounds * scenario.topology.degree
    assert {key: summary["messages"][key] for key in ("delivered", "mixed", "missing", "rejected")} == {
        "delivered": links,
        "mixed": links,
        "missing": 0,
        "rejected": 0,
    }
    assert len(outcome.rounds) == scenario.nodes * scenario.rounds
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    said = " ".join(ended.out.split())
    for i, entry in enumerate(summary["per_node"]):
        assert f"{entry['node']} {scenario.device(i).device} {entry['training_rounds']} " in said
        assert entry["spent_j"] <= entry["limit_j"]
    assert f"mean {summary['accuracy']['mean']:.1%}, " in said
    assert f"{links} mixed of {links} expected, 0 missing, 0 rejected; {links} delivered, counted by the broker" in said
    assert main(["demo", "--out", str(folder)]) == 78
    assert (folder / "summary.json").exists()


def test_a_journal_that_began_anew_is_followed_to_its_last_line(tmp_path: Path) -> None:
    """The count of rounds goes on over a rotation, with the lines that were written just before it."""
    files = NodeFiles(NodeId("n000"), tmp_path)
    files.state.mkdir()
    lines = files.state / "rounds.jsonl"
    with Progress(console=Console(file=StringIO())) as progress:
        watch = _Watch([files], 10, progress)
        for text, rotated in (("{}\n{}\n{}", False), ("{}\n{}\n{}\n{}\n", False), ("{}\n", True), ("{}\n{}\n", False)):
            if rotated:
                with lines.open("a") as file:
                    file.write("{}\n")
                lines.replace(lines.with_suffix(".jsonl.1"))
            lines.write_text(text)
            watch.poll()
        assert progress.tasks[0].completed == 7


def test_rounds_that_the_journal_rotated_out_are_missed(embedded: Outcome, tmp_path: Path) -> None:
    """No rounds.csv with a hole: the node whose journal has dropped its first rounds is named."""
    copy = tmp_path / "run"
    shutil.copytree(embedded.folder, copy)
    nodes = [NodeFiles(node, copy / "nodes" / node) for node in embedded.scenario().node_ids()]
    lines = nodes[1].state / "rounds.jsonl"
    whole = lines.read_text().splitlines(keepends=True)
    older = lines.with_suffix(".jsonl.1")
    older.write_text("".join(whole[:4]))
    lines.write_text("".join(whole[4:]))
    assert [record.round for record in collect(nodes)[1].records] == list(range(ROUNDS))
    older.write_text("".join(whole[2:4]))
    with pytest.raises(AgentError, match="n001: its journal has rotated the rounds before 2 out"):
        collect(nodes)


def test_delivered_counts_whole_models(embedded: Outcome) -> None:
    """The broker's messages are divided by those of a model; the rest of a model that got lost does not count."""
    nodes = [NodeFiles(node, embedded.folder / "nodes" / node) for node in embedded.scenario().node_ids()]
    evidence = collect(nodes)

    def delivered(messages: int, chunks: int) -> Any:
        counts = BrokerCounts(model_messages_out=messages)
        traffic, ends = counted(counts, 48, chunks), [node.end for node in evidence]
        values = summary(embedded.scenario(), ends, Totals(), ([1.0] * NODES, 1.0), traffic, 1.0, {}, "")
        return values["messages"]["delivered"]

    assert delivered(96, 2) == 48
    assert isinstance(delivered(96, 2), int)
    assert delivered(97, 2) == 48


def test_without_mixing_the_agents_of_the_demo_do_not_learn_the_task() -> None:
    """Eight agents alone, with the demo's data, decisions and steps, stay far below 0.85 on the common test set.

    The demo reaches more than that with mixing, so it is the mixing that its result shows.
    """
    scenario = load_scenario("demo")
    data, learning = load_data(scenario), scenario.learning
    accuracies, own = [], []
    for i, node in enumerate(scenario.node_ids()):
        train, own_test = hold_out(data.share(i), scenario.data.held_out, scenario.seed, node)
        trainer = TorchTrainer(data.model, train, own_test, data.test, seed=scenario.seed)
        params = describe(data.model, scenario.seed).initial_params
        for round_ in rounds_trained(scenario, i, node):
            seed = seed64(scenario.seed, node, round_, "training")
            task = TrainTask(round_, params, seed, learning.local_steps, learning.batch_size, learning.lr)
            params = trainer.train(task).params
        result = trainer.evaluate(params, 0)
        assert result.accuracy is not None
        assert result.own_accuracy is not None
        accuracies.append(result.accuracy)
        own.append(result.own_accuracy)
    assert np.mean(accuracies) < 0.5
    assert np.mean(own) > 0.85
