"""One mistake as data: what is wrong, how it is arranged in a folder, and what the program must say and do."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from agent.core.budget import Ledger
from agent.core.types import Quality, Snapshot
from agent.journal import Journal

CONFIG = "{config}"
RUN = ("run", "--config", CONFIG)
GOES_ON = None
NOTHING = "nothing was started"
CONNECTING = "mqtt broker 127.0.0.1:1: cannot be reached (…); trying on for ever"
"""What an agent says that waits for its fleet without a broker."""
ANY = "…"
"""In an expected line: words of a library or of the system, which differ between their releases."""

AGENT_YAML = """\
version: 1
node:
  id: a
  fleet: home
  state_dir: DIR/state
  runtime_dir: DIR/run
run:
  id: first
  rounds: 6
  roster: [a, b]
model:
  input_shape: [1, 8, 8]
  classes: 10
data:
  source: digits
mqtt:
  host: 127.0.0.1
  port: 1
  answer_timeout_s: 0.3
discovery:
  mdns: false
"""
"""A right configuration; DIR is the case's folder. Nobody listens on port 1, and node b is not there."""

ALONE = ("roster: [a, b]", "roster: [a]")
"""An edit: a run of one node begins at once, so that the trainer is asked for work."""


@dataclass(slots=True)
class Place:
    """Where a case takes place: a folder with a journal that has seen a run, and what must be ended afterwards."""

    folder: Path
    stack: ExitStack
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    words: dict[str, str] = field(default_factory=dict)
    """What differs from run to run -> the neutral word for it."""
    text: str = AGENT_YAML
    program: tuple[str, ...] = ()
    """What starts the program, where it is not plainly started."""

    @property
    def config(self) -> Path:
        """The path of agent.yaml."""
        return self.folder / "agent.yaml"

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.folder / "state"

    def edit(self, old: str, new: str) -> None:
        """Change the text of agent.yaml, where `old` must stand."""
        assert old in self.text, old
        self.text = self.text.replace(old, new)

    def broker(self, port: int) -> None:
        """Let the agent look for its broker on that port."""
        self.edit("port: 1\n", f"port: {port}\n")
        self.words[f":{port}"] = ":PORT"

    def path(self) -> Path:
        """Return the folder that the agent's Python imports from first."""
        self.environment["PYTHONPATH"] = str(self.folder)
        return self.folder


def nothing(_place: Place) -> None:
    """Arrange nothing: the edits say it all."""


@dataclass(frozen=True, slots=True)
class Case:
    """A mistake, or a surrounding that is against us."""

    name: str
    says: str
    """The line on standard error with neutral paths; ANY stands for the words of others."""
    code: int | None
    """The exit code; GOES_ON where the agent rightly stays, until it is told to stop."""
    then: str
    """What happens after that line, for the operator."""
    edits: tuple[tuple[str, str], ...] = ()
    """Changes of AGENT_YAML."""
    arrange: Callable[[Place], None] = nothing
    arguments: tuple[str, ...] = RUN
    program: str = "agent"
    """The package that `python -m` runs."""
    until: str = ""
    """Where the agent goes on: the line to wait for before it is told to stop; `says` if empty."""
    stop: signal.Signals = signal.SIGTERM
    forfeited_uj: int = 0
    """What must be charged although it is not known to be spent."""


def remember(state: Path) -> None:
    """Write the journal of a device that has spent 47 J in an earlier run, in both generations."""
    ledger = Ledger(6_396_991_200, charged_uj=47_036_700, windows=2)
    snapshot = Snapshot("0" * 32, 3, True, False, ledger, None, 0, None, 2, None, 0, Quality.NONE)
    journal = Journal(state)
    for _ in range(2):
        journal.save_state(snapshot)
    journal.close()
