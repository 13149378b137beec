"""An emulated run from start to summary.json: `skiptrain-sim emulate`, with the flags and the files of `live`."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from agent.core.types import Params
from agent.core.wire import Format, chunk_count
from agent.errors import AgentError, ConfigError, DataError
from agent.learning.factory import ModelInfo, describe
from agent.learning.trainer import Evaluation
from sim_harness import checkpoint
from sim_harness.alike import check_alike
from sim_harness.arithmetic import Deferred
from sim_harness.begun import begun, check_identity, identity, with_choice
from sim_harness.cohort.engine import Corpus, Engine, Learning, Test
from sim_harness.cohort.native_mixing import native_product
from sim_harness.cohort.registry import open_engine
from sim_harness.distributed import World
from sim_harness.emulated_evidence import EmulatedEvidence
from sim_harness.emulated_fleet import descriptor, fleet_of
from sim_harness.emulated_state import State, VirtualNode
from sim_harness.emulator import Emulator
from sim_harness.evidence import NodeEnd, Traffic, summary, write_summary
from sim_harness.exchange import Alone, Exchange, Wish
from sim_harness.fleet import load_data
from sim_harness.folders import check_empty, claimed, made, writing
from sim_harness.heap import keep_freed
from sim_harness.network_model import NetworkModel
from sim_harness.progress import Watch, progress_bar
from sim_harness.scenario import Scenario, dump_scenario
from sim_harness.together import Together, edges_of
from sim_harness.trainings import Trainings

KEPT_BYTES = 512 << 20
"""Freed memory that is kept for the next round's models."""
CHECKPOINT_S = 120.0
"""How often a checkpoint is written."""


class Stopped(KeyboardInterrupt):
    """Somebody ended the emulation, and its checkpoint is written."""


def run_emulated(
    scenario: Scenario, out: Path, console: Console, *, resume: bool = False, world: World | None = None
) -> dict[str, Any]:
    """Emulate the scenario; write its files to `out` and return the summary.

    `out` is new or empty, or, to `resume`, holds a checkpoint of the same scenario. In a `world` of several processes
    each computes a part of the fleet, and the first one writes the files. Stopped where a signal ended it.
    """
    started = time.monotonic()
    keep_freed(KEPT_BYTES)
    if resume:
        scenario = begun(scenario, out, world)
    else:
        check_empty(out)
    data = load_data(scenario)
    info = describe(data.model, scenario.seed)
    with ExitStack() as stack:
        corpus = data.corpus(scenario)
        learning = _learning(scenario, corpus)
        engine = open_engine(corpus, learning, scenario.engine, partial(console.print, highlight=False, markup=False))
        stack.callback(engine.close)
        scenario = with_choice(scenario, engine)
        exchange: Exchange = Alone()
        if world is not None:
            if scenario.network.wire == "bytes":
                raise ConfigError(
                    "network.wire: bytes is for one process; what several exchange is not cut into messages"
                )
            stack.callback(world.close)
            world.connect()
            check_alike(world, dump_scenario(scenario), corpus, engine, resume=resume)
            exchange = Together(world, edges_of(descriptor(scenario, data.model)), info.initial_params)
        out = made(out)
        stack.enter_context(writing(out, "and go on with the same command and --resume"))
        if exchange.leads:
            stack.enter_context(claimed(out))
            console.print(f"engine: {engine_line(engine.describe())}", highlight=False, markup=False)
            (out / "scenario.yaml").write_text(dump_scenario(scenario), encoding="utf-8")
        run = _Run(scenario, corpus, info, out, exchange.engine(engine), console, exchange)
        stack.callback(run.close)
        if resume:
            run.resume()
        else:
            run.begin()
        set_up = time.monotonic() - started
        run.go()
        ran = time.monotonic() - started - set_up
        try:
            return run.finish(started, {"set_up": set_up, "run": ran})
        except KeyboardInterrupt:
            raise Stopped(
                "all rounds are done, the last test is not; go on with the same command and --resume"
            ) from None


def _learning(scenario: Scenario, corpus: Corpus) -> Learning:
    """Return what all trainings have in common; no batch is larger than the largest node's samples."""
    settings, most = scenario.learning, max(map(len, corpus.train))
    return Learning(
        settings.local_steps,
        min(settings.batch_size, most),
        settings.lr,
        scenario.seed,
        settings.loss_limit,
        settings.threads,
    )


