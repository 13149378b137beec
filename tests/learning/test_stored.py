"""What a source's values mean, known without loading them, is what loading them would say."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from agent.errors import DataError
from agent.learning.data import AS_THEY_ARE, BYTES
from agent.learning.sources import SOURCES, Request, load
from agent.learning.stored import STORED, Stored
from tests.learning.test_sources import write_cifar10

SHAPE = (1, 4, 4)


def make_npz(path, dtype=np.uint8):
    """Write two samples with the names that have parts."""
    np.savez(path, x_train=np.ones((2, 4, 4), dtype), y_train=np.arange(2), x_test=np.ones(3), y_test=np.ones(3))
    return str(path)


def make_folder(path):
    """Write one image a class."""
    for name in ("oak", "ash"):
        (path / "train" / name).mkdir(parents=True)
        Image.new("L", (5, 5)).save(path / "train" / name / "1.png")
    return str(path)


def make_idx(path):
    """Write two images and their labels."""
    images = struct.pack(">4I", 0x803, 2, 4, 4) + bytes(32)
    (path / "train-images-idx3-ubyte").write_bytes(images)
    (path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2I", 0x801, 2) + bytes([0, 1])))
    return str(path)


MAKE = {
    "npz": lambda folder: make_npz(folder / "data.npz"),
    "folder": make_folder,
    "idx": make_idx,
    "digits": lambda _: "",
    "cifar10": lambda folder: str(write_cifar10(folder)),
    "fashion-mnist": make_idx,
}


def test_every_source_says_what_its_values_mean():
    """A source that is added to one registry is missed in the other."""
    assert list(STORED) == list(SOURCES) == list(MAKE)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("source", list(SOURCES))
def test_the_meaning_is_that_of_the_loaded_samples(tmp_path, source, named):
    """Normalisation and class names equal those of `load`, with and without names in the configuration."""
    count = 10 if source == "digits" else 2
    names = tuple(reversed(["ash", "oak", *map(str, range(count - 2))])) if named else ()
    path = MAKE[source](tmp_path)
    loaded = load(source, path, input_shape=(1, 8, 8) if source == "digits" else SHAPE, class_names=names)
    stored = STORED[source](Request(path, "train", SHAPE, "auto", names))
    assert stored == Stored(loaded.normalisation, loaded.classes)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", ["x", "x_train"])
def test_bytes_are_normalised_and_floats_are_not(tmp_path, dtype, name):
    """The samples' type stands in a header of a hundred bytes; the samples need not even be whole."""
    path = tmp_path / "data.npz"
    np.savez(path, **{name: np.ones((2, 1, 4, 4), dtype), name.replace("x", "y"): np.arange(2)})
    stored = STORED["npz"](Request(str(path), "train"))
    assert stored == Stored(BYTES if dtype == np.uint8 else AS_THEY_ARE, ())


@pytest.mark.parametrize("source", ["npz", "folder"])
def test_what_is_not_there_is_said(tmp_path, source):
    """Nobody can know the normalisation, or the names, of data that is not there."""
    with pytest.raises(DataError, match=r"nowhere.*correct data\.path"):
        STORED[source](Request(str(tmp_path / "nowhere"), "train"))


def test_samples_of_no_use_are_refused_here_too(tmp_path):
    """What could not be trained on has no meaning either."""
    with pytest.raises(DataError, match="x is int32; it must be uint8, or floats"):
        STORED["npz"](Request(make_npz(tmp_path / "data.npz", np.int32), "train"))
    np.savez(tmp_path / "other.npz", z=np.ones(3))
    with pytest.raises(DataError, match="lacks x_train or y_train"):
        STORED["npz"](Request(str(tmp_path / "other.npz"), "train"))
