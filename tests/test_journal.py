"""What a device must not forget, across damage, full disks, kill -9 and two agents in one folder."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import durable
from agent.core import effects as fx
from agent.core import events as ev
from agent.core.budget import Cost, Ledger, Reservation
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig
from agent.core.types import (
    Decision,
    ModelUpdate,
    NodeId,
    Quality,
    Roster,
    RoundKind,
    RoundRecord,
    Schedule,
    Snapshot,
    params_digest,
)
from agent.durable import Generations
from agent.errors import JournalError
from agent.journal import EvaluationRecord, Journal, Recovered, read_evaluations, read_records
from tests.core.cluster import make_run

RUN = "ab" * 16
ROOT = Path(__file__).parents[1]
SNAPSHOT = Snapshot(
    run=RUN,
    round=3,
    begun=True,
    finished=False,
    ledger=Ledger(10**12, 5, 4, 3, Reservation("ab" * 16, 3, 23_518_350), "may"),
    roster=Roster(1, (NodeId("a"), NodeId("b")), 2),
    first_round=1,
    affordable_at_start=272,
    trained=2,
    decision=Decision(True, 1 / 3, 0.1, "drawn to train"),
    energy_uj=17,
    energy_quality=Quality.REPLAYED,
)
RECORD = RoundRecord(
    run=RUN,
    node=NodeId("a"),
    round=3,
    kind=RoundKind.TRAINING,
    decision=Decision(False, 0.1 + 0.2, 0.7, "drawn to skip"),
    energy_uj=0,
    energy_quality=Quality.NONE,
    loss=None,
    peers_expected=2,
    peers_received=1,
    rejected=4,
    digest_published="0" * 16,
    mixed=((NodeId("a"), "0" * 16, 2 / 3), (NodeId("b"), "1" * 16, 1 / 3)),
    train_s=1e-3,
    collect_s=0.1,
    error="as it was",
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Give a new journal in the folder `state`."""
    opened = Journal(tmp_path / "state")
    yield opened
    opened.close()


def at(round_: int) -> Snapshot:
    """Return the snapshot of a round."""
    return replace(SNAPSHOT, round=round_)


def reopened(folder: Path) -> Recovered:
    """Return what a new agent finds in `folder`."""
    journal = Journal(folder)
    try:
        return journal.recover()
    finally:
        journal.close()


def test_a_new_folder_holds_nothing(journal: Journal) -> None:
    """The first start has neither state nor model nor warnings."""
    assert journal.recover() == Recovered(None, -1, None, (), state_lost=False)
    assert read_records(journal.folder) == []
    assert read_evaluations(journal.folder) == []


def test_everything_comes_back_as_it_was_written(journal: Journal) -> None:
    """State, model to the bit, records and evaluations are equal after a restart; numbers keep all their digits."""
    params = np.array([1.5, -0.0, 1e-38, np.pi], dtype=np.float32)
    evaluation = EvaluationRecord(3, "a", 1 / 3, None, 2.5)
    journal.save_state(SNAPSHOT)
    journal.save_model(RUN, 4, params)
    journal.append(RECORD)
    journal.append(evaluation)
    journal.close()
    found = reopened(journal.folder)
    assert (found.snapshot, found.model_round, found.warnings, found.state_lost) == (SNAPSHOT, 4, (), False)
    assert found.model is not None
    assert found.model.tobytes() == params.tobytes()
    assert read_records(journal.folder) == [RECORD]
    assert read_evaluations(journal.folder) == [evaluation]


def test_each_write_is_the_next_generation_in_the_other_file(journal: Journal) -> None:
    """The newest of two files counts; the older one is the write before it."""
    for round_ in range(5):
        journal.save_state(at(round_))
    heads = [(journal.folder / f"state.{i}").read_bytes().split(b"\n")[0].split()[3] for i in (0, 1)]
    assert heads == [b"4", b"5"]
    assert journal.recover().snapshot == at(4)


