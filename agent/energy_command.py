"""`skiptrain-agent energy`: what each source of energy on this device says, side by side over the same seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from agent.config import AgentConfig
from agent.core.types import Quality
from agent.energy.settings import Correction, EnergySettings
from agent.energy.source import AbsentError, Reader
from agent.energy.sources import SOURCES, Chosen, choose_source
from agent.energy_config import EnergySection, energy_problems, energy_settings
from agent.errors import ConfigError, EnergyError
from agent.profile import Profile, load_profile
from agent.yaml_file import Document, Section, choose

if TYPE_CHECKING:
    from agent.energy.device import CounterDevice, DeviceState, SampledDevice

    AnyDevice: TypeAlias = CounterDevice | SampledDevice

LOOK_S = 1.0
"""How often the sources are looked at in between: counters wrap, and sensors fall silent."""
_RAILS_WIDTH = 23
"""Longer lists of rails are counted in the table, and listed below it."""
_REPLAYED = frozenset({"trace", "recording"})

Progress: TypeAlias = Callable[[float], object]
"""Hears the seconds that have passed."""


class _Alone(Section, frozen=True, kw_only=True):
    """What `--set` may say where there is no configuration file."""

    energy: EnergySection = EnergySection()


@dataclass(frozen=True, slots=True)
class Asked:
    """Which source is to be read, and how: by flags, by a configuration, by a board's profile, in this order."""

    energy: EnergySection
    board: Profile | None = None
    forced: str = ""
    """The source that a flag names, or `auto`."""
    config: AgentConfig | None = None

    @property
    def section(self) -> str:
        """The source that the section `energy` and the profile speak of; replayed ones measure nothing: `auto`."""
        named = self.energy.source or (self.board.energy.source if self.board else "auto")
        return "auto" if named in _REPLAYED else named

    @property
    def source(self) -> str:
        """The source to select; may be `auto`."""
        return self.forced or self.section

    def settings(self, name: str, selected: str = "") -> EnergySettings:
        """Return how to read the source `name`: rails and a correction count for the source that they were made for."""
        own = name == self.section or (self.section == "auto" and name in {"auto", selected})
        energy = self.energy if own else msgspec.structs.replace(self.energy, rails=(), correction=None)
        return energy_settings(msgspec.structs.replace(energy, source=name), self.board)

    def choose(self) -> tuple[Chosen, EnergySettings]:
        """Find the selected source, and say how it is to be read; EnergyError."""
        if self.source == "estimate" and "estimate" not in {self.forced, self.energy.source}:
            raise EnergyError(
                "the profile says that this board has no sensor of energy; to count by an estimate, opt in with "
                "--source estimate (and for the agent with energy.source: estimate)"
            )
        settings = self.settings(self.source, self.source)
        try:
            chosen = choose_source(self.source, settings.place, settings.wanted)
        except EnergyError as error:
            raise EnergyError(_named(self.source, str(error))) from None
        return chosen, self.settings(chosen.name, chosen.name)


