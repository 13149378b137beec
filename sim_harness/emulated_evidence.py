"""The evidence of an emulation, written while it runs: rounds, evaluations, and how far the models are from their mean.

Everything goes to `*.part.csv` as it comes; when all has ended it is put in order, and these files can go.
"""

from __future__ import annotations

import csv
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from agent.core.types import NodeId, Params, RoundRecord
from agent.errors import DataError
from agent.learning.trainer import Evaluation
from sim_harness.arithmetic import Deferred
from sim_harness.cohort.engine import Test
from sim_harness.evidence import EVALUATION_COLUMNS, ROUND_COLUMNS, Totals, decimals, evaluation_row, round_row
from sim_harness.exchange import Exchange

CONSENSUS_COLUMNS = ("round", "accuracy", "loss", "distance_rms", "nodes")
_COLUMNS = {"rounds": ROUND_COLUMNS, "evaluation": EVALUATION_COLUMNS, "consensus": CONSENSUS_COLUMNS}
_ORDERS: Final[dict[str, Callable[[list[bytes]], object]]] = {
    "rounds": lambda cells: cells[0],
    "evaluation": lambda cells: (int(cells[0]), cells[1]),
    "consensus": lambda cells: int(cells[0]),
}
"""What the rows of a file are ordered by; those that are equal keep their order, as the rounds of one node do."""
_HELD_RECORDS = 4
"""So many records of each node may wait for digests."""
_HELD_ROUNDS = 3
"""Rounds whose models may wait for those of nodes that are behind."""


@dataclass(slots=True)
class Kept:
    """What a checkpoint must keep of the evidence; all else is in the files, whose lengths it knows."""

    totals: Totals = field(default_factory=Totals)
    ended: int = 0
    """Rounds of all nodes that have ended."""
    waiting: dict[int, dict[int, Params]] = field(default_factory=dict)
    """Models to be tested, by round and node."""
    known_rounds: set[int] = field(default_factory=set)
    """Rounds of which consensus.csv tells."""
    lengths: dict[str, int] = field(default_factory=dict)


