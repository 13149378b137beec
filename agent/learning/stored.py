"""What a source's values and labels mean, found out without loading its samples: for the model's use elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from zipfile import ZipFile

import numpy as np

from agent.learning.data import BYTES, Normalisation
from agent.learning.sources import (
    DIGITS,
    DIGITS_CLASSES,
    Request,
    class_folders,
    npz_normalisation,
    npz_suffix,
    open_npz,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, slots=True)
class Stored:
    """The meaning of stored values: equal to what the loaded `Dataset` would say."""

    normalisation: Normalisation
    classes: tuple[str, ...]
    """Names of the classes, in the order of their numbers; () where neither source nor configuration has them."""


def _npz(request: Request) -> Stored:
    """Read the header of x alone: bytes and floats are normalised differently."""
    with open_npz(request.path) as arrays, ZipFile(request.path) as archive:
        member = archive.open(f"x{npz_suffix(arrays, request.part)}.npy")
        dtype = _HEADERS[np.lib.format.read_magic(member)](member)[2]
    return Stored(npz_normalisation(request.path, dtype), request.class_names)


def _folder(request: Request) -> Stored:
    """List the folders where nobody names the classes; images are bytes in any case."""
    return Stored(BYTES, request.class_names or class_folders(request)[2])


STORED: dict[str, Callable[[Request], Stored]] = {
    "npz": _npz,
    "folder": _folder,
    "idx": lambda request: Stored(BYTES, request.class_names),
    "digits": lambda request: Stored(DIGITS, request.class_names or DIGITS_CLASSES),
}
