"""Compiled kernels for one model: made by this machine's C compiler, kept in a cache, loaded."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeAlias

from agent.errors import ConfigError

_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
Declare: TypeAlias = Callable[[ctypes.CDLL], None]
_TIMEOUT_S = 300
_INSTEAD = "or use engine.kind stacked or sequential"


@dataclass(frozen=True, slots=True)
class Compiler:
    """The machine's C compiler, and what it knows of the CPU."""

    command: str
    macros: str
    """All that it predefines for this CPU, its own version included."""

    @property
    def version(self) -> str:
        """Return what the compiler calls itself."""
        (line,) = [line for line in self.macros.splitlines() if line.startswith("#define __VERSION__ ")]
        return f"{self.command} {line.split(maxsplit=2)[2].strip(chr(34))}"

    @property
    def isa(self) -> str:
        """Return the vector instructions that the kernels use, as in kernels/vec.h."""
        kinds = {"__AVX512F__": "avx512", "__AVX2__": "avx2", "__ARM_NEON": "neon"}
        return next((kind for macro, kind in kinds.items() if self.has(macro)), "generic")

    @property
    def lanes(self) -> int:
        """Return how many samples stand in one vector, as in kernels/vec.h."""
        return {"avx512": 16, "avx2": 8}.get(self.isa, 4)

    @property
    def bf16(self) -> bool:
        """Return whether the CPU multiplies bf16 numbers."""
        return self.has("__AVX512BF16__")

    @property
    def amx(self) -> bool:
        """Return whether it makes use of the CPU's AMX tiles, which need AVX512-BF16 beside them."""
        return all(map(self.has, ("__AMX_TILE__", "__AMX_BF16__", "__AVX512BF16__")))

    def has(self, macro: str) -> bool:
        """Return whether the compiler predefines that macro."""
        return f"#define {macro} " in self.macros


def find_compiler() -> Compiler:
    """Return $CC, or `cc`; ConfigError where there is none that works, or it is not GCC."""
    command = os.environ.get("CC", "").strip() or "cc"
    compiler = Compiler(command, _run([*command.split(), *_FLAGS, "-dM", "-E", "-x", "c", "/dev/null"]))
    if compiler.has("__clang__") or not compiler.has("__GNUC__"):
        raise ConfigError(
            f"engine.kind native: {command} is not GCC, and the kernels use GCC's own vector extensions; "
            f"apt install gcc and set CC=gcc, {_INSTEAD}"
        )
    return compiler


def _run(command: list[str]) -> str:
    """Return what the compiler prints; ConfigError where there is none, or it fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            f"engine.kind native needs a C compiler, and {command[0]} does not run ({error}); apt install gcc, or name "
            f"one in CC, {_INSTEAD}"
        ) from error
    if result.returncode:
        said = result.stderr.strip()[:200] or f"exit code {result.returncode}"
        first = next((line for line in result.stderr.splitlines() if "error" in line), said)
        raise ConfigError(
            f"engine.kind native: {command[0]} cannot compile the kernels ({first}); apt install gcc, or name another "
            f"compiler in CC, {_INSTEAD}"
        )
    return result.stdout


@dataclass(frozen=True, slots=True)
class Build:
    """A loaded library, and where it stands."""

    library: ctypes.CDLL
    path: Path

    @classmethod
    def at(cls, path: Path, declare: Declare | None = None) -> Build:
        """Load the library that stands there, by default one that trains; ConfigError."""
        return cls(_load(path, declare or declare_rounds), path)

    @property
    def checked(self) -> bool:
        """Return whether this very build has passed its check before."""
        return self._marker.exists()

    def remember(self) -> None:
        """Note that it passed; without effect where the folder is gone or not writable."""
        with contextlib.suppress(OSError):
            self._marker.touch()

    @property
    def refused(self) -> str:
        """Return why this very build was found unfit before; "" if it was not."""
        return self._refusal.read_text(encoding="utf-8") if self._refusal.exists() else ""

    def refuse(self, why: str) -> None:
        """Note that it is unfit; without effect where the folder is gone or not writable."""
        with contextlib.suppress(OSError):
            self._refusal.write_text(why, encoding="utf-8")

    @property
    def _refusal(self) -> Path:
        return self.path.with_suffix(".refused")

    @property
    def _marker(self) -> Path:
        return self.path.with_suffix(".checked")


def build(source: str, compiler: Compiler, declare: Declare | None = None) -> Build:
    """Return the library of a model.c, from the cache where it is there already; ConfigError.

    `declare` tells ctypes of its functions; by default of those that train.
    """
    kernels = {
        file.name: file.read_text() for file in resources.files("sim_harness.cohort").joinpath("kernels").iterdir()
    }
    parts = [source, *(text for _, text in sorted(kernels.items())), compiler.command, compiler.macros, *_FLAGS]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    cache = _cache()
    if cache is not None:
        with contextlib.suppress(OSError):  # a full disk; a temporary folder may be on another one
            return _built(cache / f"{name}.so", source, kernels, compiler, declare)
    try:
        with tempfile.TemporaryDirectory(prefix="skiptrain-kernels-") as temporary:
            return _built(Path(temporary) / f"{name}.so", source, kernels, compiler, declare)
    except OSError as error:
        raise ConfigError(
            f"engine.kind native: the kernels cannot be written ({error}); make room, {_INSTEAD}"
        ) from None


def _built(path: Path, source: str, kernels: dict[str, str], compiler: Compiler, declare: Declare | None) -> Build:
    """Return the library that stands there, made anew where there is none, or none that loads; ConfigError, OSError."""
    if path.exists():
        with contextlib.suppress(ConfigError):  # damaged
            return Build.at(path, declare)
        path.unlink()
    _compile(source, kernels, compiler, path)
    return Build.at(path, declare)


def _cache() -> Path | None:
    """Return the cache folder; None where it cannot be written, or others can write to it, too."""
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    try:
        folder = Path(base).expanduser() / "skiptrain-agent" / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None
    own = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if own and os.access(folder, os.W_OK | os.X_OK) else None


def _compile(source: str, kernels: dict[str, str], compiler: Compiler, path: Path) -> None:
    """Make the library; a process that builds the same at the same time makes the same, and the last one stays."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as name:
        folder = Path(name)
        for file, text in {"model.c": source, **kernels}.items():
            (folder / file).write_text(text)
        made = folder / "model.so"
        files = [str(folder / "model.c"), "-o", str(made), "-lm"]
        _run([*compiler.command.split(), *_FLAGS, "-shared", "-fPIC", *files])
        made.replace(path)


def _load(path: Path, declare: Declare) -> ctypes.CDLL:
    """Open the library; ConfigError where it is none, or lacks a function."""
    try:
        library = ctypes.CDLL(str(path))
        declare(library)
    except (OSError, AttributeError) as error:
        raise ConfigError(
            f"engine.kind native: {path} cannot be loaded ({error}); remove it and try again, {_INSTEAD}"
        ) from error
    return library


def declare_rounds(library: ctypes.CDLL) -> None:
    """Tell ctypes of the functions in kernels/round.h."""
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    library.scratch_bytes.restype = integer
    library.train_round.restype = integer
    library.train_round.argtypes = [
        *(pointer, pointer, pointer, pointer, integer, integer, ctypes.c_float, real, pointer, pointer)
    ]
    library.all_finite.restype = integer
    library.all_finite.argtypes = [pointer]
    library.test_model.restype = integer
    library.test_model.argtypes = [pointer, pointer, pointer, pointer, integer, pointer, pointer]
