"""Where samples come from: one function a format, all of them parsed with sizes checked and nothing unpickled."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from agent.core.seeding import generator
from agent.errors import ConfigError, DataError
from agent.learning.data import AS_THEY_ARE, BYTES, Dataset, Normalisation, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt
    from numpy.lib.npyio import NpzFile

    from agent.learning.model import Shape

Part = Literal["train", "test"]

DIGITS = Normalisation(16.0, 0.5, 0.5)
DIGITS_CLASSES = tuple("0123456789")
DIGITS_TEST = 360

_LAYOUTS = {"nchw": (0, 1, 2, 3), "nhwc": (0, 3, 1, 2)}
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


def load(
    source: str,
    path: str = "",
    part: Part = "train",
    *,
    input_shape: Shape | None = None,
    layout: str = "auto",
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Return one part of a data source; DataError names the file and what to do.

    `input_shape` (channels, height, width) is what `folder` resizes to and what tells `npz` layouts apart.
    """
    if source not in SOURCES:
        raise ConfigError(f"data.source: no source {source!r}; use one of {', '.join(sorted(SOURCES))}")
    if layout not in ("auto", "nhw", *_LAYOUTS):
        raise ConfigError(f"data.layout is {layout!r}; use auto, nchw, nhwc or nhw")
    return SOURCES[source](Request(path, part, input_shape, layout, class_names))


def npz(request: Request) -> Dataset:
    """Read NumPy's .npz: x and y, or x_train, y_train, x_test, y_test; and `user` (`user_train`, ...) where known."""
    x, y, user = _read_npz(request.path, request.part)
    normalisation = npz_normalisation(request.path, x.dtype)
    labelled = y.ndim == 1 and y.dtype.kind in "iu" and x.shape[:1] == y.shape
    if not labelled or (user is not None and user.shape != y.shape):
        raise DataError(f"{request.path}: y must hold one whole number, and user one name, for each sample of x")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise _unusable(request.path, x.dtype)
    images = normalisation.apply(_to_nchw(x, request))
    return Dataset(images, y.astype(np.int64), request.path, request.class_names, user, normalisation)


def npz_normalisation(path: str, dtype: np.dtype[Any]) -> Normalisation:
    """Return what becomes of an .npz's samples of that type: bytes are normalised, floats are taken as they are."""
    if dtype == np.uint8:
        return BYTES
    if dtype.kind == "f":
        return AS_THEY_ARE
    raise _unusable(path, dtype)


def _unusable(path: str, dtype: np.dtype[Any]) -> DataError:
    return DataError(f"{path}: x is {dtype}; it must be uint8, or floats that are all finite")


@contextmanager
def open_npz(path: str) -> Iterator[NpzFile]:
    """Open an .npz of plain arrays; DataError for all that goes wrong with it inside."""
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); correct data.path") from error
    except Exception as error:
        raise DataError(f"{path} is not a sound .npz of plain arrays ({error}); save it again with np.savez") from error


