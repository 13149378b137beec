"""The agent's side of training: one child process that holds torch, started at the first need and after each death."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from agent.errors import ContractViolation
from agent.learning.factory import ModelInfo
from agent.learning.frames import (
    FATAL,
    Describe,
    Described,
    Evaluate,
    Evaluated,
    Failed,
    Reply,
    Request,
    Stop,
    Train,
    Trained,
    WorkerConfig,
    pack_frame,
    pack_params,
    unpack_params,
)
from agent.learning.link import Link, Open
from agent.learning.trainer import Evaluation, TrainOutcome, TrainTask

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.core.types import Params
    from agent.errors import AgentError

__all__ = ["Description", "TrainerWorker", "WorkerConfig"]


@dataclass(frozen=True, slots=True)
class Description:
    """A user's model as the child found it, or why it could not."""

    info: ModelInfo | None
    error: str = ""
    fatal: type[AgentError] | None = None
    """As in TrainOutcome."""


class TrainerWorker:
    """Trains in a child process; each submitted request is answered once, whatever becomes of the child.

    Methods may be called from any thread and return at once, `close` within seconds. Callbacks run in the worker's
    own threads, or in the one that calls `kill` or `close`: they must be short, and may submit. Training is served
    before evaluations. A request that cannot be served is answered with an `error`.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._closed = False
        self._last_id = 0

    @property
    def alive(self) -> bool:
        """Whether a child is running."""
        return self.pid is not None

    @property
    def pid(self) -> int | None:
        """Process id of the running child."""
        link = self._link
        return link.process.pid if link is not None and link.process.poll() is None else None

    def submit_train(
        self, task: TrainTask, done: Callable[[TrainOutcome], None], progress: Callable[[int], None] | None = None
    ) -> None:
        """Train; `progress` hears of each local step, then `done` gets the outcome."""

        def read(reply: Reply, payload: bytes) -> TrainOutcome:
            reply = cast("Trained", reply)
            params = task.params if reply.error else unpack_params(payload)
            return TrainOutcome(params, reply.loss, reply.steps, reply.seconds, reply.error)

        def fail(reply: Failed) -> TrainOutcome:
            return TrainOutcome(task.params, None, 0, 0.0, reply.error, FATAL[reply.fatal])

        def request(id_: int) -> Train:
            return Train(id_, task.round, task.seed, task.local_steps, task.batch_size, task.lr)

        self._submit(request, pack_params(task.params), Open(read, fail, done, progress))

    def submit_evaluate(self, params: Params, samples: int, done: Callable[[Evaluation], None]) -> None:
        """Evaluate on `samples` of each test set, 0 means all; with an error where newer work made it be given up."""

        def read(reply: Reply, _: bytes) -> Evaluation:
            reply = cast("Evaluated", reply)
            return Evaluation(reply.accuracy, reply.own_accuracy, reply.loss, reply.samples)

        def fail(reply: Failed) -> Evaluation:
            return Evaluation(None, None, None, 0, reply.error, FATAL[reply.fatal])

        self._submit(lambda id_: Evaluate(id_, samples), pack_params(params), Open(read, fail, done))

    def submit_describe(self, done: Callable[[Description], None]) -> None:
        """Describe the configured model where torch is: a user's factory cannot be described elsewhere."""

        def read(reply: Reply, payload: bytes) -> Description:
            reply = cast("Described", reply)
            return Description(ModelInfo(reply.n_params, reply.schema_hash, unpack_params(payload)))

        def fail(reply: Failed) -> Description:
            return Description(None, reply.error, FATAL[reply.fatal])

        self._submit(Describe, b"", Open(read, fail, done))

    def stop(self) -> None:
        """Ask all training submitted so far to end before its next local step; an evaluation under way is given up."""
        with self._lock:
            if self._link is not None:
                self._link.send(pack_frame(Stop(self._last_id)))

    def kill(self) -> None:
        """End the child at once; open requests are answered, and the next one starts a fresh child."""
        with self._lock:
            link, self._link = self._link, None
        if link is not None:
            link.kill("the agent killed the trainer")

    def close(self) -> None:
        """End the child for good and wait for it."""
        with self._lock:
            self._closed, link = True, self._link
        if link is not None:
            link.close()

    def _submit(self, request: Callable[[int], Request], payload: bytes, open_: Open[Any]) -> None:
        with self._lock:
            if self._closed:
                raise ContractViolation("a request was submitted to a trainer that is closed")
            self._last_id += 1
            frame = pack_frame(request(self._last_id), payload)
            while self._link is None or not self._link.open(self._last_id, open_):
                self._link = Link(self._config)
            self._link.send(frame)


def main() -> None:
    """Run the child's side, for `python -m agent.learning.worker`."""
    from agent.learning.child import serve

    serve()


if __name__ == "__main__":
    main()
