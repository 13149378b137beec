"""Recording a source, and replaying it: the same decisions and the same charges, to the microjoule."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.costs import CostHistory
from agent.core.seeding import uniform
from agent.core.types import Quality
from agent.durable import Generations
from agent.energy.device import CounterDevice
from agent.energy.meter import MeasuredMeter, Reading
from agent.energy.open import open_meter
from agent.energy.recording import RecordedMeter, Writer, read_recording
from agent.energy.settings import EnergySettings
from agent.energy_command import ask
from agent.energy_config import CorrectionSection, EnergySection
from agent.energy_record import record
from agent.errors import JournalError
from agent.journal import Journal, read_snapshot
from tests.device_rig import device_config, write_config
from tests.energy import board_trees, trees
from tests.energy.clock import Clock, Counter
from tests.energy.command_rig import Caller, at_watts, moving
from tests.energy.single_node import WORKLOAD, charges, drive, machine

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Caller:
    """Give what calls the command."""
    return Caller(capsys)


class Board:
    """A device whose rounds cost between 8 and 16 J, on a clock of its own."""

    def __init__(self) -> None:
        self.clock, self.counter = Clock(), Counter([5_000_000])
        device = CounterDevice(self.counter, clocks=self.clock.clocks(), sleep=self.clock.pass_s)
        self.meter = MeasuredMeter("rapl", device, Quality.MEASURED, clock=lambda: self.clock.now_ns / 1e9)

    def train(self, round_: int) -> None:
        """Let a round's training happen."""
        self.counter.uj[0] += 8_000_000 + int(8_000_000 * uniform(3, "a", round_, "cost"))
        self.clock.pass_s(1.25)

    @staticmethod
    def whole_uj(round_: int, reading: Reading) -> int:
        """Return what the whole round would have cost: each seventh one was ended early."""
        return reading.energy_uj * 2 if round_ % 7 == 3 else reading.energy_uj


