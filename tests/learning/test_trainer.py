"""Local SGD and evaluation in this process."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agent.core.types import ModelShape
from agent.errors import DataError
from agent.learning import trainer as trainer_module
from agent.learning.data import hold_out
from agent.learning.factory import describe
from agent.learning.model import build, dump_params, load_params, model_spec
from agent.learning.sources import load
from agent.learning.trainer import TorchTrainer, TrainTask, batches

SHAPE = ModelShape("small-cnn", (1, 8, 8), 10)
START = describe(SHAPE, 1).initial_params
TASK = TrainTask(round=3, params=START, seed=11, local_steps=6, batch_size=16, lr=0.1)
TRAIN, OWN = hold_out(load("digits"), 0.1, 1, "a")
TEST = load("digits", part="test")


@pytest.fixture(scope="module")
def trainer():
    """Return one trainer for all tests here, so that each runs after the others' rounds."""
    return TorchTrainer(SHAPE, TRAIN, OWN, TEST, seed=1)


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 3))
def test_batches_are_cut_from_permutations(samples, batch_size, round_):
    """Every batch is full, and the stream runs through all samples before one comes again."""
    size = min(samples, batch_size)
    cut = list(itertools.islice(batches(5, round_, samples, batch_size), 2 * samples // size + 1))
    assert {len(batch) for batch in cut} == {size}
    stream = np.concatenate(cut)
    assert sorted(stream[:samples]) == list(range(samples))
    assert sorted(stream[samples : 2 * samples]) == list(range(samples))


def test_batches_differ_by_seed_and_round():
    """Neither nodes nor rounds share their order of samples."""
    first = {tuple(next(batches(seed, round_, 99, 16))) for seed in (1, 2) for round_ in (0, 1)}
    assert len(first) == 4


def test_training_is_plain_sgd(trainer):
    """The result equals torch's own SGD over the same batches, bit for bit."""
    module = build(model_spec(SHAPE))
    load_params(module, START)
    sgd = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for indices in itertools.islice(batches(TASK.seed, TASK.round, len(TRAIN), 16), TASK.local_steps):
        sgd.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            module(torch.from_numpy(TRAIN.x[indices])), torch.from_numpy(TRAIN.y[indices])
        )
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    outcome = trainer.train(TASK)
    assert outcome.params.tobytes() == dump_params(module).tobytes()
    assert outcome.loss == pytest.approx(np.mean(losses))
    assert (outcome.steps, outcome.error) == (6, "")


def test_equal_inputs_give_equal_bits(trainer):
    """What ran before, in this trainer or in torch's global random state, changes nothing."""
    first = trainer.train(TASK)
    trainer.train(replace(TASK, round=9, local_steps=3))
    trainer.evaluate(first.params, 50)
    torch.manual_seed(123)
    again = trainer.train(TASK)
    fresh = TorchTrainer(SHAPE, TRAIN, OWN, seed=2).train(TASK)
    assert first.params.tobytes() == again.params.tobytes() == fresh.params.tobytes()
    assert first.loss == again.loss == fresh.loss


def test_dropout_is_repeatable(tmp_path, monkeypatch):
    """A user's model with dropout draws the same masks for the same round, and others for another."""
    tmp_path.joinpath("with_dropout.py").write_text(
        "from torch import nn\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    shape = ModelShape("with_dropout:make", (1, 8, 8), 10)
    trainer = TorchTrainer(shape, TRAIN, OWN, seed=1)
    task = replace(TASK, params=describe(shape, 1).initial_params)
    results = [trainer.train(replace(task, round=round_)).params.tobytes() for round_ in (0, 1, 0)]
    assert results[0] == results[2] != results[1]
    params = trainer.train(task).params
    assert trainer.evaluate(params, 0) == trainer.evaluate(params, 0)


def test_training_learns(trainer):
    """Two hundred steps on all classes reach what the demonstration relies on."""
    outcome = trainer.train(replace(TASK, local_steps=200))
    found = trainer.evaluate(outcome.params, 0)
    assert found.accuracy > 0.9
    assert found.own_accuracy > 0.9
    assert found.loss < 0.5
    assert found.samples == 360


@pytest.mark.parametrize(
    ("change", "words"),
    [({"lr": 1e30}, "the loss was"), ({"lr": 1e38, "local_steps": 1}, "parameters are not finite")],
)
def test_divergence_keeps_the_old_parameters(trainer, change, words):
    """NaN and infinity end the round with an error that names the learning rate, and nothing is broken afterwards."""
    before = trainer.train(TASK)
    outcome = trainer.train(replace(TASK, params=START * np.float32(50), **change))
    assert words in outcome.error
    assert "lower lr" in outcome.error
    assert outcome.loss is None
    assert outcome.params.tobytes() == (START * np.float32(50)).tobytes()
    assert trainer.train(TASK).params.tobytes() == before.params.tobytes()


def test_loss_limit():
    """A finite loss above the limit ends the round, too."""
    outcome = TorchTrainer(SHAPE, TRAIN, OWN, seed=1, loss_limit=1e-3).train(TASK)
    assert "limit 0.001" in outcome.error
    assert outcome.steps == 1


def test_stop_between_steps(trainer):
    """A stopped round has done fewer steps, and its parameters are those of a round with just these steps."""
    seen: list[int] = []
    outcome = trainer.train(TASK, on_step=seen.append, should_stop=lambda: len(seen) == 4)
    assert seen == [1, 2, 3, 4]
    assert (outcome.steps, outcome.error) == (4, "")
    assert outcome.params.tobytes() == trainer.train(replace(TASK, local_steps=4)).params.tobytes()
    none = trainer.train(TASK, should_stop=lambda: True)
    assert (none.steps, none.loss, none.error) == (0, None, "")
    assert none.params.tobytes() == START.tobytes()


def test_evaluation_weighs_each_sample_alike(trainer, monkeypatch):
    """Accuracy and loss don't depend on how the test set is cut into batches."""
    whole = trainer.evaluate(START, 0)
    monkeypatch.setattr(trainer_module, "_EVALUATION_BATCH", 100)
    cut = trainer.evaluate(START, 0)
    assert cut.accuracy == whole.accuracy
    assert cut.loss == pytest.approx(whole.loss, rel=1e-5)


def test_evaluation_sample_is_fixed(trainer):
    """A sample of the test set is the same on every node and in every round; one as big as the set is the set."""
    assert trainer.evaluate(START, 40) == trainer.evaluate(START, 40)
    other = TorchTrainer(SHAPE, TRAIN.take(np.arange(5)), OWN.take(np.arange(0)), TEST, seed=9).evaluate(START, 40)
    assert (other.accuracy, other.loss, other.samples) == (
        trainer.evaluate(START, 40).accuracy,
        trainer.evaluate(START, 40).loss,
        40,
    )
    assert other.own_accuracy is None
    assert trainer.evaluate(START, 360) == trainer.evaluate(START, 0)


def test_evaluation_can_be_given_up(trainer, monkeypatch):
    """It ends between two batches with an error and no numbers; being asked in vain changes no bit."""
    monkeypatch.setattr(trainer_module, "_EVALUATION_BATCH", 100)
    asked = itertools.count()
    assert trainer.evaluate(START, 0, lambda: next(asked) < 0) == trainer.evaluate(START, 0)
    batches_ = next(asked)
    assert batches_ == 4 + 2  # of 360 common and 142 or so own samples
    for last in range(batches_):
        asked = itertools.count()
        found = trainer.evaluate(START, 0, lambda: next(asked) >= last)  # noqa: B023  called at once
        assert "given up" in found.error
        assert (found.accuracy, found.own_accuracy, found.loss, found.samples) == (None, None, None, 0)
        assert next(asked) == last + 1


def test_no_test_set():
    """Without a common test set there is an accuracy on the node's own samples only."""
    found = TorchTrainer(SHAPE, TRAIN, OWN, seed=1).evaluate(START, 0)
    assert (found.accuracy, found.loss, found.samples) == (None, None, 0)
    assert found.own_accuracy is not None


def test_batch_bigger_than_the_data():
    """A node with five samples trains on batches of five."""
    tiny = TorchTrainer(SHAPE, TRAIN.take(np.arange(5)), OWN, seed=1)
    big, five = (tiny.train(replace(TASK, batch_size=size)) for size in (1000, 5))
    assert big.error == ""
    assert big.params.tobytes() == five.params.tobytes()


def test_data_must_fit_the_model():
    """A trainer is not made where its data and model differ."""
    with pytest.raises(DataError, match="the model takes"):
        TorchTrainer(ModelShape("small-cnn", (1, 28, 28), 10), TRAIN, OWN, seed=1)