def ask(
    config: str | None, overrides: Sequence[str], profile: str = "", source: str = "", sysfs_root: str = ""
) -> Asked:
    """Put together what the flags, and the configuration if there is one, ask for; ConfigError."""
    if source and (problem := choose(source, ("auto", *SOURCES))):
        raise ConfigError(f"--source: {problem}")
    document = Document.read(config, overrides) if config else Document("--set", "", overrides)
    device = document.to(AgentConfig) if config else None
    energy = device.energy if device else document.to(_Alone).energy
    board = load_profile(profile) if profile else device.board if device else None
    if sysfs_root:
        energy = msgspec.structs.replace(energy, sysfs_root=sysfs_root)
    # what nobody named is looked for here, and needs neither a row of a trace nor an estimate that was opted in
    checked = msgspec.structs.replace(energy, source=energy.source or "auto")
    for where, message in energy_problems(checked, board):
        raise document.error(where, message)
    return Asked(energy, board, source, device)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one source said; nothing but its name and the error where it could not be read to the end."""

    source: str
    scope: str | None = None
    rails: tuple[str, ...] = ()
    watts: float | None = None
    """Corrected, where that is asked for; so are `joules` and `bound_j`."""
    joules: float | None = None
    seconds: float | None = None
    quality: str | None = None
    coverage: float | None = None
    bound_j: float | None = None
    error: str | None = None
    rail_watts: dict[str, float] = msgspec.field(default_factory=dict)
    """As the source says them."""
    raw_watts: float | msgspec.UnsetType = msgspec.UNSET
    """Before the correction; left out where there is none."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """All sources that are there, and the one that is selected, if it can be used."""

    selected: str | None
    sources: tuple[Row, ...]


class _Watched:
    """One source while it is measured; the first thing that goes wrong with it is kept, and ends its measurement."""

    def __init__(self, name: str, settings: EnergySettings, reader: Reader | None, error: str = "") -> None:
        self.name, self.error = name, error
        self._settings, self._reader = settings, reader
        self._device: AnyDevice | None = None
        self._start: DeviceState | None = None
        self._rails_uj: list[int] = []
        self._row: Row | None = None

    def attempt(self, step: Callable[[_Watched], None]) -> None:
        """Take one step, unless an earlier one has failed."""
        if self.error:
            return
        try:
            step(self)
        except EnergyError as error:
            self.error = str(error)

    def open(self) -> None:
        """See that it moves."""
        from agent.energy.device import open_device

        if self._reader is not None:
            self._device = open_device(self._reader, max_w=self._settings.wanted.max_w)
            self._device.check_moving()

    def start(self) -> None:
        """Begin the window."""
        if self._device is not None:
            self._device.window(True)
            self._start, self._rails_uj = self._device.state(), self._device.get_energy()

    def look(self) -> None:
        """Read, so that no wrap is missed and a sensor that died is noticed."""
        if self._start is not None and self._device is not None:
            self._device.state()

    def end(self) -> None:
        """End the window."""
        from agent.energy.device import between

        if self._start is None or self._device is None or self._reader is None:
            return
        used = between(self._start, self._device.state())
        rails_uj = [now - then for now, then in zip(self._device.get_energy(), self._rails_uj, strict=True)]
        if used.energy_uj <= 0:
            raise EnergyError(f"{', '.join(self._reader.rails)}: nothing was counted in {used.seconds:.3f} s")
        correction = self._settings.correction
        energy_uj, seconds = correction.apply_uj(used.energy_uj, used.seconds), used.seconds
        self._row = Row(
            source=self.name,
            scope=self._reader.scope.value,
            rails=self._reader.rails,
            watts=round(energy_uj / 1e6 / seconds, 6),
            joules=round(energy_uj / 1e6, 6),
            seconds=round(seconds, 6),
            quality=SOURCES[self.name].quality.value,
            coverage=round(used.coverage, 6),
            bound_j=round(correction.slope * used.bound_uj / 1e6, 6),
            rail_watts={
                rail: round(used.mean_w * rail_uj / max(1, sum(rails_uj)), 6)
                for rail, rail_uj in zip(self._reader.rails, rails_uj, strict=True)
            },
            raw_watts=msgspec.UNSET if correction == Correction() else round(used.mean_w, 6),
        )

    def close(self) -> None:
        """Stop what was started."""
        if self._device is not None:
            with suppress(EnergyError):
                self._device.window(False)
            self._device.close()

    def row(self) -> Row:
        """Return what it said, or why it did not."""
        if self._row is not None:
            return self._row
        scope, rails = (self._reader.scope.value, self._reader.rails) if self._reader else (None, ())
        return Row(source=self.name, scope=scope, rails=rails, error=self.error)


def measure(asked: Asked, seconds: float, progress: Progress = lambda _: None) -> tuple[Measured, str]:
    """Read all sources that are there for so many seconds; return what they said, and why none is selected, or ""."""
    selected, watched, problem = _find(asked)
    try:
        _each(watched, _Watched.open)
        _each(watched, _Watched.start)
        for passed_s in _until(seconds):
            progress(passed_s)
            _each(watched, _Watched.look)
        _each(watched, _Watched.end)
    finally:
        for one in watched:
            one.close()
    rows = tuple(one.row() for one in watched)
    failed = [row.error for row in rows if row.source == selected and row.error]
    if failed:
        selected, problem = None, _named(selected or "", failed[0])
    return Measured(selected=selected, sources=rows), problem


def _find(asked: Asked) -> tuple[str | None, list[_Watched], str]:
    """Return the name of the selected source, all that are there, and why none is selected."""
    chosen, problem = None, ""
    try:
        chosen, _ = asked.choose()
    except EnergyError as error:
        problem = str(error)
    selected = chosen.name if chosen else ""
    watched = []
    for name, source in SOURCES.items():
        if source.quality is Quality.ESTIMATED and name not in {asked.forced, asked.energy.source}:
            continue
        settings = asked.settings(name, selected)
        if chosen is not None and name == selected:
            watched.append(_Watched(name, settings, chosen.reader))
            continue
        try:
            watched.append(_Watched(name, settings, source.find(settings.place, settings.wanted)))
        except AbsentError as error:
            if name == asked.source:
                watched.append(_Watched(name, settings, None, str(error)))
        except EnergyError as error:
            watched.append(_Watched(name, settings, None, str(error)))
    if problem and asked.source == "estimate" and asked.forced != "estimate":
        problem += _found([one.name for one in watched if not one.error])
    return selected or None, watched, problem


def _found(names: Sequence[str]) -> str:
    """Return what else could be taken where a profile knows no sensor."""
    if not names:
        return ""
    return f"; found here: {', '.join(names)}: take it with --source {names[0]} (energy.source: {names[0]})"


def _each(watched: Sequence[_Watched], step: Callable[[_Watched], None]) -> None:
    for one in watched:
        one.attempt(step)


def _until(seconds: float) -> Iterator[float]:
    """Wait until the time has passed, and yield how much has every now and then."""
    began_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < seconds:
        yield passed_s
        time.sleep(max(0.0, min(LOOK_S, began_s + seconds - time.monotonic())))


def _named(name: str, error: str) -> str:
    """Return the error with the name of the source before it, unless it begins with that or nobody named one."""
    return error if name in {"", "auto"} or error.startswith(f"{name}:") else f"{name}: {error}"


def table(measured: Measured) -> Iterator[str]:
    """Yield the lines of a table, and below it what does not fit into one; nothing where there are no sources."""
    if not measured.sources:
        return
    yield (
        f"  {'SOURCE':<13}{'SCOPE':<13}{'RAILS':<24}{'WATTS':>9}{'JOULES':>12}{'SECONDS':>9}  "
        f"{'QUALITY':<10}COVERAGE  BOUND"
    )
    for row in measured.sources:
        mark = "*" if row.source == measured.selected else " "
        if row.error:
            yield f"{mark} {row.source:<13}{row.error}"
        else:
            yield f"{mark} {_cells(row)}"
    for row in measured.sources:
        if row.source == measured.selected:
            yield from _details(row)


def _cells(row: Row) -> str:
    names = "+".join(row.rails)
    rails = names if len(names) <= _RAILS_WIDTH else f"{len(row.rails)} rails"
    numbers = f"{row.watts or 0:>9.3f}{row.joules or 0:>12.3f}{row.seconds or 0:>9.3f}"
    share = f"{row.coverage or 0:>8.1%}"
    return f"{row.source:<13}{row.scope:<13}{rails:<24}{numbers}  {row.quality:<10}{share}  {row.bound_j or 0:.3f} J"


def _details(row: Row) -> Iterator[str]:
    yield f"* {row.source} is selected; its rails:"
    for rail, watts in row.rail_watts.items():
        yield f"    {rail:<24}{watts:>9.3f} W"
    if row.raw_watts is not msgspec.UNSET:
        yield f"  {row.raw_watts:.3f} W as the source says; {row.watts:.3f} W with the correction for the whole board"
