"""What every engine takes and gives back: the training rounds of many nodes, and tests of many models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from agent.core.types import ModelShape, Params
from agent.learning.data import Dataset, Indices
from agent.learning.trainer import LOSS_LIMIT, Evaluation, batches


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """A fleet's data: one copy of all samples, and which of them each node trains on and tests itself with."""

    model: ModelShape
    data: Dataset
    """All training samples of the fleet."""
    train: tuple[Indices, ...]
    """What each node trains on, as ascending indices into `data`, in node order; none is empty."""
    own_test: tuple[Indices, ...]
    """What each node holds out for itself."""
    test: Dataset
    """The common test set."""


@dataclass(frozen=True, slots=True)
class Learning:
    """What all training rounds of a run have in common."""

    local_steps: int
    batch_size: int
    lr: float
    seed: int
    """The run's seed: what a module draws that is no parameter depends on it."""
    loss_limit: float = LOSS_LIMIT
    threads: int = 1
    """Of torch in a training of `sequential`, whose bits depend on it; the others have threads of their own."""

    def steps(self, work: Work) -> int:
        """Return how many local steps that work has."""
        return self.local_steps if work.steps is None else work.steps


@dataclass(frozen=True, slots=True)
class Work:
    """One node's training round."""

    node: int
    """Its place in node order."""
    round: int
    seed: int
    """As in TrainTask."""
    params: Params = field(compare=False, repr=False)
    """To start from, shape (n_params,), contiguous float32; never written to."""
    out: Params = field(compare=False, repr=False)
    """Where the trained parameters go, same shape; left as it is where the outcome has an error."""
    steps: int | None = None
    """How many local steps, at least one, of a round that ends early; None: all of them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one `Work`; as TrainOutcome, without parameters and time."""

    loss: float | None
    """Mean over the local steps; None with an error."""
    steps: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Test:
    """One model to be tested on the common test set, and on a node's own held-out samples."""

    params: Params = field(compare=False, repr=False)
    node: int | None
    """None: it is no node's model, and is tested on the common test set only."""


class Engine(Protocol):
    """Trains and tests many models; equal works give equal bits, whatever they come together with.

    That holds for any number of workers, too. An engine is closed once, and not used afterwards.
    """

    def train(self, works: Sequence[Work]) -> list[Outcome]:
        """Do the local steps of every work, on the batches that `batches` gives; return the outcomes in order.

        A loss that is NaN or above the limit, and parameters that are not finite, are an outcome's error, worded as
        TorchTrainer's.
        """

    def evaluate(self, tests: Sequence[Test], samples: int) -> list[Evaluation]:
        """Test every model on `samples` of each test set, the same ones as TorchTrainer's; 0 means all."""

    def describe(self) -> dict[str, Any]:
        """Return what was chosen, for summary.json: kind, precision, workers, and what else it depends on."""

    def close(self) -> None:
        """End processes and threads, and free what they hold."""


def batch_indices(learning: Learning, work: Work, samples: int) -> Indices:
    """Return the batches of a training round as the trainer draws them, shape (steps, batch).

    `batch` is min(batch_size, samples); entries are places in the node's own list of samples.
    """
    stream = batches(work.seed, work.round, samples, learning.batch_size)
    return np.stack([next(stream) for _ in range(learning.steps(work))])
