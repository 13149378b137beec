"""The formats that a learnt model can be taken away in, and the proof that a file does what the device's own does."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agent.errors import ConfigError, TrainingError
from agent.learning import as_onnx, as_safetensors, as_torchscript
from agent.learning.layers import require_torch
from agent.learning.learnt import Learnt, Opened, Written, first_line, quiet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOLERANCE = 1e-4
"""How far scores may be from the device's own, relative to the largest of them, or to 1 where all are smaller."""
_BATCHES = (1, 7)


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file."""

    suffix: str
    package: str
    """What it needs of the extra `export`; "" where torch is enough."""
    write: Callable[[Learnt], Written]
    read: Callable[[Learnt, Path], Opened]


FORMATS = {
    "safetensors": Format("safetensors", "safetensors", as_safetensors.write, as_safetensors.read),
    "torchscript": Format("pt", "", as_torchscript.write, as_torchscript.read),
    "onnx": Format("onnx", "onnx", as_onnx.write, as_onnx.read),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """How near the scores of a file are to those of the device's own module."""

    difference: float
    """The largest, as `TOLERANCE` counts it."""
    inputs: int
    runtime: str


def require(format_: str) -> None:
    """Raise ConfigError where a package of the extra `export` that the format needs is not installed."""
    package = FORMATS[format_].package
    if not package:
        return
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"--format {format_} needs {package} ({error}); install the extra `export`") from error


def compare(learnt: Learnt, format_: str, path: Path, metadata: dict[str, str]) -> Comparison:
    """Open a file that was written, and ask it and the device's own module the same.

    TrainingError where they do not agree, or where the file says of itself anything else than `metadata`.
    """
    where = f"model.name {learnt.shape.name}: the {format_} file"
    try:
        with quiet():
            opened = FORMATS[format_].read(learnt, path)
            difference = max(_difference(learnt, opened, count) for count in _BATCHES)
    except Exception as error:
        raise TrainingError(f"{where} does not work when it is opened again: {first_line(error)}") from error
    if opened.metadata != metadata:
        raise TrainingError(f"{where} does not say of itself what was written into it")
    if difference > TOLERANCE:
        raise TrainingError(
            f"{where} gives other scores than the module, by {difference:.2g} (allowed: {TOLERANCE:g}): what the model "
            "does depends on what a converter cannot see, such as control flow in Python, or randomness"
        )
    return Comparison(difference, sum(_BATCHES), opened.runtime)


def _difference(learnt: Learnt, opened: Opened, count: int) -> float:
    """Return how far the scores for `count` random inputs are apart; infinite where any is not a number."""
    torch, stored = require_torch(), learnt.stored(count)
    with torch.no_grad():
        wanted = np.asarray(learnt.module()(torch.from_numpy(learnt.normalisation.apply(stored))))
    got = opened.scores(stored)
    if got.shape != wanted.shape:
        raise ValueError(f"scores of shape {list(got.shape)} for {count} inputs")
    apart = float(np.abs(got - wanted).max()) / max(1.0, float(np.abs(wanted).max()))
    return apart if np.isfinite(apart) else np.inf
