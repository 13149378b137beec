"""The evidence of an emulation, written while it runs: rounds, evaluations, and how far the models are from their mean.

Rounds go to `rounds.part.csv` as they end; when all have ended they are put into the order of rounds.csv.
"""

from __future__ import annotations

import csv
import mmap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from agent.core.types import NodeId, Params, RoundRecord
from agent.learning.trainer import Evaluation
from sim_harness.cohort.engine import Test
from sim_harness.evidence import EVALUATION_COLUMNS, ROUND_COLUMNS, Totals, decimals, evaluation_row, round_row
from sim_harness.exchange import Exchange

CONSENSUS_COLUMNS = ("round", "accuracy", "loss", "distance_rms")
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
        flush: Callable[[], None],
        tell: Callable[[str], None],
        exchange: Exchange,
    ) -> None:
        """Take what tests models, what computes all numbers that were put off, and what tells people something."""
        self.kept = Kept()
        self._folder, self._nodes, self._exchange = folder, nodes, exchange
        self._evaluate, self._flush, self._tell = evaluate, flush, tell
        self._records: list[RoundRecord] = []
        self._files = {
            name: _open(folder / name, columns)
            for name, columns in (
                ("rounds.part.csv", ROUND_COLUMNS),
                ("evaluation.csv", EVALUATION_COLUMNS),
                ("consensus.csv", CONSENSUS_COLUMNS),
            )
            if exchange.leads
        }

    def resume(self, kept: Kept) -> None:
        """Go on from a checkpoint: what was written after it is written again."""
        self.kept = kept
        for name, file in self._files.items():
            file.truncate(kept.lengths[name])
            file.seek(kept.lengths[name])

    # --- what an emulator tells

    def record(self, node: int, record: RoundRecord) -> None:  # noqa: ARG002
        """Take the account of a round; it is written when its digests are known."""
        self._records.append(record)
        self.kept.totals.add(record)
        self.kept.ended += 1
        if len(self._records) >= 4 * len(self._nodes):
            self.settle()

    def evaluate(self, node: int, round_: int, params: Params) -> None:
        """Test a node's model when all others of that round are there, or nodes are far ahead."""
        waiting = self.kept.waiting
        waiting.setdefault(round_, {})[node] = params
        if len(waiting[round_]) == len(self._nodes):
            self._test(round_)
        while len(waiting) > _HELD_ROUNDS:
            self._test(min(waiting))

    def notice(self, node: int, message: str) -> None:
        """Tell people."""
        self._tell(f"{self._nodes[node]}: {message}")

    # --- files

    def settle(self) -> None:
        """Write all records that are there."""
        self._flush()
        records, self._records = self._records, []
        self._write("rounds.part.csv", (round_row(record) for record in records))

    def _write(self, name: str, rows: Iterable[Sequence[object]]) -> None:
        if name in self._files:
            csv.writer(self._files[name]).writerows(rows)

    def checkpoint(self) -> Kept:
        """Bring everything to disk and return what to keep."""
        self.settle()
        for name, file in self._files.items():
            file.flush()
            self.kept.lengths[name] = file.tell()
        return self.kept

    def finish(self) -> None:
        """Test what still waits, and put rounds.csv in order: by node, then by round."""
        for round_ in sorted(self.kept.waiting):
            self._test(round_)
        self.settle()
        self.close()
        if not self._exchange.leads:
            return
        part = self._folder / "rounds.part.csv"
        _sort_by_node(part, self._folder / "rounds.csv")
        part.unlink()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _test(self, round_: int) -> None:
        """Test the models of one round, and their average."""
        self._flush()
        models = dict(sorted(self.kept.waiting.pop(round_).items()))
        average = self._exchange.average(list(models.values()))
        tests = [Test(params, node) for node, params in models.items()]
        *found, of_average = self._evaluate([*tests, Test(average, None)])
        self._write("evaluation.csv", (self._row(round_, node, found[i]) for i, node in enumerate(models)))
        if round_ not in self.kept.known_rounds:
            self.kept.known_rounds.add(round_)
            distance = self._distance_rms(list(models.values()), average)
            numbers = (of_average.accuracy, of_average.loss, distance)
            self._write("consensus.csv", [[round_, *decimals(numbers)]])

    def _row(self, round_: int, node: int, result: Evaluation) -> list[object]:
        return evaluation_row(round_, self._nodes[node], (result.accuracy, result.own_accuracy, result.loss))

    def _distance_rms(self, models: Sequence[Params], average: Params) -> float:
        """Return the root mean square, over all models, of the Euclidean distance to their average."""

        def squared(params: Params) -> float:
            return float(np.square(params - average, dtype=np.float64).sum())

        return float(np.sqrt(np.mean(self._exchange.measure(models, squared))))


def _open(path: Path, columns: Sequence[str]) -> IO[str]:
    """Open a file to go on with, or a new one that begins with its columns."""
    new = not path.exists()
    file = path.open("a+", newline="", encoding="utf-8")
    if new:
        csv.writer(file).writerow(columns)
    return file


def _sort_by_node(source: Path, target: Path) -> None:
    """Write the lines behind the first in the order of their first field; those of one node keep their order."""
    with (
        source.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines,
        target.open("wb") as out,
    ):
        out.write(lines.readline())
        names: list[bytes] = []
        spans: list[tuple[int, int]] = []
        begin = lines.tell()
        while line := lines.readline():
            names.append(line[: line.index(b",")])
            spans.append((begin, begin + len(line)))
            begin += len(line)
        for place in sorted(range(len(names)), key=names.__getitem__):
            out.write(lines[slice(*spans[place])])
