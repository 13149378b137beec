"""Engines in worker processes: nothing is lost, nobody waits for the dead, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.errors import DataError, TrainingError
from agent.learning.trainer import Evaluation
from sim_harness.cohort.engine import Outcome, Work
from sim_harness.cohort.engine import Test as ModelTest
from sim_harness.cohort.processes import Processes

ROOT = Path(__file__).parents[3]
N_PARAMS = 5
LETHAL, MISTAKEN, BROKEN, WRONG = 90, 91, 92, 93


class Adder:
    """Adds a node's number to its parameters; some nodes are trouble."""

    def train(self, works: Sequence[Work]) -> list[Outcome]:
        """Add, and report the size of the block."""
        return [self._train(work, len(works)) for work in works]

    def _train(self, work: Work, block: int) -> Outcome:
        if work.node == LETHAL:
            os.kill(os.getpid(), signal.SIGKILL)
        if work.node == MISTAKEN:
            raise DataError("nothing there")
        if work.node == BROKEN:
            raise ValueError("not ours")
        work.out[:] = work.params + work.node
        return Outcome(float(work.seed), block, "diverged" if work.node == WRONG else "")

    def evaluate(self, tests: Sequence[ModelTest], samples: int) -> list[Evaluation]:
        """Return the mean parameter as a loss."""
        return [Evaluation(None, None, float(test.params.mean()), samples) for test in tests]

    def describe(self) -> dict[str, Any]:
        """Say who it is."""
        return {"kind": "adder", "workers": 1}

    def close(self) -> None:
        """Hold nothing."""


def works_of(nodes: Sequence[int]) -> list[Work]:
    """Return works whose parameters are ten times their node, and whose results are -1 for now."""
    rows = np.array(nodes, dtype=np.float32)[:, None] * np.full((1, N_PARAMS), 10, dtype=np.float32)
    out = np.full_like(rows, -1)
    return [Work(node, 0, node + 7, rows[i], out[i]) for i, node in enumerate(nodes)]


@pytest.fixture(params=[(1, 1), (2, 3), (3, 2)], ids=str)
def engine(request: pytest.FixtureRequest) -> Iterator[Processes]:
    """Return an adder in some processes, with blocks of some size."""
    workers, block = request.param
    engine = Processes(Adder(), N_PARAMS, workers, block)
    yield engine
    engine.close()


def pids(engine: Processes) -> list[int]:
    """Return the processes of an engine."""
    return [worker.process.pid or 0 for worker in engine._workers]


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_results_come_in_order(engine: Processes, count: int) -> None:
    """Whatever the number of works, each gets its own result."""
    works = works_of(range(count))
    outcomes = engine.train(works)
    assert [outcome.loss for outcome in outcomes] == [work.seed for work in works]
    assert [work.out.tolist() for work in works] == [[11.0 * node] * N_PARAMS for node in range(count)]
    found = engine.evaluate([ModelTest(work.out, work.node) for work in works], 3)
    assert [evaluation.loss for evaluation in found] == [11.0 * node for node in range(count)]


def test_an_outcome_with_an_error_writes_nothing(engine: Processes) -> None:
    """The other nodes of its block are not affected."""
    works = works_of([1, WRONG, 2])
    assert [outcome.error for outcome in engine.train(works)] == ["", "diverged", ""]
    assert [work.out[0] for work in works] == [11, -1, 22]


@pytest.mark.parametrize(
    ("node", "kind", "words"), [(MISTAKEN, DataError, "nothing there"), (BROKEN, TrainingError, "ValueError: not ours")]
)
def test_an_error_in_a_worker_is_raised_here(engine: Processes, node: int, kind: type[Exception], words: str) -> None:
    """It is raised once, with its class where that is ours, and the engine goes on."""
    with pytest.raises(kind, match=words):
        engine.train(works_of([1, 2, node, *range(10)]))
    works = works_of(range(10))
    engine.train(works)
    assert works[9].out[0] == 99


def test_a_worker_that_dies_is_an_error(engine: Processes) -> None:
    """It names signal and node; the other workers end, too."""
    children = pids(engine)
    with pytest.raises(TrainingError, match=r"was killed by SIGKILL while it trained node .*set engine.workers"):
        engine.train(works_of([*range(10), LETHAL, *range(10)]))
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_closing_leaves_no_process() -> None:
    """All workers are gone when `close` returns."""
    engine = Processes(Adder(), N_PARAMS, 3)
    children = pids(engine)
    assert all(Path(f"/proc/{pid}").exists() for pid in children)
    engine.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_workers_end_when_their_parent_is_killed() -> None:
    """Nobody closes anything; the workers hold the pipe that this test reads, so its end is theirs."""
    words = (
        "import os, signal; from tests.sim_harness.cohort.test_processes import *; "
        "engine = Processes(Adder(), N_PARAMS, 3); os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", words], cwd=ROOT, stdout=subprocess.PIPE, check=False, timeout=60)
    assert result.returncode == -signal.SIGKILL