def _read_npz(path: str, part: Part) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Return x, y and, where the file has it, user."""
    with open_npz(path) as arrays:
        suffix = npz_suffix(arrays, part)
        x, y, user = (
            arrays[key] if key in arrays.files else None for key in (f"x{suffix}", f"y{suffix}", f"user{suffix}")
        )
        found = ", ".join(arrays.files) or "nothing"
    if x is None or y is None:
        raise DataError(
            f"{path} lacks x{suffix} or y{suffix} (it holds {found}); save it with np.savez(path, x=..., y=...)"
        )
    return x, y, user


def npz_suffix(arrays: NpzFile, part: Part) -> str:
    """Return what follows `x` in the name of the samples: a file with `x` is one part as a whole."""
    return "" if "x" in arrays.files else f"_{part}"


def _to_nchw(x: npt.NDArray[Any], request: Request) -> npt.NDArray[Any]:
    """Return images of shape (n, h, w), (n, c, h, w) or (n, h, w, c) as (n, c, h, w)."""
    views: dict[str, npt.NDArray[Any]] = {}
    if x.ndim == 3:  # noqa: PLR2004  n, h, w
        views = {"nhw": np.expand_dims(x, 1)}
    elif x.ndim == 4:  # noqa: PLR2004  n, c, h, w
        views = {name: x.transpose(order) for name, order in _LAYOUTS.items()}
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
    files = [(names.index(name), file) for name in found for file in _images(root / name)]
    x = np.empty((len(files), *request.input_shape), dtype=np.uint8)
    for row, (_, file) in enumerate(files):
        x[row] = _image(file, request.input_shape)
    y = np.array([label for label, _ in files], dtype=np.int64)
    return Dataset(BYTES.apply(x), y, str(root), names, None, BYTES)


def class_folders(request: Request) -> tuple[Path, list[str], tuple[str, ...]]:
    """Return where the folders of images are, which there are, and the names of all classes in order."""
    root = Path(request.path)
    root = root / request.part if (root / "train").is_dir() or (root / "test").is_dir() else root
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; correct data.path, or make it with one folder of images a class")
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
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


def _images(class_folder: Path) -> list[Path]:
    files = sorted(file for file in class_folder.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise DataError(f"{class_folder} holds no image; add some, or remove the folder and set data.class_names")
    return files


def _image(file: Path, input_shape: Shape) -> npt.NDArray[np.uint8]:
    """Return one image as (c, h, w) bytes."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"reading images such as {file} needs Pillow; install the extra `images`") from error
    channels, height, width = input_shape
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise ConfigError(f"model.input_shape has {channels} channels; images have 1 (grey) or 3 (RGB)")
    try:
        with Image.open(file) as image:
            pixels: npt.NDArray[np.uint8] = np.asarray(
                image.convert(modes[channels]).resize((width, height), Image.Resampling.BILINEAR)
            )
    except Exception as error:
        raise DataError(f"{file} cannot be read as an image ({error}); replace or remove it") from error
    return np.moveaxis(pixels.reshape(height, width, channels), 2, 0)


def idx(request: Request) -> Dataset:
    """Read the MNIST layout, plain or .gz: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-... for the test."""
    prefix = {"train": "train", "test": "t10k"}[request.part]
    images = _read_idx(_plain_or_gz(request.path, f"{prefix}-images-idx3-ubyte"), dimensions=3)
    labels = _read_idx(_plain_or_gz(request.path, f"{prefix}-labels-idx1-ubyte"), dimensions=1)
    if len(images) != len(labels):
        raise DataError(
            f"{request.path}: {len(images)} {prefix} images and {len(labels)} labels; fetch the files again"
        )
    x = BYTES.apply(images[:, np.newaxis])
    return Dataset(x, labels.astype(np.int64), request.path, request.class_names, None, BYTES)


def _plain_or_gz(root: str, name: str) -> Path:
    for file in (Path(root) / name, Path(root) / f"{name}.gz"):
        if file.is_file():
            return file
    raise DataError(f"{Path(root) / name} (or .gz) is missing; put it there, or correct data.path")


def _read_idx(file: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read unsigned bytes; what the header claims is held against the file's size before anything is allocated."""
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
            data = stream.read(size + 1)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{file} cannot be read as an idx file ({error}); fetch it again") from error
    if len(data) != size:
        raise DataError(f"{file} holds {len(data)} bytes or more, its header says {size}; fetch it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def digits(request: Request) -> Dataset:
    """Return the bundled 8x8 digits: always the same stratified 1,437 for training and 360 for the test."""
    if request.path:
        raise ConfigError(f"data.path is {request.path!r}, but the digits come with the agent; remove it")
    images, labels, _ = _read_npz(str(Path(__file__).with_name("digits.npz")), request.part)
    names = request.class_names or DIGITS_CLASSES
    x = DIGITS.apply(images[:, np.newaxis])
    whole = Dataset(x, labels.astype(np.int64), "digits", names, None, DIGITS)
    train, test = split(whole, DIGITS_TEST, generator(0, "digits", "test"))
    return train if request.part == "train" else test


SOURCES: dict[str, Callable[[Request], Dataset]] = {"npz": npz, "folder": folder, "idx": idx, "digits": digits}
