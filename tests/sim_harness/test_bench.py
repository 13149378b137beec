"""`skiptrain-sim bench`: the form of what it prints, and that its numbers fit together; no speed is judged here."""

from __future__ import annotations

import json

import numpy as np
import pytest

from agent.core.types import ModelShape
from agent.learning.factory import describe
from agent.learning.model import model_spec
from sim_harness import bench
from sim_harness.__main__ import main
from sim_harness.bench import BARE, CASES, PlainLoop, gemm_peak, synthetic
from sim_harness.cohort.engine import Learning, Work
from sim_harness.cohort.sequential import SequentialEngine
from sim_harness.cohort.shapes import step_flops

TINY = ["--nodes", "2", "--steps", "1", "--turns", "1"]
KEYS = ["ratio", "ours_steps_s", "naive_steps_s", "gemm_fraction", "engine"]


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the GEMM peak with small matrices."""
    monkeypatch.setattr(bench, "_GEMM_SIZES", (128,))


def test_the_bare_bench_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Every bare case has exactly the five keys, and the numbers fit together."""
    assert main(["bench", "--json", *TINY]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(BARE) == ["gn-lenet", "small-28", "digits-8"]
    for values in found.values():
        assert list(values) == KEYS
        assert values["ratio"] == pytest.approx(values["ours_steps_s"] / values["naive_steps_s"])
        assert values["gemm_fraction"] > 0
        assert values["engine"]


def test_one_case_with_a_chosen_engine_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The engine is the one that was asked for, and the table has a row for the case."""
    assert main(["bench", "digits-8", *TINY, "--set", "engine.kind=sequential", "--set", "engine.workers=1"]) == 0
    shown = capsys.readouterr().out
    assert "digits-8" in shown
    assert "sequential" in shown
    assert "gn-lenet" not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gn-lenets"], "did you mean gn-lenet?"),
        (["--set", "engine.kind=fast"], "there is no 'fast'"),
        (["--set", "nodes=3"], "only settings of the section `engine`"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and nothing was measured."""
    assert main(["bench", *arguments]) == 78
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_the_plain_loop_trains_as_the_engines_do() -> None:
    """Both sides of the comparison do the same work: equal losses on the same batches."""
    model, learning = ModelShape("small-cnn", (1, 8, 8), 10), Learning(3, 4, 0.05, 1)
    corpus, start = synthetic(model, 2, 16), describe(model, 1).initial_params
    works = [Work(node, 0, node, start, np.empty_like(start)) for node in range(2)]
    ours = SequentialEngine(corpus, learning).train(works)
    assert PlainLoop(corpus, learning, works).run(1) == pytest.approx([outcome.loss for outcome in ours])


def test_operations_of_a_step() -> None:
    """By hand: one sample through small-cnn at 1x8x8 and GN-LeNet's 2.2 thousand million for a batch."""
    first, second, last = 2 * 16 * 64 * 9, 2 * 32 * 16 * 16 * 9, 2 * 32 * 4 * 10
    assert step_flops(model_spec(ModelShape("small-cnn", (1, 8, 8), 10)), 1) == 3 * (first + second + last) - first
    assert step_flops(model_spec(ModelShape("gn-lenet", (3, 32, 32), 10)), 32) == pytest.approx(2.2e9, rel=0.01)


def test_the_peak_is_a_speed() -> None:
    """Both precisions have one."""
    assert all(gemm_peak(precision) > 1e6 for precision in ("fp32", "bf16"))


def test_every_bare_case_is_registered() -> None:
    """A case is a function and a line."""
    assert set(BARE) <= set(CASES)
