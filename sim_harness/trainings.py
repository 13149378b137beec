"""Trainings of many nodes, gathered: a batch runs when the first of them is due, and takes all that are waiting.

A node's training lasts as long on the virtual clock as on its device. When the first one ends nobody has computed
anything yet; then everything that has begun is trained together, so that batches stay large when devices differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from agent.core import effects as fx
from agent.core.types import Params
from sim_harness.cohort.engine import Outcome, Work
from sim_harness.exchange import Alone, Exchange

UnderWay: TypeAlias = tuple[dict[int, Work], dict[int, tuple[Work, Outcome]]]
"""Trainings that wait, and those that nobody has asked for yet."""


STOPPED: Final = "stopped before the first local step"
"""What is said of it, as on a device."""


class Trainings:
    """Trainings under way, by the place of their node."""

    def __init__(
        self,
        train: Callable[[Sequence[Work]], list[Outcome]],
        before: Callable[[], None],
        exchange: Exchange | None = None,
        local_steps: int = 1,
    ) -> None:
        """Take what trains, what must be called before a model is read, where rows come from, a round's local steps."""
        self._train, self._before, self._exchange = train, before, exchange or Alone()
        self._local_steps = local_steps
        self._waiting: dict[int, Work] = {}
        self._done: dict[int, tuple[Work, Outcome]] = {}

    def begin(self, node: int, start: fx.StartTraining) -> None:
        """Note a training that has begun."""
        out = self._exchange.row(node, len(start.params))
        self._waiting[node] = Work(node, start.round, start.seed, start.params, out)

    def cancel(self, node: int) -> None:
        """Forget a training that will not end."""
        self._waiting.pop(node, None)
        self._done.pop(node, None)

    def cut(self, node: int, share: float) -> None:
        """Have a training end after the local steps that are whole in this share of it."""
        steps = int(share * self._local_steps)
        work = self._waiting.pop(node, None) or self._done.pop(node)[0]
        if steps:
            self._waiting[node] = replace(work, steps=steps)
        else:
            self._done[node] = work, Outcome(None, 0, STOPPED)

    def finish(self, node: int) -> tuple[Params, Outcome]:
        """Return what came of a training that is due: the trained row, or the one that it began with and an error."""
        if node in self._waiting:
            self._run()
        work, outcome = self._done.pop(node)
        return (work.params if outcome.error else work.out), outcome

    def under_way(self) -> UnderWay:
        """Return what a checkpoint must keep."""
        return self._waiting, self._done

    def resume(self, under_way: UnderWay) -> None:
        """Go on from a checkpoint."""
        self._waiting, self._done = under_way

    def _run(self) -> None:
        self._before()
        works = [self._waiting[node] for node in sorted(self._waiting)]
        for work, outcome in zip(works, self._train(works), strict=True):
            self._done[work.node] = work, outcome
        self._waiting.clear()
