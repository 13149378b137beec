"""What a source's values and labels mean, found out without loading its samples: for the model's use elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.learning.cifar10 import CIFAR10_NAMES
from agent.learning.data import BYTES, Normalisation
from agent.learning.probe import hollow
from agent.learning.sources import (
    DIGITS,
    DIGITS_NAMES,
    FASHION_NAMES,
    Request,
    class_folders,
    npz_normalisation,
    read_npz,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Stored:
    """The meaning of stored values: equal to what the loaded `Dataset` would say."""

    normalisation: Normalisation
    classes: tuple[str, ...]
    """Names of the classes, in the order of their numbers; () where neither source nor configuration has them."""


def _npz(request: Request) -> Stored:
    """Read headers and labels alone: bytes and floats are normalised differently."""
    x, _, _ = read_npz(request.path, request.part, hollow)
    return Stored(npz_normalisation(x, request.path), request.class_names)


def _folder(request: Request) -> Stored:
    """List the folders where nobody names the classes; images are bytes in any case."""
    return Stored(BYTES, request.class_names or class_folders(request)[2])


STORED: dict[str, Callable[[Request], Stored]] = {
    "npz": _npz,
    "folder": _folder,
    "idx": lambda request: Stored(BYTES, request.class_names),
    "digits": lambda request: Stored(DIGITS, request.class_names or DIGITS_NAMES),
    "cifar10": lambda request: Stored(BYTES, request.class_names or CIFAR10_NAMES),
    "fashion-mnist": lambda request: Stored(BYTES, request.class_names or FASHION_NAMES),
}
