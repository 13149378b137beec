"""Every state of the disk that a power cut can leave, at every call: the journal opens, and no joule is lost.

A RoundMachine is led through a run while all that its journal does to the disk goes onto a tape. Then the tape is cut
behind each call, and each state that the disk may be in is opened as an agent opens it, and the run gone on with.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import durable
from agent.core import effects as fx
from agent.core import events as ev
from agent.core.budget import Cost, Ledger
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig, Phase
from agent.core.types import NodeId, Quality, Snapshot
from agent.errors import JournalError
from agent.journal import Journal, read_records
from tests.core.cluster import make_run, toy_training
from tests.power import Files, Op, Sync, Tape, left_behind

ROUNDS, COST_UJ, LIMIT_UJ = 7, 1_000, 5_500
"""Greedy: five trainings are paid for, of the seven that there would be."""
NODE = NodeId("a")
RUN = make_run((NODE,), rounds=ROUNDS, policy="greedy")


@dataclass
class Life:
    """One life of a lone node between two power cuts, and what training has cost it physically."""

    journal: Journal
    trained: list[int] = field(default_factory=list)
    """Rounds in which a training began, over all lives."""
    acknowledged: list[Snapshot] = field(default_factory=list)
    """States that the journal said were durable."""

    def __post_init__(self) -> None:
        found = self.journal.recover()
        assert found.warnings == (), "a power cut is no damage"
        assert not found.state_lost
        self.found = found.snapshot
        params = np.zeros(12, np.float32) if found.model is None else found.model
        ledger = found.snapshot.ledger if found.snapshot else Ledger(LIMIT_UJ)
        config = MachineConfig(NODE, RUN, Cost(COST_UJ, COST_UJ), save_model_every=2)
        self.machine = RoundMachine(config, params, ledger, found.snapshot)
        if ledger.reservation is not None:
            self.journal.save_state(self.machine.snapshot())  # as the daemon does

    def steps(self) -> Iterator[None]:
        """Go on to the end of the run; yields behind each effect."""
        todo: list[ev.Event] = [ev.Started()]
        while todo or self.machine.phase is not Phase.DONE:
            event, now = (todo.pop(0), 0.0) if todo else (ev.DeadlineReached(), 1e6)
            for effect in self.machine.handle(event, now):
                self._do(effect, todo)
                yield

    def _do(self, effect: fx.Effect, todo: list[ev.Event]) -> None:
        match effect:
            case fx.SaveState(snapshot):
                self.journal.save_state(snapshot)
                self.acknowledged.append(snapshot)
            case fx.SaveModel(round_, params):
                self.journal.save_model(RUN.digest().hex(), round_, params)
            case fx.AppendRecord(record):
                self.journal.append(record)
            case fx.StartTraining(round_, params, seed):
                self.trained.append(round_)
                done = toy_training(params, seed)
                todo.append(ev.TrainingFinished(round_, done, 1.0, COST_UJ, Quality.REPLAYED))
            case _:
                pass


@dataclass(frozen=True)
class Moment:
    """What was true when a number of calls had been made."""

    ops: int
    trained: int
    """Trainings that had begun."""
    acknowledged: int
    """States that had been made durable."""


@dataclass
class Recording:
    """A whole run: its calls, its states, and who knew what when."""

    ops: list[Op]
    states: list[Snapshot]
    trained: list[int]
    moments: list[Moment]

    def before(self, ops: int) -> Moment:
        """Return the last moment with at most so many calls made."""
        return [moment for moment in self.moments if moment.ops <= ops][-1]

    def after(self, ops: int) -> Moment:
        """Return the first moment with at least so many calls made: what was under way at the cut is in it."""
        return next(moment for moment in self.moments if moment.ops >= ops)


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recording:
    """Give a run from its first to its last call."""
    return record(tmp_path / "recorded", monkeypatch)


def record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recording:
    """Lead one life through the whole run, with its calls on tape."""
    journal = Journal(folder)
    with monkeypatch.context() as patched:
        tape = Tape(folder)
        patched.setattr(durable, "os", tape)
        life = Life(journal)
        moments = [Moment(0, 0, 0)]
        moments += [Moment(len(tape.ops), len(life.trained), len(life.acknowledged)) for _ in life.steps()]
        journal.close()
    assert life.trained == [0, 1, 2, 3, 4]
    return Recording(tape.ops, life.acknowledged, life.trained, moments)


class Quick:
    """Stands in for `os` where no power cut is to come: an fsync takes no time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, _handle: int) -> None:
        """Leave it to the system."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the thousands of lives behind a power cut go fast."""
    monkeypatch.setattr(durable, "os", Quick())


