"""The section `energy` of a configuration: where joules come from, and how many may be spent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from agent.energy.allowance import Terms
from agent.energy.open import METERS
from agent.energy.settings import Correction, EnergySettings
from agent.energy.source import Place, Wanted
from agent.energy.sources import choose_source
from agent.energy.trace import published_row
from agent.errors import ConfigError
from agent.profile import MAX_W, Profile
from agent.yaml_file import Section, choose

Joules = Annotated[float, Meta(gt=0, le=1e12)]
Watts = Annotated[float, Meta(ge=0, le=MAX_W)]
Scale = Annotated[float, Meta(ge=0, le=1e6)]
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400 * 365)]


class BudgetSection(Section, frozen=True, kw_only=True):
    """How much may be spent in a budget period: one of `joules`, `joules_per_day`, `battery_share`, `rounds`."""

    joules: Joules | None = None
    joules_per_day: Joules | None = None
    battery_share: Annotated[float, Meta(gt=0, le=1)] | None = None
    battery_wh: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    """The battery, where no gauge tells how much it holds."""
    rounds: Count | None = None


class RechargeSection(Section, frozen=True, kw_only=True):
    """What gives joules back."""

    watts: Annotated[float, Meta(ge=0, le=MAX_W)] = 0.0
    """On average, day and night."""
    battery: bool = False
    """What the gauge sees going into the battery."""


class CorrectionSection(Section, frozen=True, kw_only=True):
    """Watts = slope * what the source says + offset_w."""

    slope: Annotated[float, Meta(gt=0, le=100)] = 1.0
    offset_w: Annotated[float, Meta(ge=-MAX_W, le=MAX_W)] = 0.0


class EnergySection(Section, frozen=True, kw_only=True):
    """Where joules come from, and how many there are in a budget period."""

    source: str = ""
    """Left out: as the profile says; without a profile `trace`, which measures nothing."""
    device: str = "xiaomi-12-pro"
    workload: str = "cifar10"
    budget_scale: Scale = 1.0
    file: str = ""
    """A recording, for `recording`; for `trace` another table in the form of SkipTrain's authors."""
    round_s: Seconds | None = None
    """Length of a training round, where a recording has no windows of its own."""
    rails: tuple[str, ...] = ()
    """What adds up to the total; left out: as the profile says, else the source's own rule."""
    correction: CorrectionSection | None = None
    idle_w: Watts | None = None
    max_w: Annotated[float, Meta(gt=0, le=MAX_W)] | None = None
    round_j: Joules | None = None
    """What a training round costs, where somebody knows; else the first one tells."""
    budget: BudgetSection = BudgetSection()
    recharge: RechargeSection = RechargeSection()
    charge: str = "training"
    """`everything`: sharing and idling are charged to the budget, too."""
    min_battery: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Nothing is trained while the battery is emptier than this share."""
    period: str = ""
    """Name of the budget period: a new name is a new budget; a new run is not."""
    sysfs_root: str = "/sys"
    """Where the kernel's files are, for a container that has the host's elsewhere."""
    vcgencmd: str = "vcgencmd"


def energy_settings(energy: EnergySection, board: Profile | None) -> EnergySettings:
    """Return what the configuration says, and where it says nothing the board's profile."""
    measured = board.energy if board else None
    source = energy.source or (measured.source if measured else "trace")
    replays = board is not None and board.energy.source == "trace" and source == "trace"
    own = measured is None or source == measured.source  # rails and correction were made for one source
    return EnergySettings(
        source=source,
        device=board.energy.device if board and replays else energy.device,
        workload=board.energy.workload if board and replays else energy.workload,
        budget_scale=energy.budget_scale,
        file=energy.file,
        round_s=energy.round_s,
        place=Place(sys=Path(energy.sysfs_root), vcgencmd=energy.vcgencmd),
        wanted=Wanted(
            rails=energy.rails or (measured.rails if measured and own else ()),
            idle_w=energy.idle_w if energy.idle_w is not None else _watts(board, "idle_w"),
            max_w=energy.max_w if energy.max_w is not None else _watts(board, "max_w"),
        ),
        correction=_correction(energy, board if own else None),
        round_j=energy.round_j,
    )


def found_settings(energy: EnergySection, board: Profile | None) -> EnergySettings:
    """Return the settings with the source that `auto` finds, and with what the profile says if it is the profile's.

    EnergyError where `auto` finds none.
    """
    settings = energy_settings(energy, board)
    if settings.source != "auto":
        return settings
    name = choose_source("auto", settings.place, settings.wanted).name
    return energy_settings(msgspec.structs.replace(energy, source=name), board)


def _watts(board: Profile | None, name: str) -> float | None:
    watts = getattr(board.power, name) if board else None
    return watts.value if watts else None


def _correction(energy: EnergySection, board: Profile | None) -> Correction:
    """Return the configuration's correction, or the profile's, which was fitted to the profile's own source."""
    if energy.correction is not None:
        return Correction(energy.correction.slope, energy.correction.offset_w)
    fitted = board.energy.correction if board else None
    return Correction(fitted.slope, fitted.offset_w) if fitted else Correction()


def budget_terms(energy: EnergySection) -> Terms:
    """Return how much may be spent."""
    budget = energy.budget
    return Terms(
        joules=budget.joules,
        joules_per_day=budget.joules_per_day,
        battery_share=budget.battery_share,
        rounds=budget.rounds,
        battery_wh=budget.battery_wh,
        recharge_w=energy.recharge.watts,
        recharge_from_battery=energy.recharge.battery,
        period=energy.period,
    )


def energy_problems(energy: EnergySection, board: Profile | None) -> Iterator[tuple[str, str]]:
    """Yield what the types cannot tell, as (path, message)."""
    settings = energy_settings(energy, board)
    if energy.source and energy.source not in METERS:
        yield "$.energy.source", choose(energy.source, METERS)
        return
    if energy.charge not in {"training", "everything"}:
        yield "$.energy.charge", choose(energy.charge, ["training", "everything"])
    if len(set(energy.rails)) != len(energy.rails):
        yield "$.energy.rails", "a rail stands here twice, and would be counted twice"
    idle_w, max_w = settings.wanted.idle_w, settings.wanted.max_w
    own = [name for name in ("idle_w", "max_w") if getattr(energy, name) is not None]
    if own and idle_w is not None and max_w is not None and idle_w >= max_w:
        whose = "" if len(own) > 1 else "; the other one is the profile's"
        yield f"$.energy.{own[0]}", f"energy.idle_w is not below energy.max_w: {idle_w:g} and {max_w:g} W{whose}"
    given = [name for name in ("joules", "joules_per_day", "battery_share", "rounds") if getattr(energy.budget, name)]
    if len(given) > 1:
        yield "$.energy.budget", f"one of {', '.join(given)}, not all of them"
    if settings.source == "trace" and not energy.file:
        try:
            published_row(settings.workload, settings.device).limit_uj(settings.budget_scale)
        except ConfigError as error:
            yield "$.energy", str(error)
    if settings.source == "recording" and not energy.file:
        yield "$.energy", "source `recording` needs `file`: what `skiptrain-agent energy record --out` wrote"
    if settings.source == "estimate" and energy.source != "estimate" and board and board.support == "train":
        yield (
            "$.node.profile",
            "this board has no sensor of energy: to budget by an estimate, set energy.source: estimate",
        )
