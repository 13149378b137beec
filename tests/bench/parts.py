"""How fast the agent's parts are; ratios are to what numpy or the memory alone would take, so that machines compare."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from agent.core import effects as fx
from agent.core import events as ev
from agent.core.budget import Cost, Ledger
from agent.core.mixing import mix
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig
from agent.core.seeding import generator
from agent.core.topology import neighbours
from agent.core.types import (
    ModelShape,
    ModelUpdate,
    NodeId,
    Params,
    Quality,
    Roster,
    RunDescriptor,
    Schedule,
    TopologySpec,
    params_digest,
)
from agent.core.wire import Assembler, Format, encode
from agent.journal import Journal
from tests.bench.lines import Line

MODELS = (6_186, 89_834, 1_690_046)
"""Parameters of small-cnn on 8x8 digits, GN-LeNet on CIFAR-10, and LEAF's network on FEMNIST."""
DEGREE = 8
ROUNDS = 200
MEASURE_S = 0.3
"""Each function is called for about so long, and at least 3 times; the fastest call counts."""


def fastest_s(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of many calls."""
    best_s, calls, until = float("inf"), 0, time.perf_counter() + MEASURE_S
    while calls < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        call()
        best_s, calls = min(best_s, time.perf_counter() - started), calls + 1
    return best_s


def wire() -> Iterator[Line]:
    """Turn models into messages and back, checks included, against copying the same bytes once."""
    for size in MODELS:
        params, form = some_params(size), Format(bytes(16), bytes(8), size)
        update = update_of(NodeId("a"), 0, Roster(0, ()), params)
        chunks = encode(update, form)
        copy_s = fastest_s(params.copy)
        encode_s, decode_s = fastest_s(partial(encode, update, form)), fastest_s(partial(decode, form, chunks))
        yield f"wire, {size:,} parameters: encode", f"{1e3 * encode_s:.3f} ms, {encode_s / copy_s:.0f} x a memcpy"
        yield f"wire, {size:,} parameters: decode", f"{1e3 * decode_s:.3f} ms, {decode_s / copy_s:.0f} x a memcpy"


def decode(form: Format, chunks: list[bytes]) -> None:
    """Put one model's chunks together."""
    assembler = Assembler(form)
    updates = [assembler.add(NodeId("a"), chunk)[1] for chunk in chunks]
    assert updates[-1] is not None


def mixing() -> Iterator[Line]:
    """Mix nine models of GN-LeNet's size, against numpy's own weighted sum."""
    size = MODELS[1]
    matrix = np.stack([some_params(size, i) for i in range(DEGREE + 1)])
    weights = np.full(DEGREE + 1, 1 / (DEGREE + 1), np.float32)
    models = {NodeId(f"n{i}"): row for i, row in enumerate(matrix)}
    ours_s = fastest_s(partial(mix, models, dict.fromkeys(models, 1 / (DEGREE + 1))))
    numpy_s = fastest_s(lambda: np.einsum("i,ij->j", weights, matrix))  # one thread, as ours
    yield f"mixing, {DEGREE + 1} models of {size:,}", f"{1e3 * ours_s:.3f} ms, {ours_s / numpy_s:.1f} x numpy's einsum"


def machine() -> Iterator[Line]:
    """Drive one RoundMachine with eight neighbours, all of whose updates are there at once."""
    for size in (1, *MODELS[:2]):
        rate = ROUNDS / fastest_s(partial(drive, size, lambda _: None))
        yield f"round machine, degree {DEGREE}, {size:,} parameters", f"{rate:,.0f} rounds/s"


def topology() -> Iterator[Line]:
    """Measure the paper's graph of 256 nodes."""
    roster = [NodeId(f"n{i:03d}") for i in range(256)]
    seconds = fastest_s(lambda: neighbours(TopologySpec("regular", DEGREE), roster, 1))
    yield f"topology, regular(256, {DEGREE})", f"{seconds:.3f} s"


def journal() -> Iterator[Line]:
    """Count what a node writes in its rounds, and how long the disk of the temporary folder takes for it."""
    for size in MODELS[:2]:
        with tempfile.TemporaryDirectory() as folder:
            kept = Journal(Path(folder))
            spent_s = 0.0

            def write(effect: fx.Effect, kept: Journal = kept) -> None:
                nonlocal spent_s
                started = time.perf_counter()
                if isinstance(effect, fx.SaveState):
                    kept.save_state(effect.snapshot)
                elif isinstance(effect, fx.SaveModel):
                    kept.save_model(RUN.digest().hex(), effect.round, effect.params)
                elif isinstance(effect, fx.AppendRecord):
                    kept.append(effect.record)
                spent_s += time.perf_counter() - started

            drive(size, write)
            kept.close()
            text = f"{kept.bytes_written / ROUNDS:,.0f} bytes, {1e3 * spent_s / ROUNDS:.2f} ms a round"
        yield f"journal, degree {DEGREE}, {size:,} parameters", text


def light_start() -> Iterator[Line]:
    """Start a fresh interpreter with everything that a waiting agent needs: no torch."""
    program = (
        "import time; started = time.perf_counter()\n"
        "import agent.daemon, agent.reach, sys\n"
        "seconds = time.perf_counter() - started\n"
        "assert 'torch' not in sys.modules\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(f'{seconds:.2f} s, {int(status[\"VmRSS\"].split()[0]) / 1024:.0f} MiB resident')\n"
    )
    root = Path(__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", program], cwd=root, check=True, capture_output=True, text=True)
    yield "import of agent.daemon and agent.reach, without torch", said.stdout.strip()


NODES = tuple(NodeId(f"n{i}") for i in range(DEGREE + 1))
RUN = RunDescriptor(
    "bench", 1, ModelShape("bench", (1, 1, 1), 2), Schedule(1, 1, ROUNDS), "skiptrain", TopologySpec("complete"), NODES
)


def drive(size: int, execute: Callable[[fx.Effect], None]) -> None:
    """Run one machine through all rounds; every other round trains, and `execute` gets each effect."""
    me, *others = NODES
    params, roster = some_params(size), Roster(0, NODES)
    digest = params_digest(params)
    machine = RoundMachine(MachineConfig(me, RUN, Cost(1, 1)), params, Ledger(None))
    todo: list[ev.Event] = [ev.Started(), ev.PeersChanged(dict.fromkeys(others, roster.digest().hex()))]
    while todo:
        for effect in machine.handle(todo.pop(0), 0.0):
            execute(effect)
            if isinstance(effect, fx.StartTraining):
                todo.append(ev.TrainingFinished(effect.round, effect.params, 0.5, 1, Quality.REPLAYED))
            elif isinstance(effect, fx.PublishUpdate):
                updates = (update_of(node, effect.update.round, roster, params, digest) for node in others)
                todo += [ev.UpdateReceived(update) for update in updates]
    assert machine.round == ROUNDS


def some_params(size: int, seed: int = 0) -> Params:
    """Return parameters of no meaning, shape (size,)."""
    return generator(seed, "bench").standard_normal(size, dtype=np.float32)


def update_of(node: NodeId, round_: int, roster: Roster, params: Params, digest: str = "") -> ModelUpdate:
    """Return an update that a neighbour in a complete graph would send."""
    return ModelUpdate(node, round_, 0, roster.digest(), DEGREE, 0, params, digest)