def put(folder: Path, files: Files) -> Path:
    """Make a folder that holds exactly these files."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def open_all(recording: Recording, folder: Path) -> Counter[str]:
    """Open every state that a power cut could leave at every call, check it, and go on to the end of the run."""
    counts: Counter[str] = Counter()
    chance = random.Random(1)  # noqa: S311  no secret
    for cut in range(len(recording.ops) + 1):
        for files in left_behind(recording.ops[:cut], chance):
            _go_on(recording, cut, put(folder, files), counts)
            counts["states"] += 1
    return counts


def _go_on(recording: Recording, cut: int, folder: Path, counts: Counter[str]) -> None:
    before, after = recording.before(cut), recording.after(cut)
    journal = Journal(folder)
    try:
        life = Life(journal, trained=recording.trained[: before.trained])
        possible = [None, *recording.states][before.acknowledged : after.acknowledged + 1]
        assert life.found in possible, f"call {cut}: neither the last durable state nor the one being written"
        counts["newest"] += life.found != possible[0]
        spent = before.trained * COST_UJ
        reserved = life.machine.ledger.charged_uj
        assert spent <= reserved <= spent + COST_UJ, f"call {cut}: spent {spent} uJ, charged {reserved} uJ"
        for _ in life.steps():
            pass
        ledger = life.machine.ledger
        counts["forfeited"] += ledger.forfeited_uj > 0
        assert len(set(life.trained)) == len(life.trained), "a round was trained twice"
        assert ledger.charged_uj <= LIMIT_UJ
        never_begun = ledger.charged_uj - len(life.trained) * COST_UJ
        assert never_begun in {0, ledger.forfeited_uj}, f"call {cut}: charged {ledger.charged_uj} uJ for {life.trained}"
    finally:
        journal.close()
    rounds = [record.round for record in read_records(folder)]  # they need not be durable, but must be readable
    assert rounds == sorted(rounds)


def test_no_power_cut_loses_a_joule(recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At each call: the last durable state or the next is there, energy is charged at least once, and never twice."""
    counts = open_all(recording, tmp_path / "cut")
    assert counts["states"] > 8 * len(recording.ops)
    assert counts["newest"] > 0
    assert counts["forfeited"] > 0
    with capsys.disabled():
        print(f"\n  {len(recording.ops)} calls, {counts['states']} states of the disk: {dict(counts)}")


@pytest.mark.parametrize("forgotten", ["file", "folder"])
def test_the_tape_finds_a_forgotten_fsync(recording: Recording, tmp_path: Path, forgotten: str) -> None:
    """Without the fsync of the file, or of the folder, some state breaks the journal's promise: the check bites."""
    kept = [
        i
        for i, op in enumerate(recording.ops)
        if not isinstance(op, Sync) or (op.file is None) == (forgotten == "file")
    ]
    assert 0 < len(kept) < len(recording.ops)
    moments = [replace(moment, ops=sum(i < moment.ops for i in kept)) for moment in recording.moments]
    careless = replace(recording, ops=[recording.ops[i] for i in kept], moments=moments)
    with pytest.raises((AssertionError, JournalError)):
        open_all(careless, tmp_path / "cut")
