"""Several agents in one process: each with its own session, journal and machine, all with one torch between them.

`python -m sim_harness.host AGENT.YAML...` runs the daemon of every configuration in a thread. What the trainer child is
on a device is here one thread that trains for one node after the other, with the same Trainer: equal inputs give equal
bits. A training can be asked to end between local steps, but not be killed.
"""

from __future__ import annotations

import logging
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache

from agent.config import AgentConfig, load_config
from agent.core.types import Params
from agent.daemon import Daemon
from agent.device import open_daemon, worker_config
from agent.errors import AgentError
from agent.learning import sources
from agent.learning.data import Dataset, hold_out
from agent.learning.trainer import Evaluation, TorchTrainer, TrainOutcome, TrainTask
from agent.learning.worker import WorkerConfig

_log = logging.getLogger(__name__)

Job = Callable[[], None]


class Bench:
    """The one thread that trains for all nodes of this process, in the order in which they ask."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="bench", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Do `job` when those before it are done."""
        self._jobs.put(job)

    def close(self) -> None:
        """End when all jobs are done."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class BenchTrainer:
    """One node's place at the bench: an AsyncTrainer whose torch is shared."""

    def __init__(self, bench: Bench, config: WorkerConfig) -> None:
        self._bench, self._config = bench, config
        self._trainer: TorchTrainer | None = None
        self._stop = threading.Event()

    def submit_train(
        self, task: TrainTask, done: Callable[[TrainOutcome], None], progress: Callable[[int], None] | None = None
    ) -> None:
        """Train when it is this node's turn."""
        self._stop.clear()

        def job() -> None:
            try:
                outcome = self._ready().train(task, progress, self._stop.is_set)
            except (Exception, SystemExit) as error:  # noqa: BLE001  a user's model may raise anything; others wait
                outcome = TrainOutcome(task.params, None, 0, 0.0, _reason(error), self._fatal(error))
            done(outcome)

        self._bench.put(job)

    def submit_evaluate(self, params: Params, samples: int, done: Callable[[Evaluation], None]) -> None:
        """Evaluate when it is this node's turn."""

        def job() -> None:
            try:
                result = self._ready().evaluate(params, samples)
            except (Exception, SystemExit) as error:  # noqa: BLE001  as above
                result = Evaluation(None, None, None, 0, _reason(error), self._fatal(error))
            done(result)

        self._bench.put(job)

    def stop(self) -> None:
        """Ask the training to end before its next local step."""
        self._stop.set()

    def kill(self) -> None:
        """Do the same: a thread cannot be killed."""
        self._stop.set()

    def close(self) -> None:
        """Leave the bench to the others."""
        self._stop.set()

    def _ready(self) -> TorchTrainer:
        if self._trainer is None:
            self._trainer = _trainer(self._config)
        return self._trainer

    def _fatal(self, error: BaseException) -> type[AgentError] | None:
        """Return the class of what kept the trainer from being made; None for a fault in its work."""
        return type(error) if self._trainer is None and isinstance(error, AgentError) else None


def _trainer(config: WorkerConfig) -> TorchTrainer:
    """Return what the trainer child of a device would make, but with one common test set for all nodes."""
    shape, names = config.model.input_shape, config.class_names
    data = sources.load(config.source, config.path, "train", input_shape=shape, layout=config.layout, class_names=names)
    train, own_test = hold_out(data, config.held_out, config.seed, config.node)
    test = _common_test(config.test_source, config.test_path, shape, config.layout, names)
    options = {"seed": config.seed, "threads": config.threads}
    return TorchTrainer(config.model, train, own_test, test, **options, loss_limit=config.loss_limit)


@lru_cache(maxsize=1)
def _common_test(
    source: str, path: str, shape: tuple[int, int, int], layout: str, names: tuple[str, ...]
) -> Dataset | None:
    """Read the test set once for all nodes, whose configurations name the same one."""
    if not source:
        return None
    return sources.load(source, path, "test", input_shape=shape, layout=layout, class_names=names)


def _reason(error: BaseException) -> str:
    if isinstance(error, AgentError):
        return str(error)
    _log.error("the trainer failed", exc_info=error)
    return f"the trainer failed: {type(error).__name__}: {error}"


def main(paths: Sequence[str]) -> int:
    """Run the agents of all configuration files; the first that fails stops the others, and its exit code counts."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(threadName)s %(message)s")
    bench = Bench()
    codes: list[int] = []
    daemons: list[Daemon] = []
    try:
        daemons.extend(_daemon(load_config(path), bench) for path in paths)
    except AgentError as error:
        print(f"host: {error}", file=sys.stderr)
        return error.exit_code

    def stop(reason: str) -> None:
        for daemon in daemons:
            daemon.stop(reason)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: stop(f"stopped by {signal.Signals(got).name}"))
    threads = [
        threading.Thread(target=_run, args=(daemon, codes, stop), name=str(daemon.machine.config.node))
        for daemon in daemons
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.close()
    return codes[0] if codes else 0


def _daemon(config: AgentConfig, bench: Bench) -> Daemon:
    return open_daemon(config, trainer=BenchTrainer(bench, worker_config(config)))


def _run(daemon: Daemon, codes: list[int], stop_all: Callable[[str], None]) -> None:
    try:
        _log.info("ended: %s", daemon.run())
    except Exception as error:  # noqa: BLE001  one agent's fault ends all of them, whatever it is
        mistake = isinstance(error, AgentError)
        _log.error("%s", error if mistake else "a fault of this program", exc_info=None if mistake else error)
        codes.append(getattr(error, "exit_code", 1))
        stop_all(f"stopped because {threading.current_thread().name} failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
