"""Which engine a scenario gets, and how it is told that it cannot have one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.core.types import ModelShape
from agent.errors import ConfigError
from agent.learning.factory import describe
from agent.learning.model import model_spec
from sim_harness.bench import synthetic
from sim_harness.cohort import registry
from sim_harness.cohort.cpu import CpuFeatures, cpu_features, cpu_flags
from sim_harness.cohort.engine import Corpus, Engine, Learning, Work
from sim_harness.cohort.registry import ENGINES, open_engine
from sim_harness.cohort.stacked import precision_for, stack_size
from sim_harness.scenario import ENGINE_KINDS, EngineSection

SMALL = ModelShape("small-cnn", (1, 8, 8), 10)
LEARNING = Learning(local_steps=2, batch_size=4, lr=0.05, seed=1)
WITH_BF16, WITHOUT = CpuFeatures(frozenset({"fma", "avx512_bf16"})), CpuFeatures(frozenset({"fma"}))


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelShape:
    """Return a user's own model with dropout, which raises where the first sample is above 100."""
    tmp_path.joinpath("own_model.py").write_text(
        "from torch import nn\n"
        "class Touchy(nn.Module):\n"
        "    def forward(self, x):\n"
        "        if x.max() > 100:\n"
        "            raise ValueError('too bright')\n"
        "        return x\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(Touchy(), nn.Flatten(), nn.Dropout(), nn.Linear(64, classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return ModelShape("own_model:make", (1, 8, 8), 10)


def described(model: ModelShape, settings: EngineSection) -> dict[str, object]:
    """Return what an engine with these settings says of itself."""
    engine = open_engine(synthetic(model, 3, 8), LEARNING, settings)
    about = engine.describe()
    engine.close()
    return about


def test_every_engine_can_be_asked_for() -> None:
    """What is registered is what a scenario may name."""
    assert set(ENGINES) <= set(ENGINE_KINDS)
    for kind in ENGINES:
        assert described(SMALL, EngineSection(kind=kind))["kind"] == kind


def test_the_default_is_the_first_that_can(own_model: ModelShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a user's own model that is the reference, for a shipped one the first in the registry that has no excuse."""
    assert described(own_model, EngineSection())["kind"] == "sequential"
    assert described(SMALL, EngineSection())["kind"] == next(iter(ENGINES))

    def excuse(*_: object) -> Engine:
        raise ConfigError("not here")

    for kind in ENGINES:
        if kind != "stacked":
            monkeypatch.setitem(registry.ENGINES, kind, excuse)
    assert described(SMALL, EngineSection())["kind"] == "stacked"


def test_no_engine_for_what_is_wanted(own_model: ModelShape) -> None:
    """The error says why each of them cannot."""
    for kind in ("default", "auto"):
        with pytest.raises(ConfigError, match=r"none can do this: .*stacked knows .*sequential trains as a device"):
            described(own_model, EngineSection(kind=kind, precision="bf16"))


def test_a_kind_that_cannot_serve_is_named(own_model: ModelShape) -> None:
    """Asked for by name, it is no other engine that comes."""
    with pytest.raises(ConfigError, match=r"engine.kind: stacked .* not those of own_model:make"):
        described(own_model, EngineSection(kind="stacked"))


def test_a_kind_that_this_release_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known word without an engine behind it is an error that lists the others."""
    monkeypatch.delitem(registry.ENGINES, "stacked")
    with pytest.raises(ConfigError, match=r"no engine 'stacked'; use one of .*sequential"):
        described(SMALL, EngineSection(kind="stacked"))


def test_auto_records_what_it_measured(own_model: ModelShape) -> None:
    """Every engine in every precision that it has; the one that was the fastest is there."""
    about = described(SMALL, EngineSection(kind="auto", workers=1))
    speeds = about["auto"]
    assert isinstance(speeds, dict)
    assert {"sequential fp32", "stacked fp32", "stacked bf16"} <= set(speeds)
    assert f"{about['kind']} {about['precision']}" == max(speeds, key=lambda name: speeds[name])
    assert list(described(own_model, EngineSection(kind="auto"))["auto"]) == ["sequential fp32"]


def test_what_auto_chose_trains() -> None:
    """It does all local steps, not those of the trial."""
    learning = replace(LEARNING, local_steps=5)
    engine = open_engine(synthetic(SMALL, 3, 8), learning, EngineSection(kind="auto", workers=1))
    start = describe(SMALL, 1).initial_params
    outcome = engine.train([Work(0, 0, 1, start, np.empty_like(start))])[0]
    engine.close()
    assert (outcome.steps, outcome.error) == (5, "")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_users_own_model(own_model: ModelShape, workers: int) -> None:
    """Its dropout is repeatable in any process; what it raises is the error of that node's round, as on a device."""
    corpus = synthetic(own_model, 3, 8)
    corpus.data.x[corpus.train[1]] = 1000
    found = [train(corpus, workers) for _ in range(2)]
    assert found[0] == found[1] == train(corpus, 1)
    assert [error for _, error in found[0]] == ["", "the trainer failed: ValueError: too bright", ""]


def train(corpus: Corpus, workers: int) -> Sequence[tuple[bytes, str]]:
    """Return the parameters and errors of a round of all nodes."""
    engine = open_engine(corpus, LEARNING, EngineSection(workers=workers))
    start = describe(corpus.model, 1).initial_params
    works = [Work(node, 0, node, start, np.zeros_like(start)) for node in range(3)]
    outcomes = engine.train(works)
    engine.close()
    return [(work.out.tobytes(), outcome.error) for work, outcome in zip(works, outcomes, strict=True)]


@pytest.mark.parametrize(
    ("name", "shape", "batch_size", "stack"),
    [("gn-lenet", (3, 32, 32), 32, 1), ("small-cnn", (1, 28, 28), 16, 4), ("small-cnn", (1, 8, 8), 16, 16)],
)
def test_stacks_are_of_the_measured_sizes(name: str, shape: tuple[int, int, int], batch_size: int, stack: int) -> None:
    """The rule gives what was best for each of the bench's models; a GPU takes more, but not without end."""
    spec = model_spec(ModelShape(name, shape, 10))
    assert stack_size(spec, batch_size, "cpu") == stack
    assert stack < stack_size(spec, batch_size, "cuda") <= 256


def test_precision_follows_model_and_processor() -> None:
    """bf16 by default for a model that is a stack of its own, on a processor that has it."""
    assert precision_for("default", 1, "cpu", WITH_BF16) == "bf16"
    assert precision_for("default", 1, "cpu", WITHOUT) == "fp32"
    assert precision_for("default", 4, "cpu", WITH_BF16) == "fp32"
    assert precision_for("bf16", 4, "cpu", WITHOUT) == "bf16"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n", {"fpu", "amx_bf16"}),
        ("processor : 0\nFeatures : fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        ("processor : 0\n", set()),
    ],
)
def test_flags_of_a_processor(text: str, flags: set[str], tmp_path: Path) -> None:
    """On x86 and on ARM; where the kernel does not tell there are none."""
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_flags(tmp_path / "cpuinfo") == flags
    assert cpu_flags(tmp_path / "none") == set()
    assert cpu_features() is cpu_features()
