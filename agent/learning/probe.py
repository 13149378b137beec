"""A look at the data before a run begins: names, headers and labels only, without torch, Pillow or the samples."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from agent.errors import ConfigError, DataError
from agent.learning import sources
from agent.learning.cifar10 import hollow_cifar10
from agent.learning.data import Dataset, check

if TYPE_CHECKING:
    from pathlib import Path

    from agent.learning.frames import WorkerConfig
    from agent.learning.sources import Array, Part, Request, Sources

LABEL_BYTES = 1 << 20
"""Labels are read up to this size; of more of them only the number is checked."""


def probe(config: WorkerConfig) -> None:
    """Raise DataError or ConfigError for what can be seen to be wrong before the samples are read.

    What passes may still turn out to be unreadable later: the trainer reads all of it, and checks again.
    """
    parts: list[tuple[str, str, Part]] = [(config.source, config.path, "train")]
    if config.test_source:
        parts.append((config.test_source, config.test_path, "test"))
    shape, names = config.model.input_shape, config.class_names
    for source, path, part in parts:
        found = sources.load(
            source, path, part, input_shape=shape, layout=config.layout, class_names=names, ways=PROBES
        )
        check(found, config.model)


def _npz(request: Request) -> Dataset:
    """Return the data set of an .npz with zeros for its samples, which take no memory."""
    x, y, user = sources.read_npz(request.path, request.part, hollow)
    return Dataset(sources.to_nchw(x, y, user, request), y, request.path, request.class_names)


def hollow(arrays: Any, name: str) -> Array:
    """Return the array `name` of an open .npz: the labels if they are few, else zeros of its type and shape."""
    member = arrays.zip.getinfo(name if name in arrays.zip.namelist() else f"{name}.npy")
    if name.startswith("y") and member.file_size <= LABEL_BYTES:
        return np.asarray(arrays[name])
    with arrays.zip.open(member) as stream:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(stream))
        if read is None:
            return np.asarray(arrays[name])  # names of fields that are not ASCII: no array of ours, and a rare one
        shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    return np.broadcast_to(np.zeros((), dtype), shape)


def _folder(request: Request) -> Dataset:
    """Return one sample for each class folder that has a file."""
    root, found, names = sources.class_folders(request)
    if request.input_shape is None:
        raise ConfigError("data.source folder needs model.input_shape to resize the images to")
    for name in found:
        file = next(sources.image_files(root / name, request.key))
        if find_spec("PIL") is None:
            raise DataError(f"reading images such as {file} needs Pillow; install the extra `images`")
    sources.image_mode(request.input_shape[0])
    x = np.broadcast_to(np.float32(0), (len(found), *request.input_shape))
    return Dataset(x, np.array([names.index(name) for name in found]), str(root), names)


def _idx(request: Request) -> Dataset:
    images, labels = sources.idx_files(request, _header)
    return Dataset(images[:, np.newaxis], labels, request.path, request.class_names)


def _header(file: Path, dimensions: int) -> Array:
    """Return the labels if they are few, else zeros of the shape that a header claims."""
    with sources.open_idx(file, dimensions) as (shape, stream):
        if dimensions == 1 and shape[0] <= LABEL_BYTES:
            return np.frombuffer(stream.read(shape[0]), dtype=np.uint8)
        return np.broadcast_to(np.uint8(0), shape)


def _digits(request: Request) -> Dataset:
    """Return what `digits` is, for the checks of shape and classes."""
    if request.path:
        return sources.digits(request)
    x, y, _ = sources.read_npz(str(sources.DIGITS_FILE), request.part, hollow)
    return Dataset(x[:, np.newaxis], y, "digits", request.class_names or sources.DIGITS_NAMES)


PROBES: Sources = {
    "npz": _npz,
    "folder": _folder,
    "idx": _idx,
    "digits": _digits,
    "cifar10": hollow_cifar10,
    "fashion-mnist": lambda request: _idx(sources.as_idx(request)),
}
