"""The compiled engine: torch's results, whatever it is built with and however many threads it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.types import ModelShape
from agent.errors import ConfigError, TrainingError
from agent.learning.data import Dataset
from agent.learning.layers import FLATTEN, HALVE, Conv, Linear, Plain
from agent.learning.model import ModelSpec, initial_params, model_spec
from sim_harness.cohort import native_build, native_kernels
from sim_harness.cohort.engine import Corpus, Learning, Work
from sim_harness.cohort.engine import Test as ModelTest
from sim_harness.cohort.native import NativeEngine, default_precision
from sim_harness.cohort.native_build import Compiler, find_compiler
from sim_harness.cohort.native_steps import steps_of
from sim_harness.cohort.sequential import SequentialEngine
from sim_harness.scenario_sections import EngineSection

DIGITS = ModelShape("small-cnn", (1, 8, 8), 10)
FEMNIST = ModelShape("femnist-cnn", (1, 12, 9), 5)
FP32 = EngineSection(precision="fp32", workers=2)
LEARNING = Learning(local_steps=10, batch_size=16, lr=0.02, seed=1)
SAMPLES = 90
CLOSE = {"fp32": 1e-4, "bf16": 3e-2}
"""What the parameters of a round may be off torch's: where rounding moves the maximum of a pool, more than rounding."""


def corpus(model: ModelShape = DIGITS, sizes: tuple[int, ...] = (40, 5, 17), scale: float = 1.0) -> Corpus:
    """Return random samples for as many nodes as there are sizes; the second one holds nothing out."""
    rng = np.random.default_rng(3)
    x = (scale * rng.standard_normal((SAMPLES, *model.input_shape))).astype(np.float32)
    data = Dataset(x, rng.integers(0, model.classes, SAMPLES), "random")
    train = tuple(np.sort(rng.permutation(SAMPLES)[:size]) for size in sizes)
    own = tuple(np.arange(0 if node == 1 else 7) for node in range(len(sizes)))
    return Corpus(model, data, train, own, data.take(np.arange(50)))


def works(of: Corpus, seed: int = 1) -> list[Work]:
    """Return one training round of every node."""
    start = initial_params(model_spec(of.model), seed)
    return [Work(node, 3, 100 + node, start, np.full_like(start, 7.0)) for node in range(len(of.train))]


def reference(of: Corpus, learning: Learning = LEARNING, _: EngineSection = FP32) -> SequentialEngine:
    """Return a device's own trainer, in this process."""
    return SequentialEngine(of, learning)


def trained(kind, of: Corpus, learning: Learning = LEARNING, how: EngineSection = FP32):
    """Return the outcomes of a round, and what every node's parameters are after it."""
    engine, todo = kind(of, learning, how), works(of)
    outcomes = engine.train(todo)
    engine.close()
    return outcomes, [work.out for work in todo]


def precisions() -> list[str]:
    """Return what this machine has."""
    return ["fp32", "bf16"] if find_compiler().bf16 else ["fp32"]


def assert_close(of: Corpus, learning: Learning = LEARNING) -> None:
    """Compare a round of the engine, in every precision, with one of the reference."""
    wanted, params = trained(reference, of, learning)
    assert not any(outcome.error for outcome in wanted)
    for precision in precisions():
        outcomes, ours = trained(NativeEngine, of, learning, EngineSection(precision=precision))
        for mine, theirs, a, b in zip(outcomes, wanted, ours, params, strict=True):
            assert mine.loss == pytest.approx(theirs.loss, rel=CLOSE[precision])
            assert (mine.steps, mine.error) == (theirs.steps, "")
            assert np.abs(a - b).max() < CLOSE[precision]