def beside(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let `act` happen once while something is recorded: between its first sample and its second."""
    sample, done = Writer.sample, list[int]()

    def sample_and_act(writer: Writer, t_s: float, energy_uj: int) -> None:
        sample(writer, t_s, energy_uj)
        if not done:
            done.append(1)
            act()

    monkeypatch.setattr(Writer, "sample", sample_and_act)


def replayed(out: Path) -> RecordedMeter:
    """Return the meter that an agent with this recording has."""
    meter = open_meter(EnergySettings("recording", file=str(out)))
    assert isinstance(meter, RecordedMeter)
    return meter


@pytest.mark.parametrize("policy", ["skiptrain-constrained", "skiptrain-replanned", "greedy"])
@pytest.mark.parametrize("seen", [0, 12])
def test_a_replay_takes_the_same_decisions(
    tmp_path: Path, call: Caller, monkeypatch: pytest.MonkeyPatch, policy: str, seen: int
) -> None:
    """Bit for bit, probabilities and charges too; with costs learnt before, and with none, and a round that failed."""
    config = device_config(tmp_path, energy=EnergySection(source="ina", sysfs_root=str(tmp_path / "sys")))
    board_trees.ina_hat(tmp_path / "sys")
    board, journal = Board(), Journal(Path(config.node.state_dir))
    learnt = CostHistory(WORKLOAD, seen, tuple(9_000_000 + 100_000 * i for i in range(seen)))
    node, fails = machine(policy, board.meter, 250_000_000, learnt), frozenset({4})
    journal.save_state(node.snapshot())
    measured: list[object] = []
    how = {"train": board.train, "share": board.whole_uj, "journal": journal, "fails": fails}
    beside(monkeypatch, lambda: measured.extend(charges(drive(node, board.meter, **how))))  # type: ignore[arg-type]
    out = tmp_path / "trace.csv"
    path = write_config(config, tmp_path / "agent.yaml")
    said = call.main("energy", "record", "--config", path, "--seconds", "0.3", "--out", out)
    journal.close()
    assert (said.code, said.err) == (0, "")
    recording, meter = read_recording(out), replayed(out)
    trained = [one for one in measured if one[1].train]  # type: ignore[index]
    assert len(recording.windows) == len(trained) >= 15
    assert f"{len(trained)} training rounds" in said.out
    assert (recording.head.node, recording.head.source, meter.history) == (
        "a",
        "ina",
        learnt if seen else CostHistory(),
    )
    again = machine(policy, meter, 250_000_000, replace(meter.history, workload=WORKLOAD))
    assert charges(drive(again, meter, fails=fails)) == measured


def test_rounds_that_had_ended_before_are_left_out(
    tmp_path: Path, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of an earlier run, too; the history is of when the recording began."""
    config = device_config(tmp_path, energy=EnergySection(source="ina", sysfs_root=str(tmp_path / "sys")))
    board_trees.ina_hat(tmp_path / "sys")
    board, journal = Board(), Journal(Path(config.node.state_dir))
    node = machine("greedy", board.meter, None, rounds=5)
    drive(node, board.meter, train=board.train, share=board.whole_uj, journal=journal)
    before = read_snapshot(journal.folder)
    assert before is not None
    costs = before.costs
    known = costs.cost()
    assert (costs.seen, known is None) == (5, False)
    later = machine("greedy", board.meter, None, costs, rounds=7)
    how = {"train": board.train, "share": board.whole_uj, "journal": journal}
    beside(monkeypatch, lambda: drive(later, board.meter, **how))  # type: ignore[arg-type]
    out = tmp_path / "trace.csv"
    path = write_config(config, tmp_path / "agent.yaml")
    assert call.main("energy", "record", "--config", path, "--seconds", "0.2", "--out", out).code == 0
    journal.close()
    recording = read_recording(out)
    assert [window.round for window in recording.windows] == list(range(7))
    assert recording.head.history == costs
    assert (recording.head.expected_uj, recording.head.upper_uj) == (
        known and known.expected_uj,
        known and known.upper_uj,
    )


def test_samples(tmp_path: Path, call: Caller) -> None:
    """Ten a second from 0 on, corrected as the agent would charge it; without an agent there are no rounds."""
    board_trees.ina_hat(tmp_path / "sys")
    out = tmp_path / "trace.csv"
    energy = EnergySection(
        source="ina", sysfs_root=str(tmp_path / "sys"), correction=CorrectionSection(slope=2.0, offset_w=-1.0)
    )
    path = write_config(device_config(tmp_path, energy=energy), tmp_path / "agent.yaml")
    said = call.main("energy", "--config", path, "record", "--seconds", "0.45", "--out", out)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"{out}: ina, ")
    recording = read_recording(out)
    assert (recording.samples[0], recording.windows) == ((0.0, 0), ())
    assert 2 <= len(recording.samples) <= 6
    seconds, energy_uj = recording.samples[-1]
    assert energy_uj == pytest.approx((2 * 2.792 - 1) * 1e6 * seconds, rel=1e-3)
    head = recording.head
    assert head.expected_uj is None
    assert (head.scope, head.rails, head.quality, head.node) == ("board", ("ina219",), "measured", "a")
    meter = open_meter(EnergySettings("recording", file=str(out), round_s=0.1))
    assert meter.close().energy_uj == pytest.approx(0.1 * 4.584e6, rel=1e-2)


def test_a_counter(tmp_path: Path, call: Caller) -> None:
    """RAPL, over its end."""
    trees.rapl(tmp_path)
    out = tmp_path / "trace.csv"
    with moving(at_watts(tmp_path, 15.0)):
        said = call.main("energy", "record", "--sysfs-root", tmp_path, "--seconds", "0.3", "--out", out)
    assert said.code == 0
    energies = [energy_uj for _, energy_uj in read_recording(out).samples]
    assert energies == sorted(energies)
    assert 1_000_000 < energies[-1] < 12_000_000


