"""What every engine promises, asked of all of them: the reference's results, equal bits in any company, clean ends."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from agent.core.types import ModelShape
from agent.errors import ConfigError, DataError
from agent.learning.data import Dataset, hold_out
from agent.learning.factory import describe
from agent.learning.sources import load
from agent.learning.trainer import Evaluation, TorchTrainer, TrainTask
from sim_harness.cohort.engine import Corpus, Engine, Learning, Outcome, Work
from sim_harness.cohort.engine import Test as ModelTest
from sim_harness.cohort.registry import ENGINES, open_engine
from sim_harness.scenario_sections import EngineSection

DIGITS = ModelShape("small-cnn", (1, 8, 8), 10)
LENET = ModelShape("gn-lenet", (3, 8, 8), 10)
MODELS = {"small-cnn": DIGITS, "gn-lenet": LENET}
LEARNING = Learning(local_steps=4, batch_size=8, lr=0.05, seed=1)
NODES = 19
"""More than fill one stack of any engine, and no whole number of stacks."""
TOLERANCE = {"fp32": 1e-4, "bf16": 0.4}
"""How far a round's change of the parameters may be from the reference's, as a share of its length."""

every_engine = pytest.mark.parametrize("kind", list(ENGINES))
every_model = pytest.mark.parametrize("model", list(MODELS.values()), ids=list(MODELS))


@lru_cache(maxsize=2)
def corpus_of(model: ModelShape) -> Corpus:
    """Return digits, or noise of the model's shape, dealt out unevenly: node 0 has fewer samples than a batch."""
    if model.input_shape == DIGITS.input_shape:
        data, test = load("digits"), load("digits", part="test")
    else:
        rng = np.random.default_rng(5)
        y = rng.integers(0, model.classes, 1000)
        shift = (y[:, None, None, None] / 5).astype(np.float32)
        x = rng.standard_normal((1000, *model.input_shape), dtype=np.float32) + shift
        data = Dataset(x, y, "noise")
        data, test = hold_out(data, 0.1, 1, "test")
    starts = [0, 5, 17, *range(30, 30 + 30 * (NODES - 2), 30)]
    parts = [np.arange(start, end) for start, end in itertools.pairwise(starts)]
    own = [part[:0] if i == 1 else part[:3] for i, part in enumerate(parts)]
    return Corpus(model, data, tuple(parts), tuple(own), test)


@lru_cache(maxsize=4)
def start_of(model: ModelShape, node: int = 0) -> np.ndarray:
    """Return initial weights; every node has others."""
    return describe(model, 7 + node).initial_params


def works_of(model: ModelShape, nodes: Sequence[int] = tuple(range(NODES))) -> list[Work]:
    """Return a round of training for these nodes."""
    starts = [start_of(model, node) for node in nodes]
    return [Work(node, 3, 100 + node, start, np.full_like(start, 9)) for node, start in zip(nodes, starts, strict=True)]


def opened(kind: str, model: ModelShape, learning: Learning = LEARNING, **settings: object) -> Engine:
    """Return an engine for the model."""
    return open_engine(corpus_of(model), learning, EngineSection(kind=kind, **settings))  # type: ignore[arg-type]


def trained(engine: Engine, works: Sequence[Work]) -> list[Outcome]:
    """Train, and close the engine."""
    try:
        return engine.train(works)
    finally:
        engine.close()


def trainer_of(model: ModelShape, node: int, learning: Learning = LEARNING) -> TorchTrainer:
    """Return what a device with this node's data would have."""
    corpus = corpus_of(model)
    train, own = corpus.data.take(corpus.train[node]), corpus.data.take(corpus.own_test[node])
    return TorchTrainer(model, train, own, corpus.test, seed=learning.seed, loss_limit=learning.loss_limit)


