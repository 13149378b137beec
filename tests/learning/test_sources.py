"""The formats that samples come in, sound and broken."""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from agent.errors import ConfigError, DataError
from agent.learning import sources
from agent.learning.cifar10 import FILES
from agent.learning.data import AS_THEY_ARE, BYTES
from agent.learning.sources import DIGITS, FASHION_NAMES, SOURCES, load

RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_digits_split_is_fixed():
    """The bundled digits are cut into the same 1,437 and 360 for ever, each class in proportion."""
    train, test = load("digits"), load("digits", part="test")
    assert (train.x.shape, test.x.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert set(np.bincount(test.y)) <= {35, 36, 37}
    assert (train.x.min(), train.x.max()) == (-1.0, 1.0)
    assert train.classes == tuple("0123456789")
    assert train.normalisation == DIGITS
    assert hashlib.sha256(test.x.tobytes()).hexdigest()[:16] == "bd2ea853b6accb0e"


@pytest.mark.parametrize(("layout", "axes"), [("nchw", (0, 1, 2, 3)), ("nhwc", (0, 2, 3, 1))])
@pytest.mark.parametrize("explicit", [True, False])
def test_npz_layouts(tmp_path, layout, axes, explicit):
    """Channels first or last come out the same, said or seen from the model's input shape."""
    path = tmp_path / "data.npz"
    np.savez(path, x=IMAGES.transpose(axes), y=LABELS, user=np.array(list("aabbcc")))
    got = load("npz", str(path), input_shape=(3, 4, 5), layout=layout if explicit else "auto")
    assert got.x.dtype == np.float32
    assert np.array_equal(got.x, BYTES.apply(IMAGES))
    assert got.y.dtype == np.int64
    assert list(got.user) == list("aabbcc")
    assert got.normalisation == BYTES


def test_npz_parts_and_floats(tmp_path):
    """A file with both parts gives each its own; grey images gain a channel; floats stay as they are."""
    path = tmp_path / "data.npz"
    x = RNG.normal(size=(4, 2, 2))
    np.savez(path, x_train=x, y_train=LABELS[:4], x_test=x[:1], y_test=LABELS[:1])
    train, test = (load("npz", str(path), part, input_shape=(1, 2, 2)) for part in ("train", "test"))
    assert np.array_equal(train.x, x[:, None].astype(np.float32))
    assert (len(train), len(test)) == (4, 1)
    assert train.normalisation == AS_THEY_ARE


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": IMAGES}, "lacks x or y"),
        ({"x_train": IMAGES, "y_train": LABELS}, r"lacks x_test or y_test \(it holds x_train, y_train\)"),
        ({"x": IMAGES, "y": LABELS[:3]}, "one whole number"),
        ({"x": IMAGES, "y": LABELS / 2}, "one whole number"),
        ({"x": IMAGES, "y": LABELS, "user": np.arange(3)}, "one name"),
        ({"x": np.uint8(3), "y": LABELS}, "one whole number"),
        ({"x": IMAGES.astype(np.int64), "y": LABELS}, "x is int64; it must be uint8"),
        ({"x": np.full((6, 3, 4, 5), np.nan), "y": LABELS}, "values that are not finite"),
        ({"x": np.full((6, 3, 4, 5), 1e300), "y": LABELS}, "not finite as float32"),
        ({"x": IMAGES[:, :, :, :4].transpose(0, 2, 1, 3), "y": LABELS}, "set data.layout"),
        ({"x": np.zeros((6, 3, 3, 3), np.uint8), "y": LABELS}, "set data.layout"),
        ({"x": IMAGES, "y": np.array([None] * 6)}, "not a sound .npz"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path, arrays, words):
    """Missing, mismatched, ambiguous and pickled arrays are refused by name."""
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    shape = (3, 3, 3) if arrays["x" if "x" in arrays else "x_train"].shape[1:] == (3, 3, 3) else (3, 4, 5)
    with pytest.raises(DataError, match=words) as caught:
        load("npz", str(path), "test", input_shape=shape)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 cut off", b"\x93NUMPY"])
def test_npz_with_broken_bytes(tmp_path, content):
    """Any bytes that are no .npz are an error that names the file."""
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.npz"):
        load("npz", str(path))


def test_npz_that_is_missing(tmp_path):
    """A file that is not there is said to be so."""
    with pytest.raises(DataError, match=r"No such file .*correct data\.path"):
        load("npz", str(tmp_path / "data.npz"))


@pytest.fixture
def pictures(tmp_path):
    """Two class folders with two images each, of different sizes and modes."""
    for name, value in (("cat", 0), ("dog", 255)):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        Image.new("L", (9, 7), value).save(folder / "1.png")
        Image.new("RGB", (3, 3), (value,) * 3).save(folder / "2.bmp")
        folder.joinpath(".hidden").write_text("not an image")
    return tmp_path / "pictures"


def test_folder(pictures):
    """Images are resized and labelled by their folder's place in the sorted names."""
    got = load("folder", str(pictures), input_shape=(3, 4, 5))
    assert got.x.shape == (4, 3, 4, 5)
    assert list(got.y) == [0, 0, 1, 1]
    assert got.classes == ("cat", "dog")
    assert (got.x[:2] == -1.0).all()
    assert (got.x[2:] == 1.0).all()


def test_folder_with_the_fleet_s_classes(pictures):
    """With data.class_names a node that lacks a class still numbers the others as the fleet does."""
    got = load("folder", str(pictures), input_shape=(1, 4, 4), class_names=("ant", "cat", "dog"))
    assert list(got.y) == [1, 1, 2, 2]
    assert got.classes == ("ant", "cat", "dog")


def test_folder_with_parts(pictures):
    """Below train/ and test/ each part is found by its name."""
    (pictures / "train").mkdir()
    (pictures / "cat").rename(pictures / "train" / "cat")
    assert len(load("folder", str(pictures), input_shape=(1, 4, 4))) == 2
    with pytest.raises(DataError, match=r"test cannot be read \(No such file"):
        load("folder", str(pictures), "test", input_shape=(1, 4, 4))


def test_folder_errors_name_the_file(pictures, tmp_path, monkeypatch):
    """A broken image, an empty or strange class folder, wrong channels and a missing Pillow are all said."""
    shape = (1, 4, 4)
    with pytest.raises(DataError, match=r"no class of data\.class_names: dog"):
        load("folder", str(pictures), input_shape=shape, class_names=("cat",))
    with pytest.raises(ConfigError, match="2 channels"):
        load("folder", str(pictures), input_shape=(2, 4, 4))
    with pytest.raises(ConfigError, match="to resize the images"):
        load("folder", str(pictures))
    (pictures / "dog" / "3.png").write_bytes((pictures / "dog" / "1.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"dog/3\.png cannot be read as an image"):
        load("folder", str(pictures), input_shape=shape)
    (pictures / "ant").mkdir()
    with pytest.raises(DataError, match="ant holds no image"):
        load("folder", str(pictures), input_shape=shape)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no class folder"):
        load("folder", str(tmp_path / "empty"), input_shape=shape)
    monkeypatch.setitem(sys.modules, "PIL", None)
    (pictures / "ant").rmdir()
    with pytest.raises(DataError, match="install the extra `images`"):
        load("folder", str(pictures), input_shape=shape)


def write_idx(folder, prefix, images, labels, suffix=""):
    """Write the two files of one part."""
    pack = gzip.compress if suffix else bytes
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
        folder.joinpath(name + suffix).write_bytes(pack(head + array.astype(np.uint8).tobytes()))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, suffix):
    """Both parts are read, packed or not."""
    write_idx(tmp_path, "train", IMAGES[:, 0], LABELS, suffix)
    write_idx(tmp_path, "t10k", IMAGES[:2, 1], LABELS[:2], suffix)
    train, test = load("idx", str(tmp_path)), load("idx", str(tmp_path), "test")
    assert np.array_equal(train.x, BYTES.apply(IMAGES[:, :1]))
    assert list(test.y) == [0, 1]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (struct.pack(">4I", 0x803, 2**31, 2**15, 2**15), "does not fit the file"),
        (struct.pack(">4I", 0x801, 1, 1, 1) + b"x", "magic 0x801"),
        (struct.pack(">4I", 0x803, 2, 2, 2) + b"x" * 7, "idx3-ubyte"),
        (struct.pack(">4I", 0x803, 2, 2, 2) + b"x" * 9, "its header says 8"),
        (b"\x00\x00", "cannot be read as an idx file"),
    ],
)
def test_idx_headers_are_not_believed(tmp_path, content, words, suffix):
    """A header that claims more or less than the file holds is refused before memory is taken for it."""
    write_idx(tmp_path, "train", IMAGES[:, 0], LABELS, suffix)
    file = tmp_path / f"train-images-idx3-ubyte{suffix}"
    file.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DataError, match=words):
        load("idx", str(tmp_path))