class _Run:
    """An emulation with all that it needs."""

    def __init__(  # noqa: PLR0917
        self,
        scenario: Scenario,
        corpus: Corpus,
        info: ModelInfo,
        out: Path,
        engine: Engine,
        console: Console,
        exchange: Exchange,
    ) -> None:
        self._scenario, self._out, self._engine, self._console = scenario, out, engine, console
        self._initial, self._exchange = info.initial_params, exchange
        self._identity = identity(scenario, corpus, engine)
        whole = Format(descriptor(scenario, corpus.model).digest(), info.schema_hash, info.n_params)
        self._form = whole if scenario.network.wire == "bytes" else None
        threads = scenario.engine.workers or len(os.sched_getaffinity(0))
        self._arithmetic = Deferred(threads, exchange, native_product())
        self._trainings = Trainings(engine.train, self._arithmetic.flush, exchange, scenario.learning.local_steps)
        ids = scenario.node_ids()
        self._evidence = EmulatedEvidence(out, ids, self._test, self._arithmetic, self._say, exchange)
        self._network = NetworkModel(scenario.network, ids, scenario.seed)
        self.emulator = self._emulator(fleet_of(scenario, corpus.model))
        self._checkpoints = self._handled = 0
        self._saved = time.monotonic()
        self._stopping = False

    def _emulator(self, state: State) -> Emulator:
        how = (self._network, self._trainings, self._arithmetic, self._evidence, self._form)
        return Emulator(state, self._initial, *how)

    def _test(self, tests: Sequence[Test]) -> list[Evaluation]:
        return self._engine.evaluate(tests, self._scenario.evaluation.samples)

    def _say(self, message: str) -> None:
        self._console.print(message, highlight=False, markup=False)

    def close(self) -> None:
        """End threads and close files."""
        self._arithmetic.close()
        self._evidence.close()

    # --- checkpoints

    @property
    def _known(self) -> dict[str, object]:
        return {"arithmetic": self._arithmetic}

    @property
    def _place(self) -> Path:
        return self._out / "checkpoint" / self._exchange.name

    def begin(self) -> None:
        """Switch the fleet on; from now on there is a checkpoint."""
        self.emulator.begin()
        self._save()

    def resume(self) -> None:
        """Take up where the last checkpoint was written."""
        self._checkpoints, found = checkpoint.load(self._place, self._known, self._exchange.newest)
        if not isinstance(found, tuple):
            raise DataError(f"{self._place}: this is no checkpoint of an emulation; begin anew in another --out")
        there, state, trainings, kept = found
        check_identity(self._place, there, self._identity)
        self._trainings.resume(trainings)
        self._evidence.resume(kept)
        self.emulator = self._emulator(state)

    def _save(self) -> None:
        kept = self._evidence.checkpoint()
        self._checkpoints += 1
        state = (self._identity, self.emulator.state, self._trainings.under_way(), kept)
        checkpoint.save(self._place, self._checkpoints, state, self._known, lambda: self._exchange.agree(Wish.GO_ON))
        self._saved = time.monotonic()

    # --- the run

    def go(self) -> None:
        """Emulate to the end, with a checkpoint now and then; Stopped where a signal came."""
        scenario = self._scenario
        with progress_bar(self._console) as progress, self._signals():
            watch = Watch(progress, "rounds of all nodes", scenario.rounds * scenario.nodes, self._evidence.kept.ended)

            def between() -> bool:
                watch.reach(self._evidence.kept.ended)
                self._handled += 1
                if self._handled % self._exchange.pause:
                    return True
                wish = self._exchange.agree(self._wish())
                if wish is Wish.CHECKPOINT:
                    self._save()
                return wish is not Wish.STOP

            done = self.emulator.run(between)
            watch.reach(self._evidence.kept.ended, at_once=True)
        if not done:
            self._save()
            now = f"{self._evidence.kept.ended} of {scenario.rounds * scenario.nodes} rounds of all nodes are done"
            raise Stopped(f"{now}; go on with the same command and --resume")

    def _wish(self) -> Wish:
        if self._stopping:
            return Wish.STOP
        return Wish.CHECKPOINT if time.monotonic() - self._saved > CHECKPOINT_S else Wish.GO_ON

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first signal end the run at the next event, and the second one at once."""

        def stop(_number: int, _frame: object) -> None:
            if self._stopping:
                raise KeyboardInterrupt
            self._stopping = True

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        former = {}
        with suppress(ValueError):  # not in the main thread: nobody can stop it
            former = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def finish(self, started: float, phase_s: dict[str, float]) -> dict[str, Any]:
        """Write what remains and return the summary."""
        began = time.monotonic()
        self._evidence.finish()
        self._arithmetic.flush()
        state, scenario = self.emulator.state, self._scenario
        ends = [_end(node, self._initial) for node in state.nodes]
        accuracy = self._final_accuracy([end.params for end in ends])
        phase_s["evaluation"] = time.monotonic() - began
        chunks = chunk_count(len(self._initial))
        carried = state.traffic
        traffic = Traffic(carried.messages_out // chunks, carried.bytes_in, carried.bytes_out, "emulator")
        totals, wall_s = self._evidence.kept.totals, time.monotonic() - started
        digest = self._exchange.sha256([end.params for end in ends])
        values = summary(scenario, ends, totals, accuracy, traffic, wall_s, phase_s, digest)
        values.update(self._exchange.describe())
        values["engine"] = self._engine.describe()["kind"]
        values["engine_detail"] = self._engine.describe()
        values["virtual_s"] = state.clock.now
        values["unfinished_nodes"] = [node.id for node in state.nodes if not node.finished]
        if self._exchange.leads:
            write_summary(self._out / "summary.json", values)
            self._evidence.tidy()
        self._exchange.agree(Wish.GO_ON)  # until the first process has written its summary, all may have to go on
        shutil.rmtree(self._out / "checkpoint", ignore_errors=True)
        return values

    def _final_accuracy(self, models: list[Params]) -> tuple[list[float], float]:
        """Test all models, and their average, on the whole common test set."""
        tests = [Test(params, None) for params in [*models, self._exchange.average(models)]]
        found = [result.accuracy for result in self._engine.evaluate(tests, 0)]
        known = [accuracy for accuracy in found if accuracy is not None]
        if len(known) != len(found):
            raise AgentError("the common test set is empty: no accuracy can be told; check data.path")
        return known[:-1], known[-1]


def engine_line(description: Mapping[str, Any]) -> str:
    """Return what an engine says of itself, in one line."""
    kind, *rest = description.items()
    return ", ".join([str(kind[1]), *(f"{key} {value}" for key, value in rest)])


def _end(node: VirtualNode, initial: Params) -> NodeEnd:
    ledger = node.snapshot.ledger if node.snapshot else node.powered.ledger(None)
    return NodeEnd(node.id, ledger, initial if node.model is None else node.model)
