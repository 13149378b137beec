"""Trainings are gathered until the first one is due; what is cancelled leaves nothing behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from agent.core.effects import StartTraining
from sim_harness.cohort.engine import Outcome, Work
from sim_harness.trainings import Trainings


class Bench:
    """Counts what is trained, and fails the nodes that it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.flushed = 0
        self.failing: set[int] = set()
        self.trainings = Trainings(self.train, self.flush, local_steps=8)
        self.steps: list[int | None] = []

    def flush(self) -> None:
        """Note that numbers were asked for."""
        self.flushed += 1

    def train(self, works: Sequence[Work]) -> list[Outcome]:
        """Add one to every model."""
        assert self.flushed > len(self.batches), "models are read before they are computed"
        self.batches.append([work.node for work in works])
        self.steps += [work.steps for work in works]
        for work in works:
            if work.node not in self.failing:
                work.out[:] = work.params + 1
        return [Outcome(None, 0, "NaN") if work.node in self.failing else Outcome(0.5, 1) for work in works]

    def begin(self, *nodes: int) -> None:
        """Begin the trainings of these nodes, whose models hold their number."""
        for node in nodes:
            self.trainings.begin(node, StartTraining(0, np.full(3, node, np.float32), node, None))


def test_the_first_that_is_due_takes_all_with_it() -> None:
    """One batch in node order; those that begin later are the next one; nothing is trained twice."""
    bench = Bench()
    bench.begin(4, 1, 3)
    assert bench.batches == []
    assert bench.trainings.finish(3)[0].tolist() == [4.0] * 3
    bench.begin(2)
    assert bench.trainings.finish(1)[0].tolist() == [2.0] * 3
    assert bench.batches == [[1, 3, 4]]
    assert bench.trainings.finish(2)[0].tolist() == [3.0] * 3
    assert bench.trainings.finish(4)[0].tolist() == [5.0] * 3
    assert bench.batches == [[1, 3, 4], [2]]
    assert bench.trainings.under_way() == ({}, {})


def test_what_is_cancelled_is_forgotten_before_and_after_it_was_computed() -> None:
    """It is not trained, its result is dropped, and its node can begin anew."""
    bench = Bench()
    bench.begin(1, 2, 3)
    bench.trainings.cancel(1)
    bench.trainings.finish(2)
    bench.trainings.cancel(3)
    assert bench.batches == [[2, 3]]
    assert bench.trainings.under_way() == ({}, {})
    with pytest.raises(KeyError):
        bench.trainings.finish(3)
    bench.begin(3)
    assert bench.trainings.finish(3)[0].tolist() == [4.0] * 3


def test_a_failure_gives_the_model_back_that_it_began_with() -> None:
    """With the reason; the others of the batch are not touched by it."""
    bench = Bench()
    bench.failing = {2}
    bench.begin(1, 2)
    params, outcome = bench.trainings.finish(2)
    assert (params.tolist(), outcome.error) == ([2.0] * 3, "NaN")
    assert bench.trainings.finish(1)[0].tolist() == [2.0] * 3


def test_one_that_is_cut_is_trained_for_the_steps_that_were_done() -> None:
    """Whether or not it was computed whole before; one that has done none gives its model back, uncomputed."""
    bench = Bench()
    bench.begin(1, 2, 3)
    bench.trainings.cut(1, 0.49)
    assert bench.trainings.finish(1)[0].tolist() == [2.0] * 3
    bench.trainings.cut(2, 0.99)
    assert bench.trainings.finish(2)[0].tolist() == [3.0] * 3
    assert (bench.batches, bench.steps) == ([[1, 2, 3], [2]], [3, None, None, 7])
    bench.trainings.cut(3, 0.1)
    params, outcome = bench.trainings.finish(3)
    assert (params.tolist(), outcome) == ([3.0] * 3, Outcome(None, 0, "stopped before the first local step"))
    assert bench.trainings.under_way() == ({}, {})
    assert len(bench.batches) == 2
