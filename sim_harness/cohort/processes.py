"""An engine in worker processes: forks of this one, pinned to a core each, that serve blocks of works as they come."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from agent.errors import AgentError, TrainingError
from agent.learning.trainer import Evaluation
from sim_harness.cohort.engine import Engine, Outcome, Test, Work
from sim_harness.heap import keep_freed

Slab: TypeAlias = npt.NDArray[np.float32]
"""Parameters of one block in memory that both sides see, shape (block, n_params)."""

SLABS: Final = 2
"""Blocks that a worker holds at once: one that it works on, and one so that it need not wait for the next."""
_KEPT_BYTES: Final = 64 << 20
"""Freed memory that a worker keeps."""


@dataclass(frozen=True, slots=True)
class _Train:
    works: tuple[Work, ...]


@dataclass(frozen=True, slots=True)
class _Evaluate:
    tests: tuple[Test, ...]
    samples: int


_Block: TypeAlias = _Train | _Evaluate


@dataclass(slots=True, eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    slabs: list[Slab]
    free: list[int]
    """Slabs that hold no block."""
    blocks: dict[int, int]
    """Slab -> which block it holds."""


class Processes:
    """Serves `engine`, which was made here and is closed with this one, in `workers` processes.

    They share this process's memory as it is now, so that the fleet's samples are there once; parameters travel through
    shared slabs. Blocks of `block` works or tests are cut in order and given to whoever is free; what comes of one may
    depend on nothing else. A worker that dies is an AgentError, and the end of the engine. They end with this process.
    """

    def __init__(self, engine: Engine, n_params: int, workers: int, block: int = 1) -> None:
        self._engine, self._block = engine, block
        self._workers: list[_Worker] = []
        cores = sorted(os.sched_getaffinity(0))
        for i in range(workers):
            slabs = [_shared_slab(block, n_params) for _ in range(SLABS)]
            self._workers.append(self._start(slabs, cores[i % len(cores)]))

    def _start(self, slabs: list[Slab], core: int) -> _Worker:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        foreign = [ours, *(worker.pipe for worker in self._workers)]
        process = context.Process(target=_serve, args=(self._engine, theirs, foreign, slabs, core), daemon=True)
        with warnings.catch_warnings():  # Python 3.12 warns of any thread, but the workers need no lock of ours
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()
        return _Worker(process, ours, slabs, list(range(SLABS)), {})

    def train(self, works: Sequence[Work]) -> list[Outcome]:
        """Train block after block."""

        def take(which: int, outcomes: list[Outcome], slab: Slab) -> None:
            for work, outcome, row in zip(self._cut(works, which), outcomes, slab, strict=False):
                if not outcome.error:
                    work.out[:] = row

        blocks = [_Train(tuple(self._cut(works, i))) for i in range(self._count(works))]
        return [outcome for found in self._run(blocks, take) for outcome in found]

    def evaluate(self, tests: Sequence[Test], samples: int) -> list[Evaluation]:
        """Test block after block."""
        blocks = [_Evaluate(tuple(self._cut(tests, i)), samples) for i in range(self._count(tests))]
        return [evaluation for found in self._run(blocks, lambda *_: None) for evaluation in found]

    def describe(self) -> dict[str, Any]:
        """Return what the engine says, with the number of processes."""
        return {**self._engine.describe(), "workers": len(self._workers)}

    def close(self) -> None:
        """Kill the workers, which have nothing to lose."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.process.close()
            worker.pipe.close()
        if self._workers:
            self._engine.close()
        self._workers.clear()

    def _count(self, items: Sequence[Any]) -> int:
        return -(-len(items) // self._block)

    def _cut(self, items: Sequence[Any], which: int) -> Sequence[Any]:
        return items[which * self._block : (which + 1) * self._block]

    def _run(self, blocks: Sequence[_Block], take: Callable[[int, list[Any], Slab], None]) -> list[list[Any]]:
        """Have every block served; `take` is called with its number, what came of it, and its slab."""
        found: list[list[Any]] = [[] for _ in blocks]
        failure: AgentError | None = None
        waiting = iter(enumerate(blocks))
        for _ in range(SLABS):
            for worker in self._workers:
                self._give(worker, waiting)
        while busy := {worker.pipe: worker for worker in self._workers if worker.blocks}:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                slab, reply = self._receive(worker, blocks)
                which = worker.blocks.pop(slab)
                worker.free.append(slab)
                if isinstance(reply, AgentError):
                    failure = failure or reply
                else:
                    found[which] = reply
                    take(which, reply, worker.slabs[slab])
                if failure is None:
                    self._give(worker, waiting)
        if failure is not None:
            raise failure
        return found

    def _give(self, worker: _Worker, waiting: Iterator[tuple[int, _Block]]) -> None:
        """Give the worker the next block, if there is one."""
        which, block = next(waiting, (None, None))
        if which is None or block is None:
            return
        slab = worker.free.pop()
        items: Sequence[Work | Test] = block.works if isinstance(block, _Train) else block.tests
        for row, item in zip(worker.slabs[slab], items, strict=False):
            row[:] = item.params
        worker.blocks[slab] = which
        with contextlib.suppress(BrokenPipeError):  # it has died, which is found out where its answer is missed
            worker.pipe.send((slab, _without_arrays(block)))

    def _receive(self, worker: _Worker, blocks: Sequence[_Block]) -> tuple[int, list[Any] | AgentError]:
        try:
            slab, reply = worker.pipe.recv()
        except (EOFError, OSError):
            busy_with = _name(blocks[next(iter(worker.blocks.values()))])
            worker.process.join()
            code, pid = worker.process.exitcode or 0, worker.process.pid
            self.close()
            raise TrainingError(
                f"the worker process {pid} {_ending(code)} while it {busy_with}; if the machine has too little memory, "
                "set engine.workers to a smaller number"
            ) from None
        return slab, reply


def _shared_slab(rows: int, n_params: int) -> Slab:
    memory = mmap.mmap(-1, max(1, rows * n_params * 4))
    return np.frombuffer(memory, dtype=np.float32, count=rows * n_params).reshape(rows, n_params)


_NOTHING: Final = np.empty(0, dtype=np.float32)


def _without_arrays(block: _Block) -> _Block:
    """Return the block as it goes through the pipe."""
    if isinstance(block, _Train):
        return _Train(tuple(replace(work, params=_NOTHING, out=_NOTHING) for work in block.works))
    return replace(block, tests=tuple(replace(test, params=_NOTHING) for test in block.tests))


def _name(block: _Block) -> str:
    if isinstance(block, _Train):
        return f"trained node {block.works[0].node}, round {block.works[0].round}"
    node = block.tests[0].node
    return "tested a model" if node is None else f"tested the model of node {node}"


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"


def _serve(engine: Engine, pipe: Connection, foreign: list[Connection], slabs: list[Slab], core: int) -> NoReturn:
    """Be a worker until the parent's end of the pipe is closed."""
    for other in foreign:
        other.close()  # else the death of the parent would not be seen
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # of a terminal, or torchrun's to all; the parent says when it is over
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)  # what a model prints is no result of ours
    os.sched_setaffinity(0, {core})
    keep_freed(_KEPT_BYTES)
    with contextlib.suppress(EOFError, OSError):
        while True:
            slab, block = pipe.recv()
            pipe.send((slab, _answer(engine, block, slabs[slab])))
    os._exit(0)


def _answer(engine: Engine, block: _Block, slab: Slab) -> list[Any] | AgentError:
    try:
        if isinstance(block, _Train):
            works = [replace(work, params=row, out=row) for work, row in zip(block.works, slab, strict=False)]
            return list(engine.train(works))
        tests = [replace(test, params=row) for test, row in zip(block.tests, slab, strict=False)]
        return list(engine.evaluate(tests, block.samples))
    except AgentError as error:
        return error
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever it is, the parent must hear of it
        return TrainingError(f"a worker failed while it {_name(block)}: {type(error).__name__}: {error}")


def worker_count(wanted: int) -> int:
    """Return how many workers the setting means: 0 is one for each core that this process may use."""
    return wanted or len(os.sched_getaffinity(0))
