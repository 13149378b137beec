"""What a configuration and a board's profile say of energy, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.energy.source import Place, Wanted
from agent.errors import EnergyError


@dataclass(frozen=True, slots=True)
class Correction:
    """Watts = slope * what the source says + offset: a source that sees a part, fitted to a meter that sees all."""

    slope: float = 1.0
    offset_w: float = 0.0

    def apply_uj(self, energy_uj: int, seconds: float) -> int:
        """Return the corrected energy of a stretch of time; EnergyError where nothing would be left of some."""
        if self == _UNCORRECTED:
            return energy_uj
        corrected_uj = round(self.slope * energy_uj + self.offset_w * 1e6 * seconds)
        if energy_uj > 0 >= corrected_uj:
            raise EnergyError(
                f"energy.correction makes {corrected_uj / 1e6:g} J of {energy_uj / 1e6:g} J in {seconds:.3g} s; "
                "correct its offset_w"
            )
        return max(0, corrected_uj)


_UNCORRECTED = Correction()


@dataclass(frozen=True, slots=True)
class EnergySettings:
    """Where joules come from; `source` may be `auto`: the best that is found."""

    source: str
    device: str = ""
    workload: str = ""
    budget_scale: float = 1.0
    file: str = ""
    """A recording, for `recording`; another table of published rows, for `trace`."""
    place: Place = field(default_factory=Place)
    wanted: Wanted = field(default_factory=Wanted)
    correction: Correction = field(default_factory=Correction)
    round_s: float | None = None
    """Length of a training round, where a recording has no windows of its own."""
    round_j: float | None = None
    """What a training round costs, where somebody knows."""