def test_nothing_is_overwritten_without_force(tmp_path: Path, call: Caller) -> None:
    """Nor is a file touched where there is nothing to record."""
    out = tmp_path / "trace.csv"
    out.write_text("mine")
    words = ("energy", "record", "--sysfs-root", tmp_path / "sys", "--seconds", "0.2", "--out")
    said = call.main(*words, out)
    assert (said.code, out.read_text()) == (78, "mine")
    assert "is there already; name another file, or replace it with --force" in said.err
    said = call.main(*words, out, "--force")
    assert (said.code, out.read_text()) == (72, "mine")
    board_trees.ina_hat(tmp_path / "sys")
    assert call.main(*words, out, "--force").code == 0
    assert read_recording(out).head.source == "ina"
    assert call.main(*words, tmp_path).code == 78
    said = call.main(*words, tmp_path / "none" / "trace.csv")
    assert (said.code, "cannot be written: No such file or directory" in said.err) == (1, True)


def test_a_sensor_that_dies(tmp_path: Path, call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was recorded until then stays, and the line says so."""
    folder, out, dead = trees.rapl(tmp_path / "sys"), tmp_path / "trace.csv", threading.Event()
    beside(monkeypatch, dead.set)
    mover = trees.Mover(tmp_path / "sys")

    def go_on(_seconds: float) -> None:
        if dead.is_set():
            (folder / "intel-rapl:0/energy_uj").unlink(missing_ok=True)
        else:
            mover.move(1000)

    with moving(go_on):
        said = call.main("energy", "record", "--sysfs-root", tmp_path / "sys", "--seconds", "30", "--out", out)
    assert (said.code, said.out, said.err.count("\n")) == (72, "", 1)
    assert "energy_uj: is not there" in said.err
    assert f"kept {out}: rapl, " in said.err
    assert 1 <= len(read_recording(out).samples) < 20


def test_stopped(tmp_path: Path) -> None:
    """A stop between two samples ends the recording in good order."""
    board_trees.ina_hat(tmp_path / "sys")
    out, looks = tmp_path / "trace.csv", list[int]()

    def stopped() -> bool:
        looks.append(1)
        return len(looks) > 9

    kept = record(ask(None, [], sysfs_root=str(tmp_path / "sys")), 3600.0, out, stopped=stopped)
    assert kept.startswith(f"{out}: ina, ")
    assert len(read_recording(out).samples) > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(tmp_path: Path, number: signal.Signals) -> None:
    """What is there is kept, and said."""
    board_trees.ina_hat(tmp_path / "sys")
    out = tmp_path / "trace.csv"
    words = ["energy", "record", "--sysfs-root", str(tmp_path / "sys"), "--seconds", "3600", "--force", "--out"]
    read_end, write_end = os.pipe()
    code = (
        "import os, sys; from agent.energy import recording as r; from agent.__main__ import main\n"
        "s = r.Writer.sample\n"
        f"r.Writer.sample = lambda w, t, e: (s(w, t, e), t > 0 and os.write({write_end}, b'.'))[0]\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words, str(out)], cwd=ROOT, stderr=subprocess.PIPE, pass_fds=(write_end,)
    )
    os.close(write_end)
    try:
        assert os.read(read_end, 1) == b"."
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(read_end)
    assert process.returncode == 130
    assert f"{number.name}: ended early, and kept {out}: ina, " in err.decode()
    assert len(read_recording(out).samples) > 1


def test_the_state_is_read_beside_an_agent(tmp_path: Path) -> None:
    """Without the journal's lock: always whole, always the newest; a damaged one gives way to the one before."""
    assert read_snapshot(tmp_path / "none") is None
    board, journal = Board(), Journal(tmp_path / "state")
    assert read_snapshot(journal.folder) is None
    snapshot, over, seen = machine("greedy", board.meter, None).snapshot(), threading.Event(), list[int]()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            journal.save_state(replace(snapshot, round=number, run="f" * (number * 37 % 500)))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        while len(set(seen)) < 50:
            found = read_snapshot(journal.folder)
            seen.append(found.round if found else 0)
    finally:
        over.set()
        thread.join()
    assert seen == sorted(seen)
    last = read_snapshot(journal.folder)
    assert last is not None
    newest = journal.folder / f"state.{last.round % 2}"
    newest.write_bytes(newest.read_bytes()[:-1])
    older = read_snapshot(journal.folder)
    assert older is not None
    assert older.round == last.round - 1
    journal.close()
    Generations(journal.folder, "state", 1 << 20).write(b"{}")
    with pytest.raises(JournalError, match="the state is whole but not understood"):
        read_snapshot(journal.folder)
