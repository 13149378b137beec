"""CIFAR-10 as its authors give it out, in the binary version: data_batch_1.bin to data_batch_5.bin, test_batch.bin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agent.errors import DataError
from agent.learning.data import BYTES, Dataset

if TYPE_CHECKING:
    from agent.learning.sources import Array, Part, Request

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
FILES: dict[Part, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS
"""A byte for the class, then the red, the green and the blue pixels, row by row."""
_FOLDER = "cifar-10-batches-bin"


def cifar10(request: Request) -> Dataset:
    """Read the batches of one part, in the folder that the archive unpacks to, or in the one above it."""
    records = np.concatenate([_records(file) for file in batch_files(request)])
    labels = records[:, 0].astype(np.int64)
    wrong = np.flatnonzero(labels >= len(CIFAR10_NAMES))
    if len(wrong):
        raise DataError(f"{request.path}: image {wrong[0]} is of class {labels[wrong[0]]}, not 0 to 9; fetch it again")
    x = BYTES.apply(records[:, 1:].reshape(-1, *SHAPE))
    return Dataset(x, labels, request.path, request.class_names or CIFAR10_NAMES, None, BYTES)


def hollow_cifar10(request: Request) -> Dataset:
    """Return a data set of as many samples as the files' sizes say, all zeros, which take no memory."""
    count = sum(_count(file) for file in batch_files(request))
    x = np.broadcast_to(np.float32(0), (count, *SHAPE))
    labels = np.broadcast_to(np.int64(0), (count,))
    return Dataset(x, labels, request.path, request.class_names or CIFAR10_NAMES)


def batch_files(request: Request) -> list[Path]:
    """Return the files of one part; DataError where one is missing, or is of the version that is never read."""
    root = Path(request.path)
    names = FILES[request.part]
    for folder in (root, root / _FOLDER):
        if os.path.isfile(folder / names[0]):  # noqa: PTH113  Path.is_file may raise
            return [folder / name for name in names]
    for folder in (root, root / "cifar-10-batches-py"):
        if os.path.isfile(folder / names[0].removesuffix(".bin")):  # noqa: PTH113
            raise DataError(
                f"{folder} holds CIFAR-10's Python version, which are pickles: reading them could run any program, so "
                "they are not read; take the binary version, cifar-10-binary.tar.gz, from the same page "
                "(https://www.cs.toronto.edu/~kriz/cifar.html), unpack it and correct " + request.key
            )
    raise DataError(
        f"{root / names[0]} is missing; unpack cifar-10-binary.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html) "
        f"and correct {request.key}"
    )


def _records(file: Path) -> Array:
    """Return a file's records as bytes, shape (n, 3073)."""
    count = _count(file)
    try:
        with file.open("rb") as stream:
            data = stream.read(count * _RECORD + 1)
    except OSError as error:
        raise _unreadable(file, error) from error
    if len(data) != count * _RECORD:
        raise DataError(f"{file} changed while it was read; start again when it no longer does")
    return np.frombuffer(data, np.uint8).reshape(count, _RECORD)


def _count(file: Path) -> int:
    """Return how many images a file holds, by its size."""
    try:
        size = file.stat().st_size
    except OSError as error:
        raise _unreadable(file, error) from error
    if size == 0 or size % _RECORD:
        raise DataError(f"{file} holds {size} bytes, which are no whole images of {_RECORD} bytes; fetch it again")
    return size // _RECORD


def _unreadable(file: Path, error: OSError) -> DataError:
    return DataError(f"{file} cannot be read ({error.strerror or error}); unpack cifar-10-binary.tar.gz again")
