"""What a round costs beside training: a synchronisation round against the bare product, and fleets of many sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from agent.core.mixing import mixing_weights, weighted_sum
from agent.core.round_state import MachineConfig
from agent.core.topology import neighbours
from agent.core.types import ModelShape, NodeId, Params, RunDescriptor, Schedule, TopologySpec
from agent.errors import AgentError
from agent.learning.layers import require_torch
from agent.learning.model import initial_params, model_spec
from sim_harness.arithmetic import Deferred
from sim_harness.bench import Settings, timed
from sim_harness.cohort.native_mixing import native_product
from sim_harness.emulated_evidence import EmulatedEvidence
from sim_harness.emulated_state import State, VirtualNode
from sim_harness.emulation import KEPT_BYTES
from sim_harness.emulator import Emulator
from sim_harness.exchange import Alone
from sim_harness.heap import keep_freed
from sim_harness.network_model import NetworkModel
from sim_harness.network_sections import NetworkSection
from sim_harness.powered import Powered, VirtualClock
from sim_harness.scenario import load_scenario
from sim_harness.trainings import Trainings

_NODES, _DEGREE, _ROUNDS_A_TURN = 256, 8, 12
_SIZES: Final = (64, 256, 1024, 4096)
_SCALE_ROUNDS, _SAMPLES = 8, 24
_WAYS_TIMES = 5


class Synchronisation(msgspec.Struct, frozen=True):
    """A synchronisation round of 256 GN-LeNets, degree 8: emulated whole, and the product alone."""

    ratio: float
    """Of the two times that follow; both are medians."""
    round_s: float
    """Machines, messages, mixing, digests and records."""
    product_s: float
    """The fastest way found to multiply the mixing matrix with the stacked models."""
    product: str
    """Which one that was."""


def synchronisation(settings: Settings) -> Synchronisation:
    """Measure both by turns."""
    keep_freed(KEPT_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        fleet = _Relays(settings.nodes or _NODES, Path(folder))
        try:
            ways = products(fleet.models, fleet.rows)
            rounds: list[float] = []
            multiplied: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(settings.turns):
                settings.say(f"turn {turn + 1} of {settings.turns}: rounds")
                rounds.append(fleet.round_s(_ROUNDS_A_TURN))
                for name, way in ways.items():
                    settings.say(f"turn {turn + 1} of {settings.turns}: {name}")
                    multiplied[name] += [timed(way) for _ in range(_WAYS_TIMES)]
        finally:
            fleet.close()
    round_s = float(np.median(rounds))
    product_s, name = min((float(np.median(times)), name) for name, times in multiplied.items())
    return Synchronisation(round_s / product_s, round_s, product_s, name)


class _Relays:
    """A fleet that never trains: all of its rounds are synchronisation rounds."""

    def __init__(self, nodes: int, folder: Path) -> None:
        ids = tuple(NodeId(f"n{i:03d}") for i in range(nodes))
        model = ModelShape("gn-lenet", (3, 32, 32), 10)
        start, rng = initial_params(model_spec(model), 1), np.random.default_rng(1)
        spec, schedule = TopologySpec("regular", _DEGREE), Schedule(1, 1, 10**6)
        run = RunDescriptor("sync", 1, model, schedule, "skiptrain", spec, ids, expect_nodes=nodes)
        self.models = [start + np.float32(0.01) * rng.standard_normal(len(start), dtype=np.float32) for _ in ids]
        self.rows = _mixing_rows(ids, run)
        scenario, clock = load_scenario("demo"), VirtualClock()
        devices = [
            VirtualNode(i, node, MachineConfig(node, run, None, relay=True), Powered(scenario, i, clock), None, params)
            for i, (node, params) in enumerate(zip(ids, self.models, strict=True))
        ]
        self._arithmetic = Deferred(len(os.sched_getaffinity(0)), product=native_product())
        self._evidence = EmulatedEvidence(folder, ids, lambda _: [], self._arithmetic, lambda _: None, Alone())
        trainings = Trainings(lambda _: [], self._arithmetic.flush)
        network = NetworkModel(NetworkSection(delay_s=(0.01, 0.01)), ids, 1)
        self._emulator = Emulator(State(devices, clock), start, network, trainings, self._arithmetic, self._evidence)
        self._emulator.begin()
        self._rounds(1)

    def round_s(self, count: int) -> float:
        """Go through so many rounds, to the last line of their records; return the seconds of one."""
        return timed(partial(self._rounds, count)) / count

    def _rounds(self, count: int) -> None:
        until = self._evidence.kept.ended + count * len(self.models)
        self._emulator.run(lambda: self._evidence.kept.ended < until)
        self._evidence.settle()

    def close(self) -> None:
        """End the threads."""
        self._evidence.close()
        self._arithmetic.close()


def _mixing_rows(ids: tuple[NodeId, ...], run: RunDescriptor) -> list[dict[int, float]]:
    """Return the mixing matrix, each row as place -> weight in sorted order."""
    graph, places = neighbours(run.topology, ids, run.seed), {node: i for i, node in enumerate(ids)}
    found = []
    for node in ids:
        weights = mixing_weights(node, len(graph[node]), {other: len(graph[other]) for other in graph[node]})
        found.append({places[other]: weight for other, weight in weights.items()})
    return found


def products(models: list[Params], rows: list[dict[int, float]]) -> Mapping[str, Callable[[], object]]:
    """Return ways to multiply mixing matrix and stacked models: numpy's, torch's, and scipy's where it is installed."""
    torch = require_torch()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    stacked = np.stack(models)
    dense = np.zeros((len(rows), len(rows)), np.float32)
    for i, row in enumerate(rows):
        dense[i, list(row)] = list(row.values())
    out, scratch = np.empty_like(stacked), np.empty_like(models[0])

    def row_by_row() -> None:
        for i, row in enumerate(rows):
            weighted_sum([stacked[j] for j in row], list(row.values()), out[i], scratch)

    x = torch.from_numpy(stacked)
    ways: dict[str, Callable[[], object]] = {
        "numpy, row by row": row_by_row,
        "torch, dense": partial(torch.mm, torch.from_numpy(dense), x),
        "torch, CSR": partial(torch.sparse.mm, torch.from_numpy(dense).to_sparse_csr(), x),
    }
    try:
        from scipy.sparse import csr_array  # type: ignore[import-untyped]
    except ImportError:
        return ways
    matrix = csr_array(dense)
    return ways | {"scipy, CSR": lambda: matrix @ stacked}