def test_idx_broken_in_other_ways(tmp_path):
    """Damaged gzip, differing counts and missing files are told apart."""
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte \(or \.gz\) is missing"):
        load("idx", str(tmp_path))
    write_idx(tmp_path, "train", IMAGES[:, 0], LABELS[:3], ".gz")
    with pytest.raises(DataError, match="6 train images and 3 labels"):
        load("idx", str(tmp_path))
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as an idx file"):
        load("idx", str(tmp_path))


def test_fashion_mnist(tmp_path, monkeypatch):
    """IDX files with the garments' names: where the package puts them, or where the path says; else how to get them."""
    monkeypatch.setattr(sources, "FASHION_MNIST", str(tmp_path / "package"))
    with pytest.raises(DataError, match=r"apt install dataset-fashion-mnist.*data\.test_path"):
        load("fashion-mnist", part="test")
    for name in ("package", "own"):
        (tmp_path / name).mkdir()
    write_idx(tmp_path / "package", "train", IMAGES[:, 0], LABELS, ".gz")
    write_idx(tmp_path / "own", "train", IMAGES[:3, 0], LABELS[:3])
    packaged, own = load("fashion-mnist"), load("fashion-mnist", str(tmp_path / "own"))
    assert np.array_equal(packaged.x, BYTES.apply(IMAGES[:, :1]))
    assert len(own) == 3
    assert packaged.classes == own.classes == FASHION_NAMES
    assert len(set(FASHION_NAMES)) == 10


