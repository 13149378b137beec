"""The trainer child: holds torch, model and data, serves its requests, training first, and dies with its parent."""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
from collections import deque
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeAlias

import msgspec

from agent.errors import AgentError
from agent.learning import sources
from agent.learning.data import hold_out
from agent.learning.factory import describe
from agent.learning.frames import (
    REQUESTS,
    Describe,
    Described,
    Evaluate,
    Evaluated,
    Failed,
    Progress,
    Reply,
    Request,
    Stop,
    Train,
    Trained,
    WorkerConfig,
    fatal_name,
    pack_frame,
    pack_params,
    read_frame,
    unpack_params,
)
from agent.learning.trainer import TorchTrainer, TrainTask

_Work: TypeAlias = tuple[Train | Evaluate | Describe, bytes]

_OOM_SCORE = 800
"""Of 1000: under memory pressure the kernel is to end the child, not the agent."""


def serve() -> NoReturn:
    """Serve the parent over this process's stdin and stdout until stdin ends."""
    inbox, outbox = _take_pipes()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    frame = read_frame(inbox)
    if frame is None:
        os._exit(0)
    Child(inbox, outbox, msgspec.msgpack.decode(frame[0], type=WorkerConfig)).run()


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Move the frames off fd 0 and 1, so that neither print nor input() of a user's model can break them."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return inbox, outbox


class Child:
    """One thread reads the requests, so that all of them are seen in mid-work; the main one works.

    Training comes before what else waits. An evaluation under way makes way for it, and begins anew afterwards: the
    agent submits the next round's training right behind a round's evaluation, so that else few would ever come to an
    end. The agent bounds how many may wait.
    """

    def __init__(self, inbox: BinaryIO, outbox: BinaryIO, config: WorkerConfig) -> None:
        self._inbox, self._outbox, self._config = inbox, outbox, config
        self._arrived = threading.Condition()
        self._trainings: deque[_Work] = deque()
        self._others: deque[_Work] = deque()
        self._stop_upto = self._stops = 0
        self._trainer: TorchTrainer | None = None

    def run(self) -> NoReturn:
        """Work until the process ends."""
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        while True:
            self._answer(*self._next())

    def _next(self) -> _Work:
        """Wait for work and take it."""
        with self._arrived:
            while not (self._trainings or self._others):
                self._arrived.wait()
            return (self._trainings or self._others).popleft()

    def _read(self) -> None:
        try:
            while frame := read_frame(self._inbox):
                self._take(REQUESTS.decode(frame[0]), frame[1])
        except (AgentError, msgspec.MsgspecError):
            traceback.print_exc()
            os._exit(1)
        os._exit(0)  # without waiting for the work in progress: nobody is left to hear of it

    def _take(self, request: Request, payload: bytes) -> None:
        with self._arrived:
            if isinstance(request, Stop):
                self._stop_upto, self._stops = max(self._stop_upto, request.upto), self._stops + 1
            else:
                (self._trainings if isinstance(request, Train) else self._others).append((request, payload))
                self._arrived.notify()

    def _answer(self, request: Train | Evaluate | Describe, payload: bytes) -> None:
        try:
            if isinstance(request, Train):
                self._train(request, payload)
            elif isinstance(request, Evaluate):
                self._evaluate(request, payload)
            else:
                self._describe(request)
        except AgentError as error:
            never = self._trainer is None or isinstance(request, Describe)
            self._send(Failed(request.id, str(error), fatal_name(error) if never else ""))
        except (Exception, SystemExit) as error:  # noqa: BLE001  a user's model may raise anything; the parent hears it
            traceback.print_exc()
            self._send(Failed(request.id, f"the trainer failed: {type(error).__name__}: {error}"))

    def _train(self, request: Train, payload: bytes) -> None:
        trainer = self._ready_trainer()
        task = TrainTask(
            request.round, unpack_params(payload), request.seed, request.local_steps, request.batch_size, request.lr
        )
        outcome = trainer.train(
            task,
            on_step=lambda steps: self._send(Progress(request.id, steps)),
            should_stop=lambda: request.id <= self._stop_upto,
        )
        params = b"" if outcome.error else pack_params(outcome.params)
        self._send(Trained(request.id, outcome.loss, outcome.steps, outcome.seconds, outcome.error), params)

    def _evaluate(self, request: Evaluate, payload: bytes) -> None:
        stops, trainer = self._stops, self._ready_trainer()
        found = trainer.evaluate(
            unpack_params(payload), request.samples, lambda: bool(self._trainings) or self._stops > stops
        )
        if not found.error:
            self._send(Evaluated(request.id, found.accuracy, found.own_accuracy, found.loss, found.samples))
        elif self._stops > stops:
            self._send(Failed(request.id, "given up: the agent asked to stop"))
        else:
            with self._arrived:
                self._others.appendleft((request, payload))

    def _describe(self, request: Describe) -> None:
        info = describe(self._config.model, self._config.seed)
        self._send(Described(request.id, info.n_params, info.schema_hash), pack_params(info.initial_params))

    def _ready_trainer(self) -> TorchTrainer:
        """Load data and torch at the first need, and again after a failure that may have been mended."""
        if self._trainer is None:
            self._trainer = make_trainer(self._config)
        return self._trainer

    def _send(self, reply: Reply, payload: bytes = b"") -> None:
        frame = pack_frame(reply, payload)
        try:
            self._outbox.write(frame)
            self._outbox.flush()
        except OSError:
            os._exit(1)  # the parent is gone


def make_trainer(config: WorkerConfig) -> TorchTrainer:
    """Load what `config` names and return the trainer for it."""
    shape = config.model.input_shape
    names = config.class_names
    data = sources.load(config.source, config.path, "train", input_shape=shape, layout=config.layout, class_names=names)
    train, own_test = hold_out(data, config.held_out, config.seed, config.node)
    test = None
    if config.test_source:
        test = sources.load(
            config.test_source, config.test_path, "test", input_shape=shape, layout=config.layout, class_names=names
        )
    return TorchTrainer(
        config.model, train, own_test, test, seed=config.seed, threads=config.threads, loss_limit=config.loss_limit
    )
