"""An estimate where nothing measures: idle watts, and what the processors' busy share adds, up to the most watts.

The model is linear, P = idle + (max - idle) x share. Published watts of one board differ by 30 to 90 %, so it is used
only where it is asked for, with watts that were measured on site if possible.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from agent.energy.source import Place, Scope, Wanted
from agent.energy.sysfs import read_text
from agent.errors import EnergyError

_UW_PER_W = 1_000_000
_NS_PER_S = 1_000_000_000
_TICKS_PER_S = 100
_FIELDS = 8
"""user nice system idle iowait irq softirq steal; a guest's time is in user already."""


class Ticks(NamedTuple):
    """What all processors have done since the boot, in ticks."""

    busy: int
    total: int


class Estimate:
    """Counts the microjoules that the model gives for the time since it was made."""

    rails = ("estimate",)
    ranges_uj = (0,)
    scope = Scope.BOARD

    def __init__(self, stat: Path, idle_uw: int, max_uw: int, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Begin at 0; `stat` is /proc/stat, `clock` gives nanoseconds."""
        self._stat, self._idle_uw, self._span_uw, self._clock = stat, idle_uw, max_uw - idle_uw, clock
        self._ticks, self._at_ns = _ticks(stat), clock()
        self._share = 1.0  # until a tick has passed, the upper bound
        self._spent_uw_ns = 0

    @property
    def resolution_uj(self) -> int:
        """One tick of the processors' time, at the most that the board draws above idling."""
        return self._span_uw // _TICKS_PER_S

    def read(self) -> tuple[int, ...]:
        """Return the microjoules so far; where no tick has passed, the last share still counts."""
        ticks, now_ns = _ticks(self._stat), self._clock()
        total = ticks.total - self._ticks.total
        if total > 0:  # iowait may go back a little, and with it the total
            self._share = min(1.0, max(0.0, (ticks.busy - self._ticks.busy) / total))
            self._ticks = ticks
        power_uw = self._idle_uw + round(self._span_uw * self._share)
        self._spent_uw_ns += power_uw * max(0, now_ns - self._at_ns)
        self._at_ns = now_ns
        return (self._spent_uw_ns // _NS_PER_S,)


def find(place: Place, wanted: Wanted) -> Estimate:
    """Return the estimate; EnergyError where the board's watts are not known."""
    if wanted.rails:
        raise EnergyError("estimate: it has no rails; leave energy.rails out, or choose another source")
    if wanted.idle_w is None or wanted.max_w is None:
        missing = " and ".join(key for key in ("idle_w", "max_w") if getattr(wanted, key) is None)
        raise EnergyError(f"estimate: not known: {missing}; set energy.idle_w and energy.max_w, or a board's profile")
    if not 0 <= wanted.idle_w <= wanted.max_w < math.inf or wanted.max_w == 0:
        raise EnergyError(
            f"estimate: from {wanted.idle_w:g} W idle to {wanted.max_w:g} W at most is no range; "
            f"correct energy.idle_w and energy.max_w"
        )
    reader = Estimate(place.proc / "stat", round(wanted.idle_w * _UW_PER_W), round(wanted.max_w * _UW_PER_W))
    reader.read()
    return reader


def _ticks(stat: Path) -> Ticks:
    """Return the first line of /proc/stat; waiting for a disk is idling, stolen time was another machine's."""
    words = read_text(stat).split("\n", 1)[0].split()
    if words[:1] != ["cpu"] or len(words) <= _FIELDS or not all(word.isdecimal() for word in words[1 : _FIELDS + 1]):
        raise EnergyError(f"{stat}: does not begin with the processors' time; the kernel's /proc must be mounted there")
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, words[1 : _FIELDS + 1])
    busy = user + nice + system + irq + softirq
    return Ticks(busy, busy + idle + iowait + steal)
