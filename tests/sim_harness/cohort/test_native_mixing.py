"""The compiled product: numpy's bits for any rows, weights and cut of the columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.mixing import weighted_sum
from sim_harness.arithmetic import Product
from sim_harness.cohort import native_mixing
from sim_harness.cohort.native_mixing import native_product
from sim_harness.exchange import Mixture


@pytest.fixture(scope="module")
def product() -> Product:
    """Return the kernel; the tests' machine has a compiler."""
    found = native_product()
    assert found is not None
    return found


@settings(deadline=None, max_examples=40)
@given(
    columns=st.integers(1, 3000),
    terms=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    threads=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_rows_have_numpys_bits(product: Product, columns: int, terms: list[int], threads: int, seed: int) -> None:
    """Whatever there is to mix; no row is written beyond its end."""
    rng = np.random.default_rng(seed)
    models = [
        (rng.standard_normal(columns) * 10.0 ** rng.integers(-40, 38, columns)).astype(np.float32) for _ in range(9)
    ]
    wave, guards = [], []
    for count in terms:
        guarded = np.full(columns + 1, 7, np.float32)
        guards.append(guarded)
        rows = tuple(models[i] for i in rng.permutation(9)[:count])
        wave.append(Mixture(0, guarded[:columns], rows, tuple(float(weight) for weight in rng.random(count))))
    for piece in product(wave, threads):
        piece()
    for mixture, guarded in zip(wave, guards, strict=True):
        wanted = np.empty(columns, np.float32)
        weighted_sum(mixture.rows, mixture.weights, wanted, np.empty_like(wanted))
        assert (guarded[:columns].tobytes(), guarded[columns]) == (wanted.tobytes(), 7)


def test_without_a_compiler_numpy_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where the kernel's bits are others."""
    with monkeypatch.context() as patched:
        patched.setenv("CC", "no-such-compiler")
        assert native_product() is None
    monkeypatch.setattr(native_mixing, "_is_exact", lambda _: False)
    assert native_product() is None
