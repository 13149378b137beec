"""Compiling: by several processes at once, and by compilers that will not do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import ConfigError
from sim_harness.cohort.native_build import find_compiler

BUILDS = """
from agent.core.types import ModelShape
from sim_harness.cohort.native_build import find_compiler
from sim_harness.cohort.native_kernels import Kernels
print(Kernels.unchecked(ModelShape("small-cnn", (1, 1, 1), 2), 4, "fp32", find_compiler()).build.path)
"""
ROOT = Path(__file__).parents[3]


def test_two_processes_build_the_same_at_once(tmp_path, monkeypatch):
    """Both get a whole library, one and the same; nothing else is left behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-c", BUILDS]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert [str(path) for path in Path(said[0]).parent.iterdir()] == [said[0]]


def test_a_compiler_that_is_not_gcc_is_told_so(monkeypatch):
    """Clang knows most of GCC's vector extensions, but not all that the kernels use."""
    monkeypatch.setenv("CC", "cc -D__clang__=1")
    with pytest.raises(ConfigError, match=r"-D__clang__=1 is not GCC.*apt install gcc.*CC=gcc.*engine\.kind stacked"):
        find_compiler()
