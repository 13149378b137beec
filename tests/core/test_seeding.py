"""Stateless draws: pinned values, uniform, independent of each other."""

from __future__ import annotations

import numpy as np
import pytest

from agent.core.seeding import generator, seed64, uniform


def test_values_are_pinned() -> None:
    """A change of these numbers would change every run ever made: they are part of the format of a run."""
    assert seed64(7, "a", 0, "participation") == 16433714781035977588
    assert uniform(7, "a", 0, "participation") == pytest.approx(0.8908735, abs=1e-7)


def test_draws_do_not_depend_on_each_other() -> None:
    """Asking twice gives the same; asking for something else in between changes nothing."""
    first = uniform(1, "a", 2)
    uniform(1, "b", 2)
    assert uniform(1, "a", 2) == first


def test_names_are_kept_apart() -> None:
    """Neither order nor the border between two names is lost."""
    draws = [seed64(1, "ab", "c"), seed64(1, "a", "bc"), seed64(1, "c", "ab"), seed64(1, "abc"), seed64(11, "b", "c")]
    assert len(set(draws)) == len(draws)


def test_uniform_is_uniform() -> None:
    """20,000 draws over rounds lie in [0, 1), with mean, spread and deciles of a uniform distribution."""
    draws = np.array([uniform(3, "node", round_, "participation") for round_ in range(20_000)])
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(draws.var() - 1 / 12) < 0.003
    counts, _ = np.histogram(draws, bins=10, range=(0, 1))
    assert np.abs(counts - 2000).max() < 200


def test_nodes_and_rounds_are_uncorrelated() -> None:
    """Neighbouring names give unrelated draws."""
    table = np.array([[uniform(3, f"n{node}", round_) for round_ in range(400)] for node in range(20)])
    off = np.corrcoef(table) - np.eye(20)
    assert np.abs(off).max() < 0.2
    assert abs(np.corrcoef(table[:, :-1].ravel(), table[:, 1:].ravel())[0, 1]) < 0.05


def test_generators_repeat_and_differ() -> None:
    """A generator is a function of its names."""
    one, two = generator(5, "x").integers(1 << 30, size=8), generator(5, "x").integers(1 << 30, size=8)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, generator(5, "y").integers(1 << 30, size=8))
