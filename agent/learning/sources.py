"""Where samples come from: one function a format, all of them parsed with sizes checked and nothing unpickled."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import numpy as np

from agent.core.seeding import generator
from agent.errors import ConfigError, DataError
from agent.learning.cifar10 import cifar10
from agent.learning.data import AS_THEY_ARE, BYTES, Dataset, Normalisation, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from agent.learning.model import Shape

Part = Literal["train", "test"]
PATHS: dict[Part, str] = {"train": "data.path", "test": "data.test_path"}
Array: TypeAlias = "npt.NDArray[Any]"
Arrays: TypeAlias = "tuple[Array, Array, Array | None]"
Sources: TypeAlias = "dict[str, Callable[[Request], Dataset]]"

DIGITS = Normalisation(16.0, 0.5, 0.5)
DIGITS_TEST = 360
DIGITS_FILE = Path(__file__).with_name("digits.npz")
DIGITS_NAMES = tuple("0123456789")

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package dataset-fashion-mnist puts it."""
FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

_ORDERS = {"nchw": (0, 1, 2, 3), "nhwc": (0, 3, 1, 2)}
LAYOUTS = ("auto", "nhw", *_ORDERS)
_MAX_DEFLATE_RATIO = 1032
"""No stream of DEFLATE unpacks to more than this many times its size."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be read: a file or folder, which part of it, and what settles the points that formats leave open."""

    path: str
    part: Part
    input_shape: Shape | None = None
    layout: str = "auto"
    class_names: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Return which setting the path comes from."""
        return PATHS[self.part]


def load(
    source: str,
    path: str = "",
    part: Part = "train",
    *,
    input_shape: Shape | None = None,
    layout: str = "auto",
    class_names: tuple[str, ...] = (),
    ways: Sources | None = None,
) -> Dataset:
    """Return one part of a data source; DataError names the file and what to do.

    `input_shape` (channels, height, width) is what `folder` resizes to and what tells `npz` layouts apart; `ways`
    (probe.PROBES) are other functions than those in SOURCES.
    """
    if source not in SOURCES:
        raise ConfigError(f"data.source: no source {source!r}; use one of {', '.join(sorted(SOURCES))}")
    if layout not in LAYOUTS:
        raise ConfigError(f"data.layout is {layout!r}; use auto, nchw, nhwc or nhw")
    return (ways or SOURCES)[source](Request(path, part, input_shape, layout, class_names))


def npz(request: Request) -> Dataset:
    """Read NumPy's .npz: x and y, or x_train, y_train, x_test, y_test; and `user` (`user_train`, ...) where known."""
    x, y, user = read_npz(request.path, request.part)
    as_inputs = to_nchw(x, y, user, request)
    normalisation = npz_normalisation(x, request.path)
    with np.errstate(over="ignore"):
        images = normalisation.apply(as_inputs)
    if x.dtype != np.uint8 and not bool(np.isfinite(images).all()):
        raise DataError(
            f"{request.path}: x holds values that are not finite as float32; remove or replace those samples"
        )
    return Dataset(images, y.astype(np.int64), request.path, request.class_names, user, normalisation)


def npz_normalisation(x: Array, path: str) -> Normalisation:
    """Return what becomes of an .npz's samples of that type: bytes are normalised, floats are taken as they are."""
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise DataError(f"{path}: x is {x.dtype}; it must be uint8, or floats that are all finite")
    return BYTES if x.dtype == np.uint8 else AS_THEY_ARE


def read_npz(path: str, part: Part, read: Callable[[Any, str], Any] = getitem) -> Arrays:
    """Return x, y and, where the file has it, user; `read` takes an array from the open file by its name."""
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            suffix = "" if "x" in arrays.files else f"_{part}"
            names = (f"x{suffix}", f"y{suffix}", f"user{suffix}")
            x, y, user = (read(arrays, name) if name in arrays.files else None for name in names)
            found = ", ".join(arrays.files) or "nothing"
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); correct {PATHS[part]}") from error
    except Exception as error:
        raise DataError(f"{path} is not a sound .npz of plain arrays ({error}); save it again with np.savez") from error
    if x is None or y is None:
        raise DataError(
            f"{path} lacks x{suffix} or y{suffix} (it holds {found}); save it with np.savez(path, x=..., y=...)"
        )
    return x, y, user


