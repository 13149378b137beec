"""Writes what a node must not forget; what a failing disk does not take waits, bounded, and is tried again."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from agent.core.types import Params, RoundRecord, Snapshot
from agent.errors import JournalError
from agent.journal import EvaluationRecord, Journal

_log = logging.getLogger(__name__)

RETRY_S = 10.0
"""Seconds from the first failure to the next try; doubled after each, as a try may write most of a model to a card."""
LONGEST_RETRY_S = 320.0
MAX_WAITING_LINES = 1_000
"""Records and evaluations that wait at most, well below 1 MiB; the oldest go first, and are counted."""


class Keeper:
    """A journal on a disk that may be full, read-only or broken for a while.

    Of states and models the newest waits. While one waits, nothing may be spent: what is not on disk is not known after
    a power cut. The ledger on disk is never behind what was spent, as its newest reservation stays charged until a
    later state replaces it. The model goes first, as the state that follows it says that it is there.
    """

    def __init__(self, journal: Journal, run: str, clock: Callable[[], float]) -> None:
        """Keep what belongs to `run` (its digest in hex) in `journal`."""
        self._journal, self._run, self._clock = journal, run, clock
        self._state: Snapshot | None = None
        self._model: tuple[int, Params] | None = None
        self._lines: deque[RoundRecord | EvaluationRecord] = deque()
        self._dropped = 0
        self._retry_s, self._retry_at = RETRY_S, 0.0
        self.trouble = ""
        """What the disk does not take, and why; empty while it takes all."""

    @property
    def behind(self) -> bool:
        """Whether a state or a model is not on the disk yet."""
        return self._state is not None or self._model is not None

    def save_state(self, snapshot: Snapshot) -> None:
        """Make the state durable, or let it wait."""
        self.retry()  # what waits goes first: where the newest is damaged later, the one before must know all else
        self._state = snapshot
        if not self.trouble:
            self._write()

    def save_model(self, round_: int, params: Params) -> None:
        """Make the model after `round_` durable, or let it wait."""
        self._model = round_, params
        self.retry()

    def append(self, record: RoundRecord | EvaluationRecord) -> None:
        """Write a line, or let it wait."""
        self._lines.append(record)
        if len(self._lines) > MAX_WAITING_LINES:
            self._lines.popleft()
            self._dropped += 1
        self.retry()

    def retry(self) -> None:
        """Write what waits; in trouble, only when the next try is due."""
        if not self.trouble or self._clock() >= self._retry_at:
            self._write()

    def close(self) -> None:
        """Try a last time; JournalError says what the disk did not take. The journal stays open."""
        self._write()
        if not self.trouble:
            return
        waiting = ["the state"] * (self._state is not None)
        waiting += [f"the model after round {self._model[0]}"] if self._model else []
        waiting += [f"{len(self._lines) + self._dropped} records"] if self._lines else []
        raise JournalError(f"{self.trouble}; lost with this process: {', '.join(waiting)}; the ledger there stays true")

    def _write(self) -> None:
        what = ""
        try:
            if self._model is not None:
                what = "the model"
                self._journal.save_model(self._run, *self._model)
                self._model = None
            if self._state is not None:
                what = "the state"
                self._journal.save_state(self._state)
                self._state = None
            while self._lines:
                what = "a record"
                self._journal.append(self._lines[0])
                self._lines.popleft()
        except OSError as error:
            self._fail(what, error)
        else:
            self._succeed()

    def _fail(self, what: str, error: OSError) -> None:
        self._retry_at = self._clock() + self._retry_s
        self._retry_s = min(LONGEST_RETRY_S, 2 * self._retry_s)
        why = error.strerror or error
        trouble = f"{self._journal.folder}: {what} cannot be written: {why}; free some space, or mend it"
        if not self.trouble:
            so = "this node shares and averages, but does not train" if self.behind else "records wait in memory"
            _log.error("%s; until then %s", trouble, so)
        self.trouble = trouble

    def _succeed(self) -> None:
        if self.trouble:
            _log.warning(
                "%s: takes writes again; %d records of past rounds are lost",
                self._journal.folder,
                self._dropped,
            )
        self.trouble, self._dropped, self._retry_s = "", 0, RETRY_S
