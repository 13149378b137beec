"""The section `energy` of a scenario: what each node is powered by, and how many joules it may spend."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from agent.core.participation import POLICIES
from agent.energy.trace import published_rows
from agent.energy_config import (
    BudgetSection,
    EnergySection,
    RechargeSection,
    Scale,
    Seconds,
    Watts,
    budget_terms,
    energy_problems,
)
from agent.errors import ConfigError
from agent.profile import MAX_W
from agent.yaml_file import Section, choose
from sim_harness.devices import FleetDevice, board_device, published_device, recorded_device

ENERGY_KINDS = ("trace", "recording", "board")
_DAY_S = 86_400
_MOST_COUNT = 1_000


class BoardSection(Section, frozen=True, kw_only=True):
    """One kind of board in the mix of `source: board`: a training round costs load_w x round_s joules."""

    profile: str
    """A shipped profile, or the path of one (docs/profiles.md)."""
    name: str = ""
    """What it is called in reports; left out: the profile's name."""
    round_s: Annotated[float, Meta(gt=0, le=_DAY_S)]
    """Seconds of a training round."""
    load_w: Annotated[float, Meta(gt=0, le=MAX_W)] | None = None
    """What it draws while it trains; left out: the profile's load_w."""
    count: Annotated[int, Meta(ge=1, le=_MOST_COUNT)] = 1
    """So many nodes of each turn through the mix are of this kind."""
    battery_wh: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    """Its battery, for `budget.battery_share`; left out: `budget.battery_wh`."""
    recharge_w: Watts | None = None
    """What it gets back on average, day and night; left out: `recharge.watts`."""

    @property
    def label(self) -> str:
        """What it is called in reports."""
        return self.name or Path(self.profile).stem

    def device(self) -> FleetDevice:
        """Return what it replays; ConfigError."""
        return board_device(self.profile, self.label, self.round_s, self.load_w)


class FleetEnergySection(Section, frozen=True, kw_only=True):
    """Replayed energy: node i has the device i modulo their number; `budget_scale` multiplies published budgets."""

    devices: Annotated[tuple[str, ...], Meta(min_length=1)] = (
        "xiaomi-12-pro",
        "galaxy-s22-ultra",
        "oneplus-nord-2",
        "poco-x3",
    )
    workload: str = "cifar10"
    budget_scale: Scale = 1.0
    source: str = "trace"
    """`recording`: node i replays the file i modulo their number; `board`: it is the board i modulo their number, and
    `budget` says what it may spend."""
    files: tuple[str, ...] = ()
    boards: tuple[BoardSection, ...] = ()
    round_s: Seconds | None = None
    """Length of a training round, where a recording has no windows of its own."""
    round_j: Annotated[float, Meta(gt=0)] | None = None
    """What a training round is believed to cost before any was measured; left out: what the recording says."""
    budget: BudgetSection = BudgetSection()
    recharge: RechargeSection = RechargeSection()

    def device_types(self) -> int:
        """Return after how many nodes the devices begin anew."""
        if self.source == "board":
            return sum(board.count for board in self.boards)
        return len(self.files if self.source == "recording" else self.devices)

    def device(self, index: int) -> FleetDevice:
        """Return what the node with that index replays; ConfigError."""
        if self.source == "board":
            return self.board(index).device()
        which = index % self.device_types()
        if self.source == "recording":
            return recorded_device(self.files[which], self.round_s)
        return published_device(self.workload, self.devices[which], self.budget_scale)

    def board(self, index: int) -> BoardSection:
        """Return the board of the node with that index."""
        turn = _turn(tuple(board.count for board in self.boards))
        return self.boards[turn[index % len(turn)]]

    def section(self, index: int, file: str = "") -> EnergySection:
        """Return the section `energy` of a node's configuration; `file` is where a board's recording is written."""
        plain = EnergySection(budget=self.budget, recharge=self.recharge)
        if self.source == "trace":
            row = self.devices[index % self.device_types()]
            return replace(plain, source="trace", device=row, workload=self.workload, budget_scale=self.budget_scale)
        if self.source == "recording":
            file = str(Path(self.files[index % self.device_types()]).absolute())
            return replace(plain, source="recording", file=file, round_s=self.round_s, round_j=self.round_j)
        board = self.board(index)
        battery_wh = self.budget.battery_wh if board.battery_wh is None else board.battery_wh
        watts = self.recharge.watts if board.recharge_w is None else board.recharge_w
        return EnergySection(
            source="recording",
            file=file,
            round_j=self.round_j,
            budget=replace(self.budget, battery_wh=battery_wh),
            recharge=RechargeSection(watts=watts),
        )