class EmulatedEvidence:
    """An observer of an emulation that writes its files; of several processes, the one that leads does."""

    def __init__(  # noqa: PLR0917
        self,
        folder: Path,
        nodes: Sequence[NodeId],
        evaluate: Callable[[Sequence[Test]], list[Evaluation]],
        arithmetic: Deferred,
        tell: Callable[[str], None],
        exchange: Exchange,
    ) -> None:
        """Take what tests models, what computes the numbers that were put off, and what tells people something."""
        self.kept = Kept()
        self._folder, self._nodes, self._exchange = folder, nodes, exchange
        self._evaluate, self._arithmetic, self._tell = evaluate, arithmetic, tell
        self._records: list[RoundRecord] = []
        self._told: set[tuple[int, str]] = set()
        self._files = {
            name: _open(folder / f"{name}.part.csv", columns) for name, columns in _COLUMNS.items() if exchange.leads
        }

    def resume(self, kept: Kept) -> None:
        """Go on from a checkpoint: what was written after it is written again; DataError where anything is missing."""
        self.kept = kept
        for name, file in self._files.items():
            if os.fstat(file.fileno()).st_size < kept.lengths[name]:
                raise DataError(f"{file.name} is shorter than it was at the checkpoint; run the scenario again")
            file.truncate(kept.lengths[name])
            file.seek(kept.lengths[name])

    # --- what an emulator tells

    def record(self, node: int, record: RoundRecord) -> None:  # noqa: ARG002
        """Take the account of a round; it is written when its digests are known."""
        self._records.append(record)
        self.kept.totals.add(record)
        self.kept.ended += 1
        if len(self._records) >= _HELD_RECORDS * len(self._nodes):
            self._write_known()

    def evaluate(self, node: int, round_: int, params: Params) -> None:
        """Test a node's model when all others of that round are there, or nodes are far ahead."""
        waiting = self.kept.waiting
        waiting.setdefault(round_, {})[node] = params
        if len(waiting[round_]) == len(self._nodes):
            self._test(round_)
        while len(waiting) > _HELD_ROUNDS:
            self._test(min(waiting))

    def notice(self, node: int, message: str) -> None:
        """Tell people, once."""
        if (node, message) not in self._told:
            self._told.add((node, message))
            self._tell(f"{self._nodes[node]}: {message}")

    # --- files

    def settle(self) -> None:
        """Write all records that are there."""
        self._arithmetic.settle()
        self._write_first(len(self._records))

    def _write_known(self) -> None:
        """Write the first records, up to one whose digests are to come: to wait for those would leave cores idle."""
        known = next((i for i, record in enumerate(self._records) if not _is_known(record)), len(self._records))
        if known < len(self._nodes):
            self.settle()
        else:
            self._write_first(known)

    def _write_first(self, count: int) -> None:
        self._write("rounds", (round_row(record) for record in self._records[:count]))
        del self._records[:count]

    def _write(self, name: str, rows: Iterable[Sequence[object]]) -> None:
        if name in self._files:
            csv.writer(self._files[name]).writerows(rows)

    def checkpoint(self) -> Kept:
        """Bring everything to disk and return what to keep."""
        self.settle()
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            self.kept.lengths[name] = file.tell()
        return self.kept

    def finish(self) -> None:
        """Test what still waits, and write all files in order; those of before stay until `tidy`."""
        for round_ in sorted(self.kept.waiting):
            self._test(round_)
        self.settle()
        for file in self._files.values():
            file.flush()
        self.close()
        for name in self._files:
            _sort(self._folder / f"{name}.part.csv", self._folder / f"{name}.csv", _ORDERS[name])

    def tidy(self) -> None:
        """Remove what only a run that goes on needs."""
        for name in self._files:
            (self._folder / f"{name}.part.csv").unlink()

    def close(self) -> None:
        """Close the files; what a full disk did not take is written again from the last checkpoint."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()

    def _test(self, round_: int) -> None:
        """Test the models of one round, and their average."""
        self._arithmetic.flush()
        models = dict(sorted(self.kept.waiting.pop(round_).items()))
        average = self._exchange.average(list(models.values()))
        tests = [Test(params, node) for node, params in models.items()]
        *found, of_average = self._evaluate([*tests, Test(average, None)])
        self._write("evaluation", (self._row(round_, node, found[i]) for i, node in enumerate(models)))
        if round_ not in self.kept.known_rounds:
            self.kept.known_rounds.add(round_)
            distance = self._distance_rms(list(models.values()), average)
            numbers = (of_average.accuracy, of_average.loss, distance)
            self._write("consensus", [[round_, *decimals(numbers), len(models)]])

    def _row(self, round_: int, node: int, result: Evaluation) -> list[object]:
        return evaluation_row(round_, self._nodes[node], (result.accuracy, result.own_accuracy, result.loss))

    def _distance_rms(self, models: Sequence[Params], average: Params) -> float:
        """Return the root mean square, over all models, of the Euclidean distance to their average."""

        def squared(params: Params) -> float:
            return float(np.square(params - average, dtype=np.float64).sum())

        return float(np.sqrt(np.mean(self._exchange.measure(models, squared))))


def _is_known(record: RoundRecord) -> bool:
    """Say whether all digests in it are there."""
    return bool(str(record.digest_published)) and all(str(digest) for _, digest, _ in record.mixed)


def _open(path: Path, columns: Sequence[str]) -> IO[str]:
    """Open a file to go on with, or a new one that begins with its columns."""
    new = not path.exists()
    file = path.open("a+", newline="", encoding="utf-8")
    if new:
        csv.writer(file).writerow(columns)
    return file


def _sort(source: Path, target: Path, order: Callable[[list[bytes]], object]) -> None:
    """Write the lines behind the first in order of what `order` says of their first two fields."""
    with (
        source.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines,
        target.open("wb") as out,
    ):
        out.write(lines.readline())
        found: list[tuple[Any, tuple[int, int]]] = []
        begin = lines.tell()
        while line := lines.readline():
            found.append((order(line.split(b",", 2)), (begin, begin + len(line))))
            begin += len(line)
        for _, span in sorted(found, key=itemgetter(0)):
            out.write(lines[slice(*span)])
