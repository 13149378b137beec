"""Which rails of a board add up to its total, by their labels: both of the Jetsons' drivers print the same ones.

From energymon's jetson/JetsonPowerRails.md (device trees of L4T 32.6.1, NVIDIA's guide 34.1) and, for Thor, from
NVIDIA's forum, thread 366461. A rail that is fed from another one of the board must not be added to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.energy.source import Scope
from agent.errors import EnergyError

THOR_ONLY = "VDD_CPU_SOC_MSS"
"""A label that no board but Thor has."""
_OFFSET_UV = 100
"""Offsets of one or two steps of 40 µV are usual for an INA3221: an idle GPU rail of Thor was seen at -392 mW."""
_LEAST_OFFSET_MA = 20
_UOHM_PER_MOHM = 1000


@dataclass(frozen=True, slots=True)
class Total:
    """Rails whose sum is all that a board, or its module, draws."""

    rails: tuple[str, ...]
    scope: Scope


TOTALS: tuple[Total, ...] = (
    Total(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), Scope.MODULE),  # AGX Orin
    Total(("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), Scope.MODULE),  # AGX Xavier
    Total(("VDD_IN", "VDD_MUX"), Scope.BOARD),  # TX2 on its carrier board, which VDD_MUX feeds beside the module
    Total(("VDD_IN",), Scope.MODULE),  # TX2 NX, Xavier NX, Orin Nano, Orin NX, TX2 alone
    Total(("POM_5V_IN",), Scope.MODULE),  # Nano 4GB
    Total(("VIN",), Scope.BOARD),  # Thor
)
"""The first one whose rails are all there counts."""
_FED_FROM = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}


def choose(there: Iterable[str], wanted: tuple[str, ...], where: str) -> Total:
    """Return the rails that add up: those that are wanted by name, or else the board's total; EnergyError."""
    names = sorted(there)
    listed = f"there are {', '.join(names) or 'none'}"
    if not wanted:
        for total in TOTALS:
            if set(total.rails) <= set(names):
                return total
        raise EnergyError(f"{where}: no rail is known to be the total; {listed}; set energy.rails to those that add up")
    missing = [name for name in wanted if name not in names]
    if missing:
        raise EnergyError(f"{where}: no rail {', '.join(missing)}; {listed}; correct energy.rails")
    if len(set(wanted)) < len(wanted):
        raise EnergyError(f"{where}: energy.rails names a rail twice, which would count it twice; name each one once")
    for fed, source in _FED_FROM.items():
        if fed in wanted and source in wanted:
            raise EnergyError(f"{where}: {fed} is fed from {source}, and would be counted twice; correct energy.rails")
    scopes = [total.scope for total in TOTALS if set(total.rails) == set(wanted)]
    return Total(wanted, scopes[0] if scopes else Scope.MODULE)


def offset_ma(shunt_uohm: int | None) -> int:
    """Return how far below zero the current of an idle rail may be shown, in mA; None: a shunt that is not known."""
    return max(_LEAST_OFFSET_MA, _OFFSET_UV * _UOHM_PER_MOHM // shunt_uohm if shunt_uohm else 0)


def drawn_uw(power_uw: int, current_ma: int, offset_ma: int, where: str) -> int:
    """Return what a rail draws in µW: 0 for a current that is below zero by no more than the sensor's offset.

    A current that clearly runs backwards is an EnergyError and not 0 µW: a battery is being charged through the sensor,
    or its two ends are swapped, and either way it does not see what the board draws. `power_uw` cannot tell: the power
    register of most of these chips has no sign.
    """
    if current_ma < -offset_ma:
        raise EnergyError(
            f"{where}: the current runs backwards ({current_ma} mA), and that is not what the board draws: a battery "
            f"charges, or the sensor's ends are swapped; stop charging, correct the wiring, or use another source"
        )
    return max(0, power_uw) if current_ma >= 0 else 0


def check_flow(powers_uw: Iterable[int], wanted: tuple[str, ...], where: str) -> None:
    """Raise EnergyError where the total of a board that runs is 0 W: its current does not go through the sensor."""
    if not wanted and not any(powers_uw):
        raise EnergyError(
            f"{where}: 0 W, and yet the board runs; feed the board through the sensor, or set energy.rails"
        )