@lru_cache
def _turn(counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return the kinds of one turn, dealt round and round until each has its count: 2 and 1 are 0, 1, 0."""
    rounds = range(max(counts, default=0))
    return tuple(kind for already in rounds for kind, count in enumerate(counts) if count > already)


def fleet_energy_problems(energy: FleetEnergySection, policy: str) -> Iterator[tuple[str, str]]:
    """Yield what the types cannot tell, as (path, message)."""
    if energy.source not in ENERGY_KINDS:
        yield "$.energy.source", choose(energy.source, ENERGY_KINDS)
        return
    found = list(_misplaced(energy)) or list(_board_problems(energy))
    yield from found
    if found:
        return
    yield from _term_problems(energy)
    for i in range(energy.device_types()):
        for where, message in energy_problems(energy.section(i, "later"), None):
            yield (_energy_key(energy, i) if where == "$.energy" else where), message
        if energy.source == "recording":
            try:
                energy.device(i)
            except ConfigError as error:
                yield f"$.energy.files[{i}]", str(error)
    given = budget_terms(energy.section(0)).is_given
    if energy.source != "trace" and policy in POLICIES and POLICIES[policy].obeys_budget and not given:
        yield "$.energy", f"{policy} needs a budget: energy.budget.joules, battery_share or rounds"


def _misplaced(energy: FleetEnergySection) -> Iterator[tuple[str, str]]:
    for source, key in (("recording", "files"), ("board", "boards")):
        given = bool(getattr(energy, key))
        if given and energy.source != source:
            yield f"$.energy.{key}", f"this is for `source: {source}`, not for {energy.source}: leave it out"
        if not given and energy.source == source:
            yield "$.energy", f"source `{source}` needs `{key}: [...]`"


def _board_problems(energy: FleetEnergySection) -> Iterator[tuple[str, str]]:
    labels = [board.label for board in energy.boards]
    for i, board in enumerate(energy.boards):
        if board.label in labels[:i]:
            yield f"$.energy.boards[{i}]", f"there is a {board.label} already; give this one a `name` of its own"
        try:
            board.device()
        except ConfigError as error:
            yield f"$.energy.boards[{i}].profile", str(error)


def _term_problems(energy: FleetEnergySection) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a budget that no device's clock or gauge stands behind."""
    budget = energy.budget
    if budget.joules_per_day is not None:
        yield "$.energy.budget.joules_per_day", "a scenario has no days; give `joules`, `battery_share` or `rounds`"
    sizes = [board.battery_wh for board in energy.boards] or [None]
    if budget.battery_share is not None and budget.battery_wh is None and None in sizes:
        yield "$.energy.budget.battery_share", "no gauge here tells how much a battery holds; set battery_wh"
    if energy.recharge.battery:
        yield "$.energy.recharge.battery", "no gauge here sees what a battery gets; set recharge.watts"


def _energy_key(energy: FleetEnergySection, index: int) -> str:
    """Return which setting is wrong where the device with that index has no budget."""
    if not math.isfinite(energy.budget_scale):
        return "$.energy.budget_scale"
    if energy.workload not in {row.workload for row in published_rows()}:
        return "$.energy.workload"
    return f"$.energy.devices[{index}]"