class Scale(msgspec.Struct, frozen=True):
    """Fleets of the small CNN of 28x28 pixels, and of GN-LeNet, each emulated by a process of its own."""

    flatness: float
    """The dearest size's seconds a node and round, divided by the cheapest's."""
    node_round_s: dict[str, float]
    """Seconds of the run a node and round, by the number of nodes; the least of all turns."""
    memory_gib: dict[str, float]
    """Most memory at a time, the data left out."""


def scale(settings: Settings) -> Scale:
    """Emulate fleets of all sizes, and 256 GN-LeNets for their memory."""
    seconds: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = [size for size in _SIZES if size <= (settings.nodes or max(_SIZES))] or [settings.nodes]
        large = min(256, max(sizes))
        for turn in range(settings.turns):
            for nodes in sizes:
                settings.say(f"turn {turn + 1} of {settings.turns}: {nodes} nodes")
                took_s, gib = _emulated(folder, nodes, (1, 28, 28), "small-cnn", 16)
                seconds.setdefault(str(nodes), []).append(took_s / (nodes * _SCALE_ROUNDS))
                memory[f"{nodes} small-cnn"] = gib
        settings.say(f"{large} GN-LeNets")
        memory[f"{large} gn-lenet"] = _emulated(folder, large, (3, 32, 32), "gn-lenet", 32)[1]
    least = {nodes: min(found) for nodes, found in seconds.items()}
    return Scale(max(least.values()) / min(least.values()), least, memory)


_CHILD: Final = """
import json, resource, sys
from pathlib import Path
from rich.console import Console
from sim_harness.emulation import run_emulated
from sim_harness.scenario import load_scenario
values = run_emulated(load_scenario("demo", sys.argv[2:]), Path(sys.argv[1]), Console(quiet=True))
print(json.dumps([values["phase_s"]["run"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def _emulated(
    folder: Path, nodes: int, shape: tuple[int, int, int], model: str, batch_size: int
) -> tuple[float, float]:
    """Return seconds of the rounds, and GiB of memory without the data, of one emulation."""
    rng, out = np.random.default_rng(1), Path(tempfile.mkdtemp(dir=folder)) / "run"
    samples = nodes * _SAMPLES
    x = rng.integers(0, 256, (samples, *shape), dtype=np.uint8)
    data = out.parent / "data.npz"
    y = np.arange(samples) % 10
    np.savez(data, x_train=x, y_train=y, x_test=x[:100], y_test=y[:100])
    settings = [
        *(f"nodes={nodes}", f"rounds={_SCALE_ROUNDS}", "topology.degree=6", f"model.name={model}"),
        *("data.source=npz", f"data.path={data}", "data.layout=nchw", "data.partition.kind=iid"),
        *(f"learning.batch_size={batch_size}", "policy.name=skiptrain", "policy.train_rounds=1", "evaluation.every=0"),
    ]
    command = [sys.executable, "-c", _CHILD, str(out), *settings]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise AgentError(f"bench: {nodes} nodes could not be emulated: {done.stderr.strip().splitlines()[-1:]}")
    took_s, peak_kib = json.loads(done.stdout.splitlines()[-1])
    return took_s, peak_kib / 2**20 - 4 * x.size / 2**30
