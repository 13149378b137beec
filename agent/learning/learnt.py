"""A learnt model that is to be taken elsewhere, and what comes of a conversion: the values that all formats share."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from agent.core.seeding import generator
from agent.core.types import params_sha256
from agent.learning.data import AS_THEY_ARE
from agent.learning.factory import build_module
from agent.learning.layers import require_torch
from agent.learning.model import load_params

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt
    from torch import nn

    from agent.core.types import ModelShape, Params
    from agent.learning.data import Normalisation

FORMAT_VERSION = "1"
FORMULA = "(value / scale - mean) / std"
EXAMPLES = 2
"""Inputs that a trace is drawn with: another number than in the comparison, which so finds one frozen into the file."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """A model, what it takes, and what is to be said of it."""

    shape: ModelShape
    seed: int
    """The run's: a factory may draw constants from it."""
    params: Params = field(repr=False)
    normalisation: Normalisation
    class_names: tuple[str, ...]
    about: dict[str, str]
    """Where it comes from, in the words of the caller."""

    def module(self) -> nn.Module:
        """Build it in torch, ready to be asked; TrainingError where model and parameters do not fit."""
        module = build_module(self.shape, self.seed)
        load_params(module, self.params)
        return module.eval()

    def stored(self, count: int) -> npt.NDArray[np.float32]:
        """Return `count` random inputs as their source would store them, always the same; shape (count, c, h, w)."""
        draws = generator(0, "export", count).random((count, *self.shape.input_shape))
        if self.normalisation == AS_THEY_ARE:
            return (2.0 * draws - 1.0).astype(np.float32)
        return np.floor(draws * (self.normalisation.scale + 1.0)).astype(np.float32)

    def metadata(self, *, in_graph: bool, **more: str) -> dict[str, str]:
        """Return what a file says of itself; docs/export.md has the table."""
        return {
            "format_version": FORMAT_VERSION,
            **self.about,
            "model": self.shape.name,
            "input_shape": json.dumps(self.shape.input_shape),
            "classes": str(self.shape.classes),
            "class_names": json.dumps(self.class_names, ensure_ascii=False),
            "normalisation": json.dumps({**asdict(self.normalisation), "formula": FORMULA}),
            "normalisation_in": "graph" if in_graph else "application",
            "params_sha256": params_sha256(self.params),
            **more,
        }


@dataclass(frozen=True, slots=True)
class Written:
    """What a conversion came to."""

    content: bytes = field(repr=False)
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()
    """What a person should know about it."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A file as an application finds it."""

    metadata: dict[str, str]
    scores: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
    """From values as their source stores them, shape (n, c, h, w), to scores, shape (n, classes)."""
    runtime: str
    """What reads the file."""


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Keep a converter's own news off the terminal; what a trace could not see stands in the list at the end."""
    notes: list[str] = []
    torch = require_torch()
    with warnings.catch_warnings(record=True) as caught, _no_stdout():
        warnings.simplefilter("always")
        yield notes
    blind = (item for item in caught if item.category is torch.jit.TracerWarning)
    theirs = (item for item in blind if not item.filename.startswith(torch.__path__[0]))
    notes.extend(
        dict.fromkeys(f"{item.filename}:{item.lineno}: {_one_line(item.message).split('. ')[0]}" for item in theirs)
    )


@contextlib.contextmanager
def _no_stdout() -> Iterator[None]:
    """Send file descriptor 1 nowhere: torch prints whole graphs there from C++ when a conversion fails."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def first_line(reason: Exception) -> str:
    """Return what a library's exception says, in one line."""
    return f"{type(reason).__name__}: {_one_line(reason)}"


def _one_line(text: object) -> str:
    return next((line.strip() for line in str(text).splitlines() if line.strip()), "")
