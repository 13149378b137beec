"""Stateless randomness: every draw is a function of the run's seed and of the names that it is for."""

from __future__ import annotations

import hashlib

import numpy as np


def seed64(seed: int, *names: object) -> int:
    """Return 64 bits that depend on `seed` and `names` alone, and on nothing drawn before."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniform(seed: int, *names: object) -> float:
    """Return one draw from [0, 1), with 53 random bits."""
    return (seed64(seed, *names) >> 11) * 2.0**-53


def generator(seed: int, *names: object) -> np.random.Generator:
    """Return a fresh counter-based generator (Philox) for draws of many numbers."""
    return np.random.Generator(np.random.Philox(key=seed64(seed, *names)))