def test_a_journal_that_was_not_read_writes_after_what_is_there(journal: Journal) -> None:
    """Numbers go on across restarts: a write is never older than what it follows."""
    for round_ in range(5):
        journal.save_state(at(round_))
    journal.close()
    again = Journal(journal.folder)
    again.save_state(at(9))
    again.close()
    assert reopened(journal.folder).snapshot == at(9)


def damage(path: Path, how: str) -> None:
    """Do to a file what a failing card does."""
    content = path.read_bytes()
    changed = {
        "cut": content[:-1],
        "longer": content + b"x",
        "empty": b"",
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "other": b"\xb2" * 300,
        "no line": content.replace(b"\n", b" "),
        "renumbered": re.sub(rb"^(\S+ \S+ \S+ )\d+", rb"\g<1>99", content),
        "renamed": content.replace(b" state ", b" model "),
    }
    path.write_bytes(changed[how])


DAMAGES = ["cut", "longer", "empty", "flipped", "other", "no line", "renumbered", "renamed"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_state_falls_back_with_a_warning(journal: Journal, how: str) -> None:
    """The generation before counts, a warning says so, and the next write takes the damaged one's place."""
    for round_ in range(4):
        journal.save_state(at(round_))
    damage(journal.folder / "state.0", how)
    found = journal.recover()
    assert (found.snapshot, found.state_lost) == (at(2), True)
    assert found.warnings == (f"{journal.folder}: the newest state was damaged; went back to generation 3",)
    journal.save_state(at(7))
    assert journal.recover() == Recovered(at(7), -1, None, (), state_lost=False)


def test_two_damaged_states_stop_the_agent(journal: Journal) -> None:
    """What was spent is unknown then: no new ledger is made up, and nothing is overwritten."""
    for round_ in range(2):
        journal.save_state(at(round_))
    for name in ("state.0", "state.1"):
        damage(journal.folder / name, "cut")
    journal.close()
    with pytest.raises(JournalError, match="what this device has spent is unknown; restore a backup") as error:
        reopened(journal.folder)
    assert error.value.exit_code == 74
    again = Journal(journal.folder)
    with pytest.raises(JournalError):
        again.save_state(SNAPSHOT)
    again.close()


def test_a_lost_model_is_said_and_costs_no_ledger(journal: Journal) -> None:
    """One damaged model falls back; two are a warning, as the run's first weights can stand in."""
    journal.save_state(SNAPSHOT)
    journal.save_model(RUN, 1, np.ones(3, np.float32))
    journal.save_model(RUN, 3, np.ones(3, np.float32))
    damage(journal.folder / "model.0", "flipped")
    found = journal.recover()
    assert (found.model_round, len(found.warnings)) == (1, 1)
    damage(journal.folder / "model.1", "flipped")
    found = journal.recover()
    assert (found.snapshot, found.model, found.state_lost) == (SNAPSHOT, None, False)
    assert "model.0 and model.1: nothing whole is left; going on from the run's first weights" in found.warnings[0]


@pytest.mark.parametrize("head", [b"skiptrain-journal 2 state 9 0 0\n", b"skiptrain-journal 10 {}\n"])
def test_a_newer_format_is_refused(journal: Journal, head: bytes) -> None:
    """An agent that was set back does not take a newer one's files for damage, whatever their head looks like."""
    journal.save_state(SNAPSHOT)
    (journal.folder / "state.0").write_bytes(head)
    with pytest.raises(JournalError, match=r"state.0: written by a newer release \(format \d+\); update this one"):
        journal.recover()


def test_what_the_first_release_wrote_is_read_for_ever(tmp_path: Path) -> None:
    """The files of format 1 are kept as they were written; whoever changes the format keeps a way to read them."""
    shutil.copytree(ROOT / "tests" / "journals" / "format-1", tmp_path / "old")
    found = reopened(tmp_path / "old")
    assert (found.snapshot, found.model_round, found.warnings) == (SNAPSHOT, 2, ())
    assert found.model is not None
    assert found.model.tolist() == (np.arange(4, dtype=np.float32) / 7).tolist()
    assert read_records(tmp_path / "old") == [RECORD]
    assert read_evaluations(tmp_path / "old") == [EvaluationRecord(2, "a", 1 / 3, None, 2.5)]


def test_what_a_newer_release_added_is_passed_over(journal: Journal) -> None:
    """In the same format a newer one may add what an older one can do without: state and records still open."""
    extra = {"added": [1, {"deep": None}], "also": "text"}
    state: dict[str, Any] = msgspec.to_builtins(SNAPSHOT)
    state["ledger"] |= extra
    Generations(journal.folder, "state", 1 << 20).write(msgspec.json.encode(state | extra))
    line = msgspec.json.encode(msgspec.to_builtins(RECORD) | extra)
    (journal.folder / "rounds.jsonl").write_bytes(line + b"\n")
    assert journal.recover().snapshot == SNAPSHOT
    assert read_records(journal.folder) == [RECORD]


@pytest.mark.parametrize("name", ["state", "model"])
def test_a_refused_newer_journal_stays_as_it_is(journal: Journal, name: str) -> None:
    """An agent that was set back ends with 74 and a sentence, and touches nothing: the newer one can go on with it."""
    journal.save_state(SNAPSHOT)
    journal.save_model(RUN, 1, np.ones(3, np.float32))
    newest = journal.folder / f"{name}.1"
    newest.write_bytes(newest.read_bytes().replace(b"skiptrain-journal 1 ", b"skiptrain-journal 2 ", 1))
    before = {path.name: path.read_bytes() for path in journal.folder.iterdir()}
    with pytest.raises(JournalError, match=rf"{name}.1: written by a newer release \(format 2\); update") as error:
        journal.recover()
    assert error.value.exit_code == 74
    assert {path.name: path.read_bytes() for path in journal.folder.iterdir()} == before


@given(st.binary(max_size=400))
def test_no_content_of_a_file_raises_anything_but_a_journal_error(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes
) -> None:
    """Whatever a card made of the older file, the newer one is read, or a JournalError says why not."""
    folder = tmp_path_factory.getbasetemp()
    Generations(folder, "noise", 100).write(b"right")
    (folder / "noise.0").write_bytes(noise)
    (folder / "noise.1").replace(folder / "noise.keep")
    (folder / "noise.keep").replace(folder / "noise.1")
    found = Generations(folder, "noise", 100).read()
    assert found is not None
    assert found.body == b"right"
    (folder / "noise.0").unlink()
    (folder / "noise.1").unlink()


def test_one_folder_serves_one_agent(journal: Journal) -> None:
    """A second journal in the same or another process is refused; after the first is closed the folder is free."""
    with pytest.raises(JournalError, match="in use by another agent"):
        Journal(journal.folder)
    script = f"from agent.journal import Journal; from pathlib import Path; Journal(Path({str(journal.folder)!r}))"
    child = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "in use by another agent; give each agent a node.state_dir of its own" in child.stderr
    journal.close()
    Journal(journal.folder).close()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """The message names the setting to look at."""
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"cannot be opened for writing: .*; check node.state_dir"):
        Journal(tmp_path / "file" / "state")


