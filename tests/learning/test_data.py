"""Datasets, the held-out share, and the check against the model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.types import ModelShape
from agent.errors import ConfigError, DataError
from agent.learning.data import BYTES, Dataset, check, hold_out


def dataset(labels, shape=(1, 2, 2), **fields):
    """Return samples that carry their own number as value and user."""
    n = len(labels)
    x = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None, None], (n, *shape)).copy()
    return Dataset(x, np.array(labels, dtype=np.int64), "there", user=np.arange(n), **fields)


@given(st.lists(st.integers(0, 3), max_size=60), st.floats(0.0, 0.99), st.integers(0, 5))
def test_hold_out_cuts_in_two(labels, share, seed):
    """Every sample is on exactly one side, in stored order, with at least one on each where two exist."""
    whole = dataset(labels)
    train, own = hold_out(whole, share, seed, "a")
    assert sorted([*train.user, *own.user]) == list(range(len(labels)))
    for part in (train, own):
        assert list(part.user) == sorted(part.user)
        assert (part.x[:, 0, 0, 0] == part.user).all()
        assert (part.y == whole.y[part.user]).all()
    if share == 0.0:
        assert len(own) == 0
    elif len(labels) >= 2:
        assert min(len(train), len(own)) >= 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.floats(0.01, 0.9))
def test_hold_out_keeps_the_proportions(sizes, share):
    """Each class gives its share, rounded up or down."""
    own = hold_out(dataset(np.repeat(np.arange(len(sizes)), sizes)), share, 1, "a")[1]
    held = np.bincount(own.y, minlength=len(sizes))
    assert (np.abs(held - np.array(sizes) * len(own) / sum(sizes)) < 1).all()


def test_hold_out_depends_on_seed_and_node_only():
    """The same node holds out the same samples after a restart, and another node others."""
    whole = dataset([0, 1] * 50)
    chosen = [list(hold_out(whole, 0.2, seed, node)[1].user) for seed, node in ((1, "a"), (1, "a"), (1, "b"), (2, "a"))]
    assert chosen[0] == chosen[1]
    assert chosen[0] not in chosen[2:]


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_impossible_share(share):
    """A share outside [0, 1) is refused."""
    with pytest.raises(ConfigError, match="held_out"):
        hold_out(dataset([0, 1]), share, 1, "a")


def test_bytes_become_minus_one_to_one():
    """Black is -1, white is +1, and the result is float32."""
    values = BYTES.apply(np.array([0, 255], dtype=np.uint8))
    assert values.dtype == np.float32
    assert list(values) == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (dataset([]), "there holds no samples"),
        (dataset([0, 1], shape=(2, 2, 1)), r"shape \[2, 2, 2, 1\], but the model takes \[n, 1, 2, 2\]"),
        (dataset([0, 2]), "labels go from 0 to 2, but the model has 2 classes"),
        (dataset([-1, 0]), "labels go from -1 to 0"),
        (
            dataset([0, 1], classes=("a", "b", "c")),
            "names 3 classes, but the model has 2; correct model.classes, or set",
        ),
    ],
)
def test_check_names_file_and_fix(data, words):
    """Data that the model cannot take are refused with the file's name and both sizes."""
    with pytest.raises(DataError, match=words):
        check(data, ModelShape("small-cnn", (1, 2, 2), 2))


def test_check_accepts_what_fits():
    """A node need not have every class."""
    check(dataset([1, 1], classes=("a", "b")), ModelShape("small-cnn", (1, 2, 2), 2))
