"""AMX, where a CPU has it: granted by Linux, and tried in a child process before a build with it is trusted.

This project's own machines have none, so a build may be wrong in ways that tests cannot see: a trial that crashes or
errs costs its speed, not the run.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
from typing import Final

from agent.core.types import ModelShape
from agent.errors import ConfigError
from sim_harness.cohort.cpu import cpu_features
from sim_harness.cohort.native_build import Build, Compiler
from sim_harness.cohort.native_kernels import Kernels

_log = logging.getLogger(__name__)

_SYS_ARCH_PRCTL: Final = 158
_ARCH_REQ_XCOMP_PERM: Final = 0x1023
_XFEATURE_XTILEDATA: Final = 18
_TIMEOUT_S: Final = 300
_TOLERANCE: Final = 0.1
"""How far the change of a short round may be from that with AVX512-BF16: the same products, summed in another order.

Where that moves the maximum of a pool it is 0.02; a build that leaves out every second product is at 0.68 and more.
"""


def amx_kernels(model: ModelShape, batch: int, compiler: Compiler, plain: Kernels) -> tuple[Kernels | None, str]:
    """Return a model's bf16 kernels that use AMX, or None and why not.

    `plain` are the same without AMX. Where the CPU has it and it cannot be used all the same, the log says so.
    """
    missing = sorted({"amx_tile", "amx_bf16"} - cpu_features().flags)
    if missing:
        return None, f"this CPU has no {' and no '.join(missing)}"
    if Kernels.source(model, batch, "bf16", compiler) == Kernels.source(model, batch, "bf16", compiler, amx=True):
        return None, f"no convolution of {model.name} fills its tiles"
    kernels, why = None, _not_granted(compiler)
    if not why:
        try:
            kernels = Kernels.unchecked(model, batch, "bf16", compiler, amx=True)
            why = _tried_once(kernels.build, plain.build, model, batch)
        except ConfigError as error:
            why = str(error)
    if why:
        _log.warning("engine.kind native goes on without AMX: %s", why)
        return None, why
    return kernels, ""


def _not_granted(compiler: Compiler) -> str:
    """Return why compiler or system do not let this process use AMX; "" if they do."""
    return ask_linux() if compiler.amx else f"{compiler.version} does not know it"


def ask_linux() -> str:
    """Ask for the use of AMX in all threads of this process; return "", or why it is not granted."""
    numbers = (ctypes.c_long(n) for n in (_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA))
    if ctypes.CDLL(None, use_errno=True).syscall(*numbers):
        return f"Linux does not grant it ({os.strerror(ctypes.get_errno())})"
    return ""


def _tried_once(build: Build, plain: Build, model: ModelShape, batch: int) -> str:
    """Return why a build is not to be used, as its first trial found; "" if it may be."""
    if build.checked:
        return ""
    why = build.refused or _trial(build, plain, model, batch)
    if why:
        build.refuse(why)
    else:
        build.remember()
    return why


def _trial(build: Build, plain: Build, model: ModelShape, batch: int) -> str:
    """Compare a build with the plain one in a process of its own; return what went wrong."""
    if not (build.path.exists() and plain.path.exists()):
        return "its trial needs a cache folder that can be written"
    arguments = (build.path, plain.path, model.name, *model.input_shape, model.classes, batch)
    command = [sys.executable, "-m", "sim_harness.cohort.native_trial", *map(str, arguments)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"its trial did not end ({error})"
    if result.returncode < 0:
        return f"its trial was ended by {signal.Signals(-result.returncode).name}"
    if result.returncode:
        return "its trial failed: " + "".join(result.stderr.splitlines()[-1:])
    off = float(result.stdout.split()[-1])
    return "" if off <= _TOLERANCE else f"its trial was {off:.2g} off AVX512-BF16 (up to {_TOLERANCE} is right)"
