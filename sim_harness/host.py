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

from agent.config import AgentConfig, load_config
from agent.core.types import Params
from agent.daemon import Daemon
from agent.device import open_daemon, worker_config
from agent.errors import AgentError
from agent.learning.child import make_trainer
from agent.learning.trainer import Evaluation, TorchTrainer, TrainOutcome, TrainTask
from agent.learning.worker import WorkerConfig

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
            except AgentError as error:
                outcome = TrainOutcome(task.params, None, 0, 0.0, str(error))
            done(outcome)

        self._bench.put(job)

    def submit_evaluate(self, params: Params, samples: int, done: Callable[[Evaluation], None]) -> None:
        """Evaluate when it is this node's turn."""

        def job() -> None:
            try:
                result = self._ready().evaluate(params, samples)
            except AgentError as error:
                result = Evaluation(None, None, None, 0, str(error))
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
            self._trainer = make_trainer(self._config)
        return self._trainer


def main(paths: Sequence[str]) -> int:
    """Run the agents of all configuration files; return the exit code of the first that failed, else 0."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(threadName)s %(message)s")
    bench = Bench()
    codes: list[int] = []
    daemons: list[Daemon] = []
    try:
        daemons.extend(_daemon(load_config(path), bench) for path in paths)
    except AgentError as error:
        print(f"host: {error}", file=sys.stderr)
        return error.exit_code

    def stop(number: int, _frame: object) -> None:
        for daemon in daemons:
            daemon.stop(f"stopped by {signal.Signals(number).name}")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    threads = [
        threading.Thread(target=_run, args=(daemon, codes), name=str(daemon.machine.config.node)) for daemon in daemons
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.close()
    return codes[0] if codes else 0


def _daemon(config: AgentConfig, bench: Bench) -> Daemon:
    return open_daemon(config, trainer=BenchTrainer(bench, worker_config(config)))


def _run(daemon: Daemon, codes: list[int]) -> None:
    try:
        logging.getLogger("agent").info("ended: %s", daemon.run())
    except AgentError as error:
        logging.getLogger("agent").error("%s", error)  # noqa: TRY400  a person's mistake needs no traceback
        codes.append(error.exit_code)
    except Exception:
        logging.getLogger("agent").exception("a fault of this program")
        codes.append(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
