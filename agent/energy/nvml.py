"""NVIDIA's GPUs, through NVML: the driver counts the millijoules of each, from Volta on; a Jetson's has no counter."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any

from agent.energy.source import AbsentError, Place, Scope, Wanted
from agent.errors import EnergyError

_UJ_PER_MJ = 1000
_NOT_LOADED = (9, 12)
"""NVML_ERROR_DRIVER_NOT_LOADED, NVML_ERROR_LIBRARY_NOT_FOUND: there is no GPU of NVIDIA's that could be asked."""


@dataclass(frozen=True, slots=True)
class NvmlReader:
    """Reads the counters of some GPUs; they begin anew when the driver is loaded, and never before 2^64 mJ."""

    nvml: Any
    rails: tuple[str, ...]
    handles: tuple[Any, ...]
    scope: Scope = Scope.GPU

    @property
    def ranges_uj(self) -> tuple[int, ...]:
        """Return 0 for each: going back means that the driver was loaded again."""
        return (0,) * len(self.rails)

    @property
    def resolution_uj(self) -> int:
        """One millijoule a GPU."""
        return _UJ_PER_MJ * len(self.rails)

    def read(self) -> tuple[int, ...]:
        """Return the microjoules of each GPU."""
        return tuple(self._counter(rail, handle) for rail, handle in zip(self.rails, self.handles, strict=True))

    def _counter(self, rail: str, handle: Any) -> int:
        try:
            return int(self.nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * _UJ_PER_MJ
        except self.nvml.NVMLError as error:
            raise EnergyError(
                f"nvml: {rail} says no energy ({error}); none before Volta and no Jetson does; use another source"
            ) from None


def find(place: Place, wanted: Wanted) -> NvmlReader:
    """Return a reader of all GPUs, or of those wanted (gpu0, gpu1, ...)."""
    nvml: Any = place.nvml or _pynvml()
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        handles = {f"gpu{index}": nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)}
    except nvml.NVMLError as error:
        if getattr(error, "value", None) in _NOT_LOADED:
            raise AbsentError(f"nvml: there is no driver of NVIDIA's here ({error})") from None
        raise EnergyError(f"nvml: the driver cannot be asked ({error}); see what nvidia-smi says") from None
    if not handles:
        raise AbsentError("nvml: the driver knows no GPU")
    missing = [name for name in wanted.rails if name not in handles]
    if missing:
        raise EnergyError(f"nvml: no {', '.join(missing)}; there are {', '.join(handles)}; correct energy.rails")
    rails = tuple(name for name in handles if not wanted.rails or name in wanted.rails)
    reader = NvmlReader(nvml, rails, tuple(handles[name] for name in rails))
    reader.read()
    return reader


def _pynvml() -> Any:
    """Return the module, without what older releases of it warn about."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("pynvml")
    except (ImportError, OSError):
        raise AbsentError("nvml: the Python package pynvml is not installed (nvidia-ml-py has it)") from None