def to_nchw(
    x: npt.NDArray[Any], y: npt.NDArray[Any], user: npt.NDArray[Any] | None, request: Request
) -> npt.NDArray[Any]:
    """Return x as (n, c, h, w) without a copy, once its type and its labels are such as the agent takes."""
    labelled = y.ndim == 1 and y.dtype.kind in "iu" and x.shape[:1] == y.shape
    if not labelled or (user is not None and user.shape != y.shape):
        raise DataError(f"{request.path}: y must hold one whole number, and user one name, for each sample of x")
    npz_normalisation(x, request.path)
    return _in_order(x, request)


def _in_order(x: npt.NDArray[Any], request: Request) -> npt.NDArray[Any]:
    """Return images of shape (n, h, w), (n, c, h, w) or (n, h, w, c) as (n, c, h, w)."""
    views: dict[str, npt.NDArray[Any]] = {}
    if x.ndim == 3:  # noqa: PLR2004  n, h, w
        views = {"nhw": np.expand_dims(x, 1)}
    elif x.ndim == 4:  # noqa: PLR2004  n, c, h, w
        views = {name: x.transpose(order) for name, order in _ORDERS.items()}
    if request.layout in views:
        return views[request.layout]
    fitting = [view for view in views.values() if request.input_shape in (None, view.shape[1:])]
    if request.layout == "auto" and len(fitting) == 1:
        return fitting[0]
    raise DataError(
        f"{request.path}: samples of shape {list(x.shape)} don't tell how they become inputs of shape "
        f"{request.input_shape}; correct model.input_shape, or set data.layout to nchw, nhwc or nhw"
    )


def folder(request: Request) -> Dataset:
    """Read images from one folder a class, below train/ and test/ where there are such; resized, aspect not kept."""
    if request.input_shape is None:
        raise ConfigError("data.source folder needs model.input_shape to resize the images to")
    root, found, names = class_folders(request)
    files = [(names.index(name), file) for name in found for file in sorted(image_files(root / name, request.key))]
    x = np.empty((len(files), *request.input_shape), dtype=np.uint8)
    for row, (_, file) in enumerate(files):
        x[row] = _image(file, request.input_shape)
    y = np.array([label for label, _ in files], dtype=np.int64)
    return Dataset(BYTES.apply(x), y, str(root), names, None, BYTES)


def class_folders(request: Request) -> tuple[Path, list[str], tuple[str, ...]]:
    """Return the folder that holds one folder a class, the names of those that there are, and of all classes."""
    root = Path(request.path)
    if any(os.path.isdir(root / part) for part in ("train", "test")):  # noqa: PTH112  Path.is_dir may raise
        root /= request.part
    try:
        found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise _unreadable(root, error, request.key) from error
    names = request.class_names or tuple(found)
    strange = [name for name in found if name not in names]
    if strange or not found:
        what = (
            f"has folders that are no class of data.class_names: {', '.join(strange)}"
            if strange
            else "has no class folder"
        )
        raise DataError(f"{root} {what}; name the folders after the classes")
    return root, found, names


def image_files(class_folder: Path, key: str) -> Iterator[Path]:
    """Yield the files of one class, in the order of the file system, at least one; DataError where there is none."""
    empty = True
    try:
        for file in class_folder.iterdir():
            if file.is_file() and not file.name.startswith("."):
                empty = False
                yield file
    except OSError as error:
        raise _unreadable(class_folder, error, key) from error
    if empty:
        raise DataError(f"{class_folder} holds no image; add some, or remove the folder and set data.class_names")


def _unreadable(where: Path, error: OSError, key: str) -> DataError:
    return DataError(f"{error.filename or where} cannot be read ({error.strerror or error}); correct {key}")


def _image(file: Path, input_shape: Shape) -> npt.NDArray[np.uint8]:
    """Return one image as (c, h, w) bytes."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"reading images such as {file} needs Pillow; install the extra `images`") from error
    channels, height, width = input_shape
    mode = image_mode(channels)
    try:
        with Image.open(file) as image:
            pixels: npt.NDArray[np.uint8] = np.asarray(
                image.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
            )
    except Exception as error:
        raise DataError(f"{file} cannot be read as an image ({error}); replace or remove it") from error
    return np.moveaxis(pixels.reshape(height, width, channels), 2, 0)


def image_mode(channels: int) -> str:
    """Return Pillow's name for images of so many channels."""
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise ConfigError(f"model.input_shape has {channels} channels; images have 1 (grey) or 3 (RGB)")
    return modes[channels]


