"""The product of mixing matrix and models by a compiled kernel: numpy's bits, a fraction of the memory traffic."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from agent.core.mixing import weighted_sum
from agent.errors import ConfigError
from sim_harness.arithmetic import Product
from sim_harness.cohort.native_build import build, find_compiler
from sim_harness.exchange import Mixture

_PIECES = 2
"""Pieces of columns for each thread: some more, to even out what others on the machine take."""
_LINE = 64
"""Columns are cut at multiples of what the kernel takes at a time."""


def native_product() -> Product | None:
    """Return the kernel; None where there is no compiler, or its bits are not numpy's."""
    try:
        library = build('#include "mix.h"\n', find_compiler(), _declare).library
    except ConfigError:
        return None
    kernel = library.mix_rows
    return partial(_pieces, kernel) if _is_exact(kernel) else None


def _declare(library: ctypes.CDLL) -> None:
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.mix_rows.argtypes = [pointer, pointer, pointer, pointer, integer, integer, integer]
    library.mix_rows.restype = None


def _pieces(kernel: Any, wave: Sequence[Mixture], threads: int) -> list[Callable[[], None]]:
    """Return pieces of work, each some columns of all rows."""
    places: dict[int, int] = {}

    def place(row: Any) -> int:
        if id(row) not in places:
            places[id(row)] = row.__array_interface__["data"][0]
        return places[id(row)]

    rows = np.array([place(row) for mixture in wave for row in mixture.rows], np.uint64)
    weights = np.array([weight for mixture in wave for weight in mixture.weights], np.float32)
    first = np.cumsum([0, *(len(mixture.rows) for mixture in wave)], dtype=np.int64)
    outs = np.array([place(mixture.out) for mixture in wave], np.uint64)
    columns = len(wave[0].out)
    share = _LINE * -(-columns // (_PIECES * threads * _LINE))

    def piece(begin: int) -> None:
        arrays = (array.ctypes.data for array in (rows, weights, first, outs))
        kernel(*arrays, len(outs), begin, min(columns, begin + share))

    return [partial(piece, begin) for begin in range(0, columns, share)]


def _is_exact(kernel: Any) -> bool:
    """Say whether the kernel gives numpy's bits, on numbers of all sizes."""
    rng = np.random.default_rng(1)
    rows = tuple((rng.standard_normal(333) * 10.0 ** rng.integers(-30, 30, 333)).astype(np.float32) for _ in range(5))
    weights = tuple(float(weight) for weight in rng.random(5))
    wanted, out = np.empty_like(rows[0]), np.empty_like(rows[0])
    weighted_sum(rows, weights, wanted, np.empty_like(out))
    for piece in _pieces(kernel, [Mixture(0, out, rows, weights)], 2):
        piece()
    return wanted.tobytes() == out.tobytes()
