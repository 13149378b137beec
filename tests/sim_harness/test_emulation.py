"""Whole emulations on the bundled digits: files, repetition, stopping and going on, and what the command line says."""

from __future__ import annotations

import csv
import errno
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sim_harness import emulation
from sim_harness.__main__ import main
from sim_harness.emulated_evidence import EmulatedEvidence
from sim_harness.emulation import Stopped, run_emulated
from sim_harness.emulator import Emulator
from sim_harness.folders import claimed
from sim_harness.report import show_report
from sim_harness.scenario import Scenario, load_scenario

ROOT = Path(__file__).parents[2]
TABLES = ("rounds.csv", "evaluation.csv", "consensus.csv")
SMALL = ("nodes=5", "rounds=10", "topology.degree=2", "energy.budget_scale=0.01", "evaluation.samples=50")
FAULTY = (
    "network.delay_s=[0.01, 0.4]",
    "network.loss=0.1",
    "network.bandwidth_bytes_s=200000",
    "network.churn={mean_up_s: 15, mean_down_s: 4, share: 0.6}",
    "network.partitions=[{from_s: 6, to_s: 25, share: 0.4}]",
    "network.stragglers={share: 0.3, factor: 3, every_round: true}",
    "timing.round_deadline_s=12",
)
SUNNY = (
    *("energy.source=board", "policy.name=skiptrain-replanned", "energy.budget.joules=70", "energy.recharge.watts=1"),
    "energy.boards=[{profile: raspberry-pi-4b, round_s: 9.0}, {profile: raspberry-pi-5, round_s: 3.5}]",
)
RAISING = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        if self.training:
            raise ValueError(chr(10).join(["first line", 'second, "quoted"', "", "third"]))
        return self.layer(x.flatten(1))

def make(shape, classes):
    return Net()
"""
RUNS = {
    "perfect": (),
    "faulty": FAULTY,
    "sunny": SUNNY,
    "sunny and faulty": (*SUNNY, *FAULTY),
    "bytes": (*FAULTY, "network.wire=bytes"),
}


def small(*settings: str) -> Scenario:
    """Return the demo with five nodes and ten rounds, and the settings given."""
    return load_scenario("demo", [*SMALL, *settings])


def emulate(scenario: Scenario, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Emulate in silence; return the summary without what depends on wall time."""
    values = run_emulated(scenario, folder, Console(file=StringIO()), resume=resume)
    assert values == json.loads((folder / "summary.json").read_text())
    return timeless(values)


def timeless(values: dict[str, Any]) -> dict[str, Any]:
    """Return a summary without what depends on wall time and on the number of workers."""
    return {key: value for key, value in values.items() if key not in {"wall_s", "phase_s", "engine_detail"}}


def tables(folder: Path) -> list[bytes]:
    """Return the bytes of all tables."""
    return [(folder / name).read_bytes() for name in TABLES]


@pytest.mark.parametrize(
    ("engine", "faults"),
    [("sequential", FAULTY), ("native", FAULTY), ("native", ())],
    ids=["sequential, faulty", "native, faulty", "native, perfect"],
)
def test_the_number_of_workers_changes_nothing(engine: str, faults: tuple[str, ...], tmp_path: Path) -> None:
    """One, two or three: equal bytes in every table, and equal models."""
    ends = []
    for workers in (1, 2, 3):
        folder = tmp_path / str(workers)
        ends.append((emulate(small(*faults, f"engine={{kind: {engine}, workers: {workers}}}"), folder), tables(folder)))
    assert ends[0] == ends[1] == ends[2]
    assert ends[0][0]["engine"] == engine


def test_engines_take_the_same_decisions(tmp_path: Path) -> None:
    """Only sequential is bit-equal to a device; but who does what when depends on no engine, and another seed does."""
    decisions = {}
    for name, settings in {
        "sequential": ("engine.kind=sequential",),
        "native": ("engine.kind=native",),
        "other seed": ("engine.kind=native", "seed=2"),
    }.items():
        values = emulate(small(*FAULTY, *settings), tmp_path / name)
        rows = read(tmp_path / name / "rounds.csv")
        keys = ("node", "round", "decision", "reason", "energy_j", "peers_received", "collect_s", "error")
        decisions[name] = [[row[key] for key in keys] for row in rows], values["params_sha256"]
    assert decisions["sequential"][0] == decisions["native"][0] != decisions["other seed"][0]
    assert decisions["native"][1] != decisions["other seed"][1]