@pytest.mark.parametrize(
    "model",
    [
        ModelShape("gn-lenet", (3, 9, 8), 10),
        FEMNIST,
        ModelShape("small-cnn", (1, 28, 28), 10),
        ModelShape("small-cnn", (2, 11, 7), 3),
        ModelShape("small-cnn", (3, 1, 1), 2),
    ],
    ids=lambda model: f"{model.name}-{'x'.join(map(str, model.input_shape))}",
)
def test_a_round_comes_to_what_torch_comes_to(model):
    """Every model, with sides that halve and sides that don't; nodes have more and fewer samples than a batch."""
    assert_close(corpus(model))


@pytest.mark.parametrize("batch", [3, 33])
def test_batches_need_not_fill_vectors(batch):
    """Lanes without a sample of their own change nothing."""
    assert_close(corpus(), replace(LEARNING, batch_size=batch))


def test_kernels_for_any_cpu_come_to_the_same(monkeypatch):
    """Built for the oldest CPU of this kind, with short vectors and few registers."""
    flags = tuple(flag for flag in native_build._FLAGS if flag != "-march=native")
    monkeypatch.setattr(native_build, "_FLAGS", flags)
    assert find_compiler().lanes == 4
    assert_close(corpus())


@given(order=st.permutations(range(3)), workers=st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_a_node_depends_on_nothing_but_its_own_work(order, workers):
    """Neither the other works, nor their order, nor the number of threads change a bit."""
    of = corpus()
    for precision in precisions():
        how = EngineSection(precision=precision, workers=workers)
        alone = [round_of(of, [node], how)[node] for node in range(3)]
        together = round_of(of, order, how)
        assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


def round_of(of: Corpus, nodes: list[int], how: EngineSection) -> list[np.ndarray]:
    """Train these nodes at once, in this order; return the parameters of all."""
    engine, todo = NativeEngine(of, LEARNING, how), works(of)
    engine.train([todo[node] for node in nodes])
    engine.close()
    return [work.out for work in todo]


@pytest.mark.parametrize(
    ("model", "learning", "said"),
    [
        (DIGITS, replace(LEARNING, lr=1e6), "the loss was"),
        (DIGITS, replace(LEARNING, loss_limit=0.1), "(limit 0.1)"),
        (FEMNIST, replace(LEARNING, local_steps=1, lr=3e38), "parameters are not finite after 1 steps"),
    ],
    ids=["diverges", "limit", "not finite"],
)
def test_what_goes_wrong_is_said_as_the_trainer_says_it(model, learning, said):
    """The same step, and the same words up to the digits of a huge loss; nothing is written."""
    of = corpus(model, (40, 5), scale=100.0)
    wanted, _ = trained(reference, of, learning)
    outcomes, params = trained(NativeEngine, of, learning)
    for mine, theirs in zip(outcomes, wanted, strict=True):
        assert said in mine.error
        assert (mine.loss, mine.steps) == (None, theirs.steps)
        assert mine.error.split("was")[0] == theirs.error.split("was")[0]
        assert mine.error.split("at local")[-1] == theirs.error.split("at local")[-1]
    assert all((out == 7.0).all() for out in params)


def test_parameters_that_are_not_numbers_are_an_error():
    """NaN goes through ReLU and pools to the loss."""
    of = corpus(sizes=(40,))
    engine, (work,) = NativeEngine(of, LEARNING, FP32), works(of)
    engine_error = engine.train([replace(work, params=np.full_like(work.params, np.nan))])[0].error
    engine.close()
    assert "the loss was nan at local step 1" in engine_error


@pytest.mark.parametrize("samples", [0, 20])
def test_evaluations_are_the_trainers(samples):
    """The same chosen samples, own ones too, and in fp32 whatever trains; what is no node's model has no own test."""
    of = corpus()
    start = initial_params(model_spec(of.model), 1)
    tests = [ModelTest(start, 0), ModelTest(2 * start, 1), ModelTest(start, None)]
    wanted = reference(of).evaluate(tests, samples)
    for precision in precisions():
        ours = NativeEngine(of, LEARNING, EngineSection(precision=precision))
        for mine, theirs in zip(ours.evaluate(tests, samples), wanted, strict=True):
            assert replace(mine, loss=theirs.loss) == theirs
            assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
        ours.close()


def test_a_build_is_made_and_checked_once(cache: Path, monkeypatch):
    """A second engine neither compiles nor compares; what stands in the cache are libraries and their marks."""
    NativeEngine(corpus(), LEARNING, FP32).close()
    assert {path.suffix for path in cache.iterdir()} <= {".so", ".checked", ".refused"}
    monkeypatch.setattr(native_build, "_compile", None)
    monkeypatch.setattr(native_kernels.Kernels, "off", None)
    NativeEngine(corpus(), LEARNING, FP32).close()


def test_without_a_cache_it_works_all_the_same(monkeypatch):
    """A folder that cannot be made is replaced by a temporary one."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    outcomes, _ = trained(NativeEngine, corpus())
    assert [outcome.steps for outcome in outcomes] == [10, 10, 10]


def test_a_build_that_disagrees_with_torch_is_refused(monkeypatch, tmp_path):
    """And it is no better the second time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_kernels, "TOLERANCE", {"fp32": 0.0})
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"off what torch makes of it in 2 steps"):
            NativeEngine(corpus(), LEARNING, FP32)