def reference(model: ModelShape, work: Work, learning: Learning = LEARNING) -> tuple[Outcome, np.ndarray]:
    """Return what a device would make of the work."""
    task = TrainTask(work.round, work.params, work.seed, learning.local_steps, learning.batch_size, learning.lr)
    found = trainer_of(model, work.node, learning).train(task)
    return Outcome(found.loss, found.steps, found.error), found.params


@pytest.fixture(params=[1, 3], ids=["1 worker", "3 workers"])
def workers(request: pytest.FixtureRequest) -> Iterator[int]:
    """Return a number of workers."""
    return request.param


@every_model
@every_engine
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_round_is_near_the_reference(kind: str, model: ModelShape, precision: str) -> None:
    """Loss and parameters of every node, of those with few samples too; `sequential` has equal bits."""
    works = works_of(model)
    try:
        engine = opened(kind, model, precision=precision)
    except ConfigError as error:
        assert "engine.precision" in str(error)  # noqa: PT017  one that has no bf16 says so
        assert precision == "bf16"
        return
    assert engine.describe()["precision"] == precision
    for work, outcome in zip(works, trained(engine, works), strict=True):
        wanted, params = reference(model, work)
        if kind == "sequential":
            assert outcome == wanted
            assert work.out.tobytes() == params.tobytes()
        assert outcome.error == ""
        assert outcome.steps == LEARNING.local_steps
        assert outcome.loss == pytest.approx(wanted.loss, rel=TOLERANCE[precision] / 10)
        away, moved = np.linalg.norm(work.out - params), np.linalg.norm(params - work.params)
        assert away < TOLERANCE[precision] * moved
        assert work.params.tobytes() == start_of(model, work.node).tobytes()


@every_model
@every_engine
def test_the_company_changes_no_bit(kind: str, model: ModelShape, workers: int) -> None:
    """A node's bits are the same alone, among all, in another order, and with any number of workers."""
    whole = works_of(model)
    outcomes = trained(opened(kind, model, workers=2), whole)
    engine = opened(kind, model, workers=workers)
    try:
        for group in ([0], [7, 3, 0], list(range(NODES - 1, -1, -1)), list(range(2, 2 + 17))):
            works = works_of(model, group)
            for work, outcome in zip(works, engine.train(works), strict=True):
                assert outcome == outcomes[work.node]
                assert work.out.tobytes() == whole[work.node].out.tobytes()
    finally:
        engine.close()


@every_model
@every_engine
def test_a_round_that_ends_early_has_the_bits_of_a_shorter_one(kind: str, model: ModelShape, workers: int) -> None:
    """A device that is stopped between two local steps keeps those that it has done, whoever trains beside it."""
    early = {2: 1, 3: 3, 9: 2}
    works = [replace(work, steps=early.get(work.node)) for work in works_of(model)]
    outcomes = trained(opened(kind, model, workers=workers), works)
    assert [outcome.steps for outcome in outcomes] == [early.get(i, LEARNING.local_steps) for i in range(NODES)]
    for node, steps in early.items():
        alone = works_of(model, [node])
        assert trained(opened(kind, model, replace(LEARNING, local_steps=steps)), alone) == [outcomes[node]]
        assert alone[0].out.tobytes() == works[node].out.tobytes()


@every_engine
@pytest.mark.parametrize(
    ("scale", "change", "words"),
    [
        (1e30, {}, "the loss was nan at local step 1"),
        (50, {"lr": 1e30}, "the loss was"),
        (50, {"lr": 1e38, "local_steps": 1}, "parameters are not finite after 1 steps"),
    ],
)
def test_a_node_that_diverges_is_told_apart(kind: str, scale: float, change: dict[str, float], words: str) -> None:
    """The error is worded as the trainer's, nothing is written, and the nodes beside it are as they are without it."""
    learning = replace(LEARNING, **change)
    group = [4, 5, 6]
    calm = works_of(DIGITS, group)
    good = trained(opened(kind, DIGITS, learning), calm)
    works = works_of(DIGITS, group)
    works[1] = replace(works[1], params=works[1].params * np.float32(scale))
    outcomes = trained(opened(kind, DIGITS, learning), works)
    wanted, _ = reference(DIGITS, works[1], learning)
    assert words in wanted.error
    assert outcomes[1].error.partition(":")[0] == "round 3"
    assert "lower lr" in outcomes[1].error
    assert outcomes[1].steps == wanted.steps
    assert outcomes[1].loss is None
    assert (works[1].out == 9).all()
    for i in (0, 2):
        assert outcomes[i] == good[i]
        assert works[i].out.tobytes() == calm[i].out.tobytes()