def test_models_that_travel_as_bytes_are_the_same(tmp_path: Path) -> None:
    """Cut into a device's messages and put together again: nothing changes."""
    sizes = emulate(small(), tmp_path / "sizes"), tables(tmp_path / "sizes")
    assert (emulate(small("network.wire=bytes"), tmp_path / "bytes"), tables(tmp_path / "bytes")) == sizes


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def stop_after(events: Iterator[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next run end after so many events, as a signal would end it."""
    run = Emulator.run

    def until(emulator: Emulator, between: Callable[[], bool]) -> bool:
        left = iter(range(next(events)))
        return run(emulator, lambda: between() and next(left, None) is not None)

    monkeypatch.setattr(Emulator, "run", until)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_stopped_goes_on_to_the_same_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped again and again: tables, models, joules and traffic are those of the run that nobody stopped."""
    scenario, stops = small(*RUNS[name]), 0
    undisturbed = emulate(scenario, tmp_path / "whole")
    drawn, found = np.random.default_rng(len(name)), None
    with monkeypatch.context() as patched:
        stop_after(iter(lambda: int(drawn.integers(1, 20)), 0), patched)
        while found is None:
            with suppress(Stopped):
                found = emulate(scenario, tmp_path / "parts", resume=stops > 0)
                break
            assert not (tmp_path / "parts" / "summary.json").exists()
            stops += 1
    assert stops >= 4
    assert found == undisturbed
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")
    left = {"scenario.yaml", "summary.json", *TABLES}
    assert {path.name for path in (tmp_path / "parts").iterdir()} == left


def test_tables_are_in_order_and_agree_with_the_summary(tmp_path: Path) -> None:
    """By node and round, by round and node, by round; joules, messages and nodes add up, whatever the network does."""
    scenario = small(*FAULTY, "evaluation.every=2", "rounds=20")
    values = emulate(scenario, tmp_path)
    rounds, tested, means = (read(tmp_path / name) for name in TABLES)
    order = [(row["node"], int(row["round"])) for row in rounds]
    assert order == sorted(set(order))
    order = [(row["node"], int(row["round"])) for row in tested]
    assert order == sorted(order, key=lambda pair: (pair[1], pair[0]))
    assert [int(row["round"]) for row in means] == sorted({int(row["round"]) for row in tested})
    spent = {entry["node"]: 0.0 for entry in values["per_node"]}
    for row in rounds:
        spent[row["node"]] += float(row["energy_j"])
    for entry in values["per_node"]:
        if entry["node"] not in values["unfinished_nodes"]:
            assert spent[entry["node"]] == pytest.approx(entry["spent_j"])
        assert entry["spent_j"] <= entry["limit_j"]
    assert values["messages"]["mixed"] == sum(int(row["peers_received"]) for row in rounds)
    assert values["messages"]["mixed"] < values["messages"]["expected"]
    assert values["budget"]["overspent_nodes"] == []
    assert values["rounds_ended"] == len(rounds) < 20 * len(values["per_node"])
    costs_j = {node: scenario.device(i).cost_uj / 1e6 for i, node in enumerate(scenario.node_ids())}
    assert values["energy_j"]["d_psgd_equivalent"] == pytest.approx(sum(costs_j[row["node"]] for row in rounds))


def test_trainings_that_gave_no_model_are_counted(tmp_path: Path) -> None:
    """A learning rate that no model stands: each row tells why, and the summary how many they are."""
    values = emulate(small("learning.lr=100", "rounds=6"), tmp_path)
    told = [row for row in read(tmp_path / "rounds.csv") if row["decision"] == "train" and row["error"]]
    assert values["training_rounds"]["failed"] == len(told) > 0
    assert all("lower lr" in row["error"] for row in told)


def test_a_run_that_was_killed_before_its_summary_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables are in order already, and those of before are still there to go on with."""
    scenario = small()
    undisturbed = emulate(scenario, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(emulation, "CHECKPOINT_S", -1.0)
        patched.setattr(emulation, "write_summary", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            emulate(scenario, tmp_path / "parts")
    assert emulate(scenario, tmp_path / "parts", resume=True) == undisturbed
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")


KILLED = """
import sys
from sim_harness import emulation
from sim_harness.__main__ import main
emulation.CHECKPOINT_S = 0.0
save = emulation._Run._save
def told(run):
    save(run)
    print("saved", run._evidence.kept.ended, flush=True)
emulation._Run._save = told
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_process_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """SIGKILL in mid-run, then the same command with --resume."""
    sets = [word for setting in (*SMALL, *FAULTY) for word in ("--set", setting)]
    arguments = ["emulate", "demo", *sets, "--out", str(tmp_path / "parts")]
    with subprocess.Popen([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert any(line.startswith(b"saved 2") for line in process.stdout)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "parts" / "summary.json").exists()
    assert main([*arguments, "--resume"]) == 0
    assert timeless(json.loads((tmp_path / "parts" / "summary.json").read_text())) == emulate(
        load_scenario("demo", [*SMALL, *FAULTY]), tmp_path / "whole"
    )
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a run that was stopped in mid-run."""
    with monkeypatch.context() as patched:
        stop_after(iter([60]), patched)
        with pytest.raises(Stopped, match="rounds of all nodes are done; go on with the same command and --resume"):
            emulate(small(), tmp_path / "run")
    return tmp_path / "run"


def resumed(folder: Path, capsys: pytest.CaptureFixture[str], *settings: str) -> tuple[int, str]:
    """Return exit code and message of --resume on the command line."""
    sets = [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
    code = main(["emulate", "demo", *sets, "--out", str(folder), "--resume"])
    said = capsys.readouterr().err
    assert said.count("\n") <= 1
    return code, said


def test_nothing_to_go_on_with_is_said(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No folder, an empty one, another scenario, other settings, a finished run: EX_CONFIG and one line."""
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "none"):
        code, said = resumed(folder, capsys)
        assert (code, "holds no checkpoint; to begin anew leave --resume out" in said) == (78, True)
    code, said = resumed(stopped, capsys, "learning.lr=0.2")
    assert (code, "another scenario: learning.lr 0.1, not 0.2" in said) == (78, True)
    assert main(["emulate", "demo", "--out", str(stopped)]) == 78
    assert "there is something in it already" in capsys.readouterr().err
    assert main(["emulate", "demo", "--out", str(tmp_path / ("long" * 100))]) == 78
    assert "File name too long; give another folder" in capsys.readouterr().err
    assert resumed(stopped, capsys) == (0, "")
    code, said = resumed(stopped, capsys)
    assert (code, "holds a finished run; `skiptrain-sim report" in said) == (78, True)


def test_what_does_not_belong_to_the_run_is_refused(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint of another scenario, a damaged one, a table that was cut: EX_DATAERR and one line."""
    with monkeypatch.context() as patched:
        stop_after(iter([60]), patched)
        with pytest.raises(Stopped):
            emulate(small("seed=2"), tmp_path / "other")
    mine = stopped / "checkpoint"
    mine.rename(tmp_path / "mine")
    (tmp_path / "other" / "checkpoint").rename(mine)
    code, said = resumed(stopped, capsys)
    assert (code, "the checkpoint of another scenario" in said) == (65, True)
    mine.rename(tmp_path / "theirs")
    (tmp_path / "mine").rename(mine)
    table = stopped / "rounds.part.csv"
    whole = table.read_bytes()
    table.write_bytes(whole[:-5])
    code, said = resumed(stopped, capsys)
    assert (code, "rounds.part.csv is shorter than it was at the checkpoint" in said) == (65, True)
    table.write_bytes(whole)
    state = next(mine.glob("*/state"))
    state.write_bytes(state.read_bytes()[:-100])
    code, said = resumed(stopped, capsys)
    assert (code, "the checkpoint cannot be read" in said) == (65, True)


def test_a_run_goes_on_with_the_engine_it_was_begun_with(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its compiler `default` is another engine, which comes to other bits; with it the run ends."""
    with monkeypatch.context() as patched:
        patched.setenv("CC", "/nonexistent")
        code, said = resumed(stopped, capsys)
    assert (code, "written with another engine (native, " in said, "go on where it was begun" in said) == (
        78,
        True,
        True,
    )
    assert resumed(stopped, capsys) == (0, "")


def test_a_run_goes_on_with_the_data_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another file at the same path would give a curve of two runs."""
    x, y = np.random.default_rng(0).random((200, 1, 8, 8)), np.arange(200) % 10
    settings = ("data.source=npz", f"data.path={tmp_path / 'data.npz'}", "data.layout=nchw")
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])
    with monkeypatch.context() as patched:
        stop_after(iter([60]), patched)
        with pytest.raises(Stopped):
            emulate(small(*settings), tmp_path / "run")
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y[::-1], x_test=x[:50], y_test=y[:50])
    code, said = resumed(tmp_path / "run", capsys, *settings)
    assert (code, "written with another data (" in said, "put back what data.path held" in said) == (78, True, True)


def test_a_stop_in_the_last_test_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Testing all models on all samples may take minutes, too."""

    def stop(_run: object, _models: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(emulation._Run, "_final_accuracy", stop)
        sets = [word for setting in SMALL for word in ("--set", setting)]
        assert main(["emulate", "demo", *sets, "--out", str(tmp_path / "parts")]) == 130
    assert "the last test is not; go on with the same command and --resume" in capsys.readouterr().err
    assert resumed(tmp_path / "parts", capsys) == (0, "")
    emulate(small(), tmp_path / "whole")
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")


def test_a_batch_of_all_samples_needs_no_more_memory_than_they_do(tmp_path: Path) -> None:
    """As large as anybody may write: that of the largest node."""
    huge, whole = (emulate(small(f"learning.batch_size={size}"), tmp_path / size) for size in ("1000000000", "1797"))
    assert huge == whole
    assert huge["params_sha256"]


def test_a_folder_has_one_writer(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two that go on in one folder would write every row twice."""
    with claimed(stopped):
        code, said = resumed(stopped, capsys)
    assert (code, "another emulation is writing there" in said) == (78, True)
    assert resumed(stopped, capsys) == (0, "")


def test_a_run_goes_on_with_other_workers(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They change no number."""
    assert resumed(stopped, capsys, "engine.workers=1") == (0, "")


def test_a_full_disk_costs_one_line_and_no_round(
    stopped: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EX_IOERR, and how to go on; when there is room again the run comes to the same end."""

    def full(_evidence: EmulatedEvidence) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(EmulatedEvidence, "settle", full)
        code, said = resumed(stopped, capsys)
    assert (code, "No space left on device; make room, and go on with the same" in said) == (74, True)
    assert resumed(stopped, capsys) == (0, "")
    assert len(read(stopped / "rounds.csv")) == json.loads((stopped / "summary.json").read_text())["rounds_ended"]


def test_what_a_users_model_says_stays_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of rounds.csv is a line, whatever is raised."""
    (tmp_path / "raising_model.py").write_text(RAISING)
    monkeypatch.syspath_prepend(str(tmp_path))
    emulate(small("model.name=raising_model:make", "engine.kind=sequential", "engine.workers=1"), tmp_path / "run")
    rows = read(tmp_path / "run" / "rounds.csv")
    assert len(rows) == 50
    said = {row["error"] for row in rows if row["decision"] == "train"}
    assert said == {'the trainer failed: ValueError: first line second, "quoted" third'}


def test_auto_goes_on_with_what_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial's choice is in scenario.yaml: nothing is tried again."""
    scenario = small("engine.kind=auto")
    with monkeypatch.context() as patched:
        stop_after(iter([30]), patched)
        with pytest.raises(Stopped):
            emulate(scenario, tmp_path / "run")
    chosen = load_scenario(str(tmp_path / "run" / "scenario.yaml")).engine
    assert chosen.kind in {"sequential", "native", "stacked"}
    values = emulate(scenario, tmp_path / "run", resume=True)
    assert values["engine"] == chosen.kind
    again = emulate(load_scenario(str(tmp_path / "run" / "scenario.yaml")), tmp_path / "again")
    assert again == values


def test_the_table_counts_what_was_given_back(tmp_path: Path) -> None:
    """Boards with a panel spend more than they began with, and not more than all of their budget."""
    values = emulate(small(*SUNNY, "rounds=60"), tmp_path)
    assert any(entry["spent_j"] > entry["limit_j"] for entry in values["per_node"])
    assert all(0 <= entry["credited_j"] <= values["virtual_s"] for entry in values["per_node"])
    console = Console(file=StringIO(), width=200)
    show_report(tmp_path, console)
    shares = [cell for cell in console.file.getvalue().split() if cell.endswith("%")]  # type: ignore[attr-defined]
    assert all(float(cell[:-1]) <= 100.0 for cell in shares)
    for entry in values["per_node"]:
        assert f"{entry['spent_j'] / (entry['limit_j'] + entry['credited_j']):.1%}" in shares


def test_256_nodes_in_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped smoke test: budgets held, every message there, better than chance, and the engine named."""
    assert main(["emulate", "smoke-256", "--out", str(tmp_path)]) == 0
    values = json.loads((tmp_path / "summary.json").read_text())
    scenario, links = load_scenario("smoke-256"), 256 * 12 * 6
    assert {key: values["messages"][key] for key in ("delivered", "expected", "mixed", "missing", "rejected")} == {
        **dict.fromkeys(("delivered", "expected", "mixed"), links),
        **dict.fromkeys(("missing", "rejected"), 0),
    }
    assert all(entry["spent_j"] <= entry["limit_j"] for entry in values["per_node"])
    assert (len(values["per_node"]), values["budget"]["overspent_nodes"], values["unfinished_nodes"]) == (256, [], [])
    assert values["accuracy"]["mean"] > 0.15
    assert values["engine"] == values["engine_detail"]["kind"]
    assert values["bytes"]["delivered"] == 6 * values["bytes"]["published"]
    assert 0 < values["virtual_s"] < scenario.rounds * 10
    assert len(read(tmp_path / "rounds.csv")) == 256 * 12
    assert "40 of 256 nodes; all are in summary.json" in capsys.readouterr().out
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
