"""A whole emulation on disk, so that it can be stopped in any round and go on to the same end, bit for bit.

The machines are pickled; what is read back may name nothing but the classes of an emulation, which do nothing but hold
values, so that a checkpoint from elsewhere runs no foreign code. Models are not in the pickle but beside it, in one
array, by their places. `current` names the newest checkpoint and the digests of its files.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from agent import __version__
from agent.core.types import Params
from agent.errors import DataError
from sim_harness.exchange import Elsewhere

FORMAT: Final = f"3 of {__version__}"
_FILES: Final = ("state", "models.npy")
_NAMES: Final = {
    "agent.energy.allowance": {"Allowance", "Now", "Terms"},
    "agent.energy.recording": {"Head", "RecordedMeter", "Window"},
    "agent.energy.trace": {"TraceMeter"},
    "agent.treasury": {"Rules", "Treasury"},
    "builtins": {"frozenset", "set"},
    "collections": {"Counter"},
    "datetime": {"datetime", "timedelta", "timezone"},
    "fractions": {"Fraction"},
    "msgspec._core": {"rebuild"},
    "msgspec._utils": {"rebuild"},
    "sim_harness.arithmetic": {"LateDigest", "NodeArithmetic"},
    "sim_harness.cohort.engine": {"Outcome", "Work"},
    "sim_harness.devices": {"FleetDevice"},
    "sim_harness.emulated_evidence": {"Kept"},
    "sim_harness.emulated_state": {"State", "Traffic", "VirtualNode"},
    "sim_harness.evidence": {"Totals"},
    "sim_harness.powered": {"Calendar", "Powered", "VirtualClock", "_no_gauge"},
}
"""What a state is made of besides the classes of the core; what `msgspec` rebuilds is of a class that is named, too."""


def save(
    folder: Path, number: int, state: object, known: Mapping[str, object], written: Callable[[], object] = lambda: None
) -> None:
    """Write checkpoint `number` and forget the one before; `known` are objects that stay outside, by their names.

    `written` is called when it is on disk and the one before still is.
    """
    place = folder / f"{number}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with (place / "state").open("wb") as file:
        pickler = _Pickler(file, known)
        pickler.dump((FORMAT, state))
        _sync(file)
    with (place / "models.npy").open("wb") as file:
        np.save(file, np.stack(pickler.rows) if pickler.rows else np.empty((0, 0), np.float32))
        _sync(file)
    written()
    current = folder / "current.tmp"
    current.write_text(" ".join([f"{number}", *(_sha256(place / name) for name in _FILES)]) + "\n", encoding="ascii")
    current.replace(folder / "current")
    for other in folder.iterdir():
        if other.is_dir() and other != place:
            shutil.rmtree(other)


def name_of(rank: int, size: int) -> str:
    """Return the folder, among all checkpoints, of one of `size` processes; there is none for a process alone."""
    return f"process-{rank}-of-{size}" if size > 1 else ""


def processes(folder: Path) -> list[int]:
    """Return of how many processes there are checkpoints to go on from; one of them is enough to know."""
    found = {int(place.parent.name.rpartition("-")[2]) for place in folder.glob("process-*-of-*/current")}
    return sorted(found | ({1} if (folder / "current").exists() else set()))


def exists(folder: Path) -> bool:
    """Say whether there is a checkpoint to go on from."""
    return bool(processes(folder))


def load(
    folder: Path, known: Mapping[str, object], newest: Callable[[int], int] = lambda number: number
) -> tuple[int, Any]:
    """Return the newest checkpoint's number and state; DataError where it is damaged, or of another release.

    `newest` takes what was the newest one when `save` ended, and says which to read: of several processes, one may have
    been stopped between writing its part and saying so.
    """
    try:
        current, *digests = (folder / "current").read_text(encoding="ascii").split()
        number = int(current)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: the checkpoint cannot be read ({error!r}); run the scenario again") from error
    number = newest(number)
    try:
        place = folder / f"{number}"
        if number == int(current):
            _check(place, digests)
        models = np.load(place / "models.npy", allow_pickle=False)
        with (place / "state").open("rb") as file:
            format_, state = _Unpickler(file, known, models).load()
    except Exception as error:
        raise DataError(f"{folder}: the checkpoint cannot be read ({error!r}); run the scenario again") from error
    if format_ != FORMAT:
        raise DataError(
            f"{folder}: a checkpoint of format {format_}, this release's is {FORMAT}; run the scenario again"
        )
    return int(number), state


def _check(place: Path, digests: list[str]) -> None:
    if digests != [_sha256(place / name) for name in _FILES]:
        raise ValueError("its files are not what was written")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


class _Pickler(pickle.Pickler):
    """Leaves models and known objects out; what stands for another process's model stays what it is."""

    def __init__(self, file: IO[bytes], known: Mapping[str, object]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.rows: list[Params] = []
        self._places: dict[int, int] = {}
        self._elsewhere: dict[int, int] = {}
        self._names = {id(thing): name for name, thing in known.items()}

    def persistent_id(self, obj: object) -> object:
        """Return what stands for a model or a known object; None for all else."""
        if isinstance(obj, Elsewhere):
            return self._elsewhere.setdefault(id(obj), len(self._elsewhere)), obj.process, len(obj)
        if isinstance(obj, np.ndarray):
            if id(obj) not in self._places:
                self._places[id(obj)] = len(self.rows)
                self.rows.append(obj)
            return self._places[id(obj)]
        return self._names.get(id(obj))


class _Unpickler(pickle.Unpickler):
    """Builds classes of an emulation only."""

    def __init__(self, file: IO[bytes], known: Mapping[str, object], models: npt.NDArray[np.float32]) -> None:
        super().__init__(file)
        self._known = known
        self._rows = [row.copy() for row in models]
        self._elsewhere: dict[int, Elsewhere] = {}

    def persistent_load(self, pid: Any) -> object:
        """Return the model or the known object."""
        if isinstance(pid, tuple):
            number, process, size = pid
            return self._elsewhere.setdefault(number, Elsewhere.of(process, size))
        return self._known[pid] if isinstance(pid, str) else self._rows[pid]

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that a state is made of; UnpicklingError for all others."""
        core = module.startswith("agent.core.")
        if core or name in _NAMES.get(module, ()):
            found = getattr(importlib.import_module(module), name, None)
            if not core or (isinstance(found, type) and found.__module__ == module):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is no part of an emulation")
