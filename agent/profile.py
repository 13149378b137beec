"""Board profiles: what a kind of board measures its energy with, what it draws, and how much of it learning may take.

`firmware_profiles/` holds those that are shipped; one of your own is a file of the same form. docs/profiles.md tells
how to write and to calibrate one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

import firmware_profiles
from agent.energy.trace import published_row
from agent.errors import ConfigError
from agent.yaml_file import Document, Section, choose

ENERGY_SOURCES = ("rapl", "ina", "jetson-iio", "rpi-pmic", "power-supply", "nvml", "estimate", "trace")
MAX_W = 1000.0
"""No board of this project draws as much."""

Text = Annotated[str, Meta(min_length=1, max_length=1000)]
Ceiling = Annotated[int, Meta(ge=1, le=1_000_000)]

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_OVERLAY = re.compile(r"(dtparam|dtoverlay)=\S+")


class Watts(Section, frozen=True, kw_only=True):
    """A power in watts, and who measured it."""

    value: Annotated[float, Meta(ge=0, le=MAX_W)]
    source: Text


class Correction(Section, frozen=True, kw_only=True):
    """What a reading lacks to the power of the whole board: watts = slope x reading + offset_w."""

    slope: Annotated[float, Meta(gt=0, le=100)]
    offset_w: Annotated[float, Meta(ge=-MAX_W, le=MAX_W)]
    source: Text


class BoardEnergy(Section, frozen=True, kw_only=True):
    """Where joules come from on this board."""

    source: str
    rails: tuple[Text, ...] = ()
    """Those that add up to the total; left out: the source's own rule."""
    correction: Correction | None = None
    device: str = ""
    """For `trace`: the published device that is replayed."""
    workload: str = ""
    """For `trace`: that device's workload."""


class Power(Section, frozen=True, kw_only=True):
    """What the board draws in all; null: no source was found."""

    idle_w: Watts | None
    load_w: Watts | None
    """With all cores busy."""
    max_w: Watts | None
    """The most that was seen or is allowed."""


class Sensor(Section, frozen=True, kw_only=True):
    """What an operator does so that the agent can read the sensor."""

    overlays: tuple[str, ...] = ()
    """Lines for the Raspberry Pi's config.txt."""
    modules: tuple[str, ...] = ()
    """Modules of the kernel."""
    setup: tuple[str, ...] = ()
    """Commands that root may run instead, or besides."""
    groups: tuple[str, ...] = ()
    """Groups that the agent's user must be in."""
    udev: tuple[str, ...] = ()
    """Rules of udev, one a line."""
    notes: str = ""


class Ceilings(Section, frozen=True, kw_only=True):
    """How much learning may take of the board; `threads` and `max_batch_size` are for boards that train."""

    threads: Ceiling | None = None
    max_batch_size: Ceiling | None = None
    memory_mb: Ceiling
    """What the agent may take with its trainer, in 10^6 bytes."""
    source: Text


class Torch(Section, frozen=True, kw_only=True):
    """The build of torch that the board needs, as a requirement of pip."""

    requirement: Text
    note: Text


class Profile(Section, frozen=True, kw_only=True):
    """One kind of board."""

    version: Annotated[int, Meta(ge=1, le=1)]
    about: Text
    support: Literal["train", "relay", "none"]
    """`relay` shares and averages but never trains; `none` can do neither."""
    reason: str = ""
    """Why it does not train."""
    energy: BoardEnergy
    power: Power
    sensor: Sensor = Sensor()
    learning: Ceilings
    torch: Torch | None


def profile_names() -> tuple[str, ...]:
    """Return the names of the shipped profiles, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


def load_profile(name_or_path: str | Path) -> Profile:
    """Read and check a shipped profile, by name, or a file (with a `/` or ending in .yaml); ConfigError says where."""
    document = Document.read(_path(name_or_path))
    profile = document.to(Profile)
    for where, message in problems(profile):
        raise document.error(where, message)
    return profile


def _folder() -> Path:
    return Path(firmware_profiles.__path__[0])


def _path(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith(".yaml"):
        return Path(text)
    if problem := choose(text, profile_names()):
        raise ConfigError(f"profile: {problem}; a file of your own is named by a path that ends in .yaml")
    return _folder() / f"{text}.yaml"


def problems(profile: Profile) -> Iterator[tuple[str, str]]:
    """Yield what the types cannot tell, as (path, message)."""
    yield from _support_problems(profile)
    yield from _energy_problems(profile.energy)
    yield from _power_problems(profile.power)
    yield from _sensor_problems(profile.sensor)


def _support_problems(profile: Profile) -> Iterator[tuple[str, str]]:
    ceilings = {"threads": profile.learning.threads, "max_batch_size": profile.learning.max_batch_size}
    if profile.support == "train":
        if profile.torch is None:
            yield "$.torch", "a board that trains needs a build of torch; or say `support: relay`, and the reason"
        for name, value in ceilings.items():
            if value is None:
                yield "$.learning", f"a board that trains needs `{name}` here"
        return
    if not profile.reason.strip():
        yield "$.support", f"`support: {profile.support}` needs `reason`: why does this board not train?"
    if profile.torch is not None:
        yield "$.torch", f"`support: {profile.support}` trains nothing: write `torch: null`"
    for name, value in ceilings.items():
        if value is not None:
            yield f"$.learning.{name}", f"`support: {profile.support}` trains nothing: leave this out"


def _energy_problems(energy: BoardEnergy) -> Iterator[tuple[str, str]]:
    if problem := choose(energy.source, ENERGY_SOURCES):
        yield "$.energy.source", problem
    if len(set(energy.rails)) != len(energy.rails):
        yield "$.energy.rails", "a rail stands here twice, and would be counted twice"
    if energy.source != "trace":
        for name, value in (("device", energy.device), ("workload", energy.workload)):
            if value:
                yield f"$.energy.{name}", f"this is for `source: trace`, not for {energy.source}: leave it out"
        return
    if not (energy.device and energy.workload):
        yield "$.energy", "`source: trace` needs `device` and `workload`"
        return
    if energy.correction:
        yield "$.energy.correction", "a trace is replayed as it was published: leave this out"
    try:
        published_row(energy.workload, energy.device)
    except ConfigError as error:
        yield "$.energy.device", str(error).removeprefix("energy: ")


def _power_problems(power: Power) -> Iterator[tuple[str, str]]:
    known = [(name, watts.value) for name in ("idle_w", "load_w", "max_w") if (watts := getattr(power, name))]
    for (low, less), (high, more) in combinations(known, 2):
        if less > more:
            yield f"$.power.{high}.value", f"{high} {more:g} is less than {low} {less:g}"


def _sensor_problems(sensor: Sensor) -> Iterator[tuple[str, str]]:
    for name in ("overlays", "modules", "setup", "groups", "udev"):
        for i, line in enumerate(getattr(sensor, name)):
            if problem := _line_problem(name, line):
                yield f"$.sensor.{name}[{i}]", problem


def _line_problem(name: str, line: str) -> str:
    """Return what is wrong with one entry of a list of `sensor`, or ""."""
    if not line.strip() or not line.isprintable():
        return "one line of text is wanted here"
    if name == "overlays" and not _OVERLAY.fullmatch(line):
        return "a line of config.txt is wanted here, `dtparam=...` or `dtoverlay=...`, without blanks"
    if name in ("modules", "groups") and not _WORD.fullmatch(line):
        return f"{line!r} is no name of a {name[:-1]}"
    return ""
