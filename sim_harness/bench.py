"""How fast the engines are: node-steps per second against a plain PyTorch loop, and against the machine's GEMM peak.

Every case measures both sides by turns in one run, so that what else the machine does hits both; the best turn counts.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import numpy as np

from agent.core.types import ModelShape
from agent.errors import ConfigError, TrainingError
from agent.learning.data import Dataset
from agent.learning.factory import build_module, describe
from agent.learning.layers import require_torch
from agent.learning.model import load_params, model_spec
from agent.yaml_file import choose
from sim_harness.cohort.engine import Corpus, Engine, Learning, Work, batch_indices
from sim_harness.cohort.registry import open_engine
from sim_harness.cohort.shapes import step_flops
from sim_harness.scenario_sections import EngineSection

if TYPE_CHECKING:
    from rich.table import Table

_SEED, _LR, _CLASSES = 1, 0.05, 10
_BATCHES_A_NODE: Final = 4
"""How many batches of samples each node has."""
_NOISE: Final = 0.5
_GEMM_SIZES: Final = (1024, 2048)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a bench is run; 0 is a case's own number."""

    engine: EngineSection = field(default_factory=EngineSection)
    nodes: int = 0
    steps: int = 0
    turns: int = 3
    say: Callable[[str], None] = field(default=lambda _: None, compare=False)
    """Told what is being done."""


class Speed(msgspec.Struct, frozen=True):
    """What the JSON says of a case of training."""

    ratio: float
    """Of the two speeds that follow."""
    ours_steps_s: float
    """Local steps per second, over all nodes."""
    naive_steps_s: float
    """The same for the plain loop, with one thread or one a core, whichever was faster."""
    gemm_fraction: float
    """Operations per second in convolutions and linear layers, divided by `gemm_peak` in the engine's precision."""
    engine: str
    """Kind, precision and workers."""


Case: TypeAlias = Callable[[Settings], msgspec.Struct]


@dataclass(frozen=True, slots=True)
class Training:
    """A case that trains `nodes` nodes for one round of `steps` local steps."""

    model: ModelShape
    batch_size: int
    nodes: int
    steps: int

    def __call__(self, settings: Settings) -> Speed:
        """Measure it."""
        torch = require_torch()
        nodes = settings.nodes or self.nodes
        learning = Learning(settings.steps or self.steps, self.batch_size, _LR, _SEED)
        corpus = synthetic(self.model, nodes, self.batch_size * _BATCHES_A_NODE)
        start = describe(self.model, _SEED).initial_params
        works = [Work(i, 0, i, start, np.empty_like(start)) for i in range(nodes)]
        engine = open_engine(corpus, learning, settings.engine)
        try:
            plain = PlainLoop(corpus, learning, works)
            ours_s, plain_s, peak = _by_turns(engine, plain, works, settings)
            about = engine.describe()
        finally:
            engine.close()
            torch.use_deterministic_algorithms(mode=False)
        done = nodes * learning.local_steps
        reached = done / ours_s * step_flops(model_spec(self.model), self.batch_size)
        return Speed(plain_s / ours_s, done / ours_s, done / plain_s, reached / peak, in_words(about))


