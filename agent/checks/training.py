"""Whether torch imports, and trains one local step of the configured model in a trainer child."""

from __future__ import annotations

import queue
import time
from importlib.metadata import PackageNotFoundError, version

from agent.checks.check import Bench, Finding, failed, ok
from agent.core.seeding import seed64
from agent.core.types import Params
from agent.device import model_info, worker_config
from agent.errors import TrainingError
from agent.learning.trainer import TrainOutcome, TrainTask
from agent.learning.worker import TrainerWorker

STEP_S = 150.0
"""How long one local step may take, with the import of torch and the reading of the data before it."""


def check(bench: Bench) -> Finding:
    """Train one step; the child stays for the check that measures it. TrainingError, ConfigError."""
    config = bench.config
    began = time.monotonic()
    bench.worker = TrainerWorker(worker_config(config))
    try:
        bench.first_params = model_info(config, bench.worker).initial_params
    except TrainingError as error:
        return _why(bench, str(error))
    outcome = _one_step(bench.worker, one_task(bench, bench.first_params, 1))
    if outcome.error:
        return _why(bench, outcome.error)
    ready_s = time.monotonic() - began - outcome.seconds
    return ok(
        f"torch {_torch_version()}: one local step of {config.model.name}, batch {config.learning.batch_size}, in "
        f"{outcome.seconds:.3f} s, after {ready_s:.1f} s to start, to import torch and to read the data"
    )


def one_task(bench: Bench, params: Params, local_steps: int) -> TrainTask:
    """Return training as in the first round, of so many steps."""
    learning, run = bench.config.learning, bench.config.run
    seed = seed64(run.seed, "doctor", bench.config.node.id)
    return TrainTask(0, params, seed, local_steps, learning.batch_size, learning.lr)


def torch_fix(bench: Bench) -> str:
    """Return how to get the torch that fits this board."""
    board = bench.config.board
    if board is None or board.torch is None:
        return "install the torch build that fits this board (pip install 'skiptrain-agent[torch]')"
    return f"install the build that the profile names: pip install '{board.torch.requirement}' ({board.torch.note})"


def _one_step(worker: TrainerWorker, task: TrainTask) -> TrainOutcome:
    answers: queue.SimpleQueue[TrainOutcome] = queue.SimpleQueue()
    worker.submit_train(task, answers.put)
    try:
        return answers.get(timeout=STEP_S)
    except queue.Empty:
        worker.kill()
        raise TrainingError(
            f"no local step within {STEP_S:.0f} s; use a smaller model or learning.batch_size, or less data"
        ) from None


def _why(bench: Bench, error: str) -> Finding:
    """Explain why the step failed: the child says it, or how it died does."""
    if "SIGILL" in error:
        return failed(error.partition(";")[0], torch_fix(bench))
    if "SIGKILL" in error:
        return failed(
            f"{error.partition(' by SIGKILL')[0]} by SIGKILL, most likely for want of memory",
            "use a smaller model or learning.batch_size, fewer learning.threads, or give the board swap",
        )
    what, _, fix = error.partition("; ")
    return failed(what, fix or torch_fix(bench))


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:  # a build that was put there by hand
        return "of unknown version"
