"""Runs a case with the real program, and returns what it said and whether anything was lost."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from agent.core.budget import Reservation
from agent.errors import JournalError
from agent.journal import Journal
from tests.bad_input.case import ANY, CONFIG, Case, Place, remember

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120.0
NAMES = {"agent": "skiptrain-agent", "sim_harness": "skiptrain-sim", "provisioning": "skiptrain-provision"}
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) ")
"""What opens a line of the log."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case."""

    code: int
    lines: tuple[str, ...]
    """Standard error, line by line, with neutral words."""
    output: str
    """Standard output."""
    strange: tuple[str, ...]
    """Lines of standard error that are neither of the log nor the program's last word."""
    lost: str
    """What was lost of the journal; "" for nothing."""


def run(case: Case, folder: Path) -> Outcome:
    """Arrange the case in `folder`, run the program to its end, or until it has said its line, and look around."""
    with ExitStack() as stack:
        place = Place(folder, stack)
        remember(place.state)
        for old, new in case.edits:
            place.edit(old, new)
        place.config.write_text("")
        case.arrange(place)
        if place.config.is_file() and not place.config.stat().st_size:
            place.config.write_text(place.text.replace("DIR", str(folder)))
        before = _files(place.state)
        ledger = _ledger(place.state)
        expected = ledger and (ledger[0] + case.forfeited_uj, ledger[1] + case.forfeited_uj, *ledger[2:])
        code, log, output = _execute(case, place)
        same = _files(place.state) == before or (ledger is not None and _ledger(place.state) == expected)
        lines = tuple(neutral(line, place) for line in log.splitlines())
        name = NAMES[case.program]
        strange = tuple(line for line in log.splitlines() if not STAMP.match(line) and not line.startswith(name))
        return Outcome(code, lines, output, strange, "" if same else f"{ledger} became {_ledger(place.state)}")


def _execute(case: Case, place: Place) -> tuple[int, str, str]:
    """Return exit code, standard error and standard output."""
    given = [word.replace(CONFIG, str(place.config)).replace("DIR", str(place.folder)) for word in case.arguments]
    words = [*place.program, sys.executable, "-m", case.program, *given]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=place.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = ""
    try:
        if case.code is None:
            log = _read_until(process, pattern(case.until or case.says), place)
            process.send_signal(case.stop)
        output, rest = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    return process.returncode, log + rest, output


def _read_until(process: subprocess.Popen[str], wanted: re.Pattern[str], place: Place) -> str:
    """Return the log up to the wanted line, which is waited for."""
    stream, log, until = process.stderr, "", time.monotonic() + TIMEOUT_S
    assert stream is not None
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not any(wanted.fullmatch(neutral(line, place)) for line in log.splitlines()):
            assert selector.select(until - time.monotonic()), f"{wanted.pattern!r} does not come:\n{log}"
            part = os.read(stream.fileno(), 65536).decode()
            assert part, f"the agent ended before {wanted.pattern!r}:\n{log}"
            log += part
    return log


def pattern(says: str) -> re.Pattern[str]:
    """Return what matches an expected line."""
    return re.compile(".*".join(map(re.escape, says.split(ANY))))


def neutral(line: str, place: Place) -> str:
    """Return a line of the log without its stamp, its paths and ports as the documentation shows them."""
    line = STAMP.sub("", line)
    known = {
        str(place.config): "/etc/skiptrain/agent.yaml",
        str(place.state): "/var/lib/skiptrain",
        str(place.folder / "run"): "/run/skiptrain",
        str(place.folder): "DIR",
        **place.words,
    }
    for word, name in known.items():
        line = line.replace(word, name)
    return line


def _files(state: Path) -> dict[str, bytes]:
    """Return the generations of the state as they are on disk."""
    return {path.name: path.read_bytes() for path in sorted(state.glob("state.[01]"))}


def _ledger(state: Path) -> tuple[int, int, Reservation | None, str] | None:
    """Return what counts of the ledger, from a copy: the folder may be locked; None where it cannot be known."""
    copy = state.with_name("copy")
    shutil.copytree(state, copy)
    journal = Journal(copy)
    try:
        snapshot = journal.recover().snapshot
    except JournalError:
        return None
    finally:
        journal.close()
        shutil.rmtree(copy)
    assert snapshot is not None
    ledger = snapshot.ledger
    return ledger.charged_uj, ledger.forfeited_uj, ledger.reservation, ledger.period