def _by_turns(
    engine: Engine, plain: PlainLoop, works: Sequence[Work], settings: Settings
) -> tuple[float, float, float]:
    """Return the seconds of the best turn of the engine and of the plain loop, and the GEMM peak."""
    threads, about = sorted({1, len(os.sched_getaffinity(0))}), engine.describe()
    few = max(1, len(works) // 8)
    wrong = [outcome.error for outcome in engine.train(works[:few]) if outcome.error]
    if wrong:  # it would have done fewer steps than are counted
        raise TrainingError(f"bench: a node of {in_words(about)} did not learn: {wrong[0]}")
    plain.run(threads[-1], few)
    ours, others, peaks = [], [], []
    for turn in range(1, settings.turns + 1):
        settings.say(f"turn {turn} of {settings.turns}: {in_words(about)}")
        ours.append(timed(partial(engine.train, works)))
        for count in threads:
            settings.say(f"turn {turn} of {settings.turns}: plain loop, {_counted(count, 'thread')}")
            others.append(timed(partial(plain.run, count)))
        settings.say(f"turn {turn} of {settings.turns}: matrix products in {about['precision']}")
        peaks.append(gemm_peak(about["precision"]))
    return min(ours), min(others), max(peaks)


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class PlainLoop:
    """What one would write: a module a node, trained one after the other, eagerly, on the same batches as ours."""

    def __init__(self, corpus: Corpus, learning: Learning, works: Sequence[Work]) -> None:
        torch = require_torch()
        self._torch, self._lr = torch, learning.lr
        self._modules: list[Any] = []
        self._samples: list[tuple[Any, Any]] = []
        self._batches: list[Any] = []
        for work in works:
            module = build_module(corpus.model, _SEED)
            load_params(module, work.params)
            self._modules.append(module)
            own = corpus.data.take(corpus.train[work.node])
            self._samples.append((torch.from_numpy(own.x), torch.from_numpy(own.y)))
            self._batches.append(torch.from_numpy(batch_indices(learning, work, len(own))))

    def run(self, threads: int, nodes: int | None = None) -> list[float]:
        """Train the first nodes, or all, for their local steps with so many threads; return the mean losses."""
        self._torch.use_deterministic_algorithms(mode=False)
        self._torch.set_num_threads(threads)
        every = zip(self._modules, self._samples, self._batches, strict=True)
        return [self._train(*one) for one in itertools.islice(every, nodes)]

    def _train(self, module: Any, samples: tuple[Any, Any], batches: Any) -> float:
        torch, (x, y) = self._torch, samples
        loss_sum = 0.0
        for batch in batches:
            module.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(module(x[batch]), y[batch])
            loss.backward()
            with torch.no_grad():
                for tensor in module.parameters():
                    tensor.add_(tensor.grad, alpha=-self._lr)
            loss_sum += loss.item()
        return loss_sum / len(batches)


def synthetic(model: ModelShape, nodes: int, samples: int) -> Corpus:
    """Return a corpus that can be learnt: one pattern a class with noise over it, `samples` a node."""
    rng = np.random.default_rng(_SEED)
    patterns = rng.standard_normal((model.classes, *model.input_shape), dtype=np.float32)
    y = rng.integers(0, model.classes, nodes * samples)
    x = patterns[y] + np.float32(_NOISE) * rng.standard_normal((len(y), *model.input_shape), dtype=np.float32)
    data = Dataset(x, y, "bench")
    parts = tuple(np.arange(len(y)).reshape(nodes, samples))
    return Corpus(model, data, parts, tuple(part[:0] for part in parts), data.take(parts[0]))


def gemm_peak(precision: str) -> float:
    """Return operations per second of a product of square matrices on all cores, by the best way that torch has.

    That is torch.mm, or a convolution of one pixel: on some CPUs the library behind the one is twice as fast.
    """
    torch = require_torch()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    best = 0.0
    for size in _GEMM_SIZES:
        left, right = torch.rand(size, size).to(dtype), torch.rand(size, size).to(dtype)
        pixels, kernel = left.view(1, size, 1, size).permute(0, 3, 1, 2), right.view(size, size, 1, 1)
        ways = [partial(torch.mm, left, right), partial(torch.nn.functional.conv2d, pixels, kernel)]
        best = max(best, 2 * size**3 / min(timed(way) for way in ways for _ in range(3)))
    return best


def in_words(about: Mapping[str, Any]) -> str:
    """Return what an engine says of itself as a short text."""
    return f"{about['kind']} {about['precision']}, {_counted(about['workers'], 'worker')}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _later(name: str) -> Case:
    """Return a case of bench_fleet, which needs more of the harness than the others."""

    def case(settings: Settings) -> msgspec.Struct:
        from sim_harness import bench_fleet

        found: msgspec.Struct = getattr(bench_fleet, name)(settings)
        return found

    return case


BARE: Final = ("gn-lenet", "small-28", "digits-8")
"""The cases that run where none is named."""

CASES: Final[dict[str, Case]] = {
    "gn-lenet": Training(ModelShape("gn-lenet", (3, 32, 32), _CLASSES), 32, nodes=64, steps=2),
    "small-28": Training(ModelShape("small-cnn", (1, 28, 28), _CLASSES), 16, nodes=64, steps=10),
    "digits-8": Training(ModelShape("small-cnn", (1, 8, 8), _CLASSES), 16, nodes=64, steps=20),
    "sync": _later("synchronisation"),
    "scale": _later("scale"),
}


def run_bench(names: Sequence[str], settings: Settings) -> dict[str, msgspec.Struct]:
    """Run the cases one after the other, the bare ones where none is named; ConfigError for an unknown name."""
    for name in names:
        if name not in CASES:
            raise ConfigError(f"bench: {choose(name, CASES)}")
    found = {}
    for name in names or BARE:

        def say(text: str, name: str = name) -> None:
            settings.say(f"{name}: {text}")

        found[name] = CASES[name](replace(settings, say=say))
    return found


def tables(results: Mapping[str, msgspec.Struct]) -> list[Table]:
    """Return the results for people, one table for each kind of case."""
    from rich.table import Table

    caption = "gemm fraction: of the fastest product of square matrices in torch, same precision, all cores, same run"

    made: dict[type[msgspec.Struct], Table] = {}
    for name, result in results.items():
        if type(result) not in made:
            headings = (key.replace("_", " ") for key in result.__struct_fields__)
            made[type(result)] = Table("case", *headings, caption=caption if isinstance(result, Speed) else None)
        values = (getattr(result, key) for key in result.__struct_fields__)
        made[type(result)].add_row(name, *(f"{v:,.4g}" if isinstance(v, float) else str(v) for v in values))
    return list(made.values())