def write_cifar10(folder, count=2, part="train"):
    """Write so many records a file, class i in file i, all of whose pixels count up; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(FILES[part]):
        record = bytes([i]) + (np.arange(3072) % 251).astype(np.uint8).tobytes()
        (folder / name).write_bytes(record * count)
    return folder


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_cifar10(tmp_path, inside):
    """The class first, then red, green, blue, row by row; the five files in order; in the archive's folder or above."""
    write_cifar10(tmp_path / inside)
    write_cifar10(tmp_path / inside, 3, "test")
    train, test = load("cifar10", str(tmp_path)), load("cifar10", str(tmp_path), "test")
    assert list(train.y) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert list(test.y) == [0, 0, 0]
    assert train.x.shape == (10, 3, 32, 32)
    assert np.array_equal(train.x[9], BYTES.apply((np.arange(3072) % 251).astype(np.uint8).reshape(3, 32, 32)))
    assert train.classes[:2] == ("airplane", "automobile")
    assert train.normalisation == BYTES


def test_cifar10_that_cannot_be_used(tmp_path):
    """Nothing there, a batch missing, cut off or with a class that is none."""
    with pytest.raises(DataError, match=r"data_batch_1\.bin is missing; unpack .* correct data\.path"):
        load("cifar10", str(tmp_path))
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4\.bin cannot be read \(No such file"):
        load("cifar10", str(tmp_path))
    for content, words in (
        (b"", "holds 0 bytes"),
        (bytes(3074), "holds 3074 bytes"),
        (b"\x0a" * 3073, "image 6 is of"),
    ):
        (folder / "data_batch_4.bin").write_bytes(content)
        with pytest.raises(DataError, match=words):
            load("cifar10", str(tmp_path))


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_pickles_are_not_read(tmp_path, inside):
    """A folder with the Python version is recognised by its names, and nothing of it is opened."""
    (tmp_path / inside).mkdir(exist_ok=True)
    (tmp_path / inside / "data_batch_1").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(DataError, match=r"are pickles: .* cifar-10-binary\.tar\.gz"):
        load("cifar10", str(tmp_path))


def test_wrong_words(tmp_path):
    """An unknown source or layout, or a path for the digits, names the choices."""
    with pytest.raises(ConfigError, match="use one of cifar10, digits, fashion-mnist, folder, idx, npz"):
        load("csv", str(tmp_path))
    with pytest.raises(ConfigError, match="use auto, nchw, nhwc or nhw"):
        load("npz", str(tmp_path), layout="hwc")
    with pytest.raises(ConfigError, match="remove it"):
        load("digits", str(tmp_path))
    assert sorted(SOURCES) == ["cifar10", "digits", "fashion-mnist", "folder", "idx", "npz"]
