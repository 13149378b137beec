"""The registry of measuring sources, and which of them a device is metered by.

To add a source: one file with `find(place, wanted)`, and one line in SOURCES; the contract tests pick it up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from agent.core.types import Quality
from agent.energy import estimate, ina, jetson_iio, nvml, power_supply, rapl, rpi_pmic
from agent.energy.source import AbsentError, Find, Place, Reader, Wanted
from agent.errors import EnergyError


@dataclass(frozen=True, slots=True)
class Source:
    """How one source is found, and what its joules are worth."""

    find: Find
    quality: Quality = Quality.MEASURED
    automatic: bool = True
    """Whether `auto` may choose it: it sees (nearly) all that training costs, and nobody has to opt in."""


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "ina": Source(ina.find),
        "jetson-iio": Source(jetson_iio.find),
        "rpi-pmic": Source(rpi_pmic.find),
        "rapl": Source(rapl.find),
        "power-supply": Source(power_supply.find),
        "nvml": Source(nvml.find, automatic=False),
        "estimate": Source(estimate.find, Quality.ESTIMATED, automatic=False),
    }
)
"""In the order in which `auto` asks them: what sees the whole board comes before what sees a part."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A source that was found, and its reader."""

    name: str
    reader: Reader


def choose_source(name: str, place: Place, wanted: Wanted) -> Chosen:
    """Find the source `name`, or for `auto` the first that is there; EnergyError where there is none that can be used.

    A source that is there and cannot be used is an error for `auto`, too: the next one would see less than it does.
    """
    if name != "auto":
        return Chosen(name, SOURCES[name].find(place, wanted))
    for candidate, source in SOURCES.items():
        if not source.automatic:
            continue
        try:
            return Chosen(candidate, source.find(place, wanted))
        except AbsentError:
            continue
        except EnergyError as error:
            raise EnergyError(f"{candidate}: {error}; or name another source in energy.source") from None
    raise EnergyError(
        f"no sensor of energy below {place.sys}, and no {place.vcgencmd} that answers; enable one (docs/energy.md), or "
        "budget by an estimate: energy.source: estimate"
    )
