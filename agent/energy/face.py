"""pyJoules' words for energy, taken without what its import does to the logging of a program that has set up none."""

from __future__ import annotations

import logging
from typing import Any

_root = logging.getLogger()
_handlers, _disabled = list(_root.handlers), _root.manager.disable
logging.disable(logging.WARNING)  # pyJoules 0.5.1 warns of a missing pynvml on the root logger, which adds a handler
try:
    from pyJoules.device.device import Device
    from pyJoules.device.domain import Domain
    from pyJoules.energy_meter import EnergyMeter
finally:
    logging.disable(_disabled)
    _root.handlers[:] = _handlers

__all__ = ["Device", "Domain", "EnergyMeter", "Rail"]


class Rail(Domain):  # type: ignore[misc]  # pyJoules has no types
    """One place where energy is counted: a RAPL zone, a rail of a board, a battery."""

    def __init__(self, name: str, device: type[Any]) -> None:
        self.name, self._device = name, device

    def __repr__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rail) and (other.name, other._device) == (self.name, self._device)

    def __hash__(self) -> int:
        return hash((self.name, self._device))

    def get_device_type(self) -> type[Any]:
        """Return the class of the device that counts here."""
        return self._device
