"""Opens the meter that the settings name: replayed, recorded, or measured on this board."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from agent.energy.meter import MeasuredMeter, Meter
from agent.energy.recording import known_cost, open_recording
from agent.energy.settings import EnergySettings
from agent.energy.sources import SOURCES, choose_source
from agent.energy.trace import open_trace

_HEADROOM = 2.0
"""A board may draw more than the most that somebody saw: a wrap must not be taken for a reset for that."""


def measure(settings: EnergySettings) -> Meter:
    """Find the source, see that it moves, and return its meter; EnergyError says what is in the way, and what to do."""
    from agent.energy.device import open_device

    chosen = choose_source(settings.source, settings.place, settings.wanted)
    max_w = settings.wanted.max_w
    device = open_device(chosen.reader, max_w=None if max_w is None else _HEADROOM * max_w)
    try:
        device.check_moving()
        return MeasuredMeter(
            chosen.name,
            device,
            SOURCES[chosen.name].quality,
            prior=None if settings.round_j is None else known_cost(settings.round_j),
            correction=settings.correction,
            idle_w=settings.wanted.idle_w,
            max_w=settings.wanted.max_w,
            boot_id=settings.place.proc / "sys/kernel/random/boot_id",
        )
    except BaseException:
        device.close()
        raise


METERS: Mapping[str, Callable[[EnergySettings], Meter]] = MappingProxyType(
    {"trace": open_trace, "recording": open_recording, "auto": measure, **dict.fromkeys(SOURCES, measure)}
)
"""Every name that `energy.source` may have."""


def open_meter(settings: EnergySettings) -> Meter:
    """Return the meter that `settings` names; EnergyError, ConfigError."""
    return METERS[settings.source](settings)