@every_engine
def test_the_loss_limit(kind: str) -> None:
    """A loss above the limit has the trainer's own words."""
    learning = replace(LEARNING, loss_limit=1e-3)
    works = works_of(DIGITS, [4])
    outcome = trained(opened(kind, DIGITS, learning), works)[0]
    wanted, _ = reference(DIGITS, works[0], learning)
    assert (outcome.error, outcome.steps) == (wanted.error, 1)
    assert "limit 0.001" in outcome.error


@every_model
@every_engine
@pytest.mark.parametrize("samples", [0, 40])
def test_evaluation_is_the_reference_s(kind: str, model: ModelShape, samples: int, workers: int) -> None:
    """Accuracy on both test sets within one sample, the loss nearly; without a node there is no own test set."""
    nodes = [1, 2, 3, None]
    tests = [ModelTest(start_of(model, node or 0), node) for node in nodes]
    engine = opened(kind, model, workers=workers)
    try:
        found = engine.evaluate(tests, samples)
        assert [engine.evaluate([test], samples)[0] for test in tests] == found
    finally:
        engine.close()
    for test, evaluation in zip(tests, found, strict=True):
        wanted = trainer_of(model, test.node or 0).evaluate(test.params, samples)
        if test.node is None:
            wanted = replace(wanted, own_accuracy=None)
        assert_near(evaluation, wanted, samples_of_own=3, exact=kind == "sequential")


def assert_near(found: Evaluation, wanted: Evaluation, samples_of_own: int, *, exact: bool) -> None:
    """Compare two evaluations of the same samples."""
    if exact:
        assert found == wanted
    assert (found.samples, found.error) == (wanted.samples, "")
    assert found.accuracy == pytest.approx(wanted.accuracy, abs=1.01 / wanted.samples)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-3)
    if wanted.own_accuracy is None:
        assert found.own_accuracy is None
    else:
        assert found.own_accuracy == pytest.approx(wanted.own_accuracy, abs=1.01 / samples_of_own)


@every_engine
def test_nothing_to_do(kind: str) -> None:
    """No works and no tests are no fault."""
    engine = opened(kind, DIGITS, workers=2)
    try:
        assert engine.train([]) == []
        assert engine.evaluate([], 0) == []
    finally:
        engine.close()


@every_engine
def test_closing_leaves_nothing(kind: str, workers: int) -> None:
    """Neither a process nor an open file more than before."""
    trained(opened(kind, DIGITS, workers=workers), works_of(DIGITS, [0, 1]))
    before = children(), len(list(Path("/proc/self/fd").iterdir()))
    trained(opened(kind, DIGITS, workers=workers), works_of(DIGITS, [0, 1]))
    assert (children(), len(list(Path("/proc/self/fd").iterdir()))) == before


def children() -> str:
    """Return the processes that any thread of this one started."""
    return "".join(path.read_text() for path in sorted(Path(f"/proc/{os.getpid()}/task").glob("*/children")))


@every_engine
def test_data_that_does_not_fit_is_refused(kind: str) -> None:
    """As on a device."""
    corpus = corpus_of(DIGITS)
    wrong = Corpus(LENET, corpus.data, corpus.train, corpus.own_test, corpus.test)
    with pytest.raises(DataError, match="the model takes"):
        open_engine(wrong, LEARNING, EngineSection(kind=kind))
