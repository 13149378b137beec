"""AMX: the kernels on a model of its instructions, and what happens where it is missing, crashes or errs."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent.core.types import ModelShape
from agent.errors import ConfigError
from agent.learning.model import model_spec
from sim_harness.cohort import native_amx, native_build
from sim_harness.cohort.cpu import CpuFeatures
from sim_harness.cohort.native import NativeEngine
from sim_harness.cohort.native_amx import amx_kernels, ask_linux
from sim_harness.cohort.native_build import find_compiler
from sim_harness.cohort.native_kernels import Kernels
from sim_harness.cohort.native_source import model_source
from sim_harness.scenario_sections import EngineSection
from tests.sim_harness.cohort.test_native import CLOSE, LEARNING, corpus, precisions, reference, trained

KERNELS = Path(native_build.__file__).parent / "kernels"
MODEL = ("-O1", "-D__AMX_TILE__=1", "-D__AMX_BF16__=1", "-include", str(Path(__file__).with_name("amx_model.h")))
SMALL = ModelShape("small-cnn", (2, 6, 5), 3)
BF16 = "bf16" in precisions()
"""Every CPU with AMX has AVX512-BF16; on a machine without it, kernels for AMX can be compiled but not run."""


@pytest.fixture
def machine(monkeypatch) -> Callable[..., None]:
    """Return a function that gives this machine AMX as Linux sees it, and its compiler such flags."""
    usual = native_build._FLAGS

    def give(*flags: str) -> None:
        monkeypatch.setattr(native_amx, "cpu_features", lambda: CpuFeatures(frozenset({"amx_tile", "amx_bf16"})))
        monkeypatch.setattr(native_amx, "ask_linux", lambda: "")
        monkeypatch.setattr(native_build, "_FLAGS", (*usual, *flags))

    return give


def kernels(model: ModelShape, batch: int, machine: Callable[..., None], *flags: str) -> Kernels:
    """Return a model's kernels, with AMX where the flags give it."""
    machine(*flags)
    compiler = find_compiler()
    return Kernels.unchecked(model, batch, precisions()[-1], compiler, amx=compiler.amx)


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (ModelShape("gn-lenet", (3, 9, 8), 10), 16),
        (ModelShape("gn-lenet", (3, 9, 8), 10), 33),
        (ModelShape("gn-lenet", (64, 8, 11), 4), 3),
        (ModelShape("small-cnn", (1, 28, 28), 10), 16),
        (ModelShape("small-cnn", (2, 11, 7), 3), 16),
    ],
    ids=lambda value: (
        f"{value.name}-{'x'.join(map(str, value.input_shape))}" if isinstance(value, ModelShape) else None
    ),
)
def test_tiles_come_to_what_avx512_comes_to(model, batch, machine):
    """Channels that fill tiles, that fill half of one, and a kernel's row among them; odd sides; lanes left over."""
    plain, tiled = (kernels(model, batch, machine, *flags) for flags in (("-O1",), MODEL))
    assert tiled.apart(plain, model, batch) < native_amx._TOLERANCE


def test_the_engine_uses_amx_where_the_trial_comes_out_right(machine):
    """The trial runs in a child, and once; a round is as close to torch's as with AVX512-BF16."""
    machine(*MODEL)
    of = corpus(SMALL)
    _, wanted = trained(reference, of)
    for precision in precisions():
        engine = NativeEngine(of, LEARNING, EngineSection(precision=precision))
        told = engine.describe()
        engine.close()
        assert told["isa"].endswith("+amx") == (told["amx"] == "used") == (precision == "bf16")
        _, ours = trained(NativeEngine, of, LEARNING, EngineSection(precision=precision))
        assert max(np.abs(a - b).max() for a, b in zip(ours, wanted, strict=True)) < CLOSE[precision]


@pytest.mark.parametrize(
    ("fault", "said"),
    [("-DAMX_MODEL_CRASHES=1", "ended by SIGILL"), ("-DAMX_MODEL_ERRS=1", "off AVX512-BF16")],
    ids=["crashes", "errs"],
)
def test_amx_that_fails_its_trial_is_not_used(fault, said, machine, monkeypatch, caplog):
    """The run goes on without it and says so; the next one does not try again."""
    machine(*MODEL, fault)
    compiler = find_compiler()
    plain = Kernels.unchecked(SMALL, 16, precisions()[-1], compiler)
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            made, why = amx_kernels(SMALL, 16, compiler, plain)
        assert made is None
        assert (said if BF16 else "does not know it") in why
        assert why in caplog.text
        monkeypatch.setattr(native_amx, "_trial", None)


NOT_NEEDED = Kernels(None, None)
"""What no build is compared with."""


def test_without_amx_everything_else_is_as_it_was(monkeypatch, caplog):
    """A CPU without it is no news; what it lacks stands in summary.json."""
    monkeypatch.setattr(native_amx, "cpu_features", lambda: CpuFeatures(frozenset({"amx_tile"})))
    assert amx_kernels(SMALL, 16, find_compiler(), NOT_NEEDED) == (None, "this CPU has no amx_bf16")
    assert not caplog.text


def test_a_compiler_or_a_system_that_does_not_know_amx(machine, monkeypatch):
    """An old GCC defines no macros for it; Linux can refuse."""
    machine()
    monkeypatch.setattr(native_build.Compiler, "amx", False)
    assert amx_kernels(SMALL, 16, find_compiler(), NOT_NEEDED)[1].endswith("does not know it")
    monkeypatch.setattr(native_build.Compiler, "amx", True)
    monkeypatch.setattr(native_amx, "ask_linux", lambda: "Linux does not grant it")
    assert amx_kernels(SMALL, 16, find_compiler(), NOT_NEEDED) == (None, "Linux does not grant it")


def test_a_trial_needs_a_cache(machine, monkeypatch):
    """The child loads what the parent compiled; a build in a temporary folder is gone by then."""
    machine(*MODEL)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    why = amx_kernels(SMALL, 16, find_compiler(), NOT_NEEDED)[1]
    assert why.endswith("a cache folder that can be written" if BF16 else "does not know it")


def test_linux_answers():
    """It grants AMX or says why not; nothing else can come of it."""
    answer = ask_linux()
    assert answer == "" or answer.startswith("Linux does not grant it (")


def test_the_real_instructions_compile(tmp_path):
    """Here they may only be compiled, for the first CPU that has them."""
    flags = [flag for flag in native_build._FLAGS if not flag.startswith("-march")]
    source = model_source(model_spec(ModelShape("gn-lenet", (3, 8, 8), 10)), lanes=16, batch=16, bf16=True, amx=True)
    (tmp_path / "model.c").write_text(source)
    command = [*find_compiler().command.split(), *flags, "-march=sapphirerapids", f"-I{KERNELS}", "-S", "-o", "-"]
    if platform.machine() != "x86_64":
        with pytest.raises(ConfigError):
            native_build._run([*command, str(tmp_path / "model.c")])
        return
    text = native_build._run([*command, str(tmp_path / "model.c")])
    assert all(word in text for word in ("ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilerelease"))
