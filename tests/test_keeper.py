"""What waits while the disk takes nothing, in which order it gets there, and what a damaged disk then still knows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import durable
from agent.core.budget import Ledger, Reservation
from agent.errors import JournalError
from agent.journal import Journal, Recovered, read_records
from agent.keeper import LONGEST_RETRY_S, MAX_WAITING_LINES, RETRY_S, Keeper
from tests.test_journal import RECORD, ROOT, RUN, SNAPSHOT

COST_UJ = 1_000
MODEL = np.ones(3, np.float32)


@dataclass
class Disk:
    """Stands in for `os` under the journal: no room for the names in `full`."""

    full: tuple[str, ...] = ()
    tries: int = 0
    now_s: float = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        """Open, if there is room."""
        if path.name.startswith(self.full or "-"):
            self.tries += 1
            raise OSError(28, "No space left on device")
        return os.open(path, flags, mode)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Give a disk, and the clock that it is tried by."""
    disk = Disk()
    monkeypatch.setattr(durable, "os", disk)
    return disk


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Give a new journal."""
    opened = Journal(tmp_path / "state")
    yield opened
    opened.close()


@pytest.fixture
def keeper(journal: Journal, disk: Disk) -> Keeper:
    """Give the keeper of the journal."""
    return Keeper(journal, RUN, lambda: disk.now_s)


def test_tries_get_rarer_and_begin_anew(keeper: Keeper, disk: Disk) -> None:
    """A try may write most of a model to a card: 10 s, 20 s, up to 320 s; the next trouble begins at 10 s again."""
    disk.full = ("state",)
    keeper.save_state(SNAPSHOT)
    gaps, last_s = [], 0.0
    while len(gaps) < 8:
        disk.now_s += 1.0
        before = disk.tries
        keeper.retry()
        if disk.tries > before:
            gaps.append(disk.now_s - last_s)
            last_s = disk.now_s
    assert gaps == [10, 20, 40, 80, 160, 320, 320, 320]
    assert (RETRY_S, LONGEST_RETRY_S) == (10, 320)
    disk.full, disk.now_s = (), disk.now_s + 320
    keeper.retry()
    assert (keeper.trouble, keeper.behind) == ("", False)
    disk.full = ("state",)
    keeper.save_state(SNAPSHOT)
    before = disk.tries
    disk.now_s += 10
    keeper.retry()
    assert disk.tries == before + 1


def test_a_state_waits_for_the_model_that_came_before_it(keeper: Keeper, journal: Journal, disk: Disk) -> None:
    """No disk says `finished`, or `joined`, without the model of that moment: without room, neither is there."""
    keeper.save_state(SNAPSHOT)
    disk.full = ("model",)
    keeper.save_model(7, MODEL)
    keeper.save_state(replace(SNAPSHOT, finished=True))
    assert keeper.behind
    assert journal.recover() == Recovered(SNAPSHOT, -1, None, (), state_lost=False)
    with pytest.raises(JournalError, match=r"the model cannot be written: .* lost .*: the state, the model after"):
        keeper.close()
    disk.full = ()
    keeper.close()
    found = journal.recover()
    assert found.snapshot is not None
    assert (found.snapshot.finished, found.model_round) == (True, 7)


def test_what_waited_is_written_before_a_new_reservation(keeper: Keeper, journal: Journal, disk: Disk) -> None:
    """If the newest state is damaged later, the one before knows all that was spent: one more reservation covers it."""
    reserved = replace(SNAPSHOT, round=1, ledger=Ledger(None, reservation=Reservation(RUN, 1, COST_UJ)))
    settled = replace(SNAPSHOT, round=1, ledger=Ledger(None, COST_UJ, windows=1))
    again = replace(SNAPSHOT, round=7, ledger=replace(settled.ledger, reservation=Reservation(RUN, 7, COST_UJ)))
    keeper.save_state(reserved)
    disk.full = ("state",)
    keeper.save_state(settled)
    disk.full, disk.now_s = (), RETRY_S
    keeper.save_state(again)
    assert not keeper.behind
    newest = journal.folder / "state.1"
    newest.write_bytes(newest.read_bytes()[:-1])
    found = journal.recover()
    assert (found.snapshot, found.state_lost) == (settled, True)


def test_records_wait_bounded_and_forbid_no_training(
    keeper: Keeper, journal: Journal, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """The oldest go first, and are counted; a ledger that is on the disk is enough to train."""
    disk.full = ("rounds",)
    for round_ in range(MAX_WAITING_LINES + 5):
        keeper.append(replace(RECORD, round=round_))
    assert not keeper.behind
    assert "a record cannot be written: No space left on device" in keeper.trouble
    assert caplog.text.count("until then records wait in memory") == 1
    disk.full, disk.now_s = (), 1e6
    keeper.retry()
    assert [record.round for record in read_records(journal.folder)] == list(range(5, MAX_WAITING_LINES + 5))
    assert "takes writes again; 5 records of past rounds are lost" in caplog.text


def test_a_model_that_cannot_fit_is_not_written_to_find_that_out(journal: Journal, tmp_path: Path) -> None:
    """Four terabytes are refused before a byte is written: a card would be worn out by trying."""
    room = os.statvfs(tmp_path)
    with (tmp_path / "x").open("wb") as file, pytest.raises(OSError, match="No space left"):
        durable._check_room(file.fileno(), room.f_blocks * room.f_frsize + 1)
    assert journal.bytes_written == 0


def test_what_a_killed_write_left_is_removed_at_the_start(journal: Journal) -> None:
    """On a full disk its bytes would keep everything else from being written, for ever."""
    for name in ("state.tmp", "model.tmp"):
        (journal.folder / name).write_bytes(b"half")
    journal.close()
    Journal(journal.folder).close()
    assert sorted(path.name for path in journal.folder.iterdir()) == ["lock"]


def test_a_state_that_cannot_be_read_is_no_damage(journal: Journal) -> None:
    """Nothing is made up about a ledger, and nothing overwritten, because a card or its rights fail for a moment."""
    journal.save_state(SNAPSHOT)
    journal.save_model(RUN, 1, MODEL)
    journal.save_model(RUN, 3, MODEL)
    for name in ("state.0", "model.0"):
        (journal.folder / name).unlink(missing_ok=True)
        (journal.folder / name).mkdir()
    with pytest.raises(JournalError, match=r"state\.0: cannot be read: Is a directory; mend the disk, or its rights"):
        journal.recover()
    (journal.folder / "state.0").rmdir()
    found = journal.recover()
    assert (found.snapshot, found.model_round, len(found.warnings)) == (SNAPSHOT, 1, 1)


READ_ONLY = """
import sys
from pathlib import Path
from agent.journal import Journal
from agent.keeper import Keeper
from tests.test_journal import RUN, SNAPSHOT

journal = Journal(Path(sys.argv[1]))
found = journal.recover()
keeper = Keeper(journal, RUN, lambda: 0.0)
keeper.save_state(SNAPSHOT)
print(found.snapshot == SNAPSHOT, keeper.behind, keeper.trouble)
"""


def test_a_disk_that_is_read_only_at_the_start_is_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    """A failing card comes back read-only: the agent opens what is there, and shares on as with a full one."""
    words = [sys.executable, "-c", READ_ONLY, str(tmp_path)]
    script = 'mount -t tmpfs none "$4" && "$@" && mount -o remount,ro "$4" && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script.replace("$4", str(tmp_path)), "sh"]
    result = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    first, second = result.stdout.splitlines()
    assert first.split(maxsplit=2) == ["False", "False"]
    assert second.startswith(f"True True {tmp_path}: the state cannot be written: Read-only file system")