@pytest.mark.parametrize("command", ["no-such-compiler", "false"])
def test_a_machine_without_compiler_is_told_what_to_do(command, monkeypatch):
    """No compiler, and one that fails."""
    monkeypatch.setenv("CC", command)
    with pytest.raises(ConfigError, match=rf"{command}.*apt install gcc.*engine\.kind stacked"):
        NativeEngine(corpus(), LEARNING, FP32)


def test_a_users_model_is_another_engines():
    """Its layers are not known as data."""
    with pytest.raises(ConfigError, match=r"engine\.kind sequential"):
        NativeEngine(replace(corpus(), model=ModelShape("my.models:net", (1, 8, 8), 10)), LEARNING, FP32)


@pytest.mark.parametrize(
    "layers",
    [
        (Plain("Tanh"), FLATTEN, Linear(64, 10)),
        (Conv(1, 12, 3, 1), FLATTEN, Linear(12 * 64, 10)),
        (FLATTEN, Linear(64, 16), HALVE, Linear(16, 10)),
    ],
    ids=["unknown", "channels", "order"],
)
def test_a_layer_without_kernel_is_named(layers):
    """So that whoever adds a layer to a model hears of it before a run."""
    with pytest.raises(ConfigError, match=r"no kernel for \('(Tanh|Conv2d|MaxPool2d)'.*engine\.kind stacked"):
        steps_of(ModelSpec("new", (1, 8, 8), 10, layers))


def test_precision_follows_model_and_cpu():
    """bf16 where the CPU multiplies it and the model is large; asking for it elsewhere is an error."""
    with_bf16, without = Compiler("cc", "#define __AVX512BF16__ 1\n"), Compiler("cc", "#define __AVX2__ 1\n")
    assert default_precision(ModelShape("gn-lenet", (3, 32, 32), 10), with_bf16) == "bf16"
    assert default_precision(ModelShape("gn-lenet", (3, 32, 32), 10), without) == "fp32"
    assert default_precision(DIGITS, with_bf16) == "fp32"


def test_bf16_without_such_a_cpu_is_an_error(monkeypatch):
    """Rather than fp32 under another name."""
    flags = tuple(flag for flag in native_build._FLAGS if flag != "-march=native")
    monkeypatch.setattr(native_build, "_FLAGS", flags)
    with pytest.raises(ConfigError, match=r"engine\.precision is bf16.*use fp32"):
        NativeEngine(corpus(), LEARNING, EngineSection(precision="bf16"))


def test_it_tells_what_it_is():
    """For summary.json."""
    engine = NativeEngine(corpus(), LEARNING, FP32)
    told = engine.describe()
    engine.close()
    assert told.items() >= {"kind": "native", "precision": "fp32", "workers": 2}.items()
    assert (told["isa"], told["compiler"]) == (find_compiler().isa, find_compiler().version)