def idx(request: Request) -> Dataset:
    """Read the MNIST layout, plain or .gz: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-... for the test."""
    images, labels = idx_files(request, _read_idx)
    x = BYTES.apply(images[:, np.newaxis])
    return Dataset(x, labels.astype(np.int64), request.path, request.class_names, None, BYTES)


def idx_files(request: Request, read: Callable[[Path, int], Array]) -> tuple[Array, Array]:
    """Return images and labels as `read` gives them of a file with so many dimensions."""
    prefix = {"train": "train", "test": "t10k"}[request.part]
    images = read(_plain_or_gz(request, f"{prefix}-images-idx3-ubyte"), 3)
    labels = read(_plain_or_gz(request, f"{prefix}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels):
        raise DataError(
            f"{request.path}: {len(images)} {prefix} images and {len(labels)} labels; fetch the files again"
        )
    return images, labels


def _plain_or_gz(request: Request, name: str) -> Path:
    root = Path(request.path)
    for file in (root / name, root / f"{name}.gz"):
        if os.path.isfile(file):  # noqa: PTH113  Path.is_file may raise
            return file
    raise DataError(f"{root / name} (or .gz) is missing; put it there, or correct {request.key}")


def _read_idx(file: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read unsigned bytes; DataError where there are not as many as the header says."""
    with open_idx(file, dimensions) as (shape, stream):
        size = math.prod(shape)
        data = stream.read(size + 1)
    if len(data) != size:
        raise DataError(f"{file} holds {len(data)} bytes or more, its header says {size}; fetch it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


@contextmanager
def open_idx(file: Path, dimensions: int) -> Iterator[tuple[tuple[int, ...], BinaryIO | gzip.GzipFile]]:
    """Open for the bytes behind the header, whose claims are held against the file's size before they are believed."""
    head = 4 * (1 + dimensions)
    try:
        packed = file.stat().st_size
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            magic, *shape = struct.unpack(f">{1 + dimensions}I", stream.read(head))
            size = math.prod(shape)
            limit = packed * _MAX_DEFLATE_RATIO if file.suffix == ".gz" else packed - head
            if magic != 0x800 + dimensions or size > limit:
                raise DataError(
                    f"{file}: the header (magic {magic:#x}, shape {shape}) does not fit the file; fetch it again"
                )
            yield tuple(shape), stream
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{file} cannot be read as an idx file ({error}); fetch it again") from error


def digits(request: Request) -> Dataset:
    """Return the bundled 8x8 digits: always the same stratified 1,437 for training and 360 for the test."""
    if request.path:
        raise ConfigError(f"data.path is {request.path!r}, but the digits come with the agent; remove it")
    images, labels, _ = read_npz(str(DIGITS_FILE), request.part)
    names = request.class_names or DIGITS_NAMES
    x = DIGITS.apply(images[:, np.newaxis])
    whole = Dataset(x, labels.astype(np.int64), "digits", names, None, DIGITS)
    train, test = split(whole, DIGITS_TEST, generator(0, "digits", "test"))
    return train if request.part == "train" else test


def fashion_mnist(request: Request) -> Dataset:
    """Read Fashion-MNIST: IDX files, where Debian's package puts them, or in the folder that is given."""
    return idx(as_idx(request))


def as_idx(request: Request) -> Request:
    """Return the request for Fashion-MNIST's IDX files; DataError says how to get them."""
    if not request.path and not os.path.isdir(FASHION_MNIST):  # noqa: PTH112  Path.is_dir may raise
        raise DataError(
            f"{FASHION_MNIST} is missing; install Debian's package: apt install dataset-fashion-mnist; or name a "
            f"folder with the four files in {request.key}"
        )
    return replace(request, path=request.path or FASHION_MNIST, class_names=request.class_names or FASHION_NAMES)


SOURCES: Sources = {
    "npz": npz,
    "folder": folder,
    "idx": idx,
    "digits": digits,
    "cifar10": cifar10,
    "fashion-mnist": fashion_mnist,
}
NEED_NO_PATH = ("digits", "fashion-mnist")
"""The sources that know where their data is."""
