"""A node's samples as one frozen value, its own held-out share, and the check that model and data fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from agent.core.seeding import generator
from agent.errors import ConfigError, DataError

if TYPE_CHECKING:
    from agent.core.types import ModelShape

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How stored values became model inputs, (value / scale - mean) / std; an exported model carries it."""

    scale: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def apply(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return `raw`, of any shape, as float32 model inputs."""
        values = raw.astype(np.float32)
        if self != AS_THEY_ARE:
            values /= np.float32(self.scale)
            values -= np.float32(self.mean)
            values /= np.float32(self.std)
        return values


AS_THEY_ARE = Normalisation()
BYTES = Normalisation(255.0, 0.5, 0.5)
"""Unsigned bytes to [-1, 1]."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Samples ready for a model."""

    x: npt.NDArray[np.float32]
    """Shape (n, channels, height, width), normalised."""
    y: npt.NDArray[np.int64]
    """Class numbers, shape (n,)."""
    origin: str
    """The file or folder it was read from, for messages."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers; () where the source has none."""
    user: npt.NDArray[Any] | None = None
    """Who made each sample, shape (n,), where the source says so."""
    normalisation: Normalisation = AS_THEY_ARE

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Indices) -> Dataset:
        """Return the samples at `indices`, shape (m,), in that order, as a copy."""
        user = None if self.user is None else self.user[indices]
        return replace(self, x=self.x[indices], y=self.y[indices], user=user)


def stratified(y: npt.NDArray[np.int64], count: int, rng: np.random.Generator) -> Indices:
    """Return `count` sorted indices into `y`, drawn by `rng` with each class in proportion (largest remainders)."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    classes, sizes = np.unique(y, return_counts=True)
    quotas = sizes * count / len(y)
    counts = np.floor(quotas).astype(np.int64)
    order = np.argsort(counts - quotas, kind="stable")
    counts[order[: count - int(counts.sum())]] += 1
    drawn = [rng.permutation(np.flatnonzero(y == name))[:size] for name, size in zip(classes, counts, strict=True)]
    return np.sort(np.concatenate(drawn))


def split(dataset: Dataset, count: int, rng: np.random.Generator) -> tuple[Dataset, Dataset]:
    """Return the dataset without `count` stratified samples, and those samples; the stored order is kept in both."""
    return _apart(dataset, stratified(dataset.y, count, rng))


def _apart(dataset: Dataset, chosen: Indices) -> tuple[Dataset, Dataset]:
    return dataset.take(np.setdiff1d(np.arange(len(dataset)), chosen)), dataset.take(chosen)


def hold_out(dataset: Dataset, share: float, seed: int, node: str) -> tuple[Dataset, Dataset]:
    """Return a node's (train, own_test): `share` of its samples, in [0, 1), is never trained on.

    With a share above 0 and at least 2 samples both parts have at least 1; classes stay in proportion where they can.
    """
    return _apart(dataset, held_out(dataset.y, share, seed, node))


def held_out(y: npt.NDArray[np.int64], share: float, seed: int, node: str) -> Indices:
    """Return which samples `hold_out` takes for the node's own test, given their classes; sorted."""
    if not 0.0 <= share < 1.0:
        raise ConfigError(f"data.held_out is {share}; it is a share of the node's own samples in [0, 1)")
    most = max(0, len(y) - 1)
    count = min(max(1, round(share * len(y))), most) if share > 0.0 else 0
    return stratified(y, count, generator(seed, "held-out", node))


def check(dataset: Dataset, model: ModelShape) -> None:
    """Raise DataError unless the model can be trained or tested on the dataset."""
    if len(dataset) == 0:
        raise DataError(f"{dataset.origin} holds no samples; add some, or correct data.path")
    if dataset.x.shape != (len(dataset), *model.input_shape):
        raise DataError(
            f"{dataset.origin}: {len(dataset)} labels for samples of shape {list(dataset.x.shape)}, but the model "
            f"takes [n, {', '.join(map(str, model.input_shape))}]; correct model.input_shape, or the data"
        )
    if dataset.classes and len(dataset.classes) != model.classes:
        raise DataError(
            f"{dataset.origin} names {len(dataset.classes)} classes, but the model has {model.classes}; correct "
            "model.classes, or set data.class_names to all classes of the fleet, the same list on every node"
        )
    low, high = int(dataset.y.min()), int(dataset.y.max())
    if low < 0 or high >= model.classes:
        raise DataError(
            f"{dataset.origin}: labels go from {low} to {high}, but the model has {model.classes} classes, 0 to "
            f"{model.classes - 1}; correct model.classes, or the labels"
        )