def test_a_torn_last_line_is_dropped(journal: Journal) -> None:
    """A power cut in mid-line costs that line; reports leave it out, and the next agent writes on after the others."""
    path = journal.folder / "rounds.jsonl"
    journal.append(RECORD)
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"node":"a","rou')
    assert read_records(journal.folder) == [RECORD]
    again = Journal(journal.folder)
    again.append(replace(RECORD, round=4))
    again.close()
    assert [record.round for record in read_records(journal.folder)] == [3, 4]
    path.write_bytes(b"torn")
    third = Journal(journal.folder)
    third.append(RECORD)
    third.close()
    assert read_records(journal.folder) == [RECORD]


def test_a_hole_that_a_power_cut_left_is_said_and_costs_what_it_swallowed(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines are not forced to the disk: one may be missing before a later one, and reads as zeros."""
    for round_ in range(4):
        journal.append(replace(RECORD, round=round_))
    path = journal.folder / "rounds.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + bytes(len(lines[1])) + lines[2] + lines[3][:5] + bytes(len(lines[3]) - 6) + b"\n")
    assert [record.round for record in read_records(journal.folder)] == [0, 2]
    assert caplog.messages == [
        f"{path}:{number}: a power cut left a hole here; what it swallowed is gone" for number in (2, 3)
    ]


def test_a_damaged_line_is_named(journal: Journal) -> None:
    """A report does not leave out rounds in silence."""
    journal.append(RECORD)
    (journal.folder / "rounds.jsonl").write_bytes(b"{}\n")
    with pytest.raises(JournalError, match=r"rounds.jsonl:1: damaged: .*; remove that line"):
        read_records(journal.folder)


def test_lines_are_bounded_and_the_last_two_files_are_read(tmp_path: Path) -> None:
    """A file that is full becomes the older one; what was older is gone."""
    journal = Journal(tmp_path / "bounded", lines_bytes=2_000)
    for round_ in range(12):
        journal.append(replace(RECORD, round=round_))
        journal.append(EvaluationRecord(round_, "a" * 200, None, None, None))
    for name, read in (("rounds", read_records), ("evaluations", read_evaluations)):
        sizes = {path.name: path.stat().st_size for path in journal.folder.glob(f"{name}.*")}
        assert sizes.keys() == {f"{name}.jsonl", f"{name}.jsonl.1"}
        assert max(sizes.values()) <= 2_000
        rounds = [row.round for row in read(journal.folder)]
        assert rounds == list(range(rounds[0], 12))
        assert len(rounds) > 2
    journal.close()


def test_the_bytes_written_are_counted(journal: Journal) -> None:
    """The count is that of the files' contents, each write of a generation included."""
    for round_ in range(2):
        journal.save_state(at(round_))
    journal.save_model(RUN, 0, np.ones(100, np.float32))
    journal.append(RECORD)
    files = [path for path in journal.folder.iterdir() if path.name != "lock"]
    assert {path.name for path in files} == {"state.0", "state.1", "model.1", "rounds.jsonl"}
    assert journal.bytes_written == sum(path.stat().st_size for path in files)


class FullDisk:
    """Stands in for `os` under the journal: a disk with room for a number of bytes, and no more while it is full."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, handle: int, content: memoryview) -> int:
        """Take what there is room for, as the system does."""
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = os.write(handle, content[: self.room])
        self.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 5, 120, 300])
def test_a_full_disk_damages_nothing(journal: Journal, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Wherever the disk gets full in a write: the older state stays, no half line is read, and all goes on later."""
    journal.save_state(SNAPSHOT)
    journal.append(RECORD)
    with monkeypatch.context() as patched:
        disk = FullDisk(room)
        patched.setattr(durable, "os", disk)
        with pytest.raises(OSError, match="No space left"):
            journal.save_state(at(9))
        assert not list(journal.folder.glob("*.tmp")), "what is left of a failed write takes room"
        disk.room = room
        with pytest.raises(OSError, match="No space left"):
            journal.append(replace(RECORD, round=4))
        assert journal.recover().snapshot == SNAPSHOT
        assert read_records(journal.folder) == [RECORD]
        disk.room = 10_000
        journal.append(replace(RECORD, round=5))
        journal.save_state(at(10))
    journal.close()
    assert reopened(journal.folder) == Recovered(at(10), -1, None, (), state_lost=False)
    assert [record.round for record in read_records(journal.folder)] == [3, 5]


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
import msgspec
import numpy as np
from agent.core.types import RoundRecord, Snapshot
from agent.journal import Journal

folder, snapshot, record = sys.argv[1:]
snapshot = msgspec.json.decode(snapshot, type=Snapshot)
record = msgspec.json.decode(record, type=RoundRecord)
journal = Journal(Path(folder))
found = journal.recover()
assert "torch" not in sys.modules
start = found.snapshot.round + 1 if found.snapshot else 0
for round_ in range(start, start + 1_000_000):
    journal.save_state(replace(snapshot, round=round_))
    journal.save_model(snapshot.run, round_, np.full(20_000, round_, np.float32))
    journal.append(replace(record, round=round_))
    print(round_, flush=True)
"""


def test_kill_9_never_costs_what_was_acknowledged(tmp_path: Path) -> None:
    """After each of ten kills at random instants: a whole state, not older than the last one that was acknowledged."""
    chance = random.Random(1)  # noqa: S311  no secret
    acknowledged = -1
    large = replace(SNAPSHOT, roster=Roster(0, tuple(NodeId(f"node-{i}") for i in range(2_000))))
    values = [msgspec.json.encode(value).decode() for value in (large, RECORD)]
    command = [sys.executable, "-c", WRITER, str(tmp_path), *values]
    for _ in range(10):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(chance.randint(1, 12)):
                acknowledged = int(child.stdout.readline())
            child.kill()
            acknowledged = max([acknowledged, *(int(line) for line in child.stdout if line.endswith(b"\n"))])
        found = reopened(tmp_path)
        assert found.snapshot is not None
        assert found.model is not None
        assert found.warnings == ()
        assert acknowledged <= found.snapshot.round <= acknowledged + 1
        assert acknowledged <= found.model_round <= found.snapshot.round
        assert set(found.model) == {found.model_round}
        assert acknowledged <= read_records(tmp_path)[-1].round <= found.model_round


# --- what a round costs the card


class Card:
    """Runs one node of a fleet of seven, all of whose neighbours are quick, and counts what its journal writes."""

    def __init__(self, folder: Path, n_params: int) -> None:
        roster = tuple(NodeId(f"node-{i:03}") for i in range(7))
        self._run = replace(make_run(roster, policy="skiptrain", rounds=40), schedule=Schedule(4, 4, 40))
        self._journal = Journal(folder)
        self.bytes: Counter[tuple[str, str]] = Counter()
        """By kind of round and what was written."""
        self.rounds: Counter[str] = Counter()
        cost = Cost(23_518_350, 23_518_350)
        self._machine = RoundMachine(
            MachineConfig(roster[0], self._run, cost), np.zeros(n_params, np.float32), Ledger(10**10)
        )

    def run(self) -> None:
        """Go through all rounds."""
        self._handle(ev.Started())
        roster = self._machine.roster
        assert roster is not None
        self._handle(ev.PeersChanged(dict.fromkeys(roster.members[1:], roster.digest().hex())))
        self._journal.close()

    def _handle(self, event: ev.Event) -> None:
        answers: list[ev.Event] = []
        for effect in self._machine.handle(event, 0.0):
            before = self._journal.bytes_written
            round_ = self._do(effect, answers)
            if self._journal.bytes_written > before:
                kind = self._run.schedule.kind(round_).value
                self.bytes[kind, type(effect).__name__] += self._journal.bytes_written - before
        for answer in answers:
            self._handle(answer)

    def _do(self, effect: fx.Effect, answers: list[ev.Event]) -> int:
        match effect:
            case fx.SaveState(snapshot):
                self._journal.save_state(snapshot)
                return 0 if snapshot.finished else snapshot.round
            case fx.SaveModel(round_, params):
                self._journal.save_model(self._run.digest().hex(), round_, params)
                return round_
            case fx.AppendRecord(record):
                self._journal.append(record)
                self.rounds[record.kind.value] += 1
                return record.round
            case fx.StartTraining(round_, params):
                answers.append(ev.TrainingFinished(round_, params, 2.345678, 23_518_350, Quality.REPLAYED))
            case fx.PublishUpdate(update):
                answers += [ev.UpdateReceived(self._answer(update, peer)) for peer in sorted(self._machine.peers)]
            case _:
                pass
        return 0

    @staticmethod
    def _answer(update: ModelUpdate, peer: NodeId) -> ModelUpdate:
        return replace(update, sender=peer, digest=params_digest(update.params))


def measured(folder: Path, n_params: int) -> dict[str, float]:
    """Return the bytes that a journal writes in a round of each kind, by what is written; the model's are a mean."""
    card = Card(folder, n_params)
    card.run()
    train, sync = card.rounds["training"], card.rounds["synchronisation"]
    assert (train, sync) == (20, 20)
    state = {kind: card.bytes[kind, "SaveState"] / card.rounds[kind] for kind in card.rounds}
    record = sum(card.bytes[kind, "AppendRecord"] for kind in card.rounds) / 40
    model = sum(card.bytes[kind, "SaveModel"] for kind in card.rounds) / 40
    return {
        "training": state["training"] + record + model,
        "other": state["synchronisation"] + record + model,
        "state_training": state["training"],
        "state_other": state["synchronisation"],
        "record": record,
        "model": model,
    }


def documented() -> dict[int, list[int]]:
    """Return the numbers in the table of docs/journal.md by number of parameters."""
    rows = re.findall(r"^\| +([\d,]+) (\|[\d, |]+)\|$", (ROOT / "docs" / "journal.md").read_text(), re.MULTILINE)
    return {int(n.replace(",", "")): [int(c.replace(",", "")) for c in cells.split("|")[1:]] for n, cells in rows}


@pytest.mark.parametrize("n_params", [6_186, 89_834, 1_690_046])
def test_the_documented_bytes_of_a_round_are_those_written(tmp_path: Path, n_params: int) -> None:
    """docs/journal.md states what a machine that goes through 40 rounds makes the journal write, within 3 %."""
    got: Any = measured(tmp_path, n_params)
    columns = ["state_training", "state_other", "record", "model", "training", "other"]
    assert documented()[n_params] == pytest.approx([got[name] for name in columns], rel=0.03)


if __name__ == "__main__":
    import tempfile

    for size in (6_186, 89_834, 1_690_046):
        with tempfile.TemporaryDirectory() as scratch:
            print(size, {name: round(value) for name, value in measured(Path(scratch), size).items()})


def test_the_model_of_another_run_does_not_count(tmp_path: Path) -> None:
    """A new run that crashes before its first model goes on from its own weights, not from the former run's."""
    journal = Journal(tmp_path)
    journal.save_model("cd" * 16, 9, np.ones(3, np.float32))
    journal.save_state(SNAPSHOT)
    journal.close()
    journal = Journal(tmp_path)
    found = journal.recover()
    journal.close()
    assert (found.snapshot, found.model_round, found.model) == (SNAPSHOT, -1, None)


def test_a_round_that_was_ended_twice_counts_once(tmp_path: Path) -> None:
    """Between a record and the next state a power cut makes the node end the round again: the last account counts."""
    journal = Journal(tmp_path)
    for record in (RECORD, replace(RECORD, rejected=7), replace(RECORD, run="cd" * 16)):
        journal.append(record)
    journal.close()
    assert read_records(tmp_path) == [replace(RECORD, rejected=7), replace(RECORD, run="cd" * 16)]


def test_a_journal_opens_in_little_memory(tmp_path: Path) -> None:
    """What is read is what the file holds: a board with less memory than the largest model opens a small one."""
    journal = Journal(tmp_path)
    journal.save_state(SNAPSHOT)
    journal.save_model(RUN, 4, np.ones(100, np.float32))
    journal.close()
    code = (
        "import resource, sys; from pathlib import Path; from agent.journal import Journal; "
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)); "
        f"print(Journal(Path({str(tmp_path)!r})).recover().model.size)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("100", "")
